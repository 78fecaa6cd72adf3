"""Two runs at once over the same participant, in one output folder and one work folder."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.report.run_records import fingerprint, read_record, record_path

pytestmark = pytest.mark.slow  # two whole runs

SUBJECTS = ("01",)


@pytest.fixture(scope="module")
def both(tmp_path_factory, weights, dataset):
    """Folder, and what each run said."""
    root = tmp_path_factory.mktemp("two")
    dataset(root / "bids", [f"sub-{subject}" for subject in SUBJECTS])
    command = [sys.executable, "-m", "medsegmamba_bids", root / "bids", root / "out", "participant", "-w", root / "w"]
    command += ["--aseg-weights", weights["aseg"], "--hippocampus-weights", "none", "--device", "cpu", "--nprocs", "1"]
    command += ["-v"]  # a line a step
    runs = [
        subprocess.Popen(map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        said = [run.communicate(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    return root, [(run.returncode, *texts) for run, texts in zip(runs, said, strict=True)]


def test_both_end_well(both):
    _, runs = both
    assert [code for code, _, _ in runs] == [0, 0], runs
    assert not any("FAILED" in errors for _, _, errors in runs)


def test_each_image_is_processed_once(both):
    _, runs = both
    for subject in SUBJECTS:
        lines = [line for _, out, _ in runs for line in out.splitlines() if line.startswith(f"sub-{subject}_T1w")]
        assert sorted(line.split()[1] for line in lines) == ["finished", "flagged"]
        assert sum(f"sub_{subject}: aseg done" in errors for _, _, errors in runs) == 1


def test_who_comes_late_waits_and_says_so(both):
    _, runs = both
    late = [(out, errors) for _, out, errors in runs if "waiting" in errors]
    assert late
    for out, errors in late:
        assert "is at it; waiting" in errors
        assert "skipped: finished by another run meanwhile" in out


def test_results_are_whole(both):
    root, _ = both
    for subject in SUBJECTS:
        record = read_record(record_path(root / "out", f"sub-{subject}"))
        for name, entry in record["Outputs"].items():
            assert fingerprint(root / "out" / name) == entry
        labels = nib.load(root / "out" / output_name(f"sub-{subject}", "aseg"))
        assert np.count_nonzero(labels.dataobj) > 1000
        assert (root / "out" / f"sub-{subject}.html").is_file()
    for path in (root / "out").rglob("*.json"):
        json.loads(path.read_text())
    assert not list((root / "out").rglob("*.part*"))
    assert not [path for folder in (root / "out", root / "w") for path in folder.rglob("*.lock")]
