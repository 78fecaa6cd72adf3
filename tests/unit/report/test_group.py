"""The group's tables by value, made of small tables of volumes that are written here."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import fake
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.errors import GroupError
from medsegmamba_bids.image.labels import TABLES, load_label_table
from medsegmamba_bids.report.group import write_group
from medsegmamba_bids.report.group_page import narrow_name
from medsegmamba_bids.report.group_tables import described_measures
from medsegmamba_bids.report.quality import Flag, flags_path, flags_to_tsv
from medsegmamba_bids.stats.measures import Measure
from medsegmamba_bids.stats.tables import COLUMNS

ASEG, HIPPOCAMPUS = "group_seg-aseg_stats.tsv", "group_seg-hippoFS60_stats.tsv"


def add(root, prefix, caudate, task="aseg", etiv=1.5e6, **changes):
    """A table of two structures of a T1w."""
    names = ("Left-Caudate", "Brain-Stem") if task == "aseg" else ("Left-CA1", "Right-CA1")
    rows = []
    for number, (name, volume) in enumerate(zip(names, (caudate, 20000.5), strict=True)):
        row = dict.fromkeys(COLUMNS, math.nan) | {"SegId": 11 + number, "StructName": name, "NVoxels": volume // 1}
        rows.append(row | {"Volume_mm3": volume, "Flag": ""})
    measures = [Measure("EstimatedTotalIntraCranialVol", "eTIV", "Estimated volume", etiv)] if task == "aseg" else []
    fake.write_rows(root, prefix, task, pd.DataFrame(rows), measures, **changes)


@pytest.fixture
def out(tmp_path):
    """Three T1w of two participants."""
    add(tmp_path / "out", "sub-01_ses-a_run-1", 3500.25)
    add(tmp_path / "out", "sub-01_ses-b", 3400)
    add(tmp_path / "out", "sub-02", 3300, etiv=1.6e6)
    return tmp_path / "out"


def config(out, **options):
    return RunConfig(out.parent / "bids", out, "group", **options)


def read(path):
    return pd.read_csv(path, sep="\t", dtype={"run": str}, na_values=["n/a"], keep_default_na=False)


def test_a_row_per_t1w(out):
    add(out, "sub-02", 600, "hippocampus")
    assert write_group(config(out)) == 0
    rows = read(out / ASEG)
    assert rows["participant_id"].tolist() == ["sub-01", "sub-01", "sub-02"]
    assert rows["session_id"].fillna("").tolist() == ["ses-a", "ses-b", ""]
    assert rows["run"].fillna("").tolist() == ["1", "", ""]
    assert rows["scan"].tolist() == ["sub-01_ses-a_run-1_T1w", "sub-01_ses-b_T1w", "sub-02_T1w"]
    assert rows["Left-Caudate"].tolist() == [3500.25, 3400, 3300]
    assert rows["eTIV"].tolist() == [1.5e6, 1.5e6, 1.6e6]
    assert rows["weights"].str.startswith("embedded-aseg (").all()
    subfields = read(out / HIPPOCAMPUS)
    assert subfields[["participant_id", "Left-CA1"]].to_numpy().tolist() == [["sub-02", 600]]
    assert not list(out.glob(".*tmp*"))


def test_every_column_is_explained(out):
    write_group(config(out))
    sidecar = json.loads((out / ASEG).with_suffix(".json").read_text())
    assert set(read(out / ASEG)) <= set(sidecar)
    assert sidecar["Left-Caudate"]["Units"] == "mm3"
    assert sidecar["eTIV"] == {"Description": "Estimated volume", "Units": "mm3"}
    assert [one["Name"] for one in sidecar["Weights"]] == ["embedded-aseg"]


def test_ratings_are_shown_and_those_to_discard_can_be_left_out(out):
    path = out.parent / "ratings.tsv"
    path.write_text("participant\tsession\trun\trating\tnote\nsub-02\t\t\tdiscard\tit moved\nsub-01\tb\t\tkeep\t\n")
    write_group(config(out, ratings=path))
    rows = pd.read_csv(out / ASEG, sep="\t", na_values="n/a").set_index("scan")
    assert rows["rating"].fillna("").to_dict() == {
        "sub-01_ses-a_run-1_T1w": "", "sub-01_ses-b_T1w": "keep", "sub-02_T1w": "discard"
    }  # fmt: skip
    assert rows.loc["sub-02_T1w", "rating_note"] == "it moved"
    assert '"rating":"discard","note":"it moved"' in (out / "group.html").read_text()
    write_group(config(out, ratings=path, exclude_discarded=True))
    assert set(pd.read_csv(out / ASEG, sep="\t")["scan"]) == {"sub-01_ses-a_run-1_T1w", "sub-01_ses-b_T1w"}
    assert json.loads((out / ASEG).with_suffix(".json").read_text())["Discarded"] == ["sub-02"]
    with pytest.raises(GroupError, match="--exclude-discarded needs --ratings"):
        write_group(config(out, exclude_discarded=True))
    path.write_text("participant\tsession\trun\trating\nsub-02\t\t\tdiscard\n01\tb\t\tdiscard\n01\ta\t1\tdiscard\n")
    with pytest.raises(GroupError, match="nothing is left to gather"):
        write_group(config(out, ratings=path, exclude_discarded=True))


def test_ratings_of_images_that_are_not_gathered_do_not_end_the_group(out, caplog):
    path = out.parent / "ratings.tsv"
    path.write_text("participant\tsession\trun\trating\nsub-02\t\t\tdiscard\nsub-01\tb\t\tkeep\n")
    assert write_group(config(out, ratings=path, participant_label=("01",))) == 0
    assert read(out / ASEG).set_index("scan").loc["sub-01_ses-b_T1w", "rating"] == "keep"
    assert "sub-02 (line 2)" in caplog.text
    (out / output_name("sub-02", "aseg_stats")).write_text("nothing\n1\n")
    assert write_group(config(out, ratings=path, exclude_discarded=True)) == 1  # for the damaged table
    assert json.loads((out / ASEG).with_suffix(".json").read_text())["Discarded"] == []


def test_subfields_have_head_sizes(out):
    add(out, "sub-02", 600, task="hippocampus")
    write_group(config(out))
    assert pd.read_csv(out / HIPPOCAMPUS, sep="\t")["eTIV"].tolist() == [1.6e6]
    assert json.loads((out / HIPPOCAMPUS).with_suffix(".json").read_text())["eTIV"]["Units"] == "mm3"


def test_failures_are_listed_with_their_reason(out):
    crash = out / "sub-03" / "log" / "run" / "crash-1.txt"
    crash.parent.mkdir(parents=True)
    crash.write_text("Node: a.b\nTraceback\nmedsegmamba_bids.errors.ImageError: a.nii: empty\n")
    assert write_group(config(out)) == 1
    assert "it failed: a.nii: empty (see sub-03/log/run/crash-1.txt)" in (out / "group.html").read_text()


def test_one_t1w_is_no_group(out):
    shutil.rmtree(out / "sub-01")
    write_group(config(out))
    assert "There is one T1w, and so no group" in (out / "group.html").read_text()


def test_two_t1w_are_told_that_z_says_little(out):
    shutil.rmtree(out / "sub-02")
    write_group(config(out))
    page = (out / "group.html").read_text()
    assert "There are two T1w." in page
    assert '"z":[0.67,-0.67]' in page  # the caudate: 3500.25 and 3400
    assert re.search(r'"name":"Brain-Stem","narrow":"Brain-Stem","told":"no z: most volumes are alike"', page)


def test_structures_without_z_say_why(out):
    write_group(config(out))
    told = dict(re.findall(r'"name":"([^"]+)","narrow":"[^"]*","told":"([^"]*)"', (out / "group.html").read_text()))
    assert told == {"Left-Caudate": "", "Brain-Stem": "no z: most volumes are alike", "eTIV": told["eTIV"]}
    assert told["eTIV"] == "no z: most volumes are alike"  # 1.5, 1.5 and 1.6 litres


@pytest.mark.parametrize("table", TABLES)
def test_narrow_names_are_short_and_differ(table):
    names = load_label_table(table).names[1:]
    narrow = [narrow_name(name) for name in names]
    assert len(set(narrow)) == len(names)
    assert max(map(len, narrow)) <= 18


def test_a_column_of_flags(out):
    flags = [
        Flag("sub-02", "", "voxel_size", "", 2, "<= 1.5", "mm", "voxels are 2 mm"),
        Flag("sub-02", "hippoFS60", "missing", "Left-CA1", 0, ">= 1", "voxel", "Left-CA1 has 0 voxels"),
    ]
    flags_path(out, "02").write_text(flags_to_tsv(flags))
    write_group(config(out))
    # That about the subfields belongs to the other table.
    assert read(out / ASEG)["flags"].fillna("").tolist() == ["", "", "voxels are 2 mm"]


def test_joins_participants(out):
    text = "participant_id\tage\teTIV\nsub-02\t31\tx\nsub-07\t40\ty\nsub-01\t25\tz\n"
    out.joinpath("participants.tsv").write_text(text)
    assert write_group(config(out)) == 0  # who was never processed is listed, and no failure
    rows = read(out / ASEG)
    assert rows["age"].tolist() == [25, 25, 31]
    assert rows["participants_eTIV"].tolist() == ["z", "z", "x"]
    assert rows["eTIV"].tolist() == [1.5e6, 1.5e6, 1.6e6]
    assert json.loads((out / ASEG).with_suffix(".json").read_text())["Missing"] == ["sub-07"]


def test_another_tools_head_sizes_do_not_pass_for_ours(tmp_path):
    """Images without a skull have no eTIV: that of participants.tsv stood in its column, described as ours in mm3."""
    out = tmp_path / "out"
    fake.write_rows(out, "sub-01", "aseg", pd.DataFrame([dict.fromkeys(COLUMNS, 1) | {"StructName": "CSF"}]), [])
    path = out.parent / "bids" / "participants.tsv"
    path.parent.mkdir()
    path.write_text("participant_id\teTIV\tsbTIV\nsub-01\t1.4\t1.3\n")
    assert write_group(config(out)) == 0
    rows, sidecar = read(out / ASEG), json.loads((out / ASEG).with_suffix(".json").read_text())
    assert not {"eTIV", "sbTIV"} & {*rows, *sidecar}
    assert rows[["participants_eTIV", "participants_sbTIV"]].to_numpy().tolist() == [[1.4, 1.3]]
    assert sidecar["participants_eTIV"] == {"Description": "participants.tsv"}


@pytest.mark.parametrize("form", ["{}", " {} ", "sub-{}", " sub-{}"])
def test_participants_join_whatever_the_form_of_their_ids(out, form, caplog):
    rows = [f"{form.format(label)}\t{age}\t" for label, age in (("02", 31), ("01", 25))]
    out.joinpath("participants.tsv").write_text("\r\n".join(["participant_id\tage", *rows]), encoding="utf-8-sig")
    assert write_group(config(out)) == 0
    assert read(out / ASEG)["age"].tolist() == [25, 25, 31]
    assert "not in participants.tsv" not in caplog.text


def test_participants_that_the_table_does_not_name_are_named(out, caplog):
    out.joinpath("participants.tsv").write_text("participant_id\tage\n1\t25\nsub-02\t31\n")
    write_group(config(out))
    assert "not in participants.tsv: 1 of those with results (sub-01)" in caplog.text
    assert json.loads((out / ASEG).with_suffix(".json").read_text())["Missing"] == ["sub-1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("participant_id\tage\nsub-01\t25\nsub-01\t26\nsub-02\t31\n", "differ in age"),
        ("participant_id\tname\tage\nsub-01\tRené\t25\n", "line 2 is not UTF-8"),
        ('participant_id\tage\n"sub-01"\t25\n', "must be a label"),
    ],
)
def test_a_table_that_cannot_be_joined_is_named(out, text, reason):
    out.joinpath("participants.tsv").write_bytes(text.encode("latin-1"))
    assert write_group(config(out)) == 1
    assert "age" not in read(out / ASEG)
    assert reason in json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"]["participants.tsv"]


def test_copies_of_participants_folders_are_named_and_do_not_count(out):
    write_group(config(out))
    before = (out / ASEG).read_text()
    for copy in ("sub-01_old", "sub-01 copy"):
        shutil.copytree(out / "sub-01", out / copy)
    for path in (out / "sub-01").rglob("*_stats.*"):
        place = out / "sub-02/anat" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    assert write_group(config(out)) == 1
    assert (out / ASEG).read_text() == before
    failed = json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"]
    odd = "no participant's folder: labels are letters and digits"
    assert {name: reason for name, reason in failed.items() if reason == odd} == {"sub-01_old": odd, "sub-01 copy": odd}
    stranger = "its results lie in another image's folder"
    names = {f"{prefix}_T1w in sub-02" for prefix in read(out / ASEG)["scan"].str.removesuffix("_T1w")[:2]}
    assert {name for name, reason in failed.items() if reason == stranger} == names


def test_a_table_whose_content_was_not_fetched_is_named(out):
    """A link of DataLad without its target; that of another folder would be of other people, maybe."""
    (out.parent / "bids").mkdir()
    (out.parent / "bids" / "participants.tsv").symlink_to(".git/annex/objects/gone")
    (out / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    assert write_group(config(out)) == 1
    assert "age" not in read(out / ASEG)
    failed = json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"]
    assert failed == {"participants.tsv": "a link whose target is not there (datalad get fetches it)"}


def test_the_raw_dataset_goes_first(out):
    for folder, age in ((out, 20), (out.parent / "bids", 50)):
        folder.mkdir(exist_ok=True)
        folder.joinpath("participants.tsv").write_text(f"participant_id\tage\nsub-02\t{age}\n")
    write_group(config(out))
    assert read(out / ASEG)["age"].fillna(-1).tolist() == [-1, -1, 50]


def test_outliers(out):
    for number in range(3, 10):
        add(out, f"sub-{number:02}", 3350 + number)
    write_group(config(out))
    assert read(out / ASEG)["outliers"].dropna().tolist() == ["Left-Caudate", "Left-Caudate", "Left-Caudate"]
    add(out, "sub-09", 9000)
    write_group(config(out))
    rows = read(out / ASEG).set_index("scan")
    assert rows.loc["sub-09_T1w", "outliers"] == "Left-Caudate"
    assert rows.loc[["sub-04_T1w", "sub-05_T1w"], "outliers"].isna().all()


def test_small_groups_have_no_outliers(out):
    add(out, "sub-03", 90000)
    write_group(config(out))
    assert read(out / ASEG)["outliers"].isna().all()


def test_new_participants_join(out):
    write_group(config(out))
    add(out, "sub-03", 3000)
    write_group(config(out))
    assert read(out / ASEG)["Left-Caudate"].tolist() == [3500.25, 3400, 3300, 3000]
    write_group(config(out, participant_label=("02", "03")))
    assert read(out / ASEG)["participant_id"].tolist() == ["sub-02", "sub-03"]


def test_a_damaged_table_is_named_and_left_out(out):
    broken = output_name("sub-02", "aseg_stats")
    (out / broken).write_text("nothing\n1\n")
    assert write_group(config(out)) == 1
    assert read(out / ASEG)["participant_id"].tolist() == ["sub-01", "sub-01"]
    (name, reason), *others = json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"].items()
    assert name == Path(broken).name
    assert "it lacks the columns SegId" in reason
    assert not others


def test_a_damaged_sidecar_is_named(out):
    broken = out / output_name("sub-02", "aseg_stats", ".json")
    broken.write_text("{")
    assert write_group(config(out)) == 1
    (reason,) = json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"].values()
    assert broken.name in reason


def test_a_participant_without_tables_is_listed(out, caplog):
    (out / "sub-03").mkdir()
    assert write_group(config(out)) == 1
    failed = json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"]
    assert failed == {"sub-03": "it has no results"}
    assert "sub-03: it has no results" in caplog.text


@pytest.mark.parametrize("folder", ["sub-02", "sub-02/anat"])
def test_a_participant_that_cannot_be_read_is_named_and_the_others_are_gathered(out, monkeypatch, folder):
    """As pathlib says of another user's folder; root reads all."""
    asked = {name: getattr(Path, name) for name in ("iterdir", "is_dir", "exists")}
    for name, method in asked.items():

        def refuse(path, name=name, method=method):
            if out / folder in (path.parent, path if name == "iterdir" else None):
                raise PermissionError(13, "Permission denied", str(path))
            return method(path)

        monkeypatch.setattr(Path, name, refuse)
    assert write_group(config(out)) == 1
    assert set(read(out / ASEG)["scan"]) >= {"sub-01_ses-a_run-1_T1w", "sub-01_ses-b_T1w"}
    assert re.search(r"sub-02[^ ]*: cannot be read \(Permission denied\)", (out / "group.html").read_text())


