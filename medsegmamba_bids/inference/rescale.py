"""From the conformed grid to a network's and back: same volume, same axes, another voxel size.

Grids that are aligned need no general resampling: linear interpolation is then one small matrix per
axis, which is much faster, on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from medsegmamba_bids.image.grid import Box, Grid


@dataclass(frozen=True, eq=False)
class AlignedGrids:
    """A conformed grid and the grid of a network over the same volume.

    The outer faces of both grids' first voxels coincide.

    Attributes
    ----------
    conformed : Grid
        (X, Y, Z).
    ratio : float
        Edge of the network's voxels in conformed voxels.

    Examples
    --------
    >>> grids = AlignedGrids(Grid(np.eye(4), (256, 256, 256)), 1.5)
    >>> grids.network_shape
    (171, 171, 171)
    >>> grids.to_network_box((slice(0, 3), slice(1, 3), slice(250, 256)))
    (slice(0, 2, None), slice(0, 2, None), slice(166, 171, None))
    """

    conformed: Grid
    ratio: float

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """Sides of the network's grid."""
        return tuple(math.ceil(side / self.ratio - 1e-6) for side in self.conformed.shape)

    def to_network_box(self, box: Box) -> Box:
        """Return the voxels of the network's grid that touch a box of the conformed one."""
        return Box(
            slice(math.floor(s.start / self.ratio + 1e-6), min(n, math.ceil(s.stop / self.ratio - 1e-6)))
            for s, n in zip(box, self.network_shape, strict=True)
        )

    def to_conformed_box(self, box: Box) -> Box:
        """Return the voxels of the conformed grid whose centres lie in a box of the network's."""
        return Box(
            slice(math.ceil(s.start * self.ratio - 0.5), min(n, math.ceil(s.stop * self.ratio - 0.5)))
            for s, n in zip(box, self.conformed.shape, strict=True)
        )

    def to_network(self, data: np.ndarray) -> np.ndarray:
        """Return an image (X, Y, Z) on the network's grid, float32; linear, smoothed where that is coarser."""
        volume = torch.from_numpy(np.ascontiguousarray(data, np.float32))
        if self.ratio == 1:
            return volume.numpy()
        return _apply(volume, self.conformed.box, Box.whole(self.network_shape), self.ratio).numpy()

    def to_conformed(self, values: torch.Tensor, box: Box, target: Box) -> torch.Tensor:
        """Return values in ``box`` of the network's grid, interpolated in ``target`` of the conformed one.

        Beyond the box its outermost values go on.
        """
        values = values.float()
        return values if self.ratio == 1 and box == target else _apply(values, box, target, 1 / self.ratio)


def _apply(values: torch.Tensor, sources: Box, targets: Box, ratio: float) -> torch.Tensor:
    """Interpolate along each axis in turn: (x, y, z) -> (X, Y, Z)."""
    matrices = [
        torch.from_numpy(interpolation_matrix(source, target, ratio)).to(values.device)
        for source, target in zip(sources, targets, strict=True)
    ]
    values = torch.matmul(values, matrices[2].T)
    values = torch.matmul(matrices[1], values)
    return torch.tensordot(matrices[0], values, 1)


def interpolation_matrix(source: slice, target: slice, ratio: float) -> np.ndarray:
    """Return weights of linear interpolation between aligned grids.

    The kernel is a triangle as wide as the larger of the two voxels, so that nothing is skipped where
    the target is coarser.

    Parameters
    ----------
    source, target : slice
        The voxels at hand and those wanted, of either grid.
    ratio : float
        Edge of the target's voxels in the source's.

    Returns
    -------
    float32 (n_target, n_source)
        Rows sum to 1; where the source ends its last value goes on.

    Examples
    --------
    >>> interpolation_matrix(slice(0, 2), slice(0, 4), 0.5)[:, 0].tolist()
    [1.0, 0.75, 0.25, 0.0]
    """
    centres = (np.arange(target.start, target.stop) + 0.5) * ratio - 0.5
    centres = np.clip(centres, source.start, source.stop - 1)
    distance = np.abs(np.arange(source.start, source.stop) - centres[:, None])
    weights = np.maximum(0, 1 - distance / max(1.0, ratio))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
