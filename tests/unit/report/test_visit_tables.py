"""The group's tables of visits that were processed together: what is in them, and what is left out and told."""

import json
import math

import pandas as pd
import pytest

import fake
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.image.io import write_text
from medsegmamba_bids.longitudinal.change import VisitTable, change_table, to_tsv
from medsegmamba_bids.report.group import write_group
from medsegmamba_bids.segmentations import ASEG
from medsegmamba_bids.stats.tables import COLUMNS

VOLUMES = {"a": 4000.0, "b": 3900.0, "c": 3700.0}


def add_scan(out, prefix, volume, **changes):
    """Write a table of volumes of a T1w, of one structure."""
    row = dict.fromkeys(COLUMNS, math.nan) | {"SegId": 17, "StructName": "Left-Hippocampus", "NVoxels": volume // 1}
    fake.write_rows(out, prefix, "aseg", pd.DataFrame([row | {"Volume_mm3": volume, "Flag": ""}]), [], **changes)


def visit(prefix, session, years, volume, relative=None):
    table = pd.DataFrame({"SegId": [17], "StructName": ["Left-Hippocampus"], "Volume_mm3": [volume]})
    table["MeanPosterior"] = 0.9
    return VisitTable(session, f"{prefix}_ses-{session}_T1w", years, table, table, relative or {})


def add_visits(out, subject, volumes=VOLUMES, years=None, shape=None, **changes):
    """Write what a run with --longitudinal leaves of a participant; return the path of the table of visits."""
    prefix, visits = f"sub-{subject}", []
    for number, (session, volume) in enumerate(volumes.items()):
        add_scan(out, f"{prefix}_ses-{session}", volume, **changes)
        when = float(number) if years is None else years[number]
        visits.append(visit(prefix, session, when, volume, {17: shape[number]} if shape else None))
    path = out / output_name(prefix, ASEG.changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_tsv(change_table(visits)))
    made = fake.facts("aseg", **changes)
    weights = next(step["Weights"] for step in made["Steps"] if "Weights" in step)
    write_text(path.with_suffix(".json"), json.dumps({"Weights": weights, "Versions": made["Versions"], "Notes": []}))
    return path


@pytest.fixture
def out(tmp_path):
    """Two participants of three visits each, a year apart."""
    for subject in ("01", "02"):
        add_visits(tmp_path / "out", subject)
    return tmp_path / "out"


def config(out, **options):
    return RunConfig(out.parent / "bids", out, "group", **options)


def read(out, desc):
    return pd.read_csv(out / f"group_seg-aseg{desc}_stats.tsv", sep="\t", na_values="n/a")


def told(out, desc):
    return json.loads((out / f"group_seg-aseg{desc}_stats.json").read_text())


def test_tables_of_all_visits(out):
    assert write_group(config(out)) == 0
    assert read(out, "_desc-visits")["Left-Hippocampus"].tolist() == [4000, 3900, 3700] * 2
    assert read(out, "_desc-slopes")["Slope_mm3"].tolist() == pytest.approx([-150, -150])
    assert read(out, "_desc-longitudinal")["scan"].tolist() == [
        f"sub-{subject}_ses-{session}_T1w" for subject in ("01", "02") for session in "abc"
    ]


@pytest.mark.parametrize(("kept", "reason"), [(60, "it lacks the columns"), (None, "it has no rows"), (-20, "cells")])
def test_a_damaged_table_of_visits_is_named_and_left_out(out, kept, reason):
    path = out / output_name("sub-02", ASEG.changes)
    text = path.read_text()
    path.write_text(text[:kept] if kept else text.splitlines()[0] + "\n")
    assert write_group(config(out)) == 1
    assert set(read(out, "_desc-visits")["participant_id"]) == {"sub-01"}
    assert reason in told(out, "")["Failed"][path.name]
    assert told(out, "_desc-slopes")["Failed"] == told(out, "")["Failed"]
    assert path.name in (out / "group.html").read_text()


def test_no_table_of_visits_is_left(out):
    for subject in ("01", "02"):
        (out / output_name(f"sub-{subject}", ASEG.changes)).write_text("nothing\n")
    assert write_group(config(out)) == 1
    assert not (out / "group_seg-aseg_desc-visits_stats.tsv").exists()
    assert len(read(out, "")) == 6


def rated(out, *rows):
    """Options that leave T1w images out which a person discards."""
    path = out.parent / "ratings.tsv"
    path.write_text("participant\trating\tscan\n" + "".join(f"{row[:6]}\tdiscard\t{row}_T1w\n" for row in rows))
    return {"ratings": path, "exclude_discarded": True}


def test_discarded_visits_are_in_no_table(out, caplog):
    add_visits(out, "01", {"a": 4000.0, "b": 3900.0, "c": 100.0})
    assert write_group(config(out, **rated(out, "sub-01_ses-c"))) == 0
    for desc in ("", "_desc-visits", "_desc-longitudinal"):
        assert "sub-01_ses-c_T1w" not in set(read(out, desc)["scan"])
    assert read(out, "_desc-slopes")["Slope_mm3"].tolist() == pytest.approx([-100, -150])
    left_out = {"sub-01_ses-c_T1w": "it is rated to be discarded"}
    assert told(out, "_desc-slopes")["LeftOut"] == told(out, "_desc-visits")["LeftOut"] == left_out
    assert "of the tables of visits: sub-01_ses-c_T1w is left out: it is rated to be discarded" in caplog.text


def test_changes_are_from_the_first_visit_that_is_left(out):
    assert write_group(config(out, **rated(out, "sub-01_ses-a"))) == 0
    rows = read(out, "_desc-longitudinal").set_index("scan")
    of_one = rows.loc[["sub-01_ses-b_T1w", "sub-01_ses-c_T1w"]]
    assert of_one["years"].tolist() == [0, 1]
    assert of_one["Change_mm3"].tolist() == [0, -200]
    assert of_one["Change_percent"].tolist() == pytest.approx([0, -200 / 39], abs=1e-4)
    assert of_one["AnnualSymmetrizedChange_percent"].iloc[1] == pytest.approx(-200 / 38, abs=1e-4)
    assert rows.loc["sub-02_ses-c_T1w", "Change_mm3"] == -300
    assert read(out, "_desc-visits")["years"].tolist() == [0, 1, 0, 1, 2]


def test_a_spoilt_visit_does_not_set_the_level_of_the_others(out):
    shape = [1.0, 0.99, 0.98]
    add_visits(out, "01", {"a": 4000.0, "b": 3980.0, "c": 100.0}, shape=shape)
    add_visits(out, "02", {"a": 4000.0, "b": 3980.0}, shape=shape)
    write_group(config(out, **rated(out, "sub-01_ses-c")))
    rows = read(out, "_desc-longitudinal")
    numbers = rows.drop(columns=["participant_id", "scan"]).set_index("session_id")
    first, second = (numbers[(rows["participant_id"] == name).to_numpy()] for name in ("sub-01", "sub-02"))
    pd.testing.assert_frame_equal(first, second, atol=2e-3)


@pytest.mark.parametrize("others", [(), ("sub-02_ses-a", "sub-02_ses-c")])
def test_one_visit_has_no_change(out, others):
    names = ("sub-01_ses-a", "sub-01_ses-b", *others)
    assert write_group(config(out, **rated(out, *names))) == 0
    if others:
        assert not (out / "group_seg-aseg_desc-visits_stats.tsv").exists()
        return
    assert set(read(out, "_desc-visits")["participant_id"]) == {"sub-02"}
    assert told(out, "_desc-visits")["LeftOut"]["sub-01"] == "one session is left of its visits; two are needed"


def test_what_is_no_longer_written_is_said(out, caplog):
    write_group(config(out))
    caplog.clear()
    write_group(config(out, **rated(out, *(f"sub-{n}_ses-{s}" for n in ("01", "02") for s in "ab"))))
    assert "group_seg-aseg_desc-visits_stats.tsv: is of an earlier run, and nothing is left to write" in caplog.text


def test_visits_whose_own_tables_were_left_out_are_too(out):
    add_scan(out, "sub-01_ses-a", 4000.0, version="0.0.1")
    (out / output_name("sub-02_ses-c", "aseg_stats")).write_text("nothing\n")
    assert write_group(config(out)) == 1
    assert read(out, "_desc-visits")["scan"].tolist() == [
        f"sub-{name}_T1w" for name in ("01_ses-b", "01_ses-c", "02_ses-a", "02_ses-b")
    ]
    reason = "its own table of volumes is not among those of the group"
    assert told(out, "_desc-visits")["LeftOut"] == {"sub-01_ses-a_T1w": reason, "sub-02_ses-c_T1w": reason}


def test_the_json_says_what_made_the_visits(out):
    for subject in ("01", "02"):
        add_visits(out, subject, name="B")
    (out / output_name("sub-02", ASEG.changes)).unlink()
    assert write_group(config(out)) == 0
    made = told(out, "_desc-slopes")
    assert [one["Name"] for one in made["Weights"]] == ["B"]
    assert made["Versions"] == told(out, "")["Versions"]


def redo_scans(out, subject, **changes):
    for session, volume in VOLUMES.items():
        add_scan(out, f"sub-{subject}_ses-{session}", volume, **changes)


def test_visits_by_other_weights_than_the_images_are_left_out(out):
    redo_scans(out, "01", name="B")
    add_visits(out, "02", name="B")
    assert write_group(config(out)) == 1
    assert set(read(out, "_desc-visits")["participant_id"]) == {"sub-02"}
    assert [one["Name"] for one in told(out, "_desc-visits")["Weights"]] == ["B"]
    ((name, reason),) = told(out, "")["Failed"].items()
    assert name == "sub-01_seg-aseg_desc-longitudinal_stats.tsv"
    for word in ("visits were made with embedded-aseg (", "T1w images with B (", "--longitudinal again"):
        assert word in reason
    assert write_group(config(out, allow_mixed_weights=True)) == 0
    assert set(read(out, "_desc-visits")["participant_id"]) == {"sub-01", "sub-02"}
    assert [one["Name"] for one in told(out, "_desc-visits")["Weights"]] == ["embedded-aseg", "B"]


def test_visits_by_the_same_tensors_with_other_settings_are_left_out(out):
    for subject in ("01", "02"):
        add_visits(out, subject, fingerprint="ab" * 32)
    for subject in ("01", "02"):
        redo_scans(out, subject, fingerprint="cd" * 32)
    assert write_group(config(out)) == 1
    reason = told(out, "")["Failed"]["sub-01_seg-aseg_desc-longitudinal_stats.tsv"]
    assert "settings abababababab" in reason
    assert "settings cdcdcdcdcdcd" in reason
    assert not (out / "group_seg-aseg_desc-visits_stats.tsv").exists()


def test_visits_by_another_version_are_left_out(out):
    add_visits(out, "01", version="0.0.1")
    redo_scans(out, "01")
    assert write_group(config(out)) == 1
    assert set(read(out, "_desc-visits")["participant_id"]) == {"sub-02"}
    reason = told(out, "")["Failed"]["sub-01_seg-aseg_desc-longitudinal_stats.tsv"]
    assert "made by version 0.0.1 of medsegmamba_bids" in reason
    assert "(--allow-mixed-versions takes it in)" in reason
    assert write_group(config(out, allow_mixed_versions=True)) == 0
    assert told(out, "_desc-visits")["Versions"][0] == "0.0.1"


@pytest.mark.parametrize("text", ['{"Notes": []}', None])
def test_visits_that_do_not_say_what_made_them_are_left_out(out, text):
    path = (out / output_name("sub-01", ASEG.changes)).with_suffix(".json")
    path.unlink() if text is None else path.write_text(text)
    assert write_group(config(out)) == 1
    reason = told(out, "")["Failed"]["sub-01_seg-aseg_desc-longitudinal_stats.tsv"]
    assert reason.startswith("it does not say which weights made it")
    assert "--longitudinal again, and --force" in reason
    assert set(read(out, "_desc-visits")["participant_id"]) == {"sub-02"}


def test_a_damaged_json_of_visits_is_named(out):
    (out / output_name("sub-01", ASEG.changes)).with_suffix(".json").write_text("{")
    assert write_group(config(out)) == 1
    assert "cannot be read as JSON" in told(out, "")["Failed"]["sub-01_seg-aseg_desc-longitudinal_stats.tsv"]


def test_rows_of_a_session_that_differ_are_not_joined(out, caplog):
    rows = ("session_id\tscore", "ses-a\t20", "ses-a\t20", "b\t25", "ses-b\t29")
    path = out.parent / "bids" / "sub-01" / "sub-01_sessions.tsv"
    path.parent.mkdir(parents=True)
    write_text(path, "\n".join(rows) + "\n")
    write_group(config(out))
    assert "has several rows of ses-b that differ; they are not joined" in caplog.text
    scores = read(out, "_desc-visits")["score"]
    assert scores[0] == 20
    assert scores[1:].isna().all()