def test_refuses_mixed_weights(out):
    add(out, "sub-03", 3000, name="another")
    with pytest.raises(GroupError) as caught:
        write_group(config(out))
    for word in ("embedded-aseg (", "for 3 of", "another (", "such as sub-03", "--allow-mixed-weights"):
        assert word in str(caught.value)
    assert not (out / ASEG).exists()
    assert write_group(config(out, allow_mixed_weights=True)) == 0
    assert read(out / ASEG)["weights"].str.split().str[0].tolist() == ["embedded-aseg"] * 3 + ["another"]


def test_refuses_the_same_tensors_with_other_settings(tmp_path):
    for number, fingerprint in enumerate(("ab" * 32, "ab" * 32, "cd" * 32), 1):
        add(tmp_path / "out", f"sub-{number}", 3000, fingerprint=fingerprint)
    with pytest.raises(GroupError, match=r"settings abababababab for 2 of .*settings cdcdcdcdcdcd for 1 of"):
        write_group(config(tmp_path / "out"))
    add(tmp_path / "out", "sub-4", 3000)  # of a time when they were not recorded
    with pytest.raises(GroupError, match="settings that were not recorded for 1 of"):
        write_group(config(tmp_path / "out"))


def test_refuses_mixed_templates(out):
    path = out / output_name("sub-02", "aseg_stats", ".json")
    sidecar = json.loads(path.read_text())
    sidecar["Template"] = {"Name": "MNI305", "Volume_mm3": 1948106.0}
    path.write_text(json.dumps(sidecar))
    with pytest.raises(GroupError) as error:
        write_group(config(out))
    for word in ("eTIV", "MNI152NLin2009aSym (constant 1886539.0 mm3) for 2 of", "MNI305 (constant", "such as sub-02"):
        assert word in str(error.value)
    del sidecar["Measures"]  # without an intracranial volume there is nothing to compare
    path.write_text(json.dumps(sidecar))
    assert write_group(config(out)) == 0


