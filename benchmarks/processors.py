"""Seconds that one T1w's inference takes on other processors than this one, imitated: one JSON line per case.

    python benchmarks/processors.py IMAGE [--cases all avx2 core four]

Both embedded networks, as the app's nodes run them; imports are not counted. Labels and soft volumes are compared
with those of the first case. What takes instructions away is read by torch, oneDNN and numba when they are imported,
so that each case is a process of its own. numba's kernels are compiled when a case is first run on a machine and
kept: its second run tells the time. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CASES = {
    "all": "all instructions, a thread for each processor that may be used",
    "avx2": "the same without AVX-512",
    "core": "one processor and one thread",
    "four": "four threads",
}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "NUMBA_CPU_NAME": "haswell"}
RUN = """
import json, sys, time
from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
keep_freed_memory()
import numpy as np, torch
torch.set_num_threads(int(sys.argv[2]))
import medsegmamba_bids.api as msm
clock, used = time.perf_counter(), time.process_time()
result = msm.segment(sys.argv[1], hippocampus=True)
seconds, processor = time.perf_counter() - clock, time.process_time() - used
found = {"aseg": result.conformed.aseg, "subfields": result.conformed.hippocampus}
np.savez_compressed(sys.argv[3], **{name: one.labels for name, one in found.items()})
soft = {f"{name} {key}": value for name, one in found.items() for key, value in one.soft_volumes.items()}
print(json.dumps({"seconds": seconds, "processor_s": processor, "soft": soft}))
"""


def run(case, image, folder):
    """Seconds and soft volumes of a case; labels go into the folder."""
    cores = sorted(os.sched_getaffinity(0))
    threads = {"core": 1, "four": 4}.get(case, len(cores))
    pinned = ["taskset", "-c", str(cores[0])] if case == "core" else []
    command = [*pinned, sys.executable, "-c", RUN, str(image), str(threads), str(folder / f"{case}.npz")]
    environment = {**os.environ, "NUMBA_NUM_THREADS": str(threads), **(AVX2 if case == "avx2" else {})}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {"threads": threads, **json.loads(ran.stdout)}


def labels_that_differ(folder, one, other):
    """Number of voxels in which two cases' labels are not the same."""
    first, second = np.load(folder / f"{one}.npz"), np.load(folder / f"{other}.npz")
    return int(sum(np.count_nonzero(first[name] != second[name]) for name in first))


def largest_difference(one, other):
    """Of soft volumes, relative to the first."""
    return max(abs(other[name] - value) / value for name, value in one.items() if value > 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    first = None
    with tempfile.TemporaryDirectory() as name:
        for case in options.cases:
            result = run(case, options.image, Path(name))
            soft = result.pop("soft")
            first = first or (case, soft)
            result["labels_that_differ"] = labels_that_differ(Path(name), first[0], case)
            result["soft_volumes_differ"] = largest_difference(first[1], soft)
            print(
                json.dumps({"case": case, **{key: float(f"{value:.4g}") for key, value in result.items()}}), flush=True
            )


if __name__ == "__main__":
    main()
