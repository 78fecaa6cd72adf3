import math

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.stats.measures import (
    brain_measures,
    hypointensity_sides,
    intracranial_mask,
    intracranial_measures,
    intracranial_space,
)
from medsegmamba_bids.stats.structures import NOT_FOUND, UNKNOWN, structure_statistics, volume_definition
from medsegmamba_bids.stats.tables import COLUMNS

NUMBERS = [name for name in COLUMNS if name not in ("SegId", "StructName", "Flag")]


@pytest.fixture
def image():
    """Left caudate in two voxels, left putamen in one, far from each other; the right caudate is absent."""
    labels, guide = np.zeros((9, 9, 9), np.int16), np.full((9, 9, 9), 5.0, np.float32)
    labels[1, 1, 1:3] = 11
    guide[1, 1, 1:3] = 60, 90
    labels[7, 7, 7], guide[7, 7, 7] = 12, 80
    return labels, guide


def row(rows, label):
    return rows.set_index("SegId").loc[label]


@pytest.mark.parametrize("name", ["aseg", "aseg_brain", "hippoFS60"])
def test_a_row_per_structure_and_none_for_the_background(name):
    table = load_label_table(name)
    rows = structure_statistics(np.zeros((3, 3, 3), np.int16), np.ones((3, 3, 3)), table)
    assert rows["SegId"].tolist() == table.labels[1:].tolist()
    assert rows["StructName"].tolist() == table.names[1:]
    assert list(rows) == list(COLUMNS) or set(rows) == set(COLUMNS)


def test_numbers_of_a_structure(image):
    rows = structure_statistics(*image, load_label_table("aseg"), voxel_mm3=2.0)
    caudate = row(rows, 11)
    assert caudate["NVoxels"] == 2
    # Each voxel borders on the background of about 5; both lie at 60 and 90 around their own mean of 75.
    # 60 lies between 75 and 5; 90 lies above both.
    background = (9**3 - 3) * 5 / (9**3 - 3)
    assert caudate["Volume_mm3"] == pytest.approx(2.0 * (1 + (60 - background) / (75 - background)), rel=1e-6)
    assert caudate[["normMean", "normMin", "normMax", "normRange"]].tolist() == [75, 60, 90, 30]
    assert caudate["normStdDev"] == pytest.approx(math.sqrt(450))
    assert caudate["Flag"] == ""
    putamen = row(rows, 12)
    assert putamen[["NVoxels", "normMean", "normStdDev", "normRange"]].tolist() == [1, 80, 0, 0]


def test_a_structure_that_was_not_found_keeps_its_row(image):
    labels, guide = image
    known = {11: 3.25, 12: 0.5, 50: 0.125}
    rows = structure_statistics(labels, guide, load_label_table("aseg"), soft_volumes=known, mean_posteriors={11: 0.9})
    absent = row(rows, 50)
    assert absent[["NVoxels", "Volume_mm3", "SoftVolume_mm3", "Flag"]].tolist() == [0, 0, 0.125, NOT_FOUND]
    assert absent[["normMean", "normStdDev", "normMin", "normMax", "normRange", "MeanPosterior"]].isna().all()


def test_a_structure_that_the_weights_do_not_know_has_no_numbers(image):
    rows = structure_statistics(*image, load_label_table("aseg"), soft_volumes={11: 3.25, 12: 0.5})
    unknown = row(rows, 51)
    assert unknown["Flag"] == UNKNOWN
    assert unknown[NUMBERS].isna().all()
    assert len(rows) == 31
    assert (rows["Flag"] == UNKNOWN).sum() == 29


def test_soft_volumes_and_posteriors_are_passed_on(image):
    soft, means = {11: 3.25, 12: 0.5}, {11: 0.875, 12: 0.5}
    rows = structure_statistics(*image, load_label_table("aseg"), soft_volumes=soft, mean_posteriors=means)
    assert row(rows, 11)[["SoftVolume_mm3", "MeanPosterior"]].tolist() == [3.25, 0.875]
    without = structure_statistics(*image, load_label_table("aseg"))
    assert without[["SoftVolume_mm3", "MeanPosterior"]].isna().all(axis=None)
    assert UNKNOWN not in set(without["Flag"])


def test_labels_outside_the_table_are_background(image):
    labels, guide = image
    labels[4, 4, 4] = 1012
    rows = structure_statistics(labels, guide, load_label_table("aseg"))
    assert rows["NVoxels"].sum() == 3


