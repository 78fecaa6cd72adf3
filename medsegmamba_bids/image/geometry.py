"""Grids: conforming, resampling and boxes. Arrays and affines in, arrays and affines out.

Affines map voxel indices to mm (RAS+), as in nibabel; a voxel's index is that of its centre.
"""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.intensity import BRIGHTEST, rescale_uint8, robust_scale

logger = logging.getLogger(__name__)

CONFORMED_SIDE = 256
CONFORMED_AXES = ("L", "I", "A")
_CONFORMED_SHAPE = (CONFORMED_SIDE,) * 3
_LIA = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
_SIGNAL = 0.1  # of the intensity range: darker voxels are taken for noise
_SAME_GRID_MM = 1e-3
_PARALLEL = 1e-7  # voxels per voxel

Box = tuple[slice, slice, slice]


def is_conformed(image: nib.spatialimages.SpatialImage) -> bool:
    """Whether an image is uint8, 256^3, 1 mm and LIA already."""
    return (
        image.shape == _CONFORMED_SHAPE
        and np.asanyarray(image.dataobj).dtype == np.uint8
        and np.allclose(image.affine[:3, :3], _LIA, atol=1e-3)
    )


def conform(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Image:
    """Bring an image to 256^3 voxels of 1 mm in LIA order, 0..255, as ``mri_convert --conform`` does.

    The centre of the field of view stays the centre; interpolation is trilinear; intensities are rescaled
    robustly, unless they are uint8 already (FreeSurfer leaves those alone). What lies outside the image is 0. It
    does not strip skulls, does not correct the bias field and does not smooth before it makes voxels larger. It
    logs a warning with the number of voxels with signal that leave the grid.

    Parameters
    ----------
    image : nibabel image (X, Y, Z)

    Returns
    -------
    Nifti1Image, uint8 (256, 256, 256)
        The same data, not copied, where they are conformed already.
    """
    data = np.asanyarray(image.dataobj)
    if is_conformed(image):
        return nib.Nifti1Image(data, image.affine)
    affine = conformed_affine(image.affine, image.shape)
    offset, factor = (0.0, 1.0) if data.dtype == np.uint8 else robust_scale(data)
    _warn_of_loss(data, offset + _SIGNAL * BRIGHTEST / factor, image.affine, affine)
    moved = resample(data, image.affine, affine, _CONFORMED_SHAPE, fill=offset)
    return nib.Nifti1Image(rescale_uint8(moved, offset, factor), affine)


def conformed_affine(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Affine (4, 4) of the conformed grid around the same centre, which is the voxel at half the shape.

    Examples
    --------
    >>> conformed_affine(np.eye(4), (256, 256, 256))[:3, 3].tolist()
    [256.0, 0.0, 256.0]
    """
    centre = affine @ np.array([*np.array(shape[:3]) / 2, 1.0])
    out = np.eye(4)
    out[:3, :3] = _LIA
    out[:3, 3] = centre[:3] - _LIA @ np.full(3, CONFORMED_SIDE / 2)
    return out


def _warn_of_loss(data: np.ndarray, signal: float, affine: np.ndarray, to_affine: np.ndarray) -> None:
    """Warn when voxels brighter than ``signal`` fall outside the conformed grid."""
    lost = count_outside(data, signal, affine, to_affine, _CONFORMED_SHAPE)
    if lost:
        litres = lost * abs(np.linalg.det(affine[:3, :3])) / 1e6
        logger.warning(
            "%d voxels with signal (%.2f litres) lie outside the conformed cube of 256 mm and are left out",
            lost,
            litres,
        )


def count_outside(
    data: np.ndarray,
    above: float,
    affine: np.ndarray,
    to_affine: np.ndarray,
    to_shape: tuple[int, ...],
) -> int:
    """Number of voxels brighter than ``above`` whose centres lie outside another grid.

    Examples
    --------
    >>> bright = np.ones((2, 2, 6))
    >>> count_outside(bright, 0, np.eye(4), np.eye(4), (2, 2, 5))
    4
    """
    matrix = np.linalg.inv(to_affine) @ affine
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in data.shape])).reshape(3, -1)
    if not _outside(matrix[:3, :3] @ corners + matrix[:3, 3:], to_shape).any():
        return 0
    second, third = np.ogrid[: data.shape[1], : data.shape[2]]
    count = 0
    for first in range(data.shape[0]):  # a plane at a time, to save memory
        there = (m[0] * first + m[3] + m[1] * second + m[2] * third for m in matrix[:3])
        count += int(np.count_nonzero((data[first] > above) & _outside(there, to_shape)))
    return count


def _outside(coordinates: object, shape: tuple[int, ...]) -> np.ndarray:
    """Where any of three voxel coordinates is off a grid, whose voxels reach half a step beyond their centres."""
    out = [(c < -0.5) | (c > n - 0.5) for c, n in zip(coordinates, shape, strict=True)]
    return out[0] | out[1] | out[2]


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    to_affine: np.ndarray,
    to_shape: tuple[int, ...],
    order: int = 1,
    fill: float = 0.0,
) -> np.ndarray:
    """An array on another grid, float32; outside the old one's voxel centres lies ``fill``.

    Does not smooth, so that a much coarser grid sees single voxels.

    Parameters
    ----------
    data : (X, Y, Z)
    affine, to_affine : float (4, 4), of the old and the new grid
    to_shape : of the new grid
    order : int
        Of the spline, 0 (nearest) or 1 (linear).

    Raises
    ------
    ValueError
        The order is another one.

    Examples
    --------
    >>> resample(np.arange(4.0).reshape(1, 1, 4), np.eye(4), np.diag([1, 1, 2, 1]), (1, 1, 2))[0, 0].tolist()
    [0.0, 2.0]
    """
    if order not in (0, 1):
        raise ValueError(f"a spline of order {order} is not offered; allowed are 0 and 1")
    return _transform(data, np.linalg.inv(affine) @ to_affine, to_shape, order, "constant", fill)


def _transform(
    data: np.ndarray,
    matrix: np.ndarray,
    to_shape: tuple[int, ...],
    order: int,
    mode: str,
    fill: float = 0.0,
) -> np.ndarray:
    """Resample with a matrix (4, 4) from new to old voxel indices.

    The old array is first laid out in the order in which the new one walks through it: twice as fast. So is,
    again, the scaling alone that then remains for grids with parallel axes.
    """
    axes = nib.orientations.io_orientation(matrix)[:, 0].astype(int)
    linear = matrix[axes, :3]
    scaling = np.diag(linear)
    return ndimage.affine_transform(
        np.ascontiguousarray(data.transpose(axes)),
        scaling if np.abs(linear - np.diag(scaling)).max() < _PARALLEL else linear,
        matrix[axes, 3],
        output_shape=tuple(to_shape),
        output=np.float32,
        order=order,
        mode=mode,
        cval=fill,
        prefilter=False,
    )


def rescale_grid(affine: np.ndarray, shape: tuple[int, ...], voxel_size: float) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of a grid over the same volume with other, isotropic voxels.

    Examples
    --------
    >>> affine, shape = rescale_grid(np.eye(4), (6, 6, 6), 1.5)
    >>> shape, affine[:3, 3].tolist()
    ((4, 4, 4), [0.25, 0.25, 0.25])
    """
    zooms = nib.affines.voxel_sizes(affine)
    new_shape = tuple(int(np.ceil(n * z / voxel_size - 1e-6)) for n, z in zip(shape, zooms, strict=True))
    scale = voxel_size / zooms
    out = affine.copy()
    out[:3, :3] = affine[:3, :3] * scale
    corner = (scale - 1) / 2  # the outer faces of the first voxels coincide
    out[:3, 3] = affine[:3, 3] + affine[:3, :3] @ corner
    return out, new_shape


def labels_to_grid(
    labels: np.ndarray, affine: np.ndarray, to_affine: np.ndarray, to_shape: tuple[int, ...]
) -> np.ndarray:
    """Labels on another grid: every label's mask is interpolated linearly and the largest share wins.

    One label at a time, each within its own box, so that two float32 arrays of the labelled part of the new grid
    are all the memory it takes. Of equal shares the smallest label above 0 wins. Beyond the old grid's outermost
    voxel centres a label's share falls to a half at the voxels' faces, so that labels end where the old field of
    view ends. Two grids that agree to 0.001 mm give the labels themselves.

    Parameters
    ----------
    labels : unsigned int (X, Y, Z)
        0 is the background.
    affine, to_affine : float (4, 4), of the old and the new grid

    Returns
    -------
    array of the labels' type (to_shape), 0 outside the old grid

    Examples
    --------
    >>> labels_to_grid(np.array([[[0, 4, 4, 5]]], np.uint8), np.eye(4), np.diag([1, 1, 0.5, 1]), (1, 1, 8)).tolist()
    [[[0, 4, 4, 4, 4, 4, 5, 5]]]
    """
    if same_grid(labels.shape, affine, to_shape, to_affine):
        return labels.copy()
    winner = np.zeros(to_shape, labels.dtype)
    matrix = np.linalg.inv(affine) @ to_affine
    sources = {n: _grow(box) for n, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), 1) if box}
    targets = {n: _target_box(box, matrix, to_shape) for n, box in sources.items()}
    targets = {n: box for n, box in targets.items() if box}
    if not targets:
        return winner
    region = _hull(list(targets.values()))
    best, total = (np.zeros([s.stop - s.start for s in region], np.float32) for _ in range(2))
    for label, target in targets.items():
        source = tuple(slice(max(s.start, 0), s.stop) for s in sources[label])
        share = _transform(
            (labels[source] == label).astype(np.float32),
            _between_boxes(matrix, source, target),
            tuple(s.stop - s.start for s in target),
            order=1,
            mode="grid-constant",
        )
        here = tuple(slice(t.start - r.start, t.stop - r.start) for t, r in zip(target, region, strict=True))
        total[here] += share
        better = share > best[here]
        best[here][better] = share[better]
        winner[target][better] = label
    winner[region][best < 1 - total] = 0  # the rest is the background's share
    return winner


