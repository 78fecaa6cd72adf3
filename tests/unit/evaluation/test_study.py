"""Reference and methods meet by participant, session and run; what is left over is said."""

import pytest

from medsegmamba_bids.errors import EvaluationError, TableError
from medsegmamba_bids.evaluation.compare.study import Dataset, divide, match_dataset, parse_methods, read_study


def folder(root, *stems):
    root.mkdir(parents=True)
    for stem in stems:
        (root / f"{stem}.nii.gz").touch()
    return str(root)


def matched(tmp_path, reference, **methods):
    places = {name: folder(tmp_path / name, *stems) for name, stems in methods.items()}
    items, notes = match_dataset(Dataset("all", folder(tmp_path / "truth", *reference), places), "aseg")
    pairs = [
        (item.reference.choices[0][0][0].name, *(one.choices[0][0][0].name for one in item.methods.values()))
        for item in items
    ]
    return [tuple(name.removesuffix(".nii.gz") for name in pair) for pair in pairs], notes


def test_equal_names_meet(tmp_path):
    pairs, notes = matched(
        tmp_path, ["sub-01_ses-1", "sub-01_ses-2", "sub-02"], mine=["01_x", "sub-01_ses-2_T1w_synthseg", "sub-02_dseg"]
    )
    assert pairs == [("sub-01_ses-2", "sub-01_ses-2_T1w_synthseg"), ("sub-02", "sub-02_dseg")]
    assert notes == [
        "all: mine has 2 of the reference's 3 scans; without it and therefore left out for all methods: sub-01_ses-1",
        "all: mine has 1 scans that the reference lacks: 01_x",
    ]


def test_a_session_that_one_side_leaves_out_is_no_obstacle(tmp_path):
    pairs, notes = matched(tmp_path, ["sub-01", "sub-02_run-1"], mine=["sub-01_ses-1", "sub-02_ses-3"])
    assert pairs == [("sub-01", "sub-01_ses-1"), ("sub-02_run-1", "sub-02_ses-3")]
    assert notes == []


def test_what_fits_several_is_left_out(tmp_path):
    pairs, notes = matched(tmp_path, ["sub-01", "sub-02"], mine=["sub-01_ses-1", "sub-01_ses-2", "sub-02"])
    assert pairs == [("sub-02", "sub-02")]
    assert "left out for all methods: sub-01" in notes[0]
    assert "2 scans that the reference lacks: sub-01_ses-1, sub-01_ses-2" in notes[1]


def test_only_scans_of_all_methods_count(tmp_path):
    pairs, notes = matched(tmp_path, ["a", "b", "c"], one=["a", "b"], two=["b", "c"])
    assert pairs == [("b", "b", "b")]
    assert [note.split(":")[2] for note in notes] == [" c", " a"]


def test_single_files_meet_whatever_their_names(tmp_path):
    here, there = folder(tmp_path / "a", "truth"), folder(tmp_path / "b", "sub-01")
    dataset = Dataset("all", f"{here}/truth.nii.gz", {"mine": f"{there}/sub-01.nii.gz"})
    assert len(match_dataset(dataset, "aseg")[0]) == 1


def test_nothing_in_common_names_both_sides(tmp_path):
    with pytest.raises(EvaluationError, match=r"the method mine has no scan in common .* it has c, d \(label images\), "
                       r"the reference a, b \(label images\)\. Names must agree"):  # fmt: skip
        matched(tmp_path, ["a", "b"], mine=["c", "d"])


def test_no_scan_in_all_methods_counts_each(tmp_path):
    with pytest.raises(EvaluationError, match=r"of its 2 scans none is in all methods \(one has 1, two has 1\)"):
        matched(tmp_path, ["a", "b"], one=["a"], two=["b"])


def test_methods_have_names():
    assert parse_methods(["A=x/y", "B=z=1"]) == {"A": "x/y", "B": "z=1"}
    for texts, message in [
        (["x/y"], "must be NAME=PLACE"),
        (["=x"], "must be NAME=PLACE"),
        (["A=x", "A=y"], "two methods of the name A"),
        (["reference=x"], "cannot be called 'reference'"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            parse_methods(texts)


STUDY = '[[dataset]]\nname = "one"\nreference = "fs"\nmethods = {a = "x", b = "/abs/y"}\n'


def test_a_study_names_datasets(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY + STUDY.replace("one", "two").replace('"fs"', '"other"') + 'images = "raw"\n')
    one, two = read_study(path)
    assert one == Dataset("one", str(tmp_path / "fs"), {"a": str(tmp_path / "x"), "b": "/abs/y"})
    assert (two.name, two.reference, two.images) == ("two", str(tmp_path / "other"), str(tmp_path / "raw"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [", "cannot be used as --study: it is not TOML"),
        ("a = 1", r"must hold \[\[dataset\]\] tables and nothing else; it has a"),
        (
            STUDY.replace("name", "nom"),
            r"unknown keys nom; known are name, reference, methods, images",
        ),
        (STUDY.replace('{a = "x", b = "/abs/y"}', "{}"), "at least one method"),
        (STUDY.replace('"fs"', "3"), "reference is 3; it must be a text"),
        (STUDY.replace('"x"', "3"), "the method a of one is 3; it must be a place"),
        (STUDY + STUDY, "two datasets are called one"),
        (
            STUDY + STUDY.replace("one", "two").replace("b =", "c ="),
            "the dataset two has the methods a, c, but one has a, b",
        ),
    ],
)
def test_studies_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_study(tmp_path / "study.toml")


def test_a_column_divides_into_datasets(tmp_path):
    reference = folder(tmp_path / "truth", "sub-1", "sub-2")
    items, _ = match_dataset(Dataset("all", reference, {"mine": reference}), "aseg")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsite\nsub-1\tnorth\nsub-2\tsouth\n")
    assert [item.dataset for item in divide(items, table, "site")] == ["north", "south"]
    with pytest.raises(TableError, match="has no column scanner; there are participant_id, site"):
        divide(items, table, "scanner")
    table.write_text("participant_id\tsite\nsub-1\tnorth\n")
    with pytest.raises(EvaluationError, match="does not know the participants of sub-2"):
        divide(items, table, "site")


def test_a_row_per_session_counts_for_its_session(tmp_path):
    """The last row of a participant counted once for all its sessions."""
    reference = folder(tmp_path / "truth", "sub-1_ses-a", "sub-1_ses-b", "sub-2")
    items, _ = match_dataset(Dataset("all", reference, {"mine": reference}), "aseg")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsession_id\tsite\n 1\tses-a\tnorth\t\nsub-1\tb\tsouth\n2 \tn/a\twest\n")
    divided = {str(item.name): item.dataset for item in divide(items, table, "site")}
    assert divided == {"sub-1_ses-a": "north", "sub-1_ses-b": "south", "sub-2": "west"}
    table.write_text("participant_id\tsite\nsub-1\tnorth\nsub-1\tsouth\nsub-2\twest\n")
    with pytest.raises(TableError, match=r"sub-1 has several rows \(lines 2, 3\) that differ in site"):
        divide(items, table, "site")
