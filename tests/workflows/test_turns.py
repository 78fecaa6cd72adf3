"""Two runs at once: locks, and in which order participants are taken up."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import ReportError
from medsegmamba_bids.execution import batches, locks, reports_only
from medsegmamba_bids.execution.batches import lock_paths
from medsegmamba_bids.execution.locks import owner_of, try_lock
from medsegmamba_bids.execution.reports_only import write_reports
from medsegmamba_bids.execution.run import refused
from medsegmamba_bids.workflows.participants import ROOT, participant_wf_name

HOLD = "import sys; from pathlib import Path; from medsegmamba_bids.execution.locks import try_lock\n"
HOLD += "lock = try_lock(Path(sys.argv[1])); print(bool(lock), flush=True); sys.stdin.read()"


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / "in", tmp_path / "out", work_dir=tmp_path / "work")


@pytest.fixture
def other():
    """Starts processes that hold a lock; they are killed in the end."""
    started = []

    def hold(path):
        process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"True\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_one_at_a_time(tmp_path):
    path = tmp_path / "locks" / "sub-01"
    first = try_lock(path)
    assert try_lock(path) is None
    first.release()
    assert not path.exists()
    second = try_lock(path)
    first.release()  # again: it has nothing any more
    assert path.exists()
    assert try_lock(path) is None
    second.release()


def test_a_killed_process_has_no_lock(tmp_path, other):
    path = tmp_path / "sub-01"
    process = other(path)
    assert try_lock(path) is None
    assert owner_of(path).startswith(f"process {process.pid} on ")
    process.kill()
    process.wait()
    lock = try_lock(path)
    assert lock is not None
    lock.release()


def test_a_file_deleted_meanwhile_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "sub-01"
    flock, calls = locks.fcntl.flock, []

    def late(file, how):
        if not calls:  # its owner deletes it between opening and locking
            path.unlink()
        calls.append(how)
        flock(file, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    lock = try_lock(path)
    assert len(calls) == 2
    assert path.exists()
    monkeypatch.undo()
    assert try_lock(path) is None
    lock.release()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def unsupported(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    assert try_lock(tmp_path / "sub-01") is not None
    assert "do not start two runs at once" in caplog.text


def refuse(monkeypatch, path, *modes):
    """A file cannot be opened in some ways, as another user's."""
    opened = Path.open

    def guarded(file, mode="r", **settings):
        if file == path and mode in modes:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, mode, **settings)

    monkeypatch.setattr(Path, "open", guarded)


def test_a_lock_file_of_another_user_is_locked_by_reading(tmp_path, monkeypatch, other):
    path = tmp_path / "sub-01"
    path.write_text("process 7 on x")
    refuse(monkeypatch, path, "a+")
    lock = try_lock(path)
    assert lock is not None
    assert path.read_text() == "process 7 on x"
    assert try_lock(path) is None
    monkeypatch.setattr(Path, "unlink", lambda file, **how: (_ for _ in ()).throw(PermissionError(13, "no")))
    lock.release()  # what cannot be deleted is free as well
    monkeypatch.undo()
    other(path)
    refuse(monkeypatch, path, "a+")
    assert try_lock(path) is None


def test_a_lock_that_cannot_say_whose_it_is_is_held_all_the_same(tmp_path, monkeypatch):
    """As on a full disk."""
    path = tmp_path / "sub-01"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locks.os, "write", full)
    lock = try_lock(path)
    assert lock is not None
    assert try_lock(path) is None
    lock.release()


@pytest.mark.parametrize("place", [0, 1])
def test_a_participant_that_cannot_be_locked_is_refused_and_no_other(config, monkeypatch, place):
    path = lock_paths("02", config)[place]
    path.parent.mkdir(parents=True)
    refuse(monkeypatch, path, "a+", "r")
    (batch,) = batches.locked_batches({"01": [], "02": []}, config)
    with batch:
        assert list(batch.subjects) == ["01"]
        assert list(batch.refused) == ["02"]
        assert batch.refused["02"].startswith(f"{path}: cannot be locked (Permission denied)")
        (outcome,) = refused(batch)
        assert (outcome.name, outcome.status, outcome.reasons) == ("sub-02", "skipped", (batch.refused["02"],))
        assert not lock_paths("02", config)[1 - place].exists()
    (batch,) = batches.locked_batches({"02": []}, config)
    assert (batch.subjects, list(batch.refused)) == ({}, ["02"])


