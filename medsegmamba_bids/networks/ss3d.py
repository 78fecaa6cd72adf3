"""The 3D selective scan (SS3D) and the block around it (VSS3D): paper, sections 2.2.1 and 2.2.2, figure 2.

Shape letters: B batch; S side of the bottleneck's grid; L = S ** 3 voxels; C channels; K directions; N states;
R rank of the step size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from medsegmamba_bids.networks.blocks import Conv3d, Linear, direct_type, linear, mlp
from medsegmamba_bids.networks.kernels.selective_scan import selective_scan
from medsegmamba_bids.networks.scan_paths import DIRECTIONS, scan_paths

STEP_RANGE = (1e-3, 1e-1)  # of the step sizes at the start of training (Gu and Dao 2023)


def starting_steps(like: torch.Tensor) -> torch.Tensor:
    """Return values of a tensor's shape whose softplus is log-uniform in ``STEP_RANGE``."""
    low, high = map(math.log, STEP_RANGE)
    steps = torch.exp(torch.rand_like(like) * (high - low) + low)
    return steps + torch.log(-torch.expm1(-steps))


class SS3D(nn.Module):
    """Eight selective scans through a cube, summed (figure 2a).

    Parameters
    ----------
    channels, state : int
        C and N.
    orientation : int
        Which six-fold turn of the eight paths, 0 to 5.
    """

    def __init__(self, channels: int, state: int, orientation: int) -> None:
        super().__init__()
        self.orientation, self.state = orientation, state
        self.rank = math.ceil(channels / 16)
        self.in_proj = Linear(channels, channels, bias=False)
        self.conv = Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.x_proj = nn.Parameter(torch.empty(DIRECTIONS, self.rank + 2 * state, channels))
        self.dt_proj = nn.Parameter(torch.empty(DIRECTIONS, channels, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, channels))
        self.log_rates = nn.Parameter(torch.empty(DIRECTIONS, channels, state))
        self.skip = nn.Parameter(torch.ones(DIRECTIONS, channels))
        self.out_norm = nn.LayerNorm(channels)
        self.out_proj = Linear(channels, channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Mamba's starting values: decay rates 1..N, step sizes log-uniform in ``STEP_RANGE``."""
        nn.init.uniform_(self.x_proj, -1, 1)
        self.x_proj.data /= math.sqrt(self.x_proj.shape[2])
        nn.init.uniform_(self.dt_proj, -1, 1)
        self.dt_proj.data /= math.sqrt(self.rank)
        self.dt_bias.data = starting_steps(self.dt_bias)
        self.log_rates.data = torch.log(torch.arange(1.0, self.state + 1)).expand_as(self.log_rates).clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, S, S, C) -> (B, S, S, S, C)."""
        inside = F.silu(self.conv(self.in_proj(x).movedim(-1, 1))).movedim(1, -1)
        y = self.scan(inside.flatten(1, 3)).view_as(inside)
        return self.out_proj(self.out_norm(y))

    def scan(self, u: torch.Tensor) -> torch.Tensor:
        """Voxels (B, L, C) -> the sum of the eight scans' outputs, float32 (B, L, C).

        The projections act on single voxels, so they are done once in voxel order, for all directions.
        """
        batch, length, _ = u.shape
        mixed = linear(u, self.x_proj.flatten(0, 1)).view(batch, length, DIRECTIONS, -1)
        ranks, b, c = mixed.split((self.rank, self.state, self.state), -1)
        half = direct_type(u) == torch.bfloat16
        with torch.autocast(u.device.type, enabled=False):
            ranks, weight = (ranks, self.dt_proj.bfloat16()) if half else (ranks.float(), self.dt_proj)
            steps = torch.einsum("blkr,kcr->bklc", ranks, weight)
            rates = -torch.exp(self.log_rates).transpose(1, 2)
            paths = self._paths(round(length ** (1 / 3)), u.device)
            return selective_scan(u, steps, b, c, rates, paths, bias=self.dt_bias, skip=self.skip)

    def _paths(self, side: int, device: torch.device) -> torch.Tensor:
        """Return the index table on the device; kept, since copying it would take longer than a scan on a GPU."""
        if getattr(self, "_table", None) is None or self._table.shape[1] != side**3 or self._table.device != device:
            with torch.inference_mode(False):  # so that training may use it as well
                self._table = torch.tensor(scan_paths(side, self.orientation), device=device)
        return self._table


class DropPath(nn.Module):
    """Leaves a residual branch out for whole samples while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand((len(x),) + (1,) * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class ScanBlock(nn.Module):
    """Two residual modules: a scan, and a multilayer perceptron (figure 2b).

    Parameters
    ----------
    channels : int
    scan : torch.nn.Module
        Maps (B, S, S, S, C) to the same shape.
    dropout, drop_path : float
    """

    def __init__(self, channels: int, scan: nn.Module, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.scan_norm = nn.LayerNorm(channels)
        self.scan = scan
        self.scan_dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = mlp(channels, channels, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, S, S, C) -> (B, S, S, S, C)."""
        x = x + self.drop_path(self.scan_dropout(self.scan(self.scan_norm(x))))
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


class VSS3D(ScanBlock):
    """The block of MedSegMamba: its scan is ``SS3D``."""

    def __init__(self, channels: int, state: int, orientation: int, dropout: float, drop_path: float) -> None:
        super().__init__(channels, SS3D(channels, state, orientation), dropout, drop_path)
