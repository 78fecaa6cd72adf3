"""Where patches lie in a volume, and the weighted mean of what a network says about them.

Shape letters: X, Y, Z volume; P patch side; C classes.
"""

from __future__ import annotations

import itertools
import math
import mmap
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from medsegmamba_bids.errors import SegmentationError
from medsegmamba_bids.image.grid import Box

Position = tuple[int, int, int]

# Standard deviation of the Gaussian window as a fraction of the patch, and its smallest weight:
# a voxel that only patches' corners cover must still get a sound mean, also in float16.
_SIGMA = 1 / 6
_SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class PatchGrid:
    """Patches that cover a volume.

    Neighbours lie ``step`` voxels apart, the last patch of an axis ends where the volume ends. A
    side shorter than a patch is padded to one, half before and half after (the odd voxel after).

    Attributes
    ----------
    shape : tuple of int
        Sides of the volume (X, Y, Z), voxels.
    patch_size, step : int
        Side of a patch and distance between neighbours, voxels; 1 <= step <= patch_size.
    gaussian : bool
        Weight the middle of a patch more than its border.

    Examples
    --------
    >>> grid = PatchGrid((100, 96, 60), patch_size=96, step=32)
    >>> grid.positions
    [(0, 0, 0), (4, 0, 0)]
    >>> grid.padding
    ((0, 0), (0, 0), (18, 18))
    """

    shape: tuple[int, int, int]
    patch_size: int
    step: int
    gaussian: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise SegmentationError(f"a volume of shape {self.shape}: three sides of 1 or more are needed")
        if self.patch_size < 1:
            raise SegmentationError(f"patch size {self.patch_size}: must be 1 or more")
        if not 1 <= self.step <= self.patch_size:
            raise SegmentationError(f"step {self.step}: must lie in 1..{self.patch_size}, the patch size")

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Voxels added before and after each axis."""
        missing = [max(0, self.patch_size - side) for side in self.shape]
        return tuple((m // 2, m - m // 2) for m in missing)

    @property
    def padded_shape(self) -> tuple[int, int, int]:
        """Sides of the padded volume, none shorter than a patch."""
        return tuple(max(side, self.patch_size) for side in self.shape)

    @property
    def positions(self) -> list[Position]:
        """First voxel of every patch, in the padded volume."""
        return list(itertools.product(*map(self._starts, self.padded_shape)))

    def _starts(self, side: int) -> list[int]:
        last = side - self.patch_size
        return [*range(0, last, self.step), last]

    def box(self, position: Position) -> Box:
        """Return voxels of the patch at ``position``, in the padded volume."""
        return Box(slice(start, start + self.patch_size) for start in position)

    def pad(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the volume (X, Y, Z) with zeros around it where a side is shorter than a patch."""
        sides = [voxels for pair in reversed(self.padding) for voxels in pair]
        return functional.pad(volume, sides)

    def crop(self, padded: torch.Tensor) -> torch.Tensor:
        """Return a view of (..., X, Y, Z) without what :meth:`pad` added."""
        inside = tuple(slice(before, before + side) for (before, _), side in zip(self.padding, self.shape, strict=True))
        return padded[(..., *inside)]

    def occupied(self, padded: torch.Tensor) -> list[Position]:
        """Return the positions of the patches in which any voxel differs from zero."""
        return [position for position in self.positions if padded[self.box(position)].any()]

    def window(self) -> np.ndarray:
        """Return the weight of each voxel of a patch: float32 (P, P, P), positive everywhere, at most 1."""
        if not self.gaussian:
            return np.ones((self.patch_size,) * 3, np.float32)
        offset = np.arange(self.patch_size) - (self.patch_size - 1) / 2
        profile = np.exp(-0.5 * (offset / (_SIGMA * self.patch_size)) ** 2)
        weights = profile[:, None, None] * profile[:, None] * profile
        return np.maximum(weights / weights.max(), _SMALLEST_WEIGHT).astype(np.float32)


class PatchAverage:
    """Running weighted mean of the class probabilities of overlapping patches.

    The mean itself is kept, not a sum: it stays within 0..1, so that float16 suffices, and needs no
    division at the end. Voxels that no patch covers are background (class 0) with probability 1.

    Parameters
    ----------
    grid : PatchGrid
    n_classes : int
    device : torch.device
        Where the mean is kept.
    half : bool
        Keep it in float16: half the memory, errors up to about 0.001.
    """

    def __init__(self, grid: PatchGrid, n_classes: int, device: torch.device | str, half: bool = False) -> None:
        self.grid = grid
        self.window = torch.from_numpy(grid.window()).to(device)
        self.weight = torch.zeros(grid.padded_shape, device=device)
        dtype = torch.float16 if half else torch.float32
        self.mean = _zeros((n_classes, *grid.padded_shape), dtype, torch.device(device))
        self.mean[0] = 1

    def to(self, device: torch.device | str) -> PatchAverage:
        """Move everything to another device; returns itself."""
        # All three are copied before any is replaced: a copy may run out of memory.
        moved = [tensor.to(device) for tensor in (self.window, self.weight, self.mean)]
        self.window, self.weight, self.mean = moved
        return self

    def add(self, position: Position, probabilities: torch.Tensor) -> None:
        """Take in the probabilities (C, P, P, P) of one patch.

        What may run out of memory comes first, so that a failed call changes nothing.
        """
        box = self.grid.box(position)
        probabilities = probabilities.to(self.mean)
        share = self.window / (self.weight[box] + self.window)
        self.mean[(slice(None), *box)].lerp_(probabilities, share.to(self.mean.dtype))
        self.weight[box].add_(self.window)

    def result(self) -> torch.Tensor:
        """Return the mean without padding, a view (C, X, Y, Z)."""
        return self.grid.crop(self.mean)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros; on a CPU the kernel gets their memory back as soon as they are gone, whatever malloc keeps.

    They are the largest array there is, and would leave a hole into which the next one may not fit.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape)
    try:
        mapping = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for class probabilities of {count * dtype.itemsize} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):  # else every 4 KiB cost a page fault
        with suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)