@pytest.fixture
def reported(config, monkeypatch):
    """Workflows of reports that were to be run, as participants whose locks were held; each page is written."""
    ran = []

    def run(workflow):
        subjects = sorted({node.fullname.split(".")[1].split("_")[1] for node in workflow._create_flat_graph()})
        ran.append(([try_lock(lock_paths(subject, config)[0]) for subject in subjects], subjects))
        for subject in subjects:
            (config.output_dir / f"sub-{subject}.html").write_text("medsegmamba")
        return ""

    monkeypatch.setattr(reports_only, "open_runner", lambda *how: nullcontext(SimpleNamespace(run=run)))
    for subject in ("01", "02", "03"):
        (config.output_dir / f"sub-{subject}").mkdir(parents=True)
    return ran


def test_reports_alone_wait_for_who_is_at_a_participant(config, other, reported, monkeypatch):
    process = other(lock_paths("02", config)[0])

    def wait(seconds):
        process.kill()
        process.wait()

    monkeypatch.setattr(batches.time, "sleep", wait)
    outcomes = write_reports(config)
    assert reported == [([None, None], ["01", "03"]), ([None], ["02"])]
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [
        ("sub-01.html", "done"), ("sub-02.html", "done"), ("sub-03.html", "done")
    ]  # fmt: skip
    assert not list(config.output_dir.rglob("*.lock"))


def test_reports_alone_refuse_who_cannot_be_locked(config, reported, monkeypatch):
    path = lock_paths("02", config)[1]
    path.parent.mkdir(parents=True)
    refuse(monkeypatch, path, "a+", "r")
    outcomes = {outcome.name: outcome.status for outcome in write_reports(config)}
    assert outcomes == {"sub-01.html": "done", "sub-02": "skipped", "sub-03.html": "done"}


@pytest.mark.parametrize("options", [{}, {"exclude_participant_label": ("01",)}])
def test_reports_alone_of_nobody_are_refused(config, options):
    """A mistyped folder of results must not pass for one whose reports are written."""
    for label in options.get("exclude_participant_label", ()):
        (config.output_dir / f"sub-{label}").mkdir(parents=True)
    with pytest.raises(ReportError, match=f"{config.output_dir}: there are no results"):
        write_reports(replace(config, **options))


def test_reports_alone_that_are_stopped_say_what_was_not_begun(config, monkeypatch):
    """At the first failure, in the first batch of one."""
    node = f"{ROOT}.{participant_wf_name('01')}.report"

    def run(workflow):
        config.log_dir.mkdir(parents=True)
        (config.log_dir / "crash-1.txt").write_text(f"Node: {node}\n\nValueError: no table\n")
        return "ValueError: no table"

    monkeypatch.setattr(reports_only, "open_runner", lambda *how: nullcontext(SimpleNamespace(run=run)))
    monkeypatch.setattr(batches, "_size", lambda config: 2)
    for subject in ("01", "02", "03"):
        (config.output_dir / f"sub-{subject}").mkdir(parents=True)
    told = {outcome.name: outcome for outcome in write_reports(replace(config, stop_on_first_crash=True))}
    assert told["sub-01.html"].reasons == ("ValueError: no table",)
    assert [told[f"sub-{subject}.html"].status for subject in ("01", "02", "03")] == ["failed", "skipped", "skipped"]
    assert "the run stopped at the first failure" in told["sub-02.html"].reasons[0]


@pytest.mark.parametrize("folder", [0, 1])
def test_what_another_run_is_at_comes_last(config, other, folder, monkeypatch, caplog):
    """It may share the work folder, or the output folder, or both."""
    process = other(lock_paths("02", config)[folder])
    pauses = []

    def wait(seconds):
        pauses.append(seconds)
        free = try_lock(lock_paths("01", config)[0])  # all is released before it waits
        assert free
        free.release()
        if len(pauses) == 3:
            process.kill()
            process.wait()

    monkeypatch.setattr(batches.time, "sleep", wait)
    seen = []
    for batch in batches.locked_batches({"01": [], "02": [], "03": []}, config):
        with batch:
            seen.append((list(batch.subjects), batch.waited, len(batch.locks)))
            assert try_lock(lock_paths(batch.subjects.copy().popitem()[0], config)[0]) is None
    assert seen == [(["01", "03"], False, 4), (["02"], True, 2)]
    assert len(pauses) == 3
    assert f"sub-02: process {process.pid} on " in caplog.text
    assert not [path for name in ("02", "03") for path in lock_paths(name, config) if path.exists()]
