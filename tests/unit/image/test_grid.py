import pickle

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from medsegmamba_bids.image.grid import Box, Grid


def oblique(zooms):
    """An affine (4, 4) turned by 10 degrees about each axis."""
    turn = nib.eulerangles.euler2mat(*np.deg2rad([10, 10, 10]))
    return from_matvec(turn @ np.diag(zooms), [-20.0, 7.0, 11.0])


# Boxes


def test_a_box_cuts_arrays_and_equals_its_slices():
    box = Box([slice(1, 3), slice(0, 2), slice(2, 3)])
    data = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(data[box], data[1:3, 0:2, 2:3])
    assert box == (slice(1, 3), slice(0, 2), slice(2, 3))
    assert box.shape == (2, 2, 1)
    assert box.start == (1, 0, 2)
    assert pickle.loads(pickle.dumps(box)).shape == box.shape


def test_a_box_cannot_be_changed():
    box = Box.whole((3, 3, 3))
    with pytest.raises(AttributeError):
        box.margin = 2
    with pytest.raises(TypeError):
        box[0] = slice(0, 1)


def test_box_of_nonzero_voxels():
    mask = np.zeros((9, 8, 7), np.float32)
    assert Box.around(mask) is None
    mask[2, 3, 6], mask[5, 4, 6] = -1, 0.5
    assert Box.around(mask) == (slice(2, 6), slice(3, 5), slice(6, 7))
    assert Box.around(mask, margin=3) == (slice(0, 9), slice(0, 8), slice(3, 7))


def test_margins_end_with_the_array_where_its_shape_is_given():
    box = Box([slice(2, 4), slice(0, 4), slice(5, 6)])
    assert box.grow(3) == (slice(-1, 7), slice(-3, 7), slice(2, 9))
    assert box.grow(3, (5, 5, 6)) == (slice(0, 5), slice(0, 5), slice(2, 6))


@pytest.mark.parametrize(
    ("side", "length", "least", "expected"),
    [
        ((4, 6), 20, 6, (2, 8)),
        ((4, 7), 20, 6, (3, 9)),
        ((0, 2), 20, 6, (0, 6)),
        ((18, 20), 20, 6, (14, 20)),
        ((3, 15), 20, 6, (3, 15)),
        ((1, 3), 5, 6, (0, 5)),
    ],
)
def test_boxes_grow_within_the_volume(side, length, least, expected):
    assert Box([slice(*side)] * 3).at_least(least, (length,) * 3) == (slice(*expected),) * 3


def test_hull_holds_all_boxes():
    first, second = Box.whole((2, 9, 4)), (slice(5, 6), slice(1, 3), slice(3, 8))
    assert Box.hull([first, second]) == (slice(0, 6), slice(0, 9), slice(0, 8))


def test_counting_from_another_box_and_back():
    data = np.random.default_rng(0).random((9, 9, 9))
    outer, inner = Box([slice(2, 9), slice(1, 8), slice(0, 9)]), Box([slice(3, 5), slice(4, 8), slice(1, 2)])
    np.testing.assert_array_equal(data[outer][inner.within(outer)], data[inner])
    assert inner.within(outer).out_of(outer) == inner


def test_corners_are_the_outermost_voxels():
    box = Box([slice(2, 4), slice(0, 3), slice(7, 8)])
    found = {tuple(corner) for corner in box.corners.T.tolist()}
    assert found == {(x, y, 7) for x in (2, 3) for y in (0, 2)}


# Grids


def test_a_cut_lies_where_it_was():
    grid = Grid(oblique((1.0, 2.0, 3.0)), (9, 9, 9))
    part = grid.cut(Box([slice(2, 5), slice(0, 4), slice(7, 9)]))
    assert part.shape == (3, 4, 2)
    np.testing.assert_allclose(part.to_world([1, 1, 1]), apply_affine(grid.affine, (3, 1, 8)))


def test_pasting_undoes_a_cut():
    data = np.random.default_rng(0).integers(0, 9, (6, 7, 8)).astype(np.uint8)
    box = Box([slice(1, 4), slice(2, 7), slice(0, 3)])
    whole = Grid(np.eye(4), data.shape).paste(data[box], box, fill=77)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole[box], data[box])
    assert np.count_nonzero(whole == 77) == data.size - data[box].size


def test_matrix_between_voxels():
    one, other = Grid(oblique((1.0, 2.0, 3.0)), (5, 5, 5)), Grid(np.diag([2.0, 2, 2, 1]), (5, 5, 5))
    there = apply_affine(one.to_voxels_of(other), [1, 2, 3])
    np.testing.assert_allclose(other.to_world(there), one.to_world([1, 2, 3]))


def test_grids_agree_to_a_thousandth_of_a_millimetre():
    affine = oblique((1.0, 2.0, 3.0))
    turned = affine.copy()
    turned[:3, 0] += 1e-4  # 0.01 mm after 100 voxels
    grid = Grid(affine, (100, 10, 10))
    assert grid.same_as(Grid(affine + 1e-6, [100, 10, 10]))
    assert not grid.same_as(Grid(turned, (100, 10, 10)))
    assert not grid.same_as(Grid(affine, (100, 10, 11)))
    assert grid.distance(Grid(turned, grid.shape)) == pytest.approx(99e-4 * np.sqrt(3))


def test_the_grid_of_an_image_has_three_axes_and_its_sizes():
    grid = Grid.of(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.uint8), oblique((0.5, 1.0, 2.0))))
    assert grid.shape == (4, 5, 6)
    np.testing.assert_allclose(grid.zooms, (0.5, 1.0, 2.0), rtol=1e-6)
    assert grid.voxel_mm3 == pytest.approx(1.0)
    np.testing.assert_allclose(grid.centre, apply_affine(grid.affine, (2, 2.5, 3)))
