"""Grids: conforming, resampling and boxes. Arrays and affines in, arrays and affines out.

Affines map voxel indices to mm (RAS+), as in nibabel.
"""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.intensity import rescale_uint8, robust_scale

logger = logging.getLogger(__name__)

CONFORMED_SIDE = 256
CONFORMED_AXES = ("L", "I", "A")
LOSS_WORTH_A_WARNING = 0.01
_LIA = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])

Box = tuple[slice, slice, slice]


def is_conformed(image: nib.spatialimages.SpatialImage) -> bool:
    """Whether an image is uint8, 256^3, 1 mm and LIA already."""
    return (
        image.shape == (CONFORMED_SIDE,) * 3
        and image.get_data_dtype() == np.uint8
        and np.allclose(image.affine[:3, :3], _LIA, atol=1e-3)
    )


def conform(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Image:
    """Brings an image to 256^3 voxels of 1 mm in LIA order, 0..255, as ``mri_convert --conform`` does.

    The centre of the field of view stays the centre; interpolation is trilinear; intensities are rescaled
    robustly, unless they are uint8 already (FreeSurfer leaves those alone). It does not strip skulls and does not
    correct the bias field. It warns when much of the head leaves the grid.

    Parameters
    ----------
    image : nibabel image (X, Y, Z)

    Returns
    -------
    Nifti1Image, uint8 (256, 256, 256)
    """
    if is_conformed(image):
        return nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    affine = conformed_affine(image.affine, image.shape)
    data = np.asanyarray(image.dataobj)
    offset, factor = (0.0, 1.0) if data.dtype == np.uint8 else robust_scale(data)
    _warn_of_loss(data > offset, image.affine, affine)
    moved = resample(data, image.affine, affine, (CONFORMED_SIDE,) * 3, order=1, fill=offset)
    return nib.Nifti1Image(rescale_uint8(moved, offset, factor), affine)


def conformed_affine(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Affine (4, 4) of the conformed grid around the same centre.

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


def _warn_of_loss(foreground: np.ndarray, affine: np.ndarray, to_affine: np.ndarray) -> None:
    """Warns when voxels with signal fall outside the conformed grid; only a large image can have any."""
    reach = nib.affines.voxel_sizes(affine) * foreground.shape
    if np.linalg.norm(reach) <= CONFORMED_SIDE:
        return
    sparse = 4  # every fourth voxel of each axis tells the share well enough
    matrix = np.linalg.inv(to_affine) @ affine
    voxels = np.argwhere(foreground[::sparse, ::sparse, ::sparse]) * sparse
    there = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    lost = ((there < -0.5) | (there > CONFORMED_SIDE - 0.5)).any(1).mean() if len(voxels) else 0.0
    if lost > LOSS_WORTH_A_WARNING:
        logger.warning("%.1f %% of the voxels with signal lie outside the conformed 256 mm cube", 100 * lost)


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    to_affine: np.ndarray,
    to_shape: tuple[int, ...],
    order: int = 1,
    fill: float = 0.0,
) -> np.ndarray:
    """An array on another grid, float32; outside the old one lies ``fill``.

    Parameters
    ----------
    data : (X, Y, Z)
    affine, to_affine : float (4, 4), of the old and the new grid
    order : int
        Of the spline, 0 (nearest) or 1 (linear).

    Examples
    --------
    >>> resample(np.arange(4.0).reshape(1, 1, 4), np.eye(4), np.diag([1, 1, 2, 1]), (1, 1, 2))[0, 0].tolist()
    [0.0, 2.0]
    """
    matrix = np.linalg.inv(affine) @ to_affine
    return ndimage.affine_transform(
        data,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=tuple(to_shape),
        output=np.float32,
        order=order,
        mode="constant",
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
    """Labels on another grid: every label's mask is interpolated linearly and the largest wins.

    One label at a time, each within its own box, so that memory stays that of three arrays.

    Parameters
    ----------
    labels : unsigned int (X, Y, Z)

    Returns
    -------
    array of the labels' type (to_shape), 0 outside
    """
    if labels.shape == tuple(to_shape) and np.allclose(affine, to_affine, atol=1e-5):
        return labels.copy()
    best, total = np.zeros(to_shape, np.float32), np.zeros(to_shape, np.float32)
    winner = np.zeros(to_shape, labels.dtype)
    for label, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), 1):
        source = box and tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        target = source and _target_box(source, affine, to_affine, to_shape)
        if not target:
            continue
        share = resample(
            (labels[source] == label).astype(np.float32),
            shift_affine(affine, source),
            shift_affine(to_affine, target),
            tuple(s.stop - s.start for s in target),
        )
        total[target] += share
        better = share > best[target]
        best[target][better] = share[better]
        winner[target][better] = label
    winner[best < 1 - total] = 0  # the rest is the background's share
    return winner


def _target_box(source: Box, affine: np.ndarray, to_affine: np.ndarray, to_shape: tuple[int, ...]) -> Box | None:
    """Voxels of the new grid that a box of the old one can reach; None where there are none."""
    corners = np.array(np.meshgrid(*[(s.start - 1, s.stop) for s in source])).reshape(3, -1)
    matrix = np.linalg.inv(to_affine) @ affine
    there = matrix[:3, :3] @ corners + matrix[:3, 3:]
    low = np.maximum(np.floor(there.min(1)).astype(int), 0)
    high = np.minimum(np.ceil(there.max(1)).astype(int) + 1, to_shape)
    return tuple(map(slice, low, high)) if (low < high).all() else None


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
    """Smallest box around the non-zero voxels, wider by a margin within the array; None where all are zero."""
    found = ndimage.find_objects((mask != 0).astype(np.uint8))
    if not found:
        return None
    return tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(found[0], mask.shape, strict=True)
    )
