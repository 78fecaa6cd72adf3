"""Time and memory of a run over many participants: a JSON line per hundred.

    python benchmarks/participants.py FOLDER T1W [--participants 1000] [--nprocs 2] [options of medsegmamba]

Makes a dataset of links to one T1w. The first participant is processed as usual. For all others each step hands out
what it made for the first instead of computing it (the T1w is the same), so that what is measured is the app itself:
search of the dataset, graphs, scheduling, hashing, writing of results, records and the table at the end. Reports are
copies as well.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

MODEL = "MEDSEGMAMBA_REPLAY"  # folder of the first participant's nodes, for processes that replay them
RUN = """\
import sys, participants
from medsegmamba_bids.cli.main import main
from medsegmamba_bids.execution import workers
workers.PRELOADED.append("participants")
sys.exit(main(sys.argv[1:]))
"""
STEP_S = 1.0


def replay(interface, runtime):
    """What a step made for the first participant, as its result for this one."""
    from nipype.pipeline.engine.utils import load_resultfile

    folder = Path(runtime.cwd)
    time.sleep(float(os.environ.get(f"{MODEL}_PAUSE", 0)))  # as if it worked
    if folder.name == "report":
        page = Path(interface.inputs.output_dir) / f"sub-{interface.inputs.subject}.html"
        shutil.copyfile(os.environ[f"{MODEL}_PAGE"], page)
        interface._results = {"out_file": str(page)}
        return runtime
    model = Path(os.environ[MODEL]) / folder.name
    outputs = load_resultfile(str(model / f"result_{folder.name}.pklz")).outputs.get()
    for name, value in outputs.items():
        if isinstance(value, str) and Path(value).is_file():
            copy = folder / Path(value).name
            os.link(value, copy)
            outputs[name] = str(copy)
    interface._results = outputs
    return runtime


if MODEL in os.environ:  # in the run that is measured, and in its workers
    from medsegmamba_bids.interfaces.step import StepInterface

    StepInterface._run_interface = replay


def make_dataset(root, t1w, number):
    for index in range(1, number + 1):
        folder = root / f"sub-{index:04d}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{index:04d}_T1w.nii.gz").symlink_to(t1w)
    (root / "dataset_description.json").write_text('{"Name": "links", "BIDSVersion": "1.10.0"}')


def memory_gb(session):
    """Private and shared-by-share memory of all processes of a session, and of its leader alone, GB."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                found[int(folder.name)] = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e6
        except (OSError, ValueError):
            continue
    return sum(found.values()), found.get(session, 0.0)


def measure(command, environment, out, every):
    """Run a command; a line for each so many participants, and one at the end."""
    start = last = time.monotonic()
    counted, peaks = 1, [0.0, 0.0]
    with (out.parent / "table.txt").open("w") as table:
        process = subprocess.Popen(command, env=environment, stdout=table, stderr=table, start_new_session=True)
    while process.poll() is None:
        time.sleep(STEP_S)
        peaks = [max(pair) for pair in zip(peaks, memory_gb(process.pid), strict=True)]
        done = sum(1 for _ in out.glob("sub-*/log/*_T1w.json"))
        if done >= counted + every:
            now = time.monotonic()
            tell(participants=done, seconds_each=(now - last) / (done - counted), memory_gb=peaks[0], main_gb=peaks[1])
            counted, last, peaks = done, now, [0.0, 0.0]
    seconds = time.monotonic() - start
    *_, sums, _, _ = (out.parent / "table.txt").read_text().splitlines()
    tell(code=process.returncode, seconds=seconds, sums=sums)


def tell(**entries):
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in entries.items()}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("t1w", type=Path)
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--every", type=int, default=100)
    arguments, options = parser.parse_known_args()
    folder = arguments.folder.absolute()
    bids, out, work = (folder / name for name in ("bids", "out", "work"))
    make_dataset(bids, arguments.t1w.absolute(), arguments.participants)
    command = ["-m", "medsegmamba_bids", bids, out, "participant", "--nprocs", arguments.nprocs, *options]
    first = [sys.executable, *command, "--participant-label", "0001", "-w", folder / "first"]
    subprocess.run(list(map(str, first)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        **os.environ,
        MODEL: str(next((folder / "first").glob("medsegmamba_wf/sub_0001_wf/T1w_*_wf"))),
        f"{MODEL}_PAGE": str(out / "sub-0001.html"),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    rest = [sys.executable, "-c", RUN, *command[2:], "-w", work, "--clean-workdir"]
    measure(list(map(str, rest)), environment, out, arguments.every)


if __name__ == "__main__":
    main()
