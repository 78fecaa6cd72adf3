"""Label images in, the long table out: mapped, on one grid, absent structures as defined."""

import math

import numpy as np
import pytest

from medsegmamba_bids.datasets.label_images import read_labels
from medsegmamba_bids.datasets.places import LabelFiles
from medsegmamba_bids.datasets.scan_names import parse_name
from medsegmamba_bids.errors import DatasetError, EvaluationError
from medsegmamba_bids.evaluation.compare.scans import COLUMNS, Settings, compare_all, compare_scan, grid_notes
from medsegmamba_bids.evaluation.compare.study import Item
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.image.labels import load_label_table

SIDE = 16
LIA = np.array([[-1.0, 0, 0, 8], [0, 0, 1, -8], [0, -1, 0, 8], [0, 0, 0, 1]])
RAS = np.array([[1.0, 0, 0, 8 - 15], [0, 1, 0, -8], [0, 0, 1, 8 - 15], [0, 0, 0, 1]])


def labels(**boxes):
    """A label image: ``l17=(low, high)`` fills a cube."""
    data = np.zeros((SIDE,) * 3, np.int32)
    for name, (low, high) in boxes.items():
        data[low:high, low:high, low:high] = int(name[1:])
    return data


def files(*choices):
    return LabelFiles(parse_name("sub-01_ses-a"), tuple(((path, 0),) for path in choices))


@pytest.fixture
def item(tmp_path):
    """Makes a scan from arrays: the reference's first."""

    def make(reference, affine=LIA, **methods):
        save_image(reference, LIA, tmp_path / "reference.mgz")
        for name, data in methods.items():
            save_image(data, affine, tmp_path / f"{name}.nii.gz")
        found = {name: files(tmp_path / f"{name}.nii.gz") for name in methods}
        return Item("all", parse_name("sub-01_ses-a"), files(tmp_path / "reference.mgz"), found)

    return make


def test_values_of_a_shifted_cube_by_hand(item):
    found = np.roll(labels(l17=(4, 8)), 1, axis=2)
    compared = compare_scan(item(labels(l17=(4, 8), l53=(9, 11)), mine=found), Settings())
    assert tuple(compared.rows) == COLUMNS
    assert len(compared.rows) == 31
    rows = compared.rows.set_index("structure")
    assert rows.loc["Left-Hippocampus", ["dice", "volume_similarity", "error_mm3"]].tolist() == [0.75, 1, 0]
    assert rows.loc["Right-Hippocampus", ["dice", "volume_similarity", "reference_mm3"]].tolist() == [0, 0, 8]
    assert math.isnan(rows.loc["Right-Hippocampus", "assd_mm"])
    assert rows["dice"].notna().sum() == 2
    first = rows.iloc[0]
    assert first[["dataset", "participant", "session", "scan", "method", "resampled"]].tolist() == [
        "all", "sub-01", "a", "sub-01_ses-a", "mine", "no"
    ]  # fmt: skip
    assert compared.notes == []


def test_other_labels_of_freesurfer_are_background_and_parcels_are_cortex(item):
    reference = labels(l1024=(1, 3), l251=(5, 6), l17=(7, 9), l2=(10, 14))
    mine = labels(l3=(1, 3), l2=(5, 6), l17=(7, 9), l41=(10, 14))
    scan = item(reference, mine=mine)
    rows = compare_scan(scan, Settings()).rows.set_index("label")
    assert rows.loc[17, "dice"] == 1
    assert 3 not in rows.index
    rows = compare_scan(scan, Settings("aseg_brain")).rows.set_index("label")
    assert rows.loc[[3, 17, 2, 41], "dice"].round(4).tolist() == [1, 1, round(2 / (65 + 1), 4), 0]


def test_grids_are_compared_in_mm(item):
    """The same head in another orientation, and on a grid of half the voxel size, are the same structures."""
    reference = labels(l17=(4, 10), l53=(10, 13))
    turned = np.flip(reference.transpose(0, 2, 1), (0, 2))
    compared = compare_scan(item(reference, RAS, mine=turned), Settings())
    rows = compared.rows.set_index("label")
    assert rows.loc[[17, 53], "dice"].tolist() == [1, 1]
    assert set(compared.rows["resampled"]) == {"yes"}
    assert grid_notes(compared.rows) == [
        "all: mine lies on another grid than the reference in 1 of 1 scans and was resampled to it"
    ]
    fine = LIA.copy()
    fine[:3, :3] /= 2
    fine[:3, 3] -= LIA[:3, :3] @ np.full(3, 0.25)
    doubled = reference.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    rows = compare_scan(item(reference, fine, mine=doubled), Settings()).rows.set_index("label")
    assert rows.loc[[17, 53], "dice"].tolist() == [1, 1]


def test_the_choice_on_the_references_grid_is_taken(item, tmp_path):
    scan = item(labels(l17=(4, 10)), mine=labels(l17=(4, 10)))
    save_image(labels(l17=(4, 9)), RAS, tmp_path / "native.nii.gz")
    both = files(tmp_path / "native.nii.gz", tmp_path / "mine.nii.gz")
    compared = compare_scan(Item("all", scan.name, scan.reference, {"mine": both}), Settings())
    assert set(compared.rows["resampled"]) == {"no"}
    assert compared.rows.set_index("label").loc[17, "dice"] == 1


