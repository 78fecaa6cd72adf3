"""Pages of participants lead to each other once all are there."""

import json
import re
from pathlib import Path

import pytest

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import LockError
from medsegmamba_bids.execution import batches
from medsegmamba_bids.execution.batches import lock_participant
from medsegmamba_bids.execution.pages import link_pages
from medsegmamba_bids.execution.resume import record_report, report_is_current
from medsegmamba_bids.report.neighbours import subjects_with_pages

PAGE = '<meta name="generator" content="medsegmamba_bids 1"><span class="neighbours">{}</span><p>{}: pictures</p>'


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / "in", tmp_path / "out", work_dir=tmp_path / "work", nprocs=1, omp_nthreads=1, mem_gb=1)


@pytest.fixture
def out(config):
    """Pages of four participants, as a run leaves them that wrote one after the other."""
    for subject in ("01", "02", "03", "10"):
        (config.output_dir / f"sub-{subject}" / "log").mkdir(parents=True)
        (config.output_dir / f"sub-{subject}.html").write_text(PAGE.format("", subject))
        record_report(subject, config)
    return config.output_dir


def links(out):
    """The targets of each page's links, by rel."""
    found = {}
    for subject in subjects_with_pages(out):
        page = (out / f"sub-{subject}.html").read_text(encoding="utf-8")
        assert page.endswith(f"</span><p>{subject}: pictures</p>")
        found[subject] = dict(re.findall(r'rel="(\w+)" href="sub-(\w+)\.html"', page))
    return found


ALL = {
    "01": {"next": "02"},
    "02": {"prev": "01", "next": "03"},
    "03": {"prev": "02", "next": "10"},
    "10": {"prev": "03"},
}


def test_all_pages_lead_on(out, config):
    link_pages(["01", "02", "03", "10"], config)
    assert links(out) == ALL
    assert all(report_is_current(subject, config) for subject in ALL)


def test_a_run_over_one_participant_sets_its_neighbours_too(out, config):
    """So do the jobs of an array, each over one participant."""
    link_pages(["03"], config)
    assert links(out) == {**ALL, "01": {}}


def test_a_second_time_nothing_is_written(out, config):
    link_pages(ALL, config)
    before = {path: path.stat().st_ino for path in out.glob("*.html")}
    link_pages(ALL, config)
    assert {path: path.stat().st_ino for path in out.glob("*.html")} == before


def test_a_participant_that_left_is_not_led_to(out, config):
    link_pages(ALL, config)
    (out / "sub-02.html").unlink()
    link_pages(["03"], config)
    assert links(out) == {"01": {"next": "03"}, "03": {"prev": "01", "next": "10"}, "10": {"prev": "03"}}


def test_pages_that_another_run_is_at_and_of_other_tools_stay(out, config):
    locks = lock_participant("02", config)
    (out / "sub-10.html").write_text('<span class="neighbours"></span><p>10: pictures</p>')
    link_pages(ALL, config)
    assert links(out) == {**ALL, "02": {}, "10": {}}
    for lock in locks:
        lock.release()


@pytest.mark.parametrize("modes", [("rb",), ("w", "wb")])
def test_a_page_of_another_user_stays_and_is_told(out, config, monkeypatch, caplog, modes):
    """It comes after all the work, whose outcomes must be told."""
    opened = Path.open

    def refuse(path, mode="r", *how, **settings):
        if mode in modes and "sub-02" in path.name and path.suffix == ".html":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *how, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    link_pages(ALL, config)
    assert "sub-02.html: has no new links to the pages beside it (Permission denied)" in caplog.text
    monkeypatch.undo()
    assert links(out) == {**ALL, "02": {}}
    assert not list(config.output_dir.rglob("*.lock"))


def test_a_page_whose_participant_cannot_be_locked_stays_and_is_told(out, config, monkeypatch, caplog):
    lock = batches.try_lock

    def refuse(path):
        if "sub-02" in path.name:
            raise LockError(f"{path}: cannot be locked (Permission denied)")
        return lock(path)

    monkeypatch.setattr(batches, "try_lock", refuse)
    link_pages(ALL, config)
    assert "cannot be locked (Permission denied)" in caplog.text
    assert links(out) == {**ALL, "02": {}}


def test_a_report_that_was_out_of_date_stays_so(out, config):
    (out / "sub-01" / "log" / "report.json").write_text(json.dumps({"Version": "0"}))
    link_pages(["01"], config)
    assert links(out)["01"] == {"next": "02"}
    assert not report_is_current("01", config)
