"""Runs that are killed, and runs over what is finished."""

import hashlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from medsegmamba_bids.data.names import output_name

from .conftest import is_gone

pytestmark = pytest.mark.slow  # whole runs

KILLED_AFTER = ("conform", "aseg", "normalize")


def command(root, weights, *options):
    arguments = [root / "bids", root / "out", "participant", "-w", root / "work", "--aseg-weights", weights["aseg"]]
    arguments += ["--hippocampus-weights", "none", "--device", "cpu", "--nprocs", "2", "-v", *options]
    return [sys.executable, "-m", "medsegmamba_bids", *map(str, arguments)]


def finish(root, weights, *options):
    return subprocess.run(command(root, weights, *options), capture_output=True, text=True, check=False, timeout=300)


def kill_after(text, root, weights):
    """Start a run and kill its main process, without a chance to tidy up, once it has said something."""
    with subprocess.Popen(
        command(root, weights), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        for line in process.stderr:
            if text in line:
                break
        process.kill()
        process.wait(10)
    return process.pid


def results(root):
    """Content of the images and tables; their JSON also tells seconds and memory."""
    paths = [path for path in (root / "out" / "sub-01" / "anat").iterdir() if path.suffix != ".json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, weights, dataset):
    """A run killed again and again, each time further on, what it left, and a run that took it up."""
    root = tmp_path_factory.mktemp("resume")
    dataset(root / "bids", ["sub-01"])
    gone = [is_gone(kill_after(f"{step} done", root, weights)) for step in KILLED_AFTER]
    left = list((root / "out").rglob("*_stats.tsv"))
    gone.append(is_gone(kill_after("statistics_aseg done", root, weights)))
    nothing = root / "out" / "sub-01" / "anat" / ".sub-01_dseg.0a1b2c3d.part.nii.gz"  # as if killed while writing
    nothing.parent.mkdir(parents=True, exist_ok=True)
    nothing.write_bytes(b"half")
    return root, gone, left, finish(root, weights)


def test_nothing_goes_on_behind_a_killed_run(killed):
    _, gone, left, _ = killed
    assert all(gone)
    assert left == []


def test_the_next_run_takes_up_what_is_there(killed):
    root, _, _, again = killed
    assert again.returncode == 0, again.stderr
    assert "sub_01: aseg done, as before" in again.stderr
    assert "0 done, 1 flagged, 0 failed, 0 skipped" in again.stdout
    assert not list((root / "out").rglob("*.part*"))
    assert (root / "out" / "sub-01.html").is_file()


def test_what_is_finished_is_skipped_and_redone_alike(killed, weights, tmp_path):
    root = killed[0]
    before = results(root)
    started = time.monotonic()
    third = finish(root, weights, "--batch-size", "2", "--omp-nthreads", "1")
    took = time.monotonic() - started
    assert third.returncode == 0, third.stderr
    assert "sub-01_T1w  finished  skipped: finished already (--force redoes it)" in third.stdout
    assert not re.search(r": \w+ done,", third.stderr)  # no step was run
    # From the start, by a plugin of Nipype's own and without anything of the killed run: the same comes out.
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: MultiProc\nplugin_args:\n  n_procs: 2\n  memory_gb: 6\n")
    shutil.rmtree(root / "work")
    table = root / "out" / output_name("sub-01", "aseg_stats")
    table.write_text("damaged")
    damaged = finish(root, weights, "--use-plugin", plugin)
    assert damaged.returncode == 0, damaged.stderr
    assert "0 done, 1 flagged, 0 failed, 0 skipped" in damaged.stdout
    assert "as before" not in damaged.stderr
    assert results(root) == before
    assert took < 15
