"""Patches cover a volume, and their average is the weighted mean, value by value."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medsegmamba_bids.inference.patches import PatchAverage, PatchGrid

SHAPES = [(8, 8, 8), (9, 8, 15), (14, 20, 11), (5, 8, 30), (3, 2, 1), (17, 12, 16)]


def test_numbers_of_patches_of_a_brain():
    box = (160, 176, 208)
    assert len(PatchGrid(box, 96, 32).positions) == 60
    assert len(PatchGrid(box, 96, 16).positions) == 240


@pytest.mark.parametrize("multiple", [0, 1, 3])
def test_a_side_that_is_aligned_needs_no_further_patch(multiple):
    grid = PatchGrid((8 + 4 * multiple, 8, 8), 8, 4)
    assert [x for x, _, _ in grid.positions] == [4 * i for i in range(multiple + 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [1, 3, 8])
def test_patches_cover_the_volume_and_stay_in_it(shape, step):
    grid = PatchGrid(shape, 8, step)
    count = np.zeros(grid.padded_shape, int)
    for position in grid.positions:
        assert count[grid.box(position)].shape == (8, 8, 8)
        count[grid.box(position)] += 1
    assert count.min() >= 1
    assert len(set(grid.positions)) == len(grid.positions)
    for axis in range(3):
        starts = sorted({position[axis] for position in grid.positions})
        assert max(np.diff(starts), default=0) <= step


@pytest.mark.parametrize("shape", SHAPES)
def test_cropping_undoes_padding(shape):
    grid, volume = PatchGrid(shape, 8, 4), torch.rand(shape) + 1
    padded = grid.pad(volume)
    assert tuple(padded.shape) == grid.padded_shape == tuple(max(8, side) for side in shape)
    assert torch.equal(grid.crop(padded), volume)
    assert padded.sum() == pytest.approx(float(volume.sum()), rel=1e-5)


def test_the_odd_voxel_is_added_after():
    assert PatchGrid((5, 8, 7), 8, 4).padding == ((1, 2), (0, 0), (0, 1))


def test_patches_that_hold_nothing_are_left_out():
    grid, volume = PatchGrid((24, 8, 8), 8, 8), torch.zeros(24, 8, 8)
    volume[23, 7, 0] = -1e-6
    assert grid.occupied(volume) == [(16, 0, 0)]
    assert PatchGrid((24, 8, 8), 8, 8).occupied(torch.zeros(24, 8, 8)) == []


@pytest.mark.parametrize("size", [7, 8, 96])
def test_gaussian_window(size):
    window = PatchGrid((size,) * 3, size, 1, gaussian=True).window()
    assert window.dtype == np.float32
    assert window.max() == 1
    assert window.min() == np.float32(1e-3)
    for axis in range(3):
        np.testing.assert_array_equal(window, np.flip(window, axis))
    centre = (size - 1) / 2
    profile = np.exp(-0.5 * ((np.arange(size) - centre) / (size / 6)) ** 2)
    middle = window[:, size // 2, size // 2]
    np.testing.assert_allclose(middle, np.maximum(profile / profile.max(), 1e-3), rtol=1e-5)


def test_uniform_window():
    np.testing.assert_array_equal(PatchGrid((8, 8, 8), 4, 1).window(), np.ones((4, 4, 4)))


def probabilities(classes, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((classes, *shape), generator=generator).add_(0.1).log().softmax(0)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_patches_that_agree_give_back_what_they_say(shape, gaussian, half):
    grid = PatchGrid(shape, 8, 3, gaussian)
    truth = probabilities(3, grid.padded_shape)
    average = PatchAverage(grid, 3, "cpu", half)
    for position in grid.positions:
        average.add(position, truth[(slice(None), *grid.box(position))])
    assert average.mean.dtype == (torch.float16 if half else torch.float32)
    found = average.result().float()
    torch.testing.assert_close(found, grid.crop(truth), rtol=0, atol=2e-3 if half else 1e-6)


@pytest.mark.parametrize("gaussian", [False, True])
def test_patches_that_differ_give_their_weighted_mean_in_any_order(gaussian):
    grid = PatchGrid((12, 9, 8), 8, 2, gaussian)
    said = {position: probabilities(4, (8, 8, 8), seed) for seed, position in enumerate(grid.positions)}
    window = torch.from_numpy(grid.window()).double()
    total, weight = torch.zeros(4, 12, 9, 8, dtype=torch.float64), torch.zeros(12, 9, 8, dtype=torch.float64)
    for position, values in said.items():
        total[(slice(None), *grid.box(position))] += window * values
        weight[grid.box(position)] += window
    for order in (list(said), list(reversed(said)), sorted(said, key=lambda p: said[p][0, 0, 0, 0])):
        average = PatchAverage(grid, 4, "cpu")
        for position in order:
            average.add(position, said[position])
        torch.testing.assert_close(average.result().double(), total / weight, rtol=0, atol=1e-6)


def test_what_no_patch_covers_is_background():
    grid = PatchGrid((16, 8, 8), 8, 8)
    average = PatchAverage(grid, 3, "cpu")
    truth = probabilities(3, (8, 8, 8))
    average.add((8, 0, 0), truth)
    found = average.result()
    assert (found[0, :8] == 1).all()
    assert (found[1:, :8] == 0).all()
    assert torch.equal(found[:, 8:], truth)


def test_the_mean_is_that_of_the_other_device_after_a_move():
    grid = PatchGrid((12, 8, 8), 8, 4)
    one, other = probabilities(2, (8, 8, 8), 1), probabilities(2, (8, 8, 8), 2)
    stays, moves = PatchAverage(grid, 2, "cpu"), PatchAverage(grid, 2, "cpu")
    for average in (stays, moves):
        average.add((0, 0, 0), one)
    moves.to("cpu:0")
    for average in (stays, moves):
        average.add((4, 0, 0), other)
    assert torch.equal(moves.result(), stays.result())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (((8, 8), 8, 4), "three sides of 1 or more are needed"),
        (((8, 8, 0), 8, 4), "three sides of 1 or more are needed"),
        (((8, 8, 8), 0, 4), "patch size 0: must be 1 or more"),
        (((8, 8, 8), 8, 0), r"step 0: must lie in 1\.\.8, the patch size"),
        (((8, 8, 8), 8, 9), r"step 9: must lie in 1\.\.8, the patch size"),
    ],
)
def test_impossible_grids_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PatchGrid(*options)


KEPT = """
import torch
from medsegmamba_bids.inference.patches import PatchAverage, PatchGrid
from medsegmamba_bids.networks.kernels.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

keep_freed_memory()
grid = PatchGrid((100, 100, 100), 20, 20)
before = resident()
average = PatchAverage(grid, 50, "cpu")
average.add((0, 0, 0), torch.full((50, 20, 20, 20), 0.02))
average.mean[:, ::4] += 0  # touch much of it
during = resident()
del average
print(before, during, resident())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_of_a_mean_is_given_back_though_the_process_keeps_what_it_frees():
    ran = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    before, during, after = (int(number) for number in ran.stdout.split())
    assert during - before > 45e6
    assert after - before < 15e6


def test_no_room_for_the_mean_is_an_end_of_memory(monkeypatch):
    def full(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("medsegmamba_bids.inference.patches.mmap.mmap", full)
    with pytest.raises(MemoryError, match=r"no room for class probabilities of 8192 bytes"):
        PatchAverage(PatchGrid((8, 8, 8), 8, 4), 4, "cpu")
