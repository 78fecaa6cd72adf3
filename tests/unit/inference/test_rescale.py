"""Aligned grids: boxes, and linear interpolation against the general resampling."""

import numpy as np
import pytest
import torch

from medsegmamba_bids.image.geometry import resample
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.inference.rescale import AlignedGrids, interpolation_matrix

SHAPE = (24, 21, 30)
RATIOS = [0.5, 0.8, 1.0, 1.5, 2.0, 4.0]


GRID = Grid(np.eye(4), SHAPE)


def rescaled(ratio):
    """Voxels of ``ratio`` mm over the volume of GRID; the outer faces of the first voxels coincide."""
    affine = np.diag([ratio, ratio, ratio, 1.0])
    affine[:3, 3] = (ratio - 1) / 2
    return Grid(affine, np.ceil(np.array(SHAPE) / ratio - 1e-6))


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_grid_covers_the_volume(ratio):
    assert AlignedGrids(Grid(np.eye(4), SHAPE), ratio).network_shape == rescaled(ratio).shape


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_ramp_keeps_its_values_at_their_places(ratio):
    """Intensities that are linear in the position come out linear, but for the border.

    Exactly so where old voxels are met symmetrically; else to a 25th of a voxel, as triangles go.
    """
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), ratio)
    grid = rescaled(ratio)
    slopes = np.array([0.3, -0.7, 1.1])
    volume = np.moveaxis(np.indices(SHAPE), 0, -1) @ slopes
    found = grids.to_network(volume)
    assert found.dtype == np.float32
    expected = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) @ slopes
    middle = (slice(2, -2),) * 3
    fraction = 0 if ratio.is_integer() else 1 / 25
    there, again = (1e-4 + fraction * np.abs(slopes).sum() * (r > 1) for r in (ratio, 1 / ratio))
    np.testing.assert_allclose(found[middle], expected[middle], atol=there)
    back = grids.to_conformed(torch.from_numpy(found), Box.whole(grid.shape), Box.whole(SHAPE)).numpy()
    inside = tuple(slice(round(4 * max(1, ratio)), -round(4 * max(1, ratio))) for _ in range(3))
    if volume[inside].size:
        np.testing.assert_allclose(back[inside], volume[inside], atol=there + again)


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
def test_to_a_finer_grid_it_is_the_general_resampling(ratio):
    data = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    grid = rescaled(ratio)
    expected = resample(data, GRID, grid)
    found = AlignedGrids(Grid(np.eye(4), SHAPE), ratio).to_network(data)
    inside = tuple(slice(2, -3) for _ in SHAPE)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
def test_back_from_a_coarser_grid_it_is_the_general_resampling(ratio):
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), ratio)
    grid = rescaled(ratio)
    values = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    found = grids.to_conformed(torch.from_numpy(values), Box.whole(grid.shape), Box.whole(SHAPE)).numpy()
    expected = resample(values, grid, GRID, fill=-1)
    inside = expected >= 0  # between the outermost voxels' centres
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_constant_stays(ratio):
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), ratio)
    there = grids.to_network(np.full(SHAPE, 7, np.uint8))
    np.testing.assert_allclose(there, 7, rtol=1e-6)
    back = grids.to_conformed(torch.from_numpy(there), Box.whole(grids.network_shape), Box.whole(SHAPE))
    np.testing.assert_allclose(back, 7, rtol=1e-6)


def test_one_to_one_is_exact():
    data = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), 1.0)
    np.testing.assert_array_equal(grids.to_network(data), data)
    box = (slice(3, 9), slice(0, 21), slice(5, 6))
    assert grids.to_network_box(box) == grids.to_conformed_box(box) == box
    values = torch.from_numpy(data[box].astype(np.float32))
    assert torch.equal(grids.to_conformed(values, box, box), values)


def test_coarser_voxels_are_means_of_all_they_cover():
    data = np.zeros((8, 8, 8), np.float32)
    data[2:4, 4:6, 6:8] = 1  # one voxel of the coarse grid
    found = AlignedGrids(Grid(np.eye(4), (8, 8, 8)), 2.0).to_network(data)
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2, 3)
    assert found.sum() == pytest.approx(1, rel=0.3)
    single = np.zeros((8, 8, 8), np.float32)
    for position in np.ndindex(4, 4, 4):
        single[:] = 0
        single[position] = 1
        assert AlignedGrids(Grid(np.eye(4), (8, 8, 8)), 2.0).to_network(single).max() > 0, "a voxel was skipped"


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("seed", range(4))
def test_boxes(ratio, seed):
    rng = np.random.default_rng(seed)
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), ratio)
    starts = rng.integers(0, np.array(SHAPE) - 2)
    stops = rng.integers(starts + 1, np.array(SHAPE) + 1)
    box = tuple(map(slice, starts.tolist(), stops.tolist()))
    there = grids.to_network_box(box)
    for side, other, length in zip(box, there, grids.network_shape, strict=True):
        assert 0 <= other.start < other.stop <= length
        assert other.start * ratio <= side.start + 1e-6
        assert (other.stop * ratio >= side.stop - 1e-6) or other.stop == length
        assert (other.start + 1) * ratio > side.start
        assert (other.stop - 1) * ratio < side.stop
    back = grids.to_conformed_box(there)
    for side, other, length in zip(there, back, SHAPE, strict=True):
        centres = np.arange(length) + 0.5
        inside = np.flatnonzero((centres >= side.start * ratio - 1e-9) & (centres < side.stop * ratio - 1e-9))
        assert (other.start, other.stop) == (inside[0], inside[-1] + 1)
    assert all(b.start <= a.start and a.stop <= b.stop for a, b in zip(box, back, strict=True))


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_whole_grid_returns_to_the_whole_grid(ratio):
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), ratio)
    assert grids.to_network_box(Box.whole(SHAPE)) == Box.whole(grids.network_shape)
    assert grids.to_conformed_box(Box.whole(grids.network_shape)) == Box.whole(SHAPE)


def test_a_part_is_interpolated_as_within_the_whole():
    grids = AlignedGrids(Grid(np.eye(4), SHAPE), 1.5)
    values = torch.rand(grids.network_shape, generator=torch.Generator().manual_seed(0))
    everywhere = grids.to_conformed(values, Box.whole(grids.network_shape), Box.whole(SHAPE))
    source, target = (slice(4, 12),) * 3, (slice(7, 16),) * 3
    part = grids.to_conformed(values[source], source, target)
    torch.testing.assert_close(part, everywhere[target])


def test_rows_of_weights_sum_to_one():
    for ratio in RATIOS:
        matrix = interpolation_matrix(slice(3, 20), slice(0, 12), ratio)
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
        assert matrix.min() >= 0