def test_vessels_and_callosum_have_rows_where_they_occur(image):
    labels, guide = image
    labels[4, 4, 4], labels[4, 4, 6] = 253, 999
    rows = structure_statistics(labels, guide, load_label_table("aseg"))
    assert rows["StructName"].tolist()[-1] == "CC_Central"
    assert row(rows, 253)["NVoxels"] == 1
    assert 999 not in set(rows["SegId"])


def test_labels_outside_the_table_are_neighbours_of_their_own():
    """A border voxel is shared with the label that touches it, also where no row is made of that label."""
    labels, guide = np.full((5, 5, 9), 12, np.uint16), np.full((5, 5, 9), 80.0)
    labels[..., 5:], guide[..., 5:] = 999, 20
    guide[..., 4] = 50
    mean = (4 * 80 + 50) / 5
    expected = 25 * (4 + (50 - 20) / (mean - 20))
    assert row(structure_statistics(labels, guide, load_label_table("aseg")), 12)["Volume_mm3"] == pytest.approx(
        expected
    )


def test_tissue_around_the_structures_is_a_neighbour_and_no_more():
    labels, guide = np.zeros((5, 5, 9), np.uint16), np.full((5, 5, 9), 80.0)
    labels[..., :5] = 12
    around = np.where(labels == 0, 2, 3)
    guide[..., 5:], guide[..., 4] = 110, 95
    around[..., 7:], guide[..., 7:] = 0, 0
    table = load_label_table("aseg")
    mean = (4 * 80 + 95) / 5
    alone, among = (structure_statistics(labels, guide, table, around=one) for one in (None, around))
    assert row(among, 12)["Volume_mm3"] == pytest.approx(25 * (4 + (95 - 110) / (mean - 110)))
    assert row(alone, 12)["Volume_mm3"] == pytest.approx(125)  # all around taken together is darker
    assert row(among, 12)["NVoxels"] == 125
    own = structure_statistics(labels, guide, table, around=np.where(around == 2, 12, 0))
    pd.testing.assert_frame_equal(own, alone)  # another opinion about where a structure ends changes nothing


def test_subfields_are_sums_of_posteriors_or_else_voxels():
    table = load_label_table("hippoFS60")
    labels, guide = np.zeros((6, 6, 6), np.uint16), np.full((6, 6, 6), 50.0)
    labels[2:4, 2:4, 2:4] = 1203
    soft = dict.fromkeys(map(int, table.labels), 6.25)
    assert row(structure_statistics(labels, guide, table, 2.0, soft), 1203)["Volume_mm3"] == 6.25
    assert row(structure_statistics(labels, guide, table, 2.0), 1203)["Volume_mm3"] == 16
    assert volume_definition(table, posteriors=True, guide=True) == "posteriors"
    assert volume_definition(table, posteriors=False, guide=True) == "voxels"
    assert volume_definition(load_label_table("aseg"), posteriors=True, guide=True) == "corrected"


def test_without_intensities_voxels_are_counted(image):
    rows = structure_statistics(image[0], None, load_label_table("aseg"), voxel_mm3=2.0)
    assert row(rows, 11)["Volume_mm3"] == 4
    assert rows[["normMean", "normStdDev", "normMin", "normMax", "normRange"]].isna().all(axis=None)
    assert volume_definition(load_label_table("aseg"), posteriors=False, guide=False) == "voxels"


# Measures of the whole brain


def counted(**others):
    """Rows of a brain in which label L has 100 + L voxels."""
    labels = load_label_table("aseg_brain").labels[1:]
    voxels = {int(label): 100.0 + label for label in labels}
    voxels.update({int(label): value for label, value in others.items()})
    return pd.DataFrame({"SegId": list(voxels), "NVoxels": list(voxels.values())})


def values(rows, voxel_mm3=1.0):
    return {measure.name: measure.value for measure in brain_measures(rows, voxel_mm3)}


