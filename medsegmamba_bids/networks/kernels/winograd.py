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

from medsegmamba_bids.networks.kernels.compiled import FAST, arrays_are_apart

TILE, WINDOW = 4, 6  # voxels of a tile along an axis, and of what they depend on
SUMS = WINDOW**2
WIDTH = 32  # channels at a time: a fixed count lets the compiler unroll
#: Tiles of a plane at a time, about: few enough for little memory, and oneDNN still has enough to do in each call.
TILES = 96
#: Where fewer channels or voxels make the sums dearer than the products that they save; measured on 2 cores.
LEAST_CHANNELS, LEAST_SIDE = 64, 24
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
    channels = weight.shape[:2]
    return (
        tuple(weight.shape[2:]) == (3, 3, 3)
        and min(channels) >= LEAST_CHANNELS
        and not any(c % WIDTH for c in channels)
        and min(x.shape[2:]) >= LEAST_SIDE
    )


def winograd_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return a 3x3x3 convolution with a margin of one zero; errors are about twice those of plain sums.

    Parameters
    ----------
    x : float32 (B, C, X, Y, Z)
    weight : float32 (D, C, 3, 3, 3)
    bias : float32 (D,)
        C and D are multiples of ``WIDTH``.

    Returns
    -------
    float32 (B, D, X, Y, Z), channels last
    """
    factors = _factors(weight.detach())
    out = torch.empty((len(x), len(bias), *x.shape[2:]), memory_format=torch.channels_last_3d)
    for sample, to in zip(x.detach().movedim(1, -1).contiguous(), out.movedim(1, -1), strict=True):
        _convolve(sample.numpy(), factors, bias.detach().numpy(), to.numpy())
    return out


def _factors(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the weights of the 36 convolutions along X, float32 (D, C, 3, 1, 1) each."""
    line = _weight_sums()
    sums = torch.einsum("iy,dcxyz,jz->ijdcx", line, weight.double(), line).float()
    each = sums.flatten(0, 1)[..., None, None].unbind()
    return [factor.contiguous(memory_format=torch.channels_last_3d) for factor in each]


