"""Time and memory of the whole app on this machine: one JSON line per case.

    python benchmarks/app.py IMAGE [--cases one many shared start] [--participants 20] [--threads 2]

IMAGE is a T1w; datasets are made of links to it. Everything is written into a temporary folder and deleted.
Memory is the sum of the proportional set sizes of the run's processes, looked at once a second (Linux only).
"""

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CASES = {
    "one": "one participant, and the same inference called directly in one process",
    "many": "many participants: cost of each, whether later ones take longer or more memory",
    "shared": "one participant alone, and with another busy process on each processor",
    "start": "time to the first node on a dataset of 500 participants; stopped then",
}
START_PARTICIPANTS = 500
# What the app's network nodes do, without the app; imports are not counted.
DIRECT = """
import json, sys, time
from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
keep_freed_memory()
import torch
torch.set_num_threads(int(sys.argv[2]))
import medsegmamba_bids.api as msm
start = time.perf_counter()
msm.segment(sys.argv[1], hippocampus=True)
print(time.perf_counter() - start)
"""
# The machine's own speed: a fixed convolution, GMAC a second.
SPEED = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
layer = torch.nn.Conv3d(64, 64, 3, padding=1).to(memory_format=torch.channels_last_3d)
patch = torch.rand(1, 64, 48, 48, 48).to(memory_format=torch.channels_last_3d)
seconds = []
with torch.inference_mode():
    for _ in range(20):
        start = time.perf_counter()
        layer(patch)
        seconds.append(time.perf_counter() - start)
print(64**2 * 27 * 48**3 / min(seconds) / 1e9)
"""


def machine_speed(threads):
    """GMAC a second of a fixed convolution, so that times of different machines can be compared."""
    command = [sys.executable, "-c", SPEED, str(threads)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def make_dataset(folder, image, participants):
    """A BIDS dataset of links to one T1w."""
    suffix = ".nii.gz" if image.name.endswith(".gz") else ".nii"
    for number in range(1, participants + 1):
        anat = folder / f"sub-{number:04d}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{number:04d}_T1w{suffix}").symlink_to(image.resolve())
    (folder / "dataset_description.json").write_text('{"Name": "benchmark", "BIDSVersion": "1.10.0"}')
    return folder


class Watched:
    """The app on a dataset; ``peaks`` are (seconds since the start, GB) of its processes."""

    def __init__(self, dataset, threads):
        root = dataset.parent
        command = [sys.executable, "-m", "medsegmamba_bids", dataset, root / "out", "participant"]
        command += ["-w", root / "work", "--nprocs", threads, "--device", "cpu", "-v"]  # -v: a line per node
        self.start, self.lines, self.memory = time.perf_counter(), [], []
        self.process = subprocess.Popen(
            list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self):
        while self.process.poll() is None:
            self.memory.append((time.perf_counter() - self.start, tree_memory(self.process.pid)))
            time.sleep(1)

    def read(self):
        for line in self.process.stderr:
            self.lines.append((time.perf_counter() - self.start, line.strip()))
            yield self.lines[-1]

    def finish(self):
        self.process.stdout.read()
        if self.process.wait():
            raise SystemExit("\n".join(line for _, line in self.lines))
        return time.perf_counter() - self.start


def tree_memory(root):
    """GB of a process and all that it started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone
            continue
    total, wanted = 0, {root}
    for process in sorted(parents):
        if parents[process] in wanted:
            wanted.add(process)
    for process in wanted:
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError):
            continue
    return total / 2**20


def direct_seconds(image, options):
    """Seconds of the inference alone, in one process."""
    direct = [sys.executable, "-c", DIRECT, str(image), str(options.threads)]
    return float(subprocess.run(direct, check=True, stdout=subprocess.PIPE, text=True).stdout)


def one(image, folder, options):
    """The app against the inference alone."""
    seconds = direct_seconds(image, options)
    run = Watched(make_dataset(folder / "bids", image, 1), options.threads)
    list(run.read())
    whole = run.finish()
    peak = max(gigabytes for _, gigabytes in run.memory)
    return {"direct_s": seconds, "app_s": whole, "allowed_s": 1.3 * seconds + 8, "peak_GB": peak}


def many(image, folder, options):
    """Seconds of each against the inference alone; of the network on the first and last quarter of the participants;
    memory in both halves of the time.
    """
    direct = direct_seconds(image, options)
    run = Watched(make_dataset(folder / "bids", image, options.participants), options.threads)
    found = (re.search(r": aseg done, ([0-9.]+) s", line) for _, line in run.read())
    seconds = [float(match[1]) for match in found if match]
    whole, quarter = run.finish(), max(1, options.participants // 4)
    halves = [[gb for at, gb in run.memory if low <= at / whole < low + 0.5] for low in (0, 0.5)]
    return {
        "participants": options.participants,
        "seconds": whole,
        "direct_s": direct,
        "seconds_each": whole / options.participants,
        "allowed_each_s": 1.35 * direct,
        "network_s_first_quarter": statistics.median(seconds[:quarter]),
        "network_s_last_quarter": statistics.median(seconds[-quarter:]),
        "peak_GB_first_half": max(halves[0]),
        "peak_GB_second_half": max(halves[1]),
    }


def shared(image, folder, options):
    """One participant alone, then beside a process that computes without end on each processor."""
    seconds = {}
    for name, others in (("alone", 0), ("beside", options.threads)):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            (folder / name).mkdir()
            run = Watched(make_dataset(folder / name / "bids", image, 1), options.threads)
            list(run.read())
            seconds[name] = run.finish()
        finally:
            for process in busy:
                process.kill()
    return {"alone_s": seconds["alone"], "shared_s": seconds["beside"], "ratio": seconds["beside"] / seconds["alone"]}


def start(image, folder, options):
    """When the first node began."""
    run = Watched(make_dataset(folder / "bids", image, START_PARTICIPANTS), options.threads)
    for at, line in run.read():
        if found := re.search(r"done, ([0-9.]+) s", line):
            run.process.send_signal(signal.SIGINT)
            list(run.read())
            run.process.wait()
            return {"participants": START_PARTICIPANTS, "first_node_began_s": at - float(found[1])}
    raise SystemExit("\n".join(line for _, line in run.lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["one", "start"])
    parser.add_argument("--participants", type=int, default=20, help="of the case 'many', at least 4")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            result = {"one": one, "many": many, "shared": shared, "start": start}[case](
                options.image, Path(folder), options
            )
        result["machine_GMAC_per_s"] = machine_speed(options.threads)
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()}
        print(json.dumps({"case": case, "threads": options.threads, **rounded}), flush=True)


if __name__ == "__main__":
    main()
