"""SegMamba's tri-oriented Mamba (Xing et al. 2024, arXiv 2401.13560): three Mamba scans through a cube.

The tokens of a cube are read forwards, backwards, and across its slices; each reading has a causal convolution and
a selective scan of its own (Gu and Dao 2023, figure 3), their outputs are added, gated and projected.

Shape letters: B batch; S side of the cube; L = S ** 3 voxels; C channels; D = expansion * C inner channels;
N states; R rank of the step size; W width of the causal convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from medsegmamba_bids.networks.blocks import Linear
from medsegmamba_bids.networks.kernels.selective_scan import selective_scan
from medsegmamba_bids.networks.ss3d import starting_steps

READINGS = 3


@lru_cache(maxsize=32)
def tri_oriented_paths(side: int) -> np.ndarray:
    """Return the voxel read at every step: forwards, backwards, and across slices.

    Parameters
    ----------
    side : int
        Of the cube, which is also its number of slices (12 at 12^3).

    Returns
    -------
    int32 (3, side ** 3), read-only

    Examples
    --------
    >>> tri_oriented_paths(2).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [0, 4, 1, 5, 2, 6, 3, 7]]
    """
    forwards = np.arange(side**3, dtype=np.int32)
    across = forwards.reshape(side, side * side).T.reshape(-1)  # the same place in every slice, then the next place
    paths = np.stack((forwards, forwards[::-1], across))
    paths.setflags(write=False)
    return paths


@lru_cache(maxsize=8)
def _causal_conv1d(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """Return the function of causal-conv1d, which is for GPUs, where it is installed with its CUDA extension."""
    if device.type != "cuda":
        return None
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        return None
    return causal_conv1d_fn


def causal_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the SiLU of a depth-wise convolution that looks back only; by causal-conv1d on a GPU, where it is
    installed.

    Parameters
    ----------
    x : float (B, L, D), in the order of the steps
    weight : float (D, W), the last tap is that of the step itself
    bias : float (D,)

    Returns
    -------
    float (B, L, D)
    """
    if fused := _causal_conv1d(x.device):
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return fused(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)
    length, width = x.shape[1], weight.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    total = torch.addcmul(bias, padded[:, :length], weight[:, 0])
    for tap in range(1, width):  # faster on a CPU than conv1d, which wants the steps innermost
        total = torch.addcmul(total, padded[:, tap : tap + length], weight[:, tap])
    return F.silu(total)


class Reading(nn.Module):
    """One of the three: causal convolution and selective scan along a path.

    Parameters
    ----------
    channels, state, width, rank : int
        D, N, W and R.
    """

    def __init__(self, channels: int, state: int, width: int, rank: int) -> None:
        super().__init__()
        self.state, self.rank = state, rank
        self.conv_weight = nn.Parameter(torch.empty(channels, width))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.x_proj = Linear(channels, rank + 2 * state, bias=False)
        self.dt_proj = nn.Parameter(torch.empty(channels, rank))
        self.dt_bias = nn.Parameter(torch.empty(channels))
        self.log_rates = nn.Parameter(torch.empty(channels, state))
        self.skip = nn.Parameter(torch.ones(channels))
        self.reset_parameters(width)

    def reset_parameters(self, width: int) -> None:
        """Draw Mamba's starting values, as in ``SS3D``; those of a convolution are PyTorch's."""
        nn.init.uniform_(self.conv_weight, -1 / math.sqrt(width), 1 / math.sqrt(width))
        nn.init.uniform_(self.conv_bias, -1 / math.sqrt(width), 1 / math.sqrt(width))
        nn.init.uniform_(self.dt_proj, -1 / math.sqrt(self.rank), 1 / math.sqrt(self.rank))
        self.dt_bias.data = starting_steps(self.dt_bias)
        self.log_rates.data = torch.log(torch.arange(1.0, self.state + 1)).expand_as(self.log_rates).clone()

    def forward(self, x: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        """Voxels (B, L, D) and the path (L,) through them -> float32 (B, L, D), both in voxel order."""
        order = path.long()
        u = causal_convolution(x[:, order], self.conv_weight, self.conv_bias)[:, torch.argsort(order)]
        ranks, b, c = self.x_proj(u)[:, :, None].split((self.rank, self.state, self.state), -1)
        with torch.autocast(u.device.type, enabled=False):
            steps = F.linear(ranks.float(), self.dt_proj).transpose(1, 2)
            rates = -torch.exp(self.log_rates).T[None]
            return selective_scan(u, steps, b, c, rates, path[None], bias=self.dt_bias[None], skip=self.skip[None])


class TriOrientedMamba(nn.Module):
    """Three readings of a cube, added, gated by the input and projected.

    Parameters
    ----------
    channels, state, width, expansion : int
        C, N, W and D / C; the published block has 16, 4 and 2.
    """

    def __init__(self, channels: int, state: int = 16, width: int = 4, expansion: int = 2) -> None:
        super().__init__()
        inner = expansion * channels
        self.in_proj = Linear(channels, 2 * inner, bias=False)
        rank = math.ceil(channels / 16)
        self.readings = nn.ModuleList(Reading(inner, state, width, rank) for _ in range(READINGS))
        self.out_proj = Linear(inner, channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, S, S, C) -> (B, S, S, S, C)."""
        inside, gate = self.in_proj(x.flatten(1, 3)).chunk(2, -1)
        paths = self._paths(x.shape[1], x.device)
        y = sum(reading(inside, path) for reading, path in zip(self.readings, paths, strict=True))
        return self.out_proj(y * F.silu(gate)).view_as(x)

    def _paths(self, side: int, device: torch.device) -> torch.Tensor:
        """Return the index table on the device; kept, as in ``SS3D``."""
        if getattr(self, "_table", None) is None or self._table.shape[1] != side**3 or self._table.device != device:
            with torch.inference_mode(False):  # so that training may use it as well
                self._table = torch.tensor(tri_oriented_paths(side), device=device)
        return self._table
