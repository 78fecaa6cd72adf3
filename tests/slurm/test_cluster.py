"""An array job on a real cluster: tasks that are cancelled, out of memory or lost with their node, and what then.

Run it with ``MEDSEGMAMBA_TEST_SLURM=1 python -m pytest tests/slurm``; it takes some minutes. One participant is
processed for real; in the tasks each step of the workflow waits a second and hands out what it made of that one (the
images are links to the same), so that many tasks cost little. ``MEDSEGMAMBA_TEST_SLURM=real`` computes all.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.report.run_records import fingerprint, read_record, record_path
from medsegmamba_bids.stats.tables import read_tsv

from ..integration.conftest import make_dataset, make_weights
from .conftest import SWITCH, wait

SUBJECTS = [f"{number:02d}" for number in range(1, 21)]
CANCELLED, SMALL = 3, 10  # tasks; the second gets too little memory
REAL = os.environ.get(SWITCH) == "real"
TOO_LITTLE = 600 if REAL else 200  # MB; Python and Nipype alone take more than the second
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = ["--aseg-weights", "tiny.safetensors", "--hippocampus-weights", "none", "--device", "cpu", "--nprocs", "1"]
PATIENCE_S = 1500


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A dataset of 20 links to one image, and weights."""
    root = tmp_path_factory.mktemp("a study")
    bids = make_dataset(root / "bids", [f"sub-{subject}" for subject in SUBJECTS])
    first, *others = (bids / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz" for subject in SUBJECTS)
    for path in others:
        path.unlink()
        path.symlink_to(first)
    make_weights(root / "tiny.safetensors", "aseg")
    return root


class Submitter:
    """Runs ``medsegmamba-slurm`` over the study."""

    def __init__(self, cluster, study):
        self.cluster, self.study = cluster, study
        if not REAL:
            self.replay()

    def replay(self):
        """Process the first participant, elsewhere, and let all processes that start later hand out its steps."""
        command = [sys.executable, "-m", "medsegmamba_bids", "bids", "model", "participant", "-w", "model-work"]
        command += ["--participant-label", "01", *OPTIONS]
        environment = self.cluster.environment
        subprocess.run(command, env=environment, cwd=self.study, check=True, capture_output=True)
        customs = self.study / "customs"
        customs.mkdir()
        (customs / "sitecustomize.py").write_text("import participants\n")
        environment["PYTHONPATH"] = f"{customs}:{BENCHMARKS}"
        environment["MEDSEGMAMBA_REPLAY"] = str(next((self.study / "model-work").glob("*/sub_01_wf/T1w_*_wf")))
        environment["MEDSEGMAMBA_REPLAY_PAGE"] = str(self.study / "model" / "sub-01.html")
        environment["MEDSEGMAMBA_REPLAY_PAUSE"] = "1"

    def __call__(self, *sbatch, options=()):
        """Numbers of the array and the group job, folder of scripts; the first are empty where there are none."""
        command = [sys.executable, "-m", "medsegmamba_bids.cli.slurm", "bids", "out", "--submit", "-w", "work"]
        command += [*OPTIONS, *options, "--", *sbatch]
        self.said = subprocess.run(
            command, env=self.cluster.environment, cwd=self.study, capture_output=True, text=True, check=False
        )
        jobs = re.findall(r"^(?:array|group) job (\d+)", self.said.stdout, re.MULTILINE)
        folder = re.search(r"^scripts: (.+)$", self.said.stdout, re.MULTILINE)
        return jobs, folder and folder[1]


@pytest.fixture(scope="module")
def submit(cluster, study):
    return Submitter(cluster, study)


def finished(study):
    """Participants whose results are recorded, and as recorded."""
    found = []
    for subject in SUBJECTS:
        outputs = read_record(record_path(study / "out", f"sub-{subject}")).get("Outputs", {})
        if outputs and all(fingerprint(study / "out" / name) == entry for name, entry in outputs.items()):
            found.append(subject)
    return found


def text_of(folder, task):
    path = os.path.join(folder, f"task-{task}.log")  # noqa: PTH118
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError:
        return ""


@pytest.fixture(scope="module")
def first(cluster, study, submit):
    """The first submission, in which all goes wrong that may; its folder, states of tasks, and who is finished."""
    (array, group), folder = submit("--mem=3000M")
    cluster.run("scontrol", "update", f"JobId={array}_{SMALL}", f"MinMemoryNode={TOO_LITTLE}")
    wait(lambda: "conform done" in text_of(folder, CANCELLED), "the task to cancel", PATIENCE_S)
    cluster.run("scancel", f"{array}_{CANCELLED}")
    wait(lambda: len(finished(study)) >= 4, "some participants", PATIENCE_S)
    running = [number for number, state in cluster.states(array).items() if state == "RUNNING"]
    cluster.kill_node()
    wait(lambda: not cluster.node_is_up(), "the node's end", 300)
    cluster.start_node()
    for number in running:  # Slurm waits two minutes before it starts them again
        cluster.run("scontrol", "update", f"JobId={array}_{number}", "StartTime=now", check=False)
    wait(lambda: cluster.is_over(array), "the array", PATIENCE_S)
    states = cluster.states(array)
    wait(lambda: cluster.is_over(group), "the group job", 120)
    return folder, states, running, finished(study)


def test_the_cancelled_task_failed(first):
    folder, states, _, _ = first
    assert states[CANCELLED] == "CANCELLED"
    assert "interrupted" in text_of(folder, CANCELLED)


def test_the_task_without_memory_failed(first):
    folder, states, _, _ = first
    assert states[SMALL] in ("OUT_OF_MEMORY", "CANCELLED", "FAILED")
    assert "memory" in text_of(folder, SMALL)


def test_tasks_that_were_lost_with_the_node_ran_again(first):
    folder, states, running, _ = first
    again = [number for number in running if number not in (CANCELLED, SMALL)]
    assert again
    for number in again:
        assert states[number] == "COMPLETED"
        assert text_of(folder, number).count(f"participants {SUBJECTS[number - 1]} on ") == 2


def test_all_others_are_finished_and_gathered(first, study):
    _, states, _, there = first
    missing = {SUBJECTS[CANCELLED - 1], SUBJECTS[SMALL - 1]}
    assert set(there) == set(SUBJECTS) - missing
    assert sum(state == "COMPLETED" for state in states.values()) == len(SUBJECTS) - 2


def test_a_resubmission_runs_what_is_missing(first, cluster, study, submit):
    kept = {subject: record_path(study / "out", f"sub-{subject}").stat().st_mtime_ns for subject in first[3]}
    (array, group), folder = submit("--mem=3000M")
    assert "finished already: 18 of 20 participants" in submit.said.stdout
    wait(lambda: cluster.is_over(array) and cluster.is_over(group), "the second array", PATIENCE_S)
    assert set(cluster.states(array).values()) == {"COMPLETED"}, text_of(folder, 1)
    assert finished(study) == SUBJECTS
    for subject, time in kept.items():
        assert record_path(study / "out", f"sub-{subject}").stat().st_mtime_ns == time
    # Who has the same image has the same volumes, however often it was interrupted; and all are gathered.
    tables = {subject: read_tsv(study / "out" / output_name(f"sub-{subject}", "aseg_stats")) for subject in SUBJECTS}
    assert all(table.equals(tables["01"]) for table in tables.values())
    rows = (study / "out" / "group_seg-aseg_stats.tsv").read_text().splitlines()
    assert len(rows) == 1 + len(SUBJECTS)
    assert not list((study / "out").rglob("*.part*"))
    assert json.loads((study / "out" / "dataset_description.json").read_text())["DatasetType"] == "derivative"


def test_nothing_is_left(first, study, submit):
    jobs, _ = submit("--mem=3000M")
    assert jobs == []
    assert submit.said.returncode == 0
    assert "nothing is left to do, so there is no array job" in submit.said.stdout


def test_an_unknown_partition(first, submit):
    jobs, _ = submit("--partition=nowhere", options=["--force"])
    assert jobs == []
    assert submit.said.returncode == 1
    assert "Slurm refused the jobs: invalid partition specified: nowhere" in submit.said.stderr
    assert submit.said.stderr.endswith("partitions are work\n")


def test_more_tasks_than_an_array_takes(cluster, study, submit):
    """The cluster takes 100."""
    bids = make_dataset(study / "many" / "bids", [])
    for number in range(101):
        folder = bids / f"sub-{number:03d}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{number:03d}_T1w.nii.gz").touch()
    command = [sys.executable, "-m", "medsegmamba_bids.cli.slurm", bids, study / "many" / "out"]
    ended = subprocess.run(
        list(map(str, command)), env=cluster.environment, cwd=study, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "101 tasks are more than this cluster takes in an array (100); use --per-task 2 or more" in ended.stderr


def test_nipypes_own_plugin(cluster, study, tmp_path):
    """``--use-plugin`` with Nipype's SLURM: a job per node. It takes no space in the name of the work folder."""
    (study / "plugin.yml").write_text(
        f"plugin: SLURM\nplugin_args:\n  sbatch_args: '--mem=2000M --cpus-per-task=1 --chdir={cluster.root}'\n"
    )
    command = [sys.executable, "-m", "medsegmamba_bids", "bids", "plugin-out", "participant", "-w", str(tmp_path)]
    command += ["--participant-label", "01", "--use-plugin", "plugin.yml", *OPTIONS]
    ended = subprocess.run(
        command, env=cluster.environment, cwd=study, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 done, 1 flagged, 0 failed, 0 skipped" in ended.stdout
    table = output_name("sub-01", "aseg_stats")
    assert (study / "plugin-out" / table).read_bytes() == (study / "out" / table).read_bytes()