def same_grid(shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other: np.ndarray) -> bool:
    """Whether two grids agree: one shape, and the outermost voxels within 0.001 mm.

    Examples
    --------
    >>> same_grid((2, 2, 2), np.eye(4), (2, 2, 2), np.eye(4) + 1e-6)
    True
    """
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    apart = (affine - other)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    return bool(np.abs(apart).max() <= _SAME_GRID_MM)


def _grow(box: Box) -> Box:
    return tuple(slice(s.start - 1, s.stop + 1) for s in box)


def _hull(boxes: list[Box]) -> Box:
    """Smallest box around boxes."""
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*boxes, strict=True))


def _target_box(source: Box, matrix: np.ndarray, to_shape: tuple[int, ...]) -> Box | None:
    """Voxels of the new grid that a box of the old one can reach; None where there are none."""
    back = np.linalg.inv(matrix)
    corners = np.stack(np.meshgrid(*[(s.start, s.stop - 1) for s in source])).reshape(3, -1)
    there = back[:3, :3] @ corners + back[:3, 3:]
    low = np.maximum(np.floor(there.min(1)).astype(int), 0)
    high = np.minimum(np.ceil(there.max(1)).astype(int) + 1, to_shape)
    return tuple(map(slice, low.tolist(), high.tolist())) if (low < high).all() else None


