"""The label with the largest share around each voxel of another grid, compiled with numba."""

from __future__ import annotations

import nibabel as nib
import numba
import numpy as np

_NONE = np.iinfo(np.int32).max  # above all labels


def largest_shares(labels: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return at each voxel of a new grid the label with the largest share of the eight old voxels around.

    Shares are weights of linear interpolation. Of equal shares, compared in float32, the smallest label above 0 wins;
    the background wins where it has more than that. Beyond the array all is background.

    Parameters
    ----------
    labels : int (X, Y, Z)
        Below 2^31 - 1; what is below 0 is background.
    matrix : float (4, 4)
        From new to old voxel indices.
    shape : tuple of int
        Of the new grid.

    Returns
    -------
    int32, of that shape
        In the order that the labels have in memory.

    Examples
    --------
    >>> largest_shares(np.array([[[4, 5]]]), np.diag([1, 1, 0.5, 1]), (1, 1, 4)).tolist()
    [[[4, 4, 5, 5]]]
    """
    new_axes = [2, 1, 0] if labels.strides[0] < labels.strides[2] else [0, 1, 2]  # the last one is next in memory
    old_axes = nib.orientations.io_orientation(matrix)[new_axes, 0].astype(int)  # those parallel to them, or nearly so
    padded = np.zeros([labels.shape[axis] + 2 for axis in old_axes], np.int32)  # a voxel of background all around
    np.maximum(labels.transpose(old_axes), 0, out=padded[1:-1, 1:-1, 1:-1], casting="unsafe")
    out = np.zeros([shape[axis] for axis in new_axes], np.int32)
    _fill(padded, matrix[np.ix_(old_axes, new_axes)], matrix[old_axes, 3] + 1.0, out)
    return out.transpose(new_axes)


@numba.njit(cache=True, nogil=True)
def _fill(labels, linear, offset, out):  # noqa: ANN001, ANN202
    around, weights = np.empty(8, np.int32), np.empty(8)
    last_x, last_y, last_z = labels.shape[0] - 1, labels.shape[1] - 1, labels.shape[2] - 1
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            row_x = linear[0, 0] * i + linear[0, 1] * j + offset[0]
            row_y = linear[1, 0] * i + linear[1, 1] * j + offset[1]
            row_z = linear[2, 0] * i + linear[2, 1] * j + offset[2]
            for k in range(out.shape[2]):
                x, y, z = row_x + linear[0, 2] * k, row_y + linear[1, 2] * k, row_z + linear[2, 2] * k
                if not (0 <= x < last_x and 0 <= y < last_y and 0 <= z < last_z):
                    continue
                near_x, near_y, near_z = int(x), int(y), int(z)
                if not _gather(labels, near_x, near_y, near_z, around):
                    out[i, j, k] = around[0]
                    continue
                _weigh(x - near_x, y - near_y, z - near_z, weights)
                out[i, j, k] = _largest(around, weights)


@numba.njit(cache=True, nogil=True, inline="always")
def _gather(labels, x, y, z, around):  # noqa: ANN001, ANN202
    """Write the labels of eight voxels, and return whether they differ."""
    around[0], around[1] = labels[x, y, z], labels[x, y, z + 1]
    around[2], around[3] = labels[x, y + 1, z], labels[x, y + 1, z + 1]
    around[4], around[5] = labels[x + 1, y, z], labels[x + 1, y, z + 1]
    around[6], around[7] = labels[x + 1, y + 1, z], labels[x + 1, y + 1, z + 1]
    differ = 0
    for corner in range(1, 8):
        differ |= around[corner] ^ around[0]
    return differ != 0


@numba.njit(cache=True, nogil=True, inline="always")
def _weigh(x, y, z, weights):  # noqa: ANN001, ANN202
    """Write the weights of the eight voxels around a point between them."""
    for corner in range(8):
        weight_x = x if corner & 4 else 1 - x
        weight_y = y if corner & 2 else 1 - y
        weight_z = z if corner & 1 else 1 - z
        weights[corner] = weight_x * weight_y * weight_z


@numba.njit(cache=True, nogil=True)
def _largest(around, weights):  # noqa: ANN001, ANN202
    """Return the label of the largest share, looking at one label after the other in ascending order."""
    best, total, winner, label = np.float32(0), np.float32(0), 0, _next_label(around, 0)
    while label != _NONE:
        share = 0.0
        for corner in range(8):
            if around[corner] == label:
                share += weights[corner]
        total += np.float32(share)
        if np.float32(share) > best:
            best, winner = np.float32(share), label
        label = _next_label(around, label)
    return winner if best >= np.float32(1) - total else 0  # the rest is the background's share


@numba.njit(cache=True, nogil=True)
def _next_label(around, after):  # noqa: ANN001, ANN202
    """Return the lowest label above another one."""
    lowest = _NONE
    for label in around:
        if after < label < lowest:
            lowest = label
    return lowest