def _convolve(x: np.ndarray, factors: list[torch.Tensor], bias: np.ndarray, out: np.ndarray) -> None:
    """One sample, channels last, into ``out`` (X, Y, Z, D)."""
    rows, tiles = (-(-n // TILE) for n in x.shape[1:3])
    together = max(1, TILES // tiles)
    for first in range(0, rows, together):
        sums = torch.empty(SUMS, len(x), min(together, rows - first), tiles, x.shape[3])
        _take_apart(x, first, sums.numpy())
        products = tuple(_along_planes(*pair) for pair in zip(sums, factors, strict=True))
        _put_together(products, first, bias, out)


def _along_planes(sums: torch.Tensor, factor: torch.Tensor) -> np.ndarray:
    """(X, R, T, C) -> (X, R, T, D)."""
    volume = sums.movedim(-1, 0)[None]  # channels last: no copy
    products = torch.mkldnn_convolution(volume, factor, None, [1, 0, 0], [1] * 3, [1] * 3, 1)
    return products[0].movedim(0, -1).numpy()


@njit(fastmath=FAST)
def _copy(source, target):
    arrays_are_apart()
    for c in range(WIDTH):
        target[c] = source[c]


@njit(fastmath=FAST)
def _add(source, bias, target):
    arrays_are_apart()
    for c in range(WIDTH):
        target[c] = source[c] + bias[c]


@njit(fastmath=FAST)
def _six_of_six(window, sums, stride):
    """Six inputs along an axis -> the six sums that are multiplied; ``stride`` in float32."""
    arrays_are_apart()
    s = np.uint64(stride)  # without a sign: the compiler need not ask whether an index counts from the end
    for i in range(WIDTH):
        c = np.uint64(i)
        x0, x1, x2 = window[c], window[c + s], window[c + s + s]
        x3, x4, x5 = window[c + s + s + s], window[c + s + s + s + s], window[c + s + s + s + s + s]
        near, near_odd = x4 - _B2 * x2, _A * (x3 - _B2 * x1)
        far, far_odd = x4 - _A2 * x2, _B * (x3 - _A2 * x1)
        sums[c] = x0 - _SUM2 * x2 + x4
        sums[c + s] = near + near_odd
        sums[c + s + s] = near - near_odd
        sums[c + s + s + s] = far + far_odd
        sums[c + s + s + s + s] = far - far_odd
        sums[c + s + s + s + s + s] = x1 - _SUM2 * x3 + x5


@njit(fastmath=FAST)
def _four_of_six(products, outputs, stride):
    """Six products along an axis -> four outputs."""
    arrays_are_apart()
    s = np.uint64(stride)
    for i in range(WIDTH):
        c = np.uint64(i)
        p0, p1, p2 = products[c], products[c + s], products[c + s + s]
        p3, p4, p5 = products[c + s + s + s], products[c + s + s + s + s], products[c + s + s + s + s + s]
        near, far, near_odd, far_odd = p1 + p2, p3 + p4, p1 - p2, p3 - p4
        outputs[c] = p0 + near + far
        outputs[c + s] = _A * near_odd + _B * far_odd
        outputs[c + s + s] = _A2 * near + _B2 * far
        outputs[c + s + s + s] = _A3 * near_odd + _B3 * far_odd + p5


@njit(fastmath=FAST)
def _six_along_rows(window, sums):
    _six_of_six(window, sums, WINDOW * WIDTH)


@njit(fastmath=FAST)
def _six_along_columns(window, sums):
    _six_of_six(window, sums, WIDTH)


@njit(fastmath=FAST)
def _four_along_rows(products, outputs):
    _four_of_six(products, outputs, WINDOW * WIDTH)


@njit(fastmath=FAST)
def _four_along_columns(products, outputs):
    _four_of_six(products, outputs, WIDTH)


@njit(parallel=True, fastmath=FAST, cache=True)
def _take_apart(x, first, sums):
    """Write the sums (36, X, R, T, C) of the tiles from row ``first`` on."""
    size_y, size_z, channels = x.shape[1:]
    for plane in prange(len(x)):
        window, half_way = np.empty(SUMS * WIDTH, np.float32), np.empty(SUMS * WIDTH, np.float32)
        for row in range(sums.shape[2]):
            for tile in range(sums.shape[3]):
                y, z = (first + row) * TILE - 1, tile * TILE - 1
                for channel in range(0, channels, WIDTH):
                    here = slice(channel, channel + WIDTH)
                    for n in range(SUMS):
                        i, j = y + n // WINDOW, z + n % WINDOW
                        if 0 <= i < size_y and 0 <= j < size_z:
                            _copy(x[plane, i, j, here], window[n * WIDTH : (n + 1) * WIDTH])
                        else:
                            window[n * WIDTH : (n + 1) * WIDTH] = 0
                    for line in range(WINDOW):
                        _six_along_columns(window[line * WINDOW * WIDTH :], half_way[line * WINDOW * WIDTH :])
                    for line in range(WINDOW):
                        _six_along_rows(half_way[line * WIDTH :], window[line * WIDTH :])
                    for n in range(SUMS):
                        _copy(window[n * WIDTH : (n + 1) * WIDTH], sums[n, plane, row, tile, here])


@njit(parallel=True, fastmath=FAST, cache=True)
def _put_together(products, first, bias, out):
    """Write the tiles from row ``first`` on into ``out`` (X, Y, Z, D) from 36 arrays (X, R, T, D)."""
    size_y, size_z, channels = out.shape[1:]
    for plane in prange(len(out)):
        window, half_way = np.empty(SUMS * WIDTH, np.float32), np.empty(SUMS * WIDTH, np.float32)
        for row in range(products[0].shape[1]):
            for tile in range(products[0].shape[2]):
                y, z = (first + row) * TILE, tile * TILE
                for channel in range(0, channels, WIDTH):
                    here = slice(channel, channel + WIDTH)
                    for n in range(SUMS):
                        _copy(products[n][plane, row, tile, here], window[n * WIDTH : (n + 1) * WIDTH])
                    for line in range(WINDOW):
                        _four_along_rows(window[line * WIDTH :], half_way[line * WIDTH :])
                    for line in range(TILE):
                        _four_along_columns(half_way[line * WINDOW * WIDTH :], window[line * WINDOW * WIDTH :])
                    for i in range(min(TILE, size_y - y)):
                        for j in range(min(TILE, size_z - z)):
                            n = i * WINDOW + j
                            _add(window[n * WIDTH : (n + 1) * WIDTH], bias[here], out[plane, y + i, z + j, here])
