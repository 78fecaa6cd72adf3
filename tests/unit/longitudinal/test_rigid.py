"""Rigid transforms: from labels, from intensities, and their mean."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.longitudinal.rigid import (
    mean_rigid,
    register_both_ways,
    rigid_from_labels,
    to_midspace,
)


def rigid(angles, shift):
    return nib.affines.from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), shift)


FORTH = rigid((4, -3, 5), (3, -2, 4))


def test_the_mean_of_two_turns_is_half_way():
    mean = mean_rigid([rigid((0, 0, 10), (0, 0, 0)), rigid((0, 0, 30), (0, 0, 0))])
    np.testing.assert_allclose(mean, rigid((0, 0, 20), (0, 0, 0)), atol=1e-9)


def test_half_of_the_way_done_twice_is_the_way():
    half = mean_rigid([np.eye(4), FORTH])
    np.testing.assert_allclose(half @ half, FORTH, atol=1e-9)


def test_the_mean_depends_on_neither_order_nor_origin_and_inverts():
    matrices = [np.eye(4), FORTH, rigid((-6, 2, 1), (0, 9, -4))]
    mean = mean_rigid(matrices)
    np.testing.assert_allclose(mean_rigid(matrices[::-1]), mean, atol=1e-8)
    moved = nib.affines.from_matvec(np.eye(3), [70.0, -20, 5])
    elsewhere = mean_rigid([moved @ matrix @ np.linalg.inv(moved) for matrix in matrices])
    np.testing.assert_allclose(elsewhere, moved @ mean @ np.linalg.inv(moved), atol=1e-6)
    inverses = [np.linalg.inv(matrix) for matrix in matrices]
    np.testing.assert_allclose(mean_rigid(inverses), np.linalg.inv(mean), atol=1e-7)


def test_the_middle_is_as_far_from_all_and_whichever_space_was_common():
    matrices = [np.eye(4), FORTH, rigid((-6, 2, 1), (0, 9, -4))]
    middle = to_midspace(matrices)
    np.testing.assert_allclose(mean_rigid(middle), np.eye(4), atol=1e-8)
    other = to_midspace([np.linalg.inv(FORTH) @ matrix for matrix in matrices])
    for here, there in zip(middle, other, strict=True):
        np.testing.assert_allclose(here, there, atol=1e-7)


def made_head(transform, seed, shape=(44, 48, 40)):
    """Blobs of five labels seen through a rigid motion: intensities, grid, mask and labels, voxels of 2 mm."""
    grid = Grid(nib.affines.from_matvec(np.diag([-2.0, 2, 2]), (44, -48, -40)), shape)
    places = grid.to_world(np.moveaxis(np.indices(shape), 0, -1))
    places = nib.affines.apply_affine(np.linalg.inv(transform), places)
    centres = np.array([(0, 0, 0), (18, 6, -4), (-15, 9, 10), (4, -22, 6), (-6, 12, -18)])
    distance = np.stack([np.linalg.norm(places - centre, axis=-1) for centre in centres])
    data = 90 * np.exp(-((np.linalg.norm(places / (30, 34, 28), axis=-1)) ** 4))
    data += sum(40 * np.exp(-((d / 9) ** 2)) for d in distance[1:])
    labels = np.where(distance.min(0) < 8, distance.argmin(0) + 1, 0).astype(np.uint16)
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return (data + ndimage.gaussian_filter(noise, 0.5)).astype(np.float32), grid, data > 30, labels


@pytest.fixture(scope="module")
def heads():
    return made_head(np.eye(4), 0), made_head(FORTH, 1)


def far_apart(matrix, other):
    """How far points of a head lie apart that two transforms take somewhere, mm."""
    points = np.array([(0, 0, 0), (30, 0, 0), (0, 30, 0), (0, 0, 30), (-30, -20, 0)])
    apart = nib.affines.apply_affine(matrix, points) - nib.affines.apply_affine(other, points)
    return np.linalg.norm(apart, axis=1).max()


def test_labels_tell_how_a_head_was_moved(heads):
    (_, grid, _, labels), (_, other_grid, _, other_labels) = heads
    found = rigid_from_labels(labels, grid, other_labels, other_grid)
    assert far_apart(found, FORTH) < 1.5
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)


def test_too_few_structures_are_refused(heads):
    _, grid, _, labels = heads[0]
    with pytest.raises(ImageError, match="3 structures in common"):
        rigid_from_labels(np.where(labels > 3, 0, labels), grid, labels, grid)


def test_a_known_motion_is_found_and_swapping_heads_inverts_it(heads):
    first, second = heads
    start = rigid_from_labels(first[3], first[1], second[3], second[1])
    forth = register_both_ways(first[:3], second[:3], start)
    back = register_both_ways(second[:3], first[:3], np.linalg.inv(start))
    assert far_apart(forth, FORTH) < 0.3
    np.testing.assert_allclose(forth @ back, np.eye(4), atol=1e-6)