def test_subfields_of_two_files_are_one_segmentation(tmp_path):
    left, right = labels(l203=(2, 4), l7001=(4, 6)), labels(l226=(8, 10))
    save_image(left, LIA, tmp_path / "lh.mgz")
    save_image(right, LIA, tmp_path / "rh.mgz")
    parts = ((tmp_path / "lh.mgz", 1000), (tmp_path / "rh.mgz", 2000))
    image = read_labels(parts, load_label_table("hippoFS60"))
    assert np.unique(image.data).tolist() == [0, 1203, 2226]
    assert (image.data == 1203).sum() == (image.data == 2226).sum() == 8
    save_image(right, RAS, tmp_path / "rh.mgz")
    with pytest.raises(DatasetError, match=r"lh\.mgz and .*rh\.mgz: lie on different grids"):
        read_labels(parts, load_label_table("hippoFS60"))


def test_labels_that_would_wrap_around_are_refused(tmp_path):
    save_image(labels(l203=(2, 4), l65000=(4, 6)).astype(np.int32), LIA, tmp_path / "lh.mgz")
    with pytest.raises(DatasetError, match=r"lh\.mgz: has the label 65000; with 1000 added at most 65535 fits"):
        read_labels(((tmp_path / "lh.mgz", 1000),), load_label_table("hippoFS60"))


@pytest.mark.parametrize(
    ("reference", "found", "table", "message"),
    [
        (
            {},
            {"l17": (2, 4)},
            "aseg",
            r"reference\.mgz: this reference has none .* table aseg, every voxel is 0; replace",
        ),
        ({"l2": (2, 4)}, {"l17": (2, 4)}, "aseg", "reference has none .* it holds the labels 0, 2; replace or remove"),
        ({"l17": (2, 4)}, {"l999": (2, 4)}, "aseg", r"mine\.nii\.gz: the labels 999 are neither .* with --background"),
        ({"l17": (2, 4)}, {"l17": (2, 4)}, "hippoFS60", "the labels 17 are neither .* choose another --table"),
    ],
)
def test_labels_that_cannot_be_compared_are_named(item, reference, found, table, message):
    compared = compare_scan(item(labels(**reference), mine=labels(**found)), Settings(table))
    assert compared.rows is None
    assert compared.problem.startswith("all, sub-01_ses-a: ")
    with pytest.raises(DatasetError, match=message):
        raise DatasetError(compared.problem)


def test_background_that_is_named_is_ignored(item):
    scan = item(labels(l17=(2, 4)), mine=labels(l999=(6, 8), l17=(2, 4)))
    rows = compare_scan(scan, Settings(background=(999,))).rows.set_index("label")
    assert rows.loc[17, "dice"] == 1


def test_another_place_is_refused_and_no_overlap_is_noted(item):
    far = LIA.copy()
    far[:3, 3] += 100
    compared = compare_scan(item(labels(l17=(2, 4)), far, mine=labels(l17=(2, 4))), Settings())
    assert "none of its labels lies within the field of view of" in compared.problem
    compared = compare_scan(item(labels(l17=(2, 4)), mine=labels(l17=(9, 12))), Settings())
    assert compared.notes == [
        "all, sub-01_ses-a, mine: overlaps the reference in no structure; are both of one scan and in one space?"
    ]


def test_an_empty_method_counts_as_zero_and_is_noted(item, tmp_path):
    compared = compare_scan(item(labels(l17=(2, 4)), mine=labels()), Settings())
    assert compared.rows.set_index("label").loc[17, ["dice", "volume_similarity"]].tolist() == [0, 0]
    assert compared.notes == [
        f"all, sub-01_ses-a, mine: has none of the structures ({tmp_path}/mine.nii.gz); they count as Dice 0"
    ]


def test_a_damaged_file_leaves_the_scan_out(item, tmp_path):
    scan = item(labels(l17=(2, 4)), mine=labels(l17=(2, 4)), other=labels(l17=(2, 4)))
    (tmp_path / "other.nii.gz").write_bytes(b"")
    assert "other.nii.gz: the file is empty" in compare_scan(scan, Settings()).problem


def test_structures_can_be_left_out(item):
    scan = item(labels(l17=(2, 4)), mine=labels(l17=(2, 4)))
    rows = compare_scan(scan, Settings(without=(31, 63, 77))).rows
    assert len(rows) == 28
    assert not rows["label"].isin([31, 63, 77]).any()
    with pytest.raises(EvaluationError, match="--without 2: not structures of the table aseg"):
        Settings(without=(2,))
    with pytest.raises(EvaluationError, match="--without leaves no structure"):
        Settings(without=tuple(load_label_table("aseg").labels[1:].tolist()))


def test_processes_give_the_same_in_the_same_order(item):
    scans = [item(labels(l17=(2, 4)), mine=labels(l17=(2, 5)))] * 2
    one, several = (list(compare_all(scans, Settings(), nprocs)) for nprocs in (1, 2))
    assert [len(one), len(several)] == [2, 2]
    for first, second in zip(one, several, strict=True):
        assert first.rows.equals(second.rows)
