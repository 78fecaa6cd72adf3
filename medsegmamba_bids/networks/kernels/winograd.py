"""3x3x3 convolutions with a quarter of the products in two of the three axes (Lavin and Gray, arXiv 1509.09308).

Winograd's F(4x4, 3x3): of a plane, 6x6 inputs are turned into 36 sums of theirs, and 4x4 outputs come from 36
sums over channels, where the convolution itself takes 144. Each of the 36 is a convolution along the third axis,
which oneDNN does. oneDNN has no such algorithm for volumes.

Shape letters: C channels; D channels out; X, Y, Z grid; R rows of tiles worked on together; T tiles along Z.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from medsegmamba_bids.networks.kernels.compiled import FAST, arrays_are_apart, as_stored, number, stored

TILE, WINDOW = 4, 6  # voxels of a tile along an axis, and of what they depend on
SUMS = WINDOW**2
WIDTH = 32  # channels at a time: a fixed count lets the compiler unroll
#: Tiles of a plane at a time in float32, about, and twice as many in bfloat16: few enough for little memory, and oneDNN
#: still has enough to do in each call.
TILES = 96
#: Where it is the faster, measured on 2 cores in float32 and bfloat16: from this side on, and from this product of the
#: side and of C D / (C + D), which is how many products are saved for each sum that must be made.
LEAST_SIDE, LEAST_SAVED = 16, 850
#: The polynomials behind the algorithm meet at 0, at these with both signs, and at infinity. With 1 and 2, as in the
#: paper, rounding errors were three times as large.
_NEAR, _FAR = 0.5**0.5, 2**0.5
_POINTS = (_NEAR, -_NEAR, _FAR, -_FAR)
_A, _B, _A2, _B2, _A3, _B3 = (np.float32(point**power) for power in (1, 2, 3) for point in (_NEAR, _FAR))
_SUM2 = np.float32(_NEAR**2 + _FAR**2)  # and the product of both squares is 1


def _weight_sums() -> torch.Tensor:
    """Return what makes the factors of six sums from three weights along an axis, float64 (6, 3)."""
    rows = [(1 / (_NEAR * _FAR) ** 2, 0, 0)]
    for point, other in zip(_POINTS, (_FAR, _FAR, _NEAR, _NEAR), strict=True):
        size = 2 * point**2 * (point**2 - other**2)
        rows.append((1 / size, point / size, point**2 / size))
    return torch.tensor([*rows, (0, 0, 1)], dtype=torch.float64)


def pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether :func:`winograd_convolution` can take this place, and is the faster."""
    (to, channels), side = weight.shape[:2], min(x.shape[2:])
    return (
        tuple(weight.shape[2:]) == (3, 3, 3)
        and channels % WIDTH == to % WIDTH == 0
        and side >= LEAST_SIDE
        and side * channels * to >= LEAST_SAVED * (channels + to)
    )


def winograd_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return a 3x3x3 convolution with a margin of one zero.

    Errors are about twice those of plain sums in float32. In bfloat16, to which sums and products are rounded, they
    are 1.2 % of the outputs' standard deviation, where plain sums have .2 %.

    Parameters
    ----------
    x : float32 or bfloat16 (B, C, X, Y, Z)
    weight : float32 (D, C, 3, 3, 3)
    bias : float32 (D,)
        C and D are multiples of ``WIDTH``.

    Returns
    -------
    (B, D, X, Y, Z) of the type of ``x``, channels last
    """
    factors = _factors(weight.detach(), x.dtype)
    out = torch.empty((len(x), len(bias), *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last_3d)
    for sample, to in zip(x.detach().movedim(1, -1).contiguous(), out.movedim(1, -1), strict=True):
        _convolve(sample, factors, bias.detach().numpy(), to)
    return out


def _factors(weight: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the weights of the 36 convolutions along X, (D, C, 3, 1, 1) each, channels last."""
    line = _weight_sums()
    taps = weight.double().permute(3, 4, 0, 2, 1).flatten(0, 1)  # (9, D, X, C)
    sums = torch.tensordot(torch.kron(line, line), taps, 1).movedim(-1, 2).flatten(0, 1)[..., None, None]
    # Into an array of its own, for the strides of axes of one: oneDNN takes them for those of another layout.
    factors = torch.empty(sums.shape, dtype=dtype, memory_format=torch.channels_last_3d).copy_(sums)
    return list(factors.chunk(SUMS))


