"""Metrics of agreement: against brute force, a second library, and by hand for absent structures."""

import math

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from medsegmamba_bids.evaluation.metrics import COLUMNS, structure_metrics, summarise, surface, surface_distances

ZOOMS = (0.8, 1.1, 2.5)


def blobs(seed, shape=(14, 12, 10), labels=(4, 17, 2006)):
    """A few overlapping boxes of labels, with some scattered voxels."""
    rng = np.random.default_rng(seed)
    array = np.zeros(shape, np.uint16)
    for label in labels:
        low, sides = rng.integers(1, 5, 3), rng.integers(3, 7, 3)
        array[tuple(map(slice, low, low + sides))] = label
        array[tuple(rng.integers(0, shape, (3, 3)).T)] = label
    return array


def border_points(mask, zooms):
    """Positions, mm, of the voxels with a face neighbour outside, by looking at each neighbour of each voxel."""
    points = []
    for voxel in np.argwhere(mask):
        for axis in range(3):
            for step in (-1, 1):
                other = voxel.copy()
                other[axis] += step
                outside = not 0 <= other[axis] < mask.shape[axis]
                if outside or not mask[tuple(other)]:
                    points.append(tuple(voxel * zooms))
    return np.array(sorted(set(points)))


@pytest.mark.parametrize("seed", range(4))
def test_against_brute_force(seed):
    found, reference = blobs(seed), blobs(seed + 100)
    rows = structure_metrics(found, reference, ZOOMS, [4, 17, 2006])
    for _, row in rows.iterrows():
        one, other = found == row["label"], reference == row["label"]
        here, there, both = one.sum(), other.sum(), (one & other).sum()
        volume = math.prod(ZOOMS)
        apart = np.linalg.norm(border_points(one, ZOOMS)[:, None] - border_points(other, ZOOMS)[None], axis=2)
        forth, back = apart.min(1), apart.min(0)
        expected = {
            "found_mm3": here * volume,
            "reference_mm3": there * volume,
            "error_mm3": (int(here) - int(there)) * volume,
            "error_percent": 100 * (int(here) - int(there)) / there,
            "dice": 2 * both / (here + there),
            "volume_similarity": 1 - abs(int(here) - int(there)) / (here + there),
            "assd_mm": np.concatenate([forth, back]).mean(),
            "hd95_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
        }
        assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-9)


def test_sheared_axes():
    """Edges of a voxel that are not at right angles: their lengths tell neither volume nor distances."""
    edges = np.array([[0.8, 0.4, -0.2], [0.1, 1.1, 0.3], [0.0, -0.3, 1.5]])
    found, reference = blobs(1), blobs(101)
    rows = structure_metrics(found, reference, edges, [4, 17, 2006])
    for _, row in rows.iterrows():
        one, other = found == row["label"], reference == row["label"]
        points = [border_points(mask, np.ones(3)) @ edges.T for mask in (one, other)]
        apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
        assert row["found_mm3"] == pytest.approx(one.sum() * abs(np.linalg.det(edges)))
        assert row["assd_mm"] == pytest.approx(np.concatenate([apart.min(1), apart.min(0)]).mean())
        assert row["hd95_mm"] == pytest.approx(max(np.percentile(apart.min(axis), 95) for axis in (0, 1)))


def test_turned_axes_are_those_of_an_upright_grid():
    turned = Rotation.from_rotvec([0.2, -0.5, 0.9]).as_matrix() @ np.diag([-0.8, 1.1, 2.5])
    pair = blobs(2), blobs(102)
    expected = structure_metrics(*pair, ZOOMS, [4, 17, 2006])
    pd.testing.assert_frame_equal(structure_metrics(*pair, turned, [4, 17, 2006]), expected)


def test_agrees_with_simpleitk():
    found, reference = (np.pad(blobs(seed), 2) for seed in (5, 6))
    row = structure_metrics(found, reference, ZOOMS, [17]).iloc[0]
    images = [sitk.GetImageFromArray((array == 17).astype(np.uint8).transpose(2, 1, 0)) for array in (found, reference)]
    for image in images:
        image.SetSpacing(ZOOMS)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    assert row["dice"] == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-9)
    # Theirs is the difference over the mean of both volumes: twice Taha's, and signed.
    assert row["volume_similarity"] == pytest.approx(1 - abs(overlap.GetVolumeSimilarity(1)) / 2, abs=1e-9)
    borders = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    fields = [sitk.SignedMaurerDistanceMap(b, squaredDistance=False, useImageSpacing=True) for b in borders]
    masks = [sitk.GetArrayViewFromImage(border) > 0 for border in borders]
    distances = [np.abs(sitk.GetArrayViewFromImage(fields[1 - side])[masks[side]]) for side in (0, 1)]
    assert row["assd_mm"] == pytest.approx(np.concatenate(distances).mean(), abs=1e-3)


