"""Results that a later run did not replace: the group takes them, and says so."""

import hashlib
import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest

import fake
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import as_identifier, output_name
from medsegmamba_bids.interfaces.record import forget
from medsegmamba_bids.longitudinal.change import VisitTable, change_table, to_tsv
from medsegmamba_bids.report.group import write_group
from medsegmamba_bids.report.old_results import _later_crash
from medsegmamba_bids.stats.tables import COLUMNS

PREFIXES = ("sub-01_ses-a", "sub-01_ses-b", "sub-02")
CRASH = "Node: medsegmamba_wf.sub_01_wf.{}.{}\nTraceback\nmedsegmamba_bids.errors.ImageError: a.nii: is empty\n"


def raw(prefix):
    """Path of a T1w within the dataset."""
    return output_name(prefix, "conformed").replace("_space-conform_desc-preproc", "")


def log(root, prefix, *rest):
    return root.joinpath(prefix.split("_")[0], "log", *rest)


def record(root, prefix, suffix="T1w", tables=("aseg_stats",), when=100):
    """Write the record of a run; ``when`` is its time of change."""
    paths = [root / output_name(prefix, name) for name in tables]
    outputs = {
        path.relative_to(root).as_posix(): {"SHA256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths
    }
    entries = {"MadeFrom": {"T1w": raw(prefix)}, "Inputs": {"T1w": {"Size": 3}}, "Outputs": outputs}
    path = log(root, prefix, f"{prefix}_{suffix}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    os.utime(path, (when, when))
    return path


def crash(root, prefix, part, step, when):
    path = log(root, prefix, "20260101", f"crash-20260101-{step}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CRASH.format(part, step))
    os.utime(path, (when, when))


@pytest.fixture
def out(tmp_path):
    """Three T1w with records."""
    root = tmp_path / "out"
    for prefix in PREFIXES:
        row = dict.fromkeys(COLUMNS, math.nan) | {"SegId": 17, "StructName": "Left-Hippocampus", "NVoxels": 4000}
        fake.write_rows(root, prefix, "aseg", pd.DataFrame([row | {"Volume_mm3": 4000.0, "Flag": ""}]), [])
        record(root, prefix)
    return root


def old(root):
    """What the group names; it takes all, and nothing failed."""
    assert write_group(RunConfig(root.parent / "bids", root, "group")) == 0
    path = root / "group_seg-aseg_stats.tsv"
    assert len(pd.read_csv(path, sep="\t")) == 3
    return json.loads(path.with_suffix(".json").read_text())["Old"]


def test_results_of_the_last_run_are_not_named(out, caplog):
    crash(out, "sub-01", "T1w_sub_01_ses_a_wf", "conform", 50)
    crash(out, "sub-01", "T1w_sub_01_ses_a_wf", "draw", 200)
    crash(out, "sub-01", "report", "", 200)
    assert old(out) == {}
    assert "may be old" not in caplog.text


def test_a_later_run_that_failed_is_named(out, caplog):
    crash(out, "sub-01", "T1w_sub_01_ses_a_wf", "conform", 200)
    place = "sub-01/log/20260101/crash-20260101-conform.txt"
    assert old(out) == {"sub-01_ses-a_T1w": f"a later run failed at conform: a.nii: is empty (see {place})"}
    assert "sub-01_ses-a_T1w: its results are taken, but may be old: a later run failed" in caplog.text
    assert "a later run failed at conform" in (out / "group.html").read_text()


@pytest.mark.parametrize("text", [None, "{", '{"Outputs": 3}'])
def test_results_without_a_record_are_named(out, text):
    path = log(out, "sub-02", "sub-02_T1w.json")
    path.unlink() if text is None else path.write_text(text)
    assert old(out) == {"sub-02_T1w": "no record says that the run that made them was finished"}


def test_results_that_a_forced_run_took_back_are_named(out):
    """It was killed before it had new ones."""
    forget(log(out, "sub-02", "sub-02_T1w.json"))
    assert list(old(out)) == ["sub-02_T1w"]


def test_a_later_run_of_an_image_with_a_plus_in_its_name_is_named(out):
    path = log(out, "sub-02", "sub-02_T1w.json")
    crash(out, "sub-02", "T1w_sub_02_acq_a__2b_b_wf", "conform", 200)
    part = f"T1w_{as_identifier('sub-02_acq-a+b')}_wf"
    assert _later_crash(path, part, out).startswith("a later run failed at conform: ")


@pytest.mark.parametrize("name", ["sub-02_T1w.json", "crash-20260101-conform.txt"])
def test_what_cannot_be_read_of_one_is_named_and_others_go_on(out, monkeypatch, name):
    crash(out, "sub-02", "T1w_sub_02_wf", "conform", 200)
    read = Path.read_text

    def refuse(path, *how, **more):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *how, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert list(old(out)) == ["sub-02_T1w"]


def test_a_dataset_that_cannot_be_read_is_as_one_that_is_not_there(out, monkeypatch):
    stat = Path.stat

    def refuse(path, **how):
        if {"bids", "sub-02"} <= {*path.parts}:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", refuse)
    assert old(out) == {}


def test_without_logs_nothing_is_known(out):
    for path in out.glob("sub-*/log/*"):
        path.unlink()
    for path in out.glob("sub-*/log"):
        path.rmdir()
    assert old(out) == {}


def test_tables_that_the_record_does_not_know_are_named(out):
    path = out / output_name("sub-02", "aseg_stats")
    path.write_text(path.read_text().replace("4000.000", "4001.000"))
    assert old(out) == {"sub-02_T1w": f"{path.name} is not as the last run that was finished left it"}


def test_another_image_is_named(out):
    path = out.parent / "bids" / raw("sub-02")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    assert old(out) == {}
    path.write_bytes(b"abcd")
    assert old(out) == {"sub-02_T1w": "the T1w in the dataset is another by now: 4 bytes, not 3"}
    entries = json.loads(log(out, "sub-02", "sub-02_T1w.json").read_text())
    entries["MadeFrom"]["T1w"] = "sub-03/anat/sub-03_T1w.nii.gz"
    log(out, "sub-02", "sub-02_T1w.json").write_text(json.dumps(entries))
    assert old(out) == {"sub-02_T1w": "they were made from another image, sub-03_T1w.nii.gz"}


def test_an_image_that_was_renamed_is_named(out):
    """Its results stay, and the participant would be twice in the tables; a dataset without images tells nothing."""
    folder = (out.parent / "bids" / raw("sub-02")).parent
    folder.mkdir(parents=True)
    assert old(out) == {}
    (folder / "sub-02_run-1_T1w.nii.gz").write_bytes(b"abc")
    assert old(out) == {
        "sub-02_T1w": "the T1w is no longer in the dataset, which has sub-02_run-1_T1w.nii.gz of this participant"
    }
    (folder / "sub-02_T1w.nii.gz").symlink_to("gone")  # DataLad's, its content dropped
    assert old(out) == {}


@pytest.fixture
def visits(out):
    """A table of visits of a participant; its path."""
    visits = []
    for years, session in enumerate("ab"):
        table = pd.DataFrame({"SegId": [17], "StructName": ["Left-Hippocampus"], "Volume_mm3": [4000.0]})
        table["MeanPosterior"] = 0.9
        visits.append(VisitTable(session, f"sub-01_ses-{session}_T1w", float(years), table, table))
    path = out / output_name("sub-01", "aseg_changes")
    path.parent.mkdir(parents=True)
    path.write_text(to_tsv(change_table(visits)))
    path.with_suffix(".json").write_text(json.dumps(fake.facts("aseg")))
    return path


def test_visits_whose_later_run_failed_are_named(out, visits):
    assert old(out) == {"sub-01_longitudinal": "no record says that the run that made them was finished"}
    record(out, "sub-01", "longitudinal", ["aseg_changes"])
    assert old(out) == {}
    crash(out, "sub-01", "longitudinal_wf", "align", 200)
    assert list(old(out)) == ["sub-01_longitudinal"]


def test_visits_made_from_images_that_were_processed_anew_are_named(out, visits):
    """Without ``--longitudinal``, from images that someone has replaced."""
    conformed = {prefix: output_name(prefix, "conformed") for prefix in PREFIXES[:2]}
    path = record(out, "sub-01", "longitudinal", ["aseg_changes"])
    add(path, "Inputs", {name: {"SHA256": "1"} for name in conformed.values()} | {raw("sub-01_ses-a"): {"SHA256": "2"}})
    for prefix, name in conformed.items():
        add(log(out, prefix, f"{prefix}_T1w.json"), "Outputs", {name: {"SHA256": "1"}})
    assert old(out) == {}
    add(log(out, "sub-01", "sub-01_ses-b_T1w.json"), "Outputs", {conformed["sub-01_ses-b"]: {"SHA256": "3"}})
    why = "images were processed anew since: sub-01_ses-b_T1w; --longitudinal does the visits anew, too"
    assert old(out) == {"sub-01_longitudinal": why}


def add(path, key, entries):
    """Add entries to a record, and keep its time."""
    before = path.stat()
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: content[key] | entries}))
    os.utime(path, (before.st_atime, before.st_mtime))