def _convolve(x: torch.Tensor, factors: list[torch.Tensor], bias: np.ndarray, out: torch.Tensor) -> None:
    """One sample, channels last, into ``out`` (X, Y, Z, D)."""
    rows, tiles = (-(-n // TILE) for n in x.shape[1:3])
    together = max(1, TILES * 4 // x.itemsize // tiles)
    for first in range(0, rows, together):
        sums = x.new_empty(SUMS, len(x), min(together, rows - first), tiles, x.shape[3])
        _take_apart(stored(x), first, stored(sums))
        products = tuple(stored(_along_planes(*pair)) for pair in zip(sums, factors, strict=True))
        _put_together(products, first, bias, stored(out))


def _along_planes(sums: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(X, R, T, C) -> (X, R, T, D)."""
    volume = sums.movedim(-1, 0)[None]  # channels last: no copy
    products = torch.mkldnn_convolution(volume, factor, None, [1, 0, 0], [1] * 3, [1] * 3, 1)
    return products[0].movedim(0, -1)


@njit(fastmath=FAST)
def _copy(source, target):
    arrays_are_apart()
    for c in range(WIDTH):
        target[c] = source[c]


@njit(fastmath=FAST)
def _six_of_six(window, stride, sums0, sums1, sums2, sums3, sums4, sums5):
    """Six inputs along an axis, ``stride`` items apart -> the six sums that are multiplied.

    Each has an array of its own: where one would hold them all, the compiler could not know that they do not overlap.
    """
    arrays_are_apart()
    s = np.uint64(stride)  # without a sign: the compiler need not ask whether an index counts from the end
    for i in range(WIDTH):
        c = np.uint64(i)
        x0, x1, x2 = number(window[c]), number(window[c + s]), number(window[c + s + s])
        c3 = c + s + s + s
        x3, x4, x5 = number(window[c3]), number(window[c3 + s]), number(window[c3 + s + s])
        near, near_odd = x4 - _B2 * x2, _A * (x3 - _B2 * x1)
        far, far_odd = x4 - _A2 * x2, _B * (x3 - _A2 * x1)
        sums0[c] = as_stored(x0 - _SUM2 * x2 + x4, sums0[c])
        sums1[c] = as_stored(near + near_odd, sums1[c])
        sums2[c] = as_stored(near - near_odd, sums2[c])
        sums3[c] = as_stored(far + far_odd, sums3[c])
        sums4[c] = as_stored(far - far_odd, sums4[c])
        sums5[c] = as_stored(x1 - _SUM2 * x3 + x5, sums5[c])


@njit(fastmath=FAST)
def _four_of_six(products0, products1, products2, products3, products4, products5, bias, out0, out1, out2, out3):
    """Six products along an axis -> four outputs."""
    arrays_are_apart()
    for i in range(WIDTH):
        c = np.uint64(i)
        p0, p1, p2 = number(products0[c]), number(products1[c]), number(products2[c])
        p3, p4, p5 = number(products3[c]), number(products4[c]), number(products5[c])
        near, far, near_odd, far_odd = p1 + p2, p3 + p4, p1 - p2, p3 - p4
        out0[c] = as_stored(p0 + near + far + bias[c], out0[c])
        out1[c] = as_stored(_A * near_odd + _B * far_odd + bias[c], out1[c])
        out2[c] = as_stored(_A2 * near + _B2 * far + bias[c], out2[c])
        out3[c] = as_stored(_A3 * near_odd + _B3 * far_odd + p5 + bias[c], out3[c])


@njit(inline="always")
def _places(line, first, apart):
    """Return six places of a flat array, from the item ``first`` on, ``apart`` items from one to the next."""
    return (
        line[first:],
        line[first + apart :],
        line[first + 2 * apart :],
        line[first + 3 * apart :],
        line[first + 4 * apart :],
        line[first + 5 * apart :],
    )


@njit(inline="always")
def _planes(arrays, first, plane, row, tile, channel):
    """Return, at one place, every sixth of 36 arrays."""
    here = slice(channel, channel + WIDTH)
    return (
        arrays[first][plane, row, tile, here],
        arrays[first + WINDOW][plane, row, tile, here],
        arrays[first + 2 * WINDOW][plane, row, tile, here],
        arrays[first + 3 * WINDOW][plane, row, tile, here],
        arrays[first + 4 * WINDOW][plane, row, tile, here],
        arrays[first + 5 * WINDOW][plane, row, tile, here],
    )


@njit(fastmath=FAST)
def _six_in_a_row(flat, start, channels, z, size_z, edge):
    """Return an array with six voxels of a line, from ``z`` on, and how far apart they are; beyond the grid is 0."""
    if z >= 0 and z + WINDOW <= size_z:
        return flat[start:], channels
    for j in range(WINDOW):
        voxel = edge[j * WIDTH : (j + 1) * WIDTH]
        if 0 <= z + j < size_z:
            _copy(flat[start + j * channels :], voxel)
        else:
            voxel[:] = 0
    return edge, WIDTH


@njit(parallel=True, fastmath=FAST, cache=True)
def _take_apart(x, first, sums):
    """Write the sums (36, X, R, T, C) of the tiles from row ``first`` on."""
    size_y, size_z, channels = x.shape[1:]
    flat = x.reshape(-1)
    for plane in prange(len(x)):
        half_way, edge = np.empty(SUMS * WIDTH, np.float32), np.empty(WINDOW * WIDTH, x.dtype)
        for row in range(sums.shape[2]):
            for tile in range(sums.shape[3]):
                y, z = (first + row) * TILE - 1, tile * TILE - 1
                for channel in range(0, channels, WIDTH):
                    for i in range(WINDOW):
                        line = half_way[i * WINDOW * WIDTH : (i + 1) * WINDOW * WIDTH]
                        if 0 <= y + i < size_y:
                            start = ((plane * size_y + y + i) * size_z + z) * channels + channel
                            voxels, apart = _six_in_a_row(flat, start, channels, z, size_z, edge)
                            _six_of_six(voxels, apart, *_places(line, 0, WIDTH))
                        else:
                            line[:] = 0
                    for j in range(WINDOW):
                        columns = half_way[j * WIDTH :]
                        _six_of_six(columns, WINDOW * WIDTH, *_planes(sums, j, plane, row, tile, channel))


@njit(parallel=True, fastmath=FAST, cache=True)
def _put_together(products, first, bias, out):
    """Write the tiles from row ``first`` on into ``out`` (X, Y, Z, D) from 36 arrays (X, R, T, D)."""
    size_y, size_z, channels = out.shape[1:]
    flat, nothing = out.reshape(-1), np.zeros(WIDTH, np.float32)
    for plane in prange(len(out)):
        half_way, edge = np.empty(SUMS * WIDTH, np.float32), np.empty(WINDOW * WIDTH, out.dtype)
        for row in range(products[0].shape[1]):
            for tile in range(products[0].shape[2]):
                y, z = (first + row) * TILE, tile * TILE
                beyond = z + TILE > size_z
                for channel in range(0, channels, WIDTH):
                    for j in range(WINDOW):
                        found = _planes(products, j, plane, row, tile, channel)
                        _four_of_six(*found, nothing, *_places(half_way, j * WIDTH, WINDOW * WIDTH)[:TILE])
                    for i in range(min(TILE, size_y - y)):
                        found = _places(half_way, i * WINDOW * WIDTH, WIDTH)
                        start = ((plane * size_y + y + i) * size_z + z) * channels + channel
                        to = _places(edge, 0, WIDTH) if beyond else _places(flat, start, channels)
                        _four_of_six(*found, bias[channel:], *to[:TILE])
                        if beyond:
                            for j in range(size_z - z):
                                _copy(edge[j * WIDTH :], flat[start + j * channels :])
