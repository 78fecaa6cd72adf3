"""Softmax over channels that lie innermost, on a CPU, with each class's voxels together in the result.

torch copies such scores into the other layout first, voxel by voxel: a third of a small network's time.

Shape letters: B batch; V voxels; C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from medsegmamba_bids.networks.kernels.compiled import FAST, number, stored
from medsegmamba_bids.networks.kernels.scan_numba import LOG2_E, exp2_of_negative

_TILE = 64  # voxels whose scores are turned at once: they stay in the nearest cache


def channel_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Return ``scores.float().softmax(1)`` of (B, C, X, Y, Z), contiguous; without gradients on a CPU by a kernel."""
    if scores.device.type != "cpu" or torch.is_grad_enabled():
        return scores.float().softmax(1)
    rows = scores.movedim(1, -1).contiguous()
    out = torch.empty(scores.shape)
    _softmax(stored(rows.view(len(rows), -1, rows.shape[-1])), out.view(*scores.shape[:2], -1).numpy())
    return out


@njit(parallel=True, fastmath=FAST, cache=True)
def _softmax(rows, out):
    """Write the softmax over the last axis of ``rows`` (B, V, C; bfloat16 given as int16) into ``out`` (B, C, V)."""
    batch, voxels, channels = rows.shape
    tiles = (voxels + _TILE - 1) // _TILE
    for task in prange(batch * tiles):
        s, first = task // tiles, task % tiles * _TILE
        width = min(_TILE, voxels - first)
        tile = np.zeros((channels, _TILE), np.float32)
        highest, total = np.full(_TILE, -np.inf, np.float32), np.zeros(_TILE, np.float32)
        for v in range(width):
            row = rows[s, first + v]
            for c in range(channels):
                tile[c, v] = number(row[c])
        for c in range(channels):
            for v in range(_TILE):
                highest[v] = max(highest[v], tile[c, v])
                total[v] += tile[c, v] * np.float32(0)  # NaN where a score is not finite, which the exponential hides
        for c in range(channels):
            for v in range(_TILE):
                tile[c, v] = exp2_of_negative((tile[c, v] - highest[v]) * LOG2_E)
                total[v] += tile[c, v]
        for v in range(_TILE):
            total[v] = np.float32(1) / total[v]
        for c in range(channels):
            to = out[s, c, first : first + width]
            for v in range(width):
                to[v] = tile[c, v] * total[v]
