"""Group normalisation and ReLU in one, for channels-last tensors on a CPU; on GPUs see group_norm_triton.py.

torch's own kernels take several times longer in this layout, backwards above all, and are half of a small
network's training step.

Shape letters: B batch; V voxels; C channels; G groups.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange

from medsegmamba_bids.networks.kernels.compiled import FAST, as_stored, number, stored
from medsegmamba_bids.networks.kernels.selective_scan import why_refused

EPSILON = 1e-5
_WIDTH = 128  # values that a loop runs over, about
_BLOCKS = 64  # voxels are summed in this many blocks, whatever the number of threads


def group_norm_relu(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return ``relu(group_norm(x))`` for (B, C, X, Y, Z)."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        if torch.is_grad_enabled():
            return _GroupNormReLU.apply(x.float(), groups, weight, bias).to(x.dtype)
        return _in_place(x, groups, weight, bias)
    if x.device.type == "cuda" and not torch.is_grad_enabled() and why_refused("triton", str(x.device)) is None:
        from medsegmamba_bids.networks.kernels import group_norm_triton

        if group_norm_triton.fits(x.shape[1], groups):
            return group_norm_triton.group_norm_relu_in_place(x, groups, weight, bias, EPSILON)
    return F.relu(F.group_norm(x, groups, weight, bias, EPSILON))


def _in_place(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Overwrite ``x`` (or a channels-last copy of it): a full-size network would not fit into 2.5 GiB otherwise."""
    rows = x.movedim(1, -1).contiguous()
    flat = rows.view(rows.shape[0], -1, rows.shape[-1])
    shape, together = flat.shape, _voxels_together(*flat.shape[1:])
    flat = flat.view(shape[0], shape[1] // together, shape[2] * together)
    flat = stored(flat)
    each = tuple(total.reshape(shape[0], together, shape[2]).sum(1) for total in _sums(flat))
    scale, shift, *_ = _statistics(each, shape, groups, weight.detach().numpy(), bias.detach().numpy())
    _normalise(flat, np.tile(scale, together), np.tile(shift, together), None)
    return rows.movedim(-1, 1)


def _voxels_together(voxels: int, channels: int) -> int:
    """Return how many voxels are taken for one with as many times the channels: short loops do not fill vectors."""
    together = 1
    while 2 * together * channels <= _WIDTH and voxels % (2 * together) == 0:
        together *= 2
    return together


class _GroupNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, groups, weight, bias):
        rows = x.detach().movedim(1, -1).contiguous()
        flat = rows.view(rows.shape[0], -1, rows.shape[-1])
        scale, shift, mean, inverse = _statistics(
            _sums(flat.numpy()), flat.shape, groups, weight.detach().numpy(), bias.detach().numpy()
        )
        out = torch.empty_like(rows)
        _normalise(flat.numpy(), scale, shift, out.view_as(flat).numpy())
        ctx.save_for_backward(rows, weight)
        ctx.groups, ctx.arrays = groups, (scale, shift, mean, inverse)
        return out.movedim(-1, 1)

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad = grad.movedim(1, -1).contiguous()
        flat = rows.view(rows.shape[0], -1, rows.shape[-1]).numpy()
        out = torch.empty_like(rows)
        grad_weight, grad_bias = _backward(
            flat, grad.view(flat.shape).numpy(), ctx.groups, weight.detach().numpy(), *ctx.arrays,
            out.view(flat.shape).numpy(),
        )  # fmt: skip
        return out.movedim(-1, 1), None, torch.from_numpy(grad_weight), torch.from_numpy(grad_bias)


@njit(parallel=True, fastmath=FAST, cache=True)
def _sums(rows):
    """Sums of values and squares per channel, float64 (B, C) each; of float32, or bfloat16 given as int16."""
    batch, voxels, channels = rows.shape
    total, square = np.zeros((_BLOCKS, batch, channels)), np.zeros((_BLOCKS, batch, channels))
    for block in prange(_BLOCKS):
        values, squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
        for s in range(batch):
            first, last = block * voxels // _BLOCKS, (block + 1) * voxels // _BLOCKS
            for start in range(first, last, 256):  # short float32 sums, then float64: exact enough and fast
                values[:] = 0
                squares[:] = 0
                for v in range(start, min(start + 256, last)):
                    row = rows[s, v]
                    for c in range(channels):
                        value = number(row[c])
                        values[c] += value
                        squares[c] += value * value
                for c in range(channels):
                    total[block, s, c] += values[c]
                    square[block, s, c] += squares[c]
    return total.sum(0), square.sum(0)