def _between_boxes(matrix: np.ndarray, source: Box, target: Box) -> np.ndarray:
    """The matrix from new to old voxels, both counted from their boxes."""
    out = shift_affine(matrix, target)
    out[:3, 3] -= [s.start for s in source]
    return out


def shift_affine(affine: np.ndarray, box: Box) -> np.ndarray:
    """Affine of the part of an array that a box cuts out.

    Examples
    --------
    >>> shift_affine(np.diag([2.0, 2, 2, 1]), (slice(3, 5),) * 3)[:3, 3].tolist()
    [6.0, 6.0, 6.0]
    """
    out = affine.copy()
    out[:3, 3] = affine[:3, :3] @ [s.start for s in box] + affine[:3, 3]
    return out


def nonzero_box(mask: np.ndarray, margin: int = 0) -> Box | None:
    """Smallest box around the non-zero voxels, wider by a margin within the array; None where all are zero.

    Examples
    --------
    >>> nonzero_box(np.pad(np.ones((2, 2, 2)), 3), margin=1)
    (slice(2, 6, None), slice(2, 6, None), slice(2, 6, None))
    """
    found = ndimage.find_objects((mask != 0).astype(np.uint8))
    if not found:
        return None
    return tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(found[0], mask.shape, strict=True)
    )