def test_the_json_says_what_the_volumes_are(out):
    add(out, "sub-02", 600, "hippocampus")
    write_group(config(out, group_long=True))
    for name, words in ((ASEG, "corrected for partial volume"), (HIPPOCAMPUS, "Sum of the posterior probabilities")):
        described = json.loads((out / name).with_suffix(".json").read_text())
        structure = "Left-Caudate" if name == ASEG else "Left-CA1"
        assert words in described[structure]["Description"]
        long = json.loads((out / name.replace("_stats", "_desc-long_stats")).with_suffix(".json").read_text())
        assert words in long["Volume_mm3"]["Description"]


def test_leaves_out_other_versions(out):
    add(out, "sub-03", 3000, version="0.0.1")
    assert write_group(config(out)) == 1
    assert len(read(out / ASEG)) == 3
    (reason,) = json.loads((out / ASEG).with_suffix(".json").read_text())["Failed"].values()
    assert "version 0.0.1" in reason
    assert write_group(config(out, allow_mixed_versions=True)) == 0
    assert len(read(out / ASEG)) == 4


def test_refuses_a_folder_without_results(tmp_path):
    with pytest.raises(GroupError, match="there are no volume tables to gather; run the participant level first"):
        write_group(config(tmp_path / "out"))


def test_the_long_form(out):
    write_group(config(out, group_long=True))
    rows = read(out / "group_seg-aseg_desc-long_stats.tsv")
    assert len(rows) == 6
    z = rows.loc[rows["StructName"] == "Left-Caudate", "robust_z"]
    assert z.tolist() == pytest.approx([0.6745 * 100.25 / 100, 0, -0.6745])