def _statistics(sums, shape, groups, weight, bias):
    """Scale and shift per channel that normalise, and mean and 1 / deviation per channel; float32 (B, C).

    ``sums`` are those of values and squares of an array of the shape (B, V, C).
    """
    batch, voxels, channels = shape
    total, square = sums
    size = voxels * channels // groups
    mean = total.reshape(batch, groups, -1).sum(2) / size
    variance = square.reshape(batch, groups, -1).sum(2) / size - mean**2
    inverse = 1 / np.sqrt(np.maximum(variance, 0) + EPSILON)
    mean, inverse = (np.repeat(t, channels // groups, axis=1) for t in (mean, inverse))
    scale = inverse * weight
    arrays = scale, bias - mean * scale, mean, inverse
    return tuple(t.astype(np.float32) for t in arrays)


@njit(parallel=True, fastmath=FAST, cache=True)
def _normalise(rows, scale, shift, out):
    """relu(rows * scale + shift) into ``out``, or in place for None; of float32, or bfloat16 given as int16.

    Were an array given twice, the compiler would have to go value by value, lest one is still to be read.
    """
    batch, voxels, channels = rows.shape
    for block in prange(_BLOCKS):
        for s in range(batch):
            a, b = scale[s], shift[s]
            for v in range(block * voxels // _BLOCKS, (block + 1) * voxels // _BLOCKS):
                row = rows[s, v]
                to = row if out is None else out[s, v]
                for c in range(channels):
                    to[c] = as_stored(max(number(row[c]) * a[c] + b[c], np.float32(0)), row[c])


@njit(parallel=True, fastmath=FAST, cache=True)
def _gradient_sums(rows, grad, scale, shift):
    """Sums of the gradient behind the ReLU, and of it times the input, per channel; float64 (B, C)."""
    batch, voxels, channels = rows.shape
    plain, times = np.zeros((_BLOCKS, batch, channels)), np.zeros((_BLOCKS, batch, channels))
    for block in prange(_BLOCKS):
        gradients, products = np.empty(channels, np.float32), np.empty(channels, np.float32)
        for s in range(batch):
            a, b = scale[s], shift[s]
            first, last = block * voxels // _BLOCKS, (block + 1) * voxels // _BLOCKS
            for start in range(first, last, 256):
                gradients[:] = 0
                products[:] = 0
                for v in range(start, min(start + 256, last)):
                    row, g = rows[s, v], grad[s, v]
                    for c in range(channels):
                        value = g[c] if row[c] * a[c] + b[c] > 0 else np.float32(0)
                        gradients[c] += value
                        products[c] += value * row[c]
                for c in range(channels):
                    plain[block, s, c] += gradients[c]
                    times[block, s, c] += products[c]
    return plain.sum(0), times.sum(0)


@njit(parallel=True, fastmath=FAST, cache=True)
def _gradient(rows, grad, scale, shift, slope, offset, out):
    """Write scale * relu'(..) * grad + slope * rows + offset, the last two per sample and channel."""
    batch, voxels, channels = rows.shape
    for block in prange(_BLOCKS):
        for s in range(batch):
            a, b, p, q = scale[s], shift[s], slope[s], offset[s]
            for v in range(block * voxels // _BLOCKS, (block + 1) * voxels // _BLOCKS):
                row, g, to = rows[s, v], grad[s, v], out[s, v]
                for c in range(channels):
                    value = g[c] if row[c] * a[c] + b[c] > 0 else np.float32(0)
                    to[c] = a[c] * value + p[c] * row[c] + q[c]


def _backward(rows, grad, groups, weight, scale, shift, mean, inverse, out):
    """Gradient of the input into ``out``; those of weight and bias come back, float32 (C,)."""
    batch, voxels, channels = rows.shape
    plain, times = _gradient_sums(rows, grad, scale, shift)
    centred = (times - mean * plain) * inverse  # sum of gradient times normalised input
    size = voxels * channels // groups

    def per_group(values):
        sums = (values * weight).reshape(batch, groups, -1).sum(2) / size
        return np.repeat(sums, channels // groups, axis=1)

    mean_gradient, mean_product = per_group(plain), per_group(centred)
    slope = -(inverse**2) * mean_product
    offset = -inverse * mean_gradient - slope * mean
    _gradient(rows, grad, scale, shift, slope.astype(np.float32), offset.astype(np.float32), out)
    return centred.sum(0).astype(np.float32), plain.sum(0).astype(np.float32)
