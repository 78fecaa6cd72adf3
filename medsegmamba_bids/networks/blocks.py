"""Convolutional building blocks of the encoders and decoders (paper, figure 2c).

Each has two ways: one that autograd can follow, and one for inference on a CPU, which gives the same numbers up to
rounding. What the second one gains was measured on 2 cores, see ``benchmarks/``.

Shape letters: B batch; C channels; X, Y, Z grid.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from medsegmamba_bids.networks.kernels.group_norm import group_norm_relu
from medsegmamba_bids.networks.kernels.winograd import pays, winograd_convolution

GROUPS = 8


def direct_type(x: torch.Tensor) -> torch.dtype | None:
    """Return in which type oneDNN may be called directly, autocast to bfloat16 included; None where it may not."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        return None
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu") == torch.bfloat16 and _onednn_knows_bfloat16()
        return torch.bfloat16 if half else None
    return torch.float32 if x.dtype == torch.float32 else None


@lru_cache
def _onednn_knows_bfloat16() -> bool:
    """Return whether its convolutions take it on this processor; torch has slower ones for others."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return (B, C, X, Y, Z) with channels innermost; of a single channel the strides say so, too.

    torch would leave those as they are, and oneDNN would answer in the other layout, to be reordered afterwards.
    """
    if x.shape[1] == 1:
        return x.contiguous().view(len(x), *x.shape[2:], 1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last_3d)


class Conv3d(nn.Conv3d):
    """A convolution in the channels-last layout.

    Left to itself, torch takes a slow kernel for single small patches, which also answers in the other layout, so
    that everything after it is reordered.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, X, Y, Z)."""
        dtype = direct_type(x)
        if dtype is None:
            return super().forward(x.contiguous(memory_format=torch.channels_last_3d))
        x = _channels_last(x)
        if self._keeps_the_grid() and pays(x, self.weight):
            return winograd_convolution(x.to(dtype), self.weight, self.bias)
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        return torch.mkldnn_convolution(
            x.to(dtype), weight, bias, self.padding, self.stride, self.dilation, self.groups
        )

    def _keeps_the_grid(self) -> bool:
        once = (1, 1, 1)
        return self.padding == self.stride == self.dilation == once and self.groups == 1 and self.bias is not None


class Linear(nn.Linear):
    """A linear layer; on a CPU a 1x1x1 convolution, since oneDNN's is 2 to 3 times as fast as MKL's product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., channels_out)."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``F.linear``, by a convolution where that is faster."""
    if direct_type(x) != torch.float32:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, 1, x.shape[-1]).permute(0, 4, 1, 2, 3)  # channels last: no copy
    out = torch.mkldnn_convolution(rows, weight[..., None, None, None], bias, [0] * 3, [1] * 3, [1] * 3, 1)
    return out.permute(0, 2, 3, 4, 1).reshape(*x.shape[:-1], -1)


class NormReLU(nn.Module):
    """Group normalisation with 8 groups, then ReLU; in place when nothing is to be differentiated."""

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
        self.first = Conv3d(channels_in, channels_out, 3, padding=1)
        self.first_norm = NormReLU(channels_out)
        self.second = Conv3d(channels_out, channels_out, 3, padding=1)
        self.second_norm = NormReLU(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, X, Y, Z)."""
        return self.second_norm(self.second(self.first_norm(self.first(x))))


class ResidualBlock(DoubleConv):
    """``DoubleConv`` plus a 1x1x1 convolution of its input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        self.identity = Conv3d(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, X, Y, Z)."""
        inside, identity = super().forward(x), self.identity(x)
        return identity + inside if torch.is_grad_enabled() else inside.add_(identity)


class UpSampling(nn.Module):
    """Doubles the grid: nearest neighbour, 3x3x3 convolution, group normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels_in, channels_out, 3, padding=1)
        self.norm = NormReLU(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, channels_out, 2X, 2Y, 2Z)."""
        if dtype := direct_type(x):
            return self.norm(upsampled_convolution(x.to(dtype), self.conv.weight, self.conv.bias))
        return self.norm(self.conv(F.interpolate(x, scale_factor=2, mode="nearest")))


def upsampled_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return nearest-neighbour doubling, then a 3x3x3 convolution, without ever making the doubled input.

    Of the three voxels that a tap row covers on the doubled grid two are copies of one voxel, so that every one of
    the eight kinds of output voxel is a 2x2x2 convolution of the small grid: 64 products instead of 216.

    Parameters
    ----------
    x : float32 or bfloat16 (B, C, X, Y, Z)
    weight : float32 (D, C, 3, 3, 3)
    bias : float32 (D,)

    Returns
    -------
    (B, D, 2X, 2Y, 2Z) of the type of ``x``, channels last
    """
    folded = weight
    for axis in (2, 3, 4):
        first, middle, last = folded.split(1, axis)
        even, odd = torch.cat((first, middle + last), axis), torch.cat((first + middle, last), axis)
        folded = torch.cat((even, odd))  # kinds of output voxels, the last axis' slowest
    folded = folded.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
    padded = F.pad(x, [1] * 6).contiguous(memory_format=torch.channels_last_3d)
    kinds = torch.mkldnn_convolution(padded, folded, bias.to(x.dtype).repeat(8), [0] * 3, [1] * 3, [1] * 3, 1).chunk(
        8, 1
    )
    batch, size = len(x), x.shape[2:]
    out = torch.empty((batch, len(bias), *(2 * n for n in size)), dtype=x.dtype, memory_format=torch.channels_last_3d)
    for kind, (c, b, a) in zip(kinds, product((0, 1), repeat=3), strict=True):
        inner = kind[:, :, a : a + size[0], b : b + size[1], c : c + size[2]]
        out[:, :, a::2, b::2, c::2] = inner
    return out


def mlp(channels: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return what a residual block's perceptron makes of (..., C): (..., C)."""
    return nn.Sequential(
        Linear(channels, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        Linear(hidden, channels),
        nn.Dropout(dropout),
    )
