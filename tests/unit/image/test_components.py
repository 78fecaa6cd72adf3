"""What hangs together in a mask, and what it encloses."""

import numpy as np
import pytest
from scipy import ndimage

from medsegmamba_bids.image.components import fill_holes, largest_component


def test_largest_component_hangs_together_by_faces():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, :3] = True
    mask[1, 1, 3:5] = True  # touches the first by a corner only
    expected = np.zeros_like(mask)
    expected[0, 0, :3] = True
    np.testing.assert_array_equal(largest_component(mask), expected)
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()


@pytest.mark.parametrize("offset", [0, 2])
def test_cavities_are_filled_and_bays_are_not(offset):
    mask = np.zeros((12, 12, 12), bool)
    block = (slice(offset, offset + 7),) * 3
    mask[block] = True
    cavity, bay = (offset + 2,) * 3, (slice(offset + 4, offset + 7), offset + 4, offset + 4)
    mask[cavity] = False
    mask[bay] = False
    before = mask.copy()
    filled = fill_holes(mask)
    np.testing.assert_array_equal(mask, before)
    mask[cavity] = True
    np.testing.assert_array_equal(filled, mask)


def test_nothing_has_no_holes():
    assert not fill_holes(np.zeros((3, 4, 5), bool)).any()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share", [0.5, 0.65, 0.9])
def test_holes_are_those_of_another_algorithm(share, order):
    mask = np.random.default_rng(0).random((20, 23, 17)) < share
    expected = ndimage.binary_fill_holes(mask)
    assert (expected != mask).any()
    found = fill_holes(np.array(mask, order=order))
    np.testing.assert_array_equal(found, expected)
    assert found.flags[f"{order}_CONTIGUOUS"]  # memory stays in its order