def test_identical_images_agree_fully():
    array = blobs(1)
    rows = structure_metrics(array, array.copy(), ZOOMS, [4, 17, 2006])
    assert tuple(rows) == COLUMNS
    assert rows["dice"].tolist() == rows["volume_similarity"].tolist() == [1, 1, 1]
    assert rows["assd_mm"].tolist() == rows["hd95_mm"].tolist() == rows["error_mm3"].tolist() == [0, 0, 0]


def test_absent_structures():
    found, reference = np.zeros((2, 6, 6, 6), np.uint8)
    found[2:4, 2:4, 2:4], reference[0, 0, 0] = 4, 5
    rows = structure_metrics(found, reference, (1, 1, 2), [4, 5, 7]).set_index("label")
    assert rows.loc[4, ["found_mm3", "reference_mm3", "dice", "volume_similarity"]].tolist() == [16, 0, 0, 0]
    assert rows.loc[5, ["dice", "volume_similarity", "error_percent"]].tolist() == [0, 0, -100]
    assert math.isnan(rows.loc[4, "error_percent"])
    assert rows.loc[[4, 5, 7], ["assd_mm", "hd95_mm"]].isna().all(axis=None)
    assert rows.loc[7, ["dice", "volume_similarity", "error_percent"]].isna().all()
    assert rows.loc[7, ["found_mm3", "reference_mm3", "error_mm3"]].tolist() == [0, 0, 0]


def test_empty_images_have_no_structures():
    empty = np.zeros((3, 3, 3), np.uint8)
    assert structure_metrics(empty, empty, (1, 1, 1), [4])["dice"].isna().all()


def test_labels_that_are_not_asked_for_are_background():
    found, reference = np.zeros((2, 4, 4, 4), np.uint16)
    found[:2], reference[:2], reference[2] = 17, 17, 9999
    assert structure_metrics(found, reference, (1, 1, 1), [17])["dice"].tolist() == [1]


def test_distance_counts_the_voxel_size():
    found, reference = np.zeros((2, 5, 5, 5), bool)
    found[1, 2, 2] = reference[4, 2, 2] = True
    forth, back = surface_distances(found, reference, (2.0, 1.0, 1.0))
    assert forth.tolist() == back.tolist() == [6.0]


def test_summaries_of_unequal_surfaces():
    # The ASSD is over all voxels of both surfaces, not the mean of two means (which would be 1.5).
    assert summarise(np.array([1.0, 1.0, 1.0]), np.array([2.0]))[0] == 1.25
    assert summarise(np.zeros(100), np.r_[np.zeros(90), np.full(10, 3.0)])[1] == 3.0


def test_surface_reaches_the_edge_of_the_array():
    assert np.count_nonzero(~surface(np.ones((5, 5, 5), bool))) == 27


@pytest.mark.parametrize(
    ("shape", "labels", "message"), [((4, 4, 5), [4], "cannot be compared"), ((4, 4, 4), [0, 4], "label 0")]
)
def test_refusals(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        structure_metrics(np.zeros((4, 4, 4), np.uint8), np.zeros(shape, np.uint8), (1, 1, 1), labels)


def test_a_whole_brain_takes_seconds():
    """31 structures of 256^3: under 20 s on one core, with a lot to spare."""
    import time

    found, reference = np.zeros((2, 256, 256, 256), np.uint8)
    for label in range(1, 32):
        start = 20 + 6 * label
        found[60:160, 50:150, start : start + 6] = label
        reference[62:162, 50:150, start : start + 6] = label
    start = time.process_time()
    rows = structure_metrics(found, reference, (1, 1, 1), list(range(1, 32)))
    assert time.process_time() - start < 20
    assert rows["dice"].tolist() == pytest.approx([0.98] * 31)
