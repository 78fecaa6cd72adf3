"""Visits that inform each other, on probabilities made by hand."""

import numpy as np
import pytest

from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.inference.merge import merge_probabilities
from medsegmamba_bids.longitudinal.class_files import PosteriorFolder
from medsegmamba_bids.longitudinal.fusion import fuse

WHOLE = Box.whole((1, 1, 4))


def folder(path, *classes, boxes=None):
    """Probabilities of each class along a line of four voxels."""
    with PosteriorFolder(path) as out:
        for index, values in enumerate(classes):
            box = WHOLE if boxes is None else boxes[index]
            out(index, box, np.array(values, np.float32).reshape(box.shape))
    return PosteriorFolder.of(out.path)


@pytest.fixture
def pair(tmp_path):
    """Two visits whose border lies a voxel apart."""
    first = [0.9, 0.8, 0.2, 0.1]
    second = [0.9, 0.2, 0.2, 0.1]
    return [
        folder(tmp_path / str(number), values, [1 - value for value in values])
        for number, values in enumerate((first, second))
    ]


def test_without_weight_a_visit_is_itself(pair):
    fused, box = fuse(pair[0], pair, 0.0)
    assert box == WHOLE
    np.testing.assert_allclose(fused[0].ravel(), [0.9, 0.8, 0.2, 0.1], atol=2e-3)


def test_with_all_weight_visits_agree(pair):
    first, second = (fuse(own, pair, 1.0)[0] for own in pair)
    np.testing.assert_allclose(first, second, atol=1e-6)
    # the geometric mean of 0.8 and 0.2 is that of 0.2 and 0.8
    np.testing.assert_allclose(first[:, 0, 0, 1], 0.5, atol=1e-3)


def test_log_odds_are_drawn_in_proportion(pair):
    fused, _ = fuse(pair[0], pair, 0.5)
    odds = np.log(fused[0] / fused[1])[0, 0, 1]
    assert odds == pytest.approx(np.log(4) / 2, abs=0.01)  # own log 4, mean 0


def test_what_a_visit_does_not_have_counts_as_unlikely(tmp_path):
    near = Box((slice(0, 1), slice(0, 1), slice(2, 4)))
    boxes = [WHOLE, near]
    has = folder(tmp_path / "has", [1, 1, 0.5, 0.0], [0.5, 1.0], boxes=boxes)
    lacks = folder(tmp_path / "lacks", [1, 1, 1, 1], [0.0, 0.0], boxes=boxes)
    fused, _ = fuse(has, [has, lacks], 0.1)
    assert fused[1, 0, 0].tolist()[:2] == [0, 0]
    assert fused[1, 0, 0, 3] > 0.5
    np.testing.assert_allclose(fused.sum(0), 1, atol=1e-6)


def test_equal_visits_stay_equal_whatever_the_template_says(tmp_path, pair):
    copy = folder(tmp_path / "copy", [0.9, 0.8, 0.2, 0.1], [0.1, 0.2, 0.8, 0.9])
    everyone = [pair[0], copy, pair[1]]
    np.testing.assert_array_equal(fuse(pair[0], everyone, 0.3)[0], fuse(copy, everyone, 0.3)[0])


def test_fused_probabilities_become_labels_and_volumes():
    probabilities = np.zeros((3, 2, 2, 2), np.float32)
    probabilities[0], probabilities[1] = 0.25, 0.75
    probabilities[:, 1, 1, 1] = (0.5, 0.1, 0.4)
    box = Box.whole((2, 2, 2)).grow(-0).out_of([slice(1, 3)] * 3)
    done = merge_probabilities(probabilities, box, Grid(np.eye(4), (4, 4, 4)), (0, 17, 53))
    assert done.labels[1:3, 1:3, 1:3].ravel().tolist() == [17] * 7 + [0]
    assert done.soft_volumes[17] == pytest.approx(7 * 0.75 + 0.1)
    assert done.voxels == {17: 7, 53: 0}


def test_a_class_is_cut_out_of_any_box(tmp_path):
    box = Box((slice(1, 3), slice(0, 1), slice(0, 1)))
    one = folder(tmp_path / "one", [[0.5, 0.25]], [[0.5, 0.75]], boxes=[box, box])
    wide = Box((slice(0, 4), slice(0, 1), slice(0, 1)))
    assert one.within(0, wide).ravel().tolist() == [1, 0.5, 0.25, 1]
    assert one.within(1, wide).ravel().tolist() == [0, 0.5, 0.75, 0]