def test_brain_measures_by_hand():
    found = values(counted())
    # Labels 2 3 4 5 7 8 10 11 12 13 14 15 17 18 24 26 28 31 | 41 42 43 44 46 47 49 50 51 52 53 54 58 60 63 | 77,
    # without 16: 34 structures, whose labels add up to 248 + 753 + 77 = 1078.
    assert found["BrainSegVol"] == 34 * 100 + 1078
    assert found["VentricleChoroidVol"] == 600 + 4 + 5 + 31 + 43 + 44 + 63
    assert found["BrainSegVolNotVent"] == 4478 - 790 - (300 + 14 + 15 + 24)
    assert found["lhCortexVol"] == 103
    assert found["rhCortexVol"] == 142
    assert found["CortexVol"] == 245
    assert found["CerebralWhiteMatterVol"] == 102 + 141 + 177
    # 10 11 12 13 17 18 26 28 and 49 50 51 52 53 54 58 60
    assert found["SubCortGrayVol"] == 1600 + 135 + 427
    assert found["TotalGrayVol"] == 245 + 2162 + 108 + 147
    assert found["SupraTentorialVol"] == 4478 - (400 + 7 + 8 + 46 + 47)
    assert found["SupraTentorialVolNotVent"] == found["SupraTentorialVol"] - 790 - 353


def test_brain_measures_are_in_mm3():
    assert values(counted(), 0.5) == pytest.approx({name: value / 2 for name, value in values(counted()).items()})
    assert {measure.unit for measure in brain_measures(counted())} == {"mm^3"}


def test_measures_that_need_unknown_labels_are_left_out():
    rows = counted(**{"77": math.nan})
    assert "CerebralWhiteMatterVol" not in values(rows)
    assert "BrainSegVol" not in values(rows)
    assert values(rows)["CortexVol"] == 245


def test_no_brain_volume_without_cortex_and_white_matter():
    """The paper's 31 structures are no whole brain: their sum must not be called one."""
    rows = counted()
    some = rows[~rows["SegId"].isin((2, 3, 41, 42))]
    assert set(values(some)) == {"VentricleChoroidVol", "SubCortGrayVol"}


def test_mask_volume_and_ratios():
    brain = np.zeros((40, 40, 40), bool)
    brain[10:30, 10:30, 10:30] = True
    found = {m.name: m for m in intracranial_measures(brain, 40_000.0, 6000.0, "MNI305", voxel_mm3=1.0)}
    assert found["BrainMaskVol"].value == 8000
    assert "MaskVol" not in found  # FreeSurfer's is another mask, with a margin
    assert found["BrainSegVol-to-eTIV"].value == pytest.approx(0.15)
    assert found["BrainSegVol-to-eTIV"].unit == "unitless"
    assert found["eTIV"].value == 40_000
    assert found["eTIV"].key == "EstimatedTotalIntraCranialVol"
    assert "MNI305" in found["eTIV"].description


def test_no_mask_no_etiv_no_measures():
    assert intracranial_measures(None, None, 5.0) == []
    names = [measure.name for measure in intracranial_measures(np.ones((8, 8, 8), bool), None, 5.0)]
    assert names == ["BrainMaskVol", "sbTIV"]


def test_white_matter_of_either_side():
    """FreeSurfer 7.2's numbers of its subject bert: voxels of 2, 41, the callosum, and hypointensities by side."""
    rows = pd.DataFrame({"SegId": [2, 41, 77, 251], "NVoxels": [245665.0, 244473, 679, 4849]})
    found = {one.name: one.value for one in brain_measures(rows, hypointensities=(406, 273))}
    assert found["lhCerebralWhiteMatterVol"] == 248495.5
    assert found["rhCerebralWhiteMatterVol"] == 247170.5
    assert found["CerebralWhiteMatterVol"] == 495666


def test_hypointensities_lie_on_the_side_of_the_tissue_around_them():
    labels = np.zeros((60, 40, 40), np.uint16)
    labels[5:28, 5:35, 5:35], labels[32:55, 5:35, 5:35] = 41, 2
    labels[10:12, 10, 10], labels[40:45, 20, 20] = 77, 77
    assert hypointensity_sides(labels) == (5, 2)
    labels[30, 20, 20] = 77  # as near to one as to the other, and nearer to the middle of the left
    assert sum(hypointensity_sides(labels)) == 8
    assert hypointensity_sides(np.zeros((4, 4, 4), np.uint16)) == (0, 0)


def test_the_chiasm_is_no_part_of_the_brain():
    rows = counted(**{"85": 500.0, "257": 1e5})
    assert values(rows)["BrainSegVol"] == values(counted())["BrainSegVol"]
    assert values(counted(**{"30": 50.0}))["BrainSegVol"] == values(counted())["BrainSegVol"] + 50


