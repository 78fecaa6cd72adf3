"""The subfields' outer border after aseg's hippocampi, against the formula worked by hand."""

import numpy as np
import pytest
import torch

from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.inference.borders import follow_hippocampi
from medsegmamba_bids.inference.merge import View
from medsegmamba_bids.inference.predict import Prediction
from medsegmamba_bids.inference.rescale import AlignedGrids

LABELS = (0, 1203, 1205, 2203)
SIDE = 40


@pytest.fixture
def aseg():
    """A left hippocampus that ends between voxels 19 and 20 of the first axis, and a right one far away."""
    labels = np.zeros((SIDE, SIDE, SIDE), np.uint16)
    labels[8:20, 4:36, 4:36] = 17
    labels[36:39, 4:36, 4:36] = 53
    return labels


def view(probabilities, ratio=1.0, dtype=torch.float32):
    """The same probabilities everywhere, on a grid of these voxels."""
    grids = AlignedGrids(Grid(np.eye(4), (SIDE,) * 3), ratio)
    values = torch.tensor(probabilities, dtype=dtype)[:, None, None, None].repeat(1, *grids.network_shape)
    return View(Prediction(values, Box.whole(grids.network_shape), torch.device("cpu"), 1), grids)


@pytest.mark.parametrize("voxel", [14, 18, 19, 20, 21, 24])
def test_log_odds_grow_by_the_slope_a_millimetre(aseg, voxel):
    seen = view([0.4, 0.4, 0.15, 0.05])
    follow_hippocampi([seen], LABELS, aseg, 1.5)
    background, first, second, other = seen.prediction.probabilities[:, voxel, 20, 20].double()
    depth = 19.5 - voxel  # half a voxel on either side of the border
    assert float(torch.log(first / background)) == pytest.approx(1.5 * depth, abs=1e-3)
    assert float(first / second) == pytest.approx(0.4 / 0.15, rel=1e-5)  # parts keep their shares
    assert float(other) < 1e-5  # the other side's are not here
    assert float(seen.prediction.probabilities[:, voxel, 20, 20].sum()) == pytest.approx(1, abs=1e-6)


def test_far_away_all_is_background_and_a_missing_side_has_nothing(aseg):
    aseg[aseg == 53] = 0
    seen = view([0.1, 0.1, 0.1, 0.7])
    follow_hippocampi([seen], LABELS, aseg, 3.0)
    found = seen.prediction.probabilities
    assert float(found[0, 37, 20, 20]) > 0.9999
    assert int(found[:, 12, 20, 20].argmax()) in (1, 2)
    assert float(found[3].max()) < 1e-4


def test_half_precision_and_other_voxels(aseg):
    seen = [view([0.4, 0.4, 0.15, 0.05], dtype=torch.float16), view([0.4, 0.4, 0.15, 0.05], ratio=2.0)]
    follow_hippocampi(seen, LABELS, aseg, 1.5)
    half, coarse = (one.prediction.probabilities for one in seen)
    assert half.dtype == torch.float16
    assert float(half[1, 17, 20, 20] / half[0, 17, 20, 20]) == pytest.approx(np.exp(1.5 * 2.5), rel=2e-2)
    # A voxel of 2 mm sees four of 1 mm, 4.5 to 1.5 mm within the border, by a triangle.
    chance = np.average(1 / (1 + np.exp(-1.5 * np.array([4.5, 3.5, 2.5, 1.5]))), weights=[1, 3, 3, 1])
    odds = chance / (1 - chance)
    assert float(coarse[1, 8, 10, 10] / coarse[0, 8, 10, 10]) == pytest.approx(odds, rel=1e-4)


def test_a_network_s_own_border_still_counts(aseg):
    """Where it is sure that there is none, a place within the label stays background."""
    seen = view([1.0, 0.0, 0.0, 0.0])
    follow_hippocampi([seen], LABELS, aseg, 3.0)
    assert float(seen.prediction.probabilities[0].min()) == 1
