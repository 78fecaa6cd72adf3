"""Volumes corrected for partial volume at borders, as FreeSurfer's ``mri_segstats --pv`` reports them.

Compiled with numba: a border voxel looks at 3375 neighbours, and there are about a million of them.
"""

from __future__ import annotations

import numba
import numpy as np

from medsegmamba_bids.image.geometry import nonzero_box

_HALF = 7  # the window in which a label's mean intensity is taken has 15 voxels a side
_BLOCKS = 16  # of the second axis; fixed, so that sums do not depend on the number of threads


def corrected_counts(indices: np.ndarray, guide: np.ndarray, n_classes: int, threads: int = 1) -> np.ndarray:
    """Number of voxels of each class, border voxels shared between their class and a neighbour.

    A border voxel has a neighbour by a face in another class; all others count whole. At a border voxel with
    intensity I, each class has a mean intensity in the window of 15^3 voxels around. A candidate is another
    class within the 3^3 neighbourhood whose mean lies on the other side of I than that of the voxel's own. The
    candidate with the most voxels in the window (the first in array order, of equals) gets what the own does not:
    (I - mean_other) / (mean_own - mean_other), between 0 and 1. Without a candidate the voxel counts whole.

    Parameters
    ----------
    indices : int (X, Y, Z)
        Class of each voxel, below ``n_classes``, at most 255; 0 is the background.
    guide : (X, Y, Z)
        Intensities, bias field corrected.
    n_classes : int
    threads : int
        The result does not depend on it.

    Returns
    -------
    float64 (n_classes,)
        Their sum is the number of voxels.

    Examples
    --------
    >>> indices = np.repeat([0, 1], 4).reshape(8, 1, 1)
    >>> guide = np.array([0.0, 0, 0, 25, 100, 100, 100, 100]).reshape(8, 1, 1)
    >>> corrected_counts(indices, guide, 2).round(2).tolist()  # the voxel of 25 is dark's by 0.80
    [3.8, 4.2]
    """
    if indices.shape != guide.shape:
        raise ValueError(f"classes of shape {indices.shape} and intensities of shape {guide.shape}")
    box = nonzero_box(indices, margin=_HALF + 1)
    if box is None:
        return np.bincount([0], [indices.size], minlength=n_classes)
    classes = np.ascontiguousarray(indices[box], np.uint8)
    intensities = np.ascontiguousarray(guide[box], np.float32)
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
    try:
        counts = _count(classes, intensities, n_classes).sum(0)
    finally:
        numba.set_num_threads(before)
    counts[0] += indices.size - classes.size
    return counts


@numba.njit(parallel=True, cache=True, nogil=True)
def _count(classes, guide, n_classes):  # noqa: ANN001, ANN202
    _, size_y, size_z = classes.shape
    counts = np.zeros((_BLOCKS, n_classes))
    for block in numba.prange(_BLOCKS):
        sums = np.zeros(n_classes)
        voxels = np.zeros(n_classes, np.int64)
        here = np.zeros(n_classes)  # a row of its own, so that threads do not write to the same cache line
        for y in range(block * size_y // _BLOCKS, (block + 1) * size_y // _BLOCKS):
            for z in range(size_z):
                _count_row(classes, guide, y, z, sums, voxels, here)
        counts[block] = here
    return counts


@numba.njit(cache=True, nogil=True)
def _count_row(classes, guide, y, z, sums, voxels, counts):  # noqa: ANN001, ANN202
    """Count a row along the first axis.

    The window slides along it, a plane of 15 x 15 voxels at a time; those of a plane lie close in memory.
    """
    size_x = classes.shape[0]
    start = stop = 0  # the window holds planes start..stop-1
    sums[:] = 0
    voxels[:] = 0
    for x in range(size_x):
        own = classes[x, y, z]
        if not _is_border(classes, x, y, z):
            counts[own] += 1
            continue
        first, last = max(0, x - _HALF), min(size_x, x + _HALF + 1)
        if first >= stop:
            sums[:] = 0
            voxels[:] = 0
            start = stop = first
        for plane in range(start, first):
            _add_plane(classes, guide, plane, y, z, -1, sums, voxels)
        for plane in range(stop, last):
            _add_plane(classes, guide, plane, y, z, 1, sums, voxels)
        start, stop = first, last
        other, share = _share(classes, x, y, z, guide[x, y, z], sums, voxels)
        counts[own] += share
        counts[other] += 1 - share


@numba.njit(cache=True, nogil=True)
def _is_border(classes, x, y, z):  # noqa: ANN001, ANN202
    own = classes[x, y, z]
    size_x, size_y, size_z = classes.shape
    return (
        (x > 0 and classes[x - 1, y, z] != own)
        or (x + 1 < size_x and classes[x + 1, y, z] != own)
        or (y > 0 and classes[x, y - 1, z] != own)
        or (y + 1 < size_y and classes[x, y + 1, z] != own)
        or (z > 0 and classes[x, y, z - 1] != own)
        or (z + 1 < size_z and classes[x, y, z + 1] != own)
    )


@numba.njit(cache=True, nogil=True)
def _add_plane(classes, guide, x, y, z, sign, sums, voxels):  # noqa: ANN001, ANN202
    """Add (or with sign -1 remove) the 15 x 15 voxels around (y, z) in plane x."""
    for j in range(max(0, y - _HALF), min(classes.shape[1], y + _HALF + 1)):
        for k in range(max(0, z - _HALF), min(classes.shape[2], z + _HALF + 1)):
            one = classes[x, j, k]
            sums[one] += sign * guide[x, j, k]
            voxels[one] += sign


@numba.njit(cache=True, nogil=True)
def _share(classes, x, y, z, intensity, sums, voxels):  # noqa: ANN001, ANN202
    """Class that a border voxel is shared with (its own if none), and the share of its own."""
    own = classes[x, y, z]
    mean_own = sums[own] / voxels[own]
    best, most = own, 0
    for i in range(max(0, x - 1), min(classes.shape[0], x + 2)):
        for j in range(max(0, y - 1), min(classes.shape[1], y + 2)):
            for k in range(max(0, z - 1), min(classes.shape[2], z + 2)):
                one = classes[i, j, k]
                if one == own or voxels[one] <= most:
                    continue
                mean = sums[one] / voxels[one]
                if (mean - intensity) * (mean_own - intensity) < 0:
                    best, most = one, voxels[one]
    if best == own:
        return own, 1.0
    mean = sums[best] / voxels[best]
    return best, min(1.0, max(0.0, (intensity - mean) / (mean_own - mean)))