def test_a_long_form_of_an_earlier_run_is_named(out, caplog):
    """It holds other participants than the tables beside it, and looks like one of them."""
    write_group(config(out, group_long=True))
    add(out, "sub-03", 3600)
    write_group(config(out))
    path = out / "group_seg-aseg_desc-long_stats.tsv"
    assert f"{path}: is of an earlier run" in caplog.text
    caplog.clear()
    write_group(config(out, group_long=True))
    assert "earlier run" not in caplog.text


def test_a_long_form_that_nothing_is_left_for_is_named(out, caplog):
    path = out / "group_seg-hippoFS60_desc-long_stats.tsv"
    path.write_text("")
    write_group(config(out, group_long=True))
    assert f"{path}: is of an earlier run" in caplog.text


@pytest.mark.parametrize("options", [{"session_label": ("a",)}, {"run_label": ("1",)}, {"bids_filter_file": Path("f")}])
def test_a_selection_that_the_group_does_not_make_is_named(out, caplog, options):
    write_group(config(out, **options))
    assert len(read(out / ASEG)) == 3
    (name,) = options
    option = {"run_label": "--run-id"}.get(name, f"--{name.replace('_', '-')}")
    assert f"{option} selects images at the participant level only" in caplog.text


def test_who_is_excluded_and_not_there_is_named(out, caplog):
    """``7`` for ``07`` would exclude nobody without a word; who is in the dataset may have no results."""
    (out / "participants.tsv").write_text("participant_id\nsub-01\nsub-03\n")
    write_group(config(out, exclude_participant_label=("2", "03", "01")))
    told = "--exclude-participant-label excludes nobody called 2; with results there are 01, 02"
    assert told in caplog.text
    caplog.clear()
    write_group(config(out, exclude_participant_label=("02", "03")))
    assert "excludes nobody" not in caplog.text


def test_the_page_needs_nothing_else(out):
    (out / "sub-02.html").write_text("a report")
    write_group(config(out))
    page = (out / "group.html").read_text()
    assert 'src="http' not in page
    assert '<link rel="stylesheet' not in page
    assert '"href":"sub-02.html#sub-02"' in page
    assert '"values":[3500.2,3400.0,3300.0]' in page


def with_measures(*descriptions):
    """Tables whose JSON describes sbTIV so; None: it has no measures."""
    entries = [
        {"Measures": {"sbTIV": {"Description": text, "Units": "mm3", "Value": 1}}} if text else {}
        for text in descriptions
    ]
    return [SimpleNamespace(measures=True, scan=SimpleNamespace(sidecar=lambda name, e=e: e)) for e in entries]


def test_a_measure_that_is_another_in_some_images_is_said_to_be():
    assert described_measures(with_measures("all classes", "all classes")) == {
        "sbTIV": {"Description": "all classes", "Units": "mm3"}
    }
    found = described_measures(with_measures(None, "closed mask", "all classes", "all classes"))["sbTIV"]
    expected = "Not the same in all images: all classes (2 images); closed mask (1 images)"
    assert found == {"Description": expected, "Units": "mm3"}
    assert described_measures([]) == {}
