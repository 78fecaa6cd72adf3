"""How long networks take for an image on this machine, from one measured patch."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from medsegmamba_bids.inference.patches import PatchGrid
from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume
from medsegmamba_bids.inference.segmenter import HIPPOCAMPUS_SIDE, Segmenter
from medsegmamba_bids.segmentations import HIPPOCAMPUS
from medsegmamba_bids.weights.info import WeightsFile, WeightsInfo

#: Sides of a large adult's brain with a margin, and of a head, mm.
BRAIN_MM, HEAD_MM = (160.0, 190.0, 150.0), (170.0, 220.0, 230.0)


def image_seconds(segmenter: Segmenter, network: WeightsFile, task: str) -> float:
    """Return how long a network takes for the image of an adult, s: a patch is run and timed, and patches counted."""
    module, info = segmenter.load(network, task)
    return patch_seconds(segmenter, module, info) * patch_count(info, segmenter.settings.step, task)


def patch_count(info: WeightsInfo, step: int | None, task: str) -> int:
    """Return how many patches an adult's image has: overlapping ones, and those of the pass that finds the brain.

    Parameters
    ----------
    info : WeightsInfo
    step : int or None
        Voxels between patches; None is what the weights say.
    task : str
    """
    spec = info.input
    sides = (HIPPOCAMPUS_SIDE,) * 3 if task == HIPPOCAMPUS.task else BRAIN_MM
    looks = [spec.voxel_size, *([spec.mirror_voxel_size or spec.voxel_size] if spec.mirror else [])]
    grids = (PatchGrid(_voxels(sides, size), spec.patch_size, step or spec.step) for size in looks)
    patches = sum(len(grid.positions) for grid in grids)
    if spec.deep_voxel_size:
        patches += math.ceil(len(looks) * (spec.deep_patch_size / spec.patch_size) ** 3)
    if task == HIPPOCAMPUS.task or spec.skull_stripped:
        return patches
    return patches + len(PatchGrid(_voxels(HEAD_MM, spec.voxel_size), spec.patch_size, spec.patch_size).positions)


def _voxels(sides_mm: tuple[float, ...], voxel_mm: float) -> tuple[int, int, int]:
    return tuple(int(np.ceil(side / voxel_mm)) for side in sides_mm)


def patch_seconds(segmenter: Segmenter, network: torch.nn.Module, info: WeightsInfo) -> float:
    """Return how long a patch takes, s: the second of two, as kernels are compiled at the first."""
    settings, size = segmenter.settings, info.input.patch_size
    volume = np.random.default_rng(0).random((size,) * 3, np.float32)
    resources = Resources(segmenter.device, settings.precision, 1, settings.half_accumulator, settings.low_memory)
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        predict_volume(network, volume, len(info.labels), Patching(size, step=size), resources)
        took = time.perf_counter() - start
    return took
