"""Group normalisation and ReLU in one, for channels-last tensors on a GPU, for inference.

torch's kernel wants channels first, and float32 under autocast: it and the ReLU after it would move about ten times
as much memory as these kernels, which read twice and write once, in place.

Shape letters: B batch; V voxels; C channels, a power of two; G groups; S splits of the voxels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_SPLITS = 512  # of the voxels; whatever the batch, so that a sample's sums do not depend on it
_TILE = 4096  # elements at once


@triton.jit(do_not_specialize=["voxels"])
def _sums_kernel(x, sums, voxels, C: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr):
    """Sums of values and of squares over a split of a sample's voxels: (B, 2, S, C)."""
    split, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, channel = tl.arange(0, ROWS), tl.arange(0, C)
    each = tl.cdiv(voxels, SPLITS)
    first, last = split * each, tl.minimum(split * each + each, voxels)
    x += sample * voxels * C
    total, square = tl.zeros([ROWS, C], tl.float32), tl.zeros([ROWS, C], tl.float32)
    for start in range(first, last, ROWS):
        place = (start + row)[:, None] * C + channel[None, :]
        value = tl.load(x + place, (start + row < last)[:, None], 0).to(tl.float32)
        total += value
        square += value * value
    sums += (sample * 2 * SPLITS + split) * C + channel
    tl.store(sums, tl.sum(total, 0))
    tl.store(sums + SPLITS * C, tl.sum(square, 0))


@triton.jit(do_not_specialize=["voxels"])
def _statistics_kernel(
    sums, weight, bias, scale, shift, voxels, epsilon,
    C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Scale and shift that normalise, per sample and channel: (B, C) each."""
    sample = tl.program_id(0).to(tl.int64)
    row, channel = tl.arange(0, ROWS), tl.arange(0, C)
    sums += sample * 2 * SPLITS * C
    total, square = tl.zeros([ROWS, C], tl.float64), tl.zeros([ROWS, C], tl.float64)
    for start in range(0, SPLITS, ROWS):
        place = (start + row)[:, None] * C + channel[None, :]
        total += tl.load(sums + place).to(tl.float64)
        square += tl.load(sums + SPLITS * C + place).to(tl.float64)
    size = voxels * (C // G)
    mean = tl.sum(tl.reshape(tl.sum(total, 0), [G, C // G]), 1) / size
    variance = tl.sum(tl.reshape(tl.sum(square, 0), [G, C // G]), 1) / size - mean * mean
    inverse = 1 / tl.sqrt(tl.maximum(variance, 0.0) + epsilon)
    place = tl.reshape(channel, [G, C // G])
    slope = inverse[:, None] * tl.load(weight + place)
    tl.store(scale + sample * C + place, slope.to(tl.float32))
    tl.store(shift + sample * C + place, (tl.load(bias + place) - mean[:, None] * slope).to(tl.float32))


@triton.jit
def _normalise_kernel(x, scale, shift, size, C: tl.constexpr, BLOCK: tl.constexpr):
    """relu(x * scale + shift), in place."""
    sample = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    channel = sample * C + place % C
    x += sample * size + place
    value = tl.load(x, inside, 0).to(tl.float32) * tl.load(scale + channel) + tl.load(shift + channel)
    tl.store(x, tl.maximum(value, 0.0).to(x.dtype.element_ty), inside)


def fits(channels: int, groups: int) -> bool:
    """Return whether the kernels can do it: powers of two, as all of the package's networks have."""
    return channels & (channels - 1) == 0 and groups & (groups - 1) == 0 and groups <= channels <= _TILE


def group_norm_relu_in_place(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return ``relu(group_norm(x))`` for (B, C, X, Y, Z), which is overwritten if it is channels-last, else copied."""
    rows = x.movedim(1, -1).contiguous()
    batch, channels = len(rows), rows.shape[-1]
    voxels = rows[0].numel() // channels
    sums = torch.empty((batch, 2, _SPLITS, channels), device=x.device)
    scale, shift = torch.empty((2, batch, channels), device=x.device)
    tile = max(1, _TILE // channels)
    with torch.cuda.device_of(x):
        _sums_kernel[_SPLITS, batch](rows, sums, voxels, C=channels, ROWS=tile, SPLITS=_SPLITS)
        _statistics_kernel[(batch,)](
            sums, weight, bias, scale, shift, voxels, epsilon, C=channels, G=groups, ROWS=min(tile, 32), SPLITS=_SPLITS
        )
        grid = (triton.cdiv(voxels * channels, _TILE), batch)
        _normalise_kernel[grid](rows, scale, shift, voxels * channels, C=channels, BLOCK=_TILE)
    return rows.movedim(-1, 1)