def test_fluid_around_the_brain_makes_the_intracranial_volume_a_sum_of_classes():
    labels = np.zeros((40, 40, 40), np.uint16)
    labels[5:35, 5:35, 5:35] = 257
    labels[10:30, 10:30, 10:30] = 3
    brain = labels == 3
    space = intracranial_space(labels, brain)
    assert space.from_classes
    assert np.count_nonzero(space.mask) == 27_000
    found = intracranial_measures(brain, None, None, space=space)[1]
    assert (found.name, found.value) == ("sbTIV", 27_000)
    assert "all classes inside the skull" in found.description
    np.testing.assert_array_equal(intracranial_space(labels, labels > 0).mask, space.mask)  # fluid in the mask
    alone = intracranial_space(brain.astype(int), brain)
    assert not alone.from_classes
    np.testing.assert_array_equal(alone.mask, intracranial_mask(brain))


def furrowed_brain():
    """Labels of a cube of 60 mm with furrows 4 mm wide and 30 mm deep from above, each 14 mm from the next."""
    labels = np.zeros((90, 90, 90), np.uint16)
    labels[15:75, 15:75, 15:75] = 3
    for start in range(28, 70, 14):
        labels[start : start + 4, 15:75, 45:] = 0
    return labels


def test_little_fluid_does_not_make_the_intracranial_volume_another():
    """A skull-stripped head has few voxels of it: all classes together are then little more than the bare brain."""
    labels = furrowed_brain()
    brain = labels > 0
    without = np.count_nonzero(intracranial_space(labels, brain).mask)
    assert without == pytest.approx(60**3, rel=0.03)
    furrows = np.argwhere((labels == 0) & (np.indices(labels.shape)[2] < 75) & intracranial_mask(brain))
    for voxels in (1, 300, 3000):
        some = labels.copy()
        some[tuple(furrows[:voxels].T)] = 257
        space = intracranial_space(some, brain)
        assert not space.from_classes
        assert np.count_nonzero(space.mask) == without
        assert "closed by 10 mm" in intracranial_measures(brain, None, None, space=space)[1].description


def test_the_intracranial_volume_has_no_step_where_its_definition_changes():
    """Fluid grows outwards from the furrows, layer by layer: no layer adds more than itself."""
    labels = furrowed_brain()
    brain = labels > 0
    far = np.argsort(ndimage.distance_transform_edt(~brain).ravel(), kind="stable")[np.count_nonzero(brain) :]
    volumes, kinds = [], []
    for voxels in range(0, 60_001, 6000):
        some = labels.copy()
        some.ravel()[far[:voxels]] = 257
        space = intracranial_space(some, brain)
        volumes.append(np.count_nonzero(space.mask))
        kinds.append(space.from_classes)
    assert (kinds[0], kinds[-1]) == (False, True)
    steps = np.diff(volumes)
    assert steps.min() >= 0
    assert steps.max() <= 6000 + 500  # holes that the last layer closed


def test_intracranial_mask_fills_furrows_and_cavities():
    brain = np.zeros((90, 90, 90), bool)
    brain[15:75, 15:75, 15:75] = True
    brain[43:47, 15:45, :] = False  # a furrow, 4 mm wide and 30 mm deep
    brain[60:66, 55:61, 40:46] = False  # a ventricle
    closed = intracranial_mask(brain)
    assert closed[brain].all()
    assert closed[60:66, 55:61, 40:46].all()
    assert closed[43:47, 22:45, 22:68].mean() > 0.99
    assert not closed[:13].any()
    # Closing a cube gives the cube: what is added is the furrow and the cavity.
    assert np.count_nonzero(closed) == pytest.approx(60**3, rel=0.01)


def test_intracranial_mask_is_in_mm():
    brain = np.zeros((60, 60, 60), bool)
    brain[10:50, 10:50, 10:50] = True
    brain[24:36, 10:50, 30:50] = False  # 12 voxels wide: closed at 1 mm, too wide at 2 mm
    middle = (slice(28, 32), slice(28, 32), slice(36, 44))
    assert intracranial_mask(brain, 1.0)[middle].all()
    assert not intracranial_mask(brain, 2.0)[middle].any()


def test_intracranial_mask_of_nothing():
    assert not intracranial_mask(np.zeros((5, 5, 5), bool)).any()
