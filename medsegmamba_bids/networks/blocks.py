"""Convolutional building blocks of the encoders and decoders (paper, figure 2c).

Shape letters: B batch; C channels; X, Y, Z grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from medsegmamba_bids.networks.group_norm import group_norm_relu

GROUPS = 8


class NormReLU(nn.Module):
    """Group normalisation with 8 groups, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> the same shape."""
        return group_norm_relu(x, GROUPS, self.weight, self.bias)


class DoubleConv(nn.Module):
    """Twice: 3x3x3 convolution, group normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.first_norm = NormReLU(channels_out)
        self.second = nn.Conv3d(channels_out, channels_out, 3, padding=1)
        self.second_norm = NormReLU(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, X, Y, Z)."""
        return self.second_norm(self.second(self.first_norm(self.first(x))))


class ResidualBlock(DoubleConv):
    """``DoubleConv`` plus a 1x1x1 convolution of its input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        self.identity = nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, X, Y, Z)."""
        return self.identity(x) + super().forward(x)


class UpSampling(nn.Module):
    """Doubles the grid: nearest neighbour, 3x3x3 convolution, group normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.norm = NormReLU(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, 2X, 2Y, 2Z)."""
        return self.norm(self.conv(F.interpolate(x, scale_factor=2, mode="nearest")))
