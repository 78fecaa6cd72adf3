"""Borders between tissues as the image shows them, which a network of 1.5 mm sees blurred; compiled with numba.

Near a voxel every tissue has a mean intensity and a variance. Where the network does not know which of a few tissues
a voxel is, how well each of them explains its intensity decides, as in the mixture models of Ashburner and Friston
(2005, NeuroImage 26:839). Nothing is presumed about which tissue is brighter, and the bias field is followed.

Shape letters: T tissues; X, Y, Z the conformed grid or a box of it; x, y, z cells of it.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from scipy import ndimage

_CELL = 4  # voxels; means are taken over cells
_SPREAD = 2.0  # cells; standard deviation of the window around a voxel in which a tissue is looked at
_AS_MANY = 30.0  # voxels; what the tissue is like in the whole image counts as much as so many in the window
_FEWEST = 20.0  # voxels; of less nothing is known
_LEAST_SD = 0.04  # of the brightest tissue's mean
_POSSIBLE, _SURE, _LEAST = 0.05, 0.995, 1e-6


def follow_intensities(posteriors: np.ndarray, image: np.ndarray, weight: float) -> None:
    """Divide what tissues have together in a voxel by its intensity, too, in place.

    Other classes keep what they have. As they are stay voxels in which the tissues have less than 5 % together, or one
    of them all but 0.5 % of what they have together; and tissues of fewer than 20 voxels.

    Parameters
    ----------
    posteriors : float32 (T, X, Y, Z)
        Of the tissues; a voxel's sum is at most 1, and stays what it is.
    image : (X, Y, Z)
        Any unit; finite.
    weight : float
        How much an intensity counts; less than 1, as neighbours show the same.

    Examples
    --------
    >>> image = np.repeat([50.0, 100.0], [13, 11])[:, None, None] * np.ones((24, 24, 24))
    >>> dark = np.clip(0.5 + (11.5 - np.arange(24)) / 4, 0, 1).astype(np.float32)  # the border is seen a voxel off
    >>> posteriors = np.stack([dark, 1 - dark])[:, :, None, None] * np.ones((24, 24, 24), np.float32)
    >>> follow_intensities(posteriors, image, 0.8)
    >>> posteriors[0, 10:15, 12, 12].round(2).tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0]
    """
    guide = np.ascontiguousarray(image, np.float32)
    sums = _sums_of_cells(posteriors, guide)
    seen = np.flatnonzero(sums[:, 0].sum((1, 2, 3)) >= _FEWEST)
    if len(seen) < 2:
        return
    means, variances = _in_windows(sums[seen])
    _divide(posteriors, seen, guide, means, variances, weight)


def _in_windows(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and variances around every cell, both float32 (T, x, y, z), from sums of cells (T, 3, x, y, z)."""
    whole = sums.sum((2, 3, 4), keepdims=True)
    usual = whole / whole[:, :1]
    peak = (2 * math.pi) ** 1.5 * _SPREAD**3  # of a window that counts its middle once
    near = peak * ndimage.gaussian_filter(sums, (0, 0, _SPREAD, _SPREAD, _SPREAD), mode="constant")
    near += _AS_MANY * usual
    means = near[:, 1] / near[:, 0]
    least = _LEAST_SD * usual[:, 1].max()
    variances = np.maximum(near[:, 2] / near[:, 0] - means**2, max(least**2, np.finfo(np.float32).tiny))
    return means.astype(np.float32), variances.astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _sums_of_cells(posteriors, guide):  # noqa: ANN001, ANN202
    """Return count, sum and sum of squares of every tissue in every cell, float64 (T, 3, x, y, z).

    A voxel counts by the square of its posterior: what is unsure tells little of what a tissue looks like.
    """
    tissues, size_x, size_y, size_z = posteriors.shape
    shape = ((size_x - 1) // _CELL + 1, (size_y - 1) // _CELL + 1, (size_z - 1) // _CELL + 1)
    sums = np.zeros((tissues, 3, *shape))
    for t in range(tissues):
        for i in range(size_x):
            for j in range(size_y):
                for k in range(size_z):
                    share, value = posteriors[t, i, j, k] ** 2, guide[i, j, k]
                    if share > 0:
                        cell = sums[t, :, i // _CELL, j // _CELL, k // _CELL]
                        cell[0] += share
                        cell[1] += share * value
                        cell[2] += share * value * value
    return sums


@numba.njit(cache=True, nogil=True, parallel=True)
def _divide(posteriors, seen, guide, means, variances, weight):  # noqa: ANN001, ANN202
    for i in numba.prange(guide.shape[0]):
        scores = np.empty(len(seen))
        for j in range(guide.shape[1]):
            for k in range(guide.shape[2]):
                total, largest = 0.0, 0.0
                for t in seen:
                    total += posteriors[t, i, j, k]
                    largest = max(largest, posteriors[t, i, j, k])
                if total < _POSSIBLE or largest > _SURE * total:
                    continue
                for index, t in enumerate(seen):
                    mean, variance = _at(means[index], i, j, k), _at(variances[index], i, j, k)
                    apart = guide[i, j, k] - mean
                    evidence = -0.5 * (apart * apart / variance + math.log(variance))
                    scores[index] = math.log(max(posteriors[t, i, j, k], _LEAST)) + weight * evidence
                scores = np.exp(scores - scores.max())
                scores *= total / scores.sum()
                for index, t in enumerate(seen):
                    posteriors[t, i, j, k] = scores[index]


@numba.njit(cache=True, nogil=True, inline="always")
def _at(cells, i, j, k):  # noqa: ANN001, ANN202
    """Interpolate values of cells in a voxel; beyond the middles of the outermost cells they go on."""
    x, near_x, next_x = _between(i, cells.shape[0])
    y, near_y, next_y = _between(j, cells.shape[1])
    z, near_z, next_z = _between(k, cells.shape[2])
    low = (1 - z) * cells[near_x, near_y, near_z] + z * cells[near_x, near_y, next_z]
    high = (1 - z) * cells[near_x, next_y, near_z] + z * cells[near_x, next_y, next_z]
    here = (1 - y) * low + y * high
    low = (1 - z) * cells[next_x, near_y, near_z] + z * cells[next_x, near_y, next_z]
    high = (1 - z) * cells[next_x, next_y, near_z] + z * cells[next_x, next_y, next_z]
    return (1 - x) * here + x * ((1 - y) * low + y * high)


@numba.njit(cache=True, nogil=True, inline="always")
def _between(voxel, cells):  # noqa: ANN001, ANN202
    """Return how far a voxel is from one cell's middle to the next one's, 0 to 1, and both cells."""
    place = min(max((voxel + 0.5) / _CELL - 0.5, 0.0), cells - 1.0)
    near = int(place)
    return place - near, near, min(near + 1, cells - 1)
