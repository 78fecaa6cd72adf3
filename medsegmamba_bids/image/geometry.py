"""From grid to grid: conforming and resampling images and labels. Arrays and grids in, arrays out."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.intensity import BRIGHTEST, rescale_uint8, robust_scale

logger = logging.getLogger(__name__)

CONFORMED_SIDE = 256
_CONFORMED_SHAPE = (CONFORMED_SIDE,) * 3
_LIA = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
# The brightest voxels, but for a few, of bytes that need no rescaling. An image of up to 183 had its hippocampi 1 %
# smaller, one of up to 100 3 %. In what FreeSurfer has normalised white matter is at 110, and stays there.
_BRIGHT, _BRIGHT_FREESURFER = 180.0, 100.0
_SIGNAL = 0.1  # of the intensity range: darker voxels are taken for noise
_PARALLEL = 1e-7  # voxels per voxel
_ROUNDED = 1e-3  # voxels, by which rounding puts the centres of outermost voxels beyond an array


def is_conformed(image: nib.spatialimages.SpatialImage) -> bool:
    """Return whether an image is uint8, 256^3, 1 mm and LIA already."""
    return (
        image.shape == _CONFORMED_SHAPE
        and np.asanyarray(image.dataobj).dtype == np.uint8
        and np.allclose(image.affine[:3, :3], _LIA, atol=1e-3)
    )


def conform(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Image:
    """Bring an image to 256^3 voxels of 1 mm in LIA order, 0..255, as ``mri_convert --conform`` does.

    The centre of the field of view stays the centre; interpolation is trilinear; intensities are rescaled
    robustly, unless they are uint8 and fill 0..255 already (FreeSurfer leaves alone all that is uint8). What lies
    outside the image is 0. It does not strip skulls, does not correct the bias field and does not smooth before it
    makes voxels larger. It logs a warning with the number of voxels with signal that leave the grid.

    Parameters
    ----------
    image : nibabel image (X, Y, Z)

    Returns
    -------
    Nifti1Image, uint8 (256, 256, 256)
        The same data, not copied, where they are conformed already.
    """
    data = np.asanyarray(image.dataobj)
    offset, factor = _scale(image, data)
    if is_conformed(image):
        done = data if factor == 1 else rescale_uint8(data, offset, factor)
        return nib.Nifti1Image(done, image.affine)
    grid = Grid.of(image)
    to_grid = conformed_grid(grid)
    _warn_of_loss(data, offset + _SIGNAL * BRIGHTEST / factor, grid, to_grid)
    moved = resample(data, grid, to_grid, fill=offset)
    return nib.Nifti1Image(rescale_uint8(moved, offset, factor), to_grid.affine)


def _scale(image: nib.spatialimages.SpatialImage, data: np.ndarray) -> tuple[float, float]:
    """Return offset and factor that bring an image to 0..255; 0 and 1 where bytes fill that range already."""
    offset, factor = robust_scale(data)
    bright = _BRIGHT_FREESURFER if is_conformed(image) else _BRIGHT
    fills = data.dtype == np.uint8 and offset + BRIGHTEST / factor >= bright
    return (0.0, 1.0) if fills else (offset, factor)


def conformed_grid(grid: Grid) -> Grid:
    """Return the conformed grid around the same centre.

    Examples
    --------
    >>> conformed_grid(Grid(np.eye(4), (256, 256, 256))).affine[:3, 3].tolist()
    [256.0, 0.0, 256.0]
    """
    affine = np.eye(4)
    affine[:3, :3] = _LIA
    affine[:3, 3] = grid.centre - _LIA @ np.full(3, CONFORMED_SIDE / 2)
    return Grid(affine, _CONFORMED_SHAPE)


def _warn_of_loss(data: np.ndarray, signal: float, grid: Grid, to_grid: Grid) -> None:
    """Warn when voxels brighter than ``signal`` fall outside the conformed grid."""
    lost = count_outside(data, signal, grid, to_grid)
    if lost:
        litres = lost * grid.voxel_mm3 / 1e6
        logger.warning(
            "%d voxels with signal (%.2f litres) lie outside the conformed cube of 256 mm and are left out",
            lost,
            litres,
        )


def count_outside(data: np.ndarray, above: float, grid: Grid, to_grid: Grid) -> int:
    """Return the number of voxels brighter than ``above`` whose centres lie outside another grid.

    Examples
    --------
    >>> count_outside(np.ones((2, 2, 6)), 0, Grid(np.eye(4), (2, 2, 6)), Grid(np.eye(4), (2, 2, 5)))
    4
    """
    matrix = grid.to_voxels_of(to_grid)
    if not _outside(matrix[:3, :3] @ grid.box.corners + matrix[:3, 3:], to_grid.shape).any():
        return 0
    second, third = np.ogrid[: data.shape[1], : data.shape[2]]
    count = 0
    for first in range(data.shape[0]):  # a plane at a time, to save memory
        there = (m[0] * first + m[3] + m[1] * second + m[2] * third for m in matrix[:3])
        count += int(np.count_nonzero((data[first] > above) & _outside(there, to_grid.shape)))
    return count


def _outside(coordinates: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return where any of three voxel coordinates is off a grid, whose voxels reach half a step beyond their
    centres.
    """
    out = [(c < -0.5) | (c > n - 0.5) for c, n in zip(coordinates, shape, strict=True)]
    return out[0] | out[1] | out[2]


def turn_to_lia(image: nib.spatialimages.SpatialImage) -> nib.spatialimages.SpatialImage:
    """Return an image whose axes are turned to LIA; voxels keep their size and values."""
    axes = nib.orientations.io_orientation(image.affine)
    return image.as_reoriented(nib.orientations.ornt_transform(axes, nib.orientations.axcodes2ornt("LIA")))


def resample(data: np.ndarray, grid: Grid, to_grid: Grid, fill: float = 0.0) -> np.ndarray:
    """Return an array on another grid, interpolated linearly, float32; outside the old one's voxel centres lies
    ``fill``.

    Does not smooth, so that a much coarser grid sees single voxels.

    Parameters
    ----------
    data : (X, Y, Z)
    grid, to_grid : Grid

    Examples
    --------
    >>> coarse = Grid(np.diag([1, 1, 2, 1]), (1, 1, 2))
    >>> resample(np.arange(4.0).reshape(1, 1, 4), Grid(np.eye(4), (1, 1, 4)), coarse)[0, 0].tolist()
    [0.0, 2.0]
    """
    matrix = to_grid.to_voxels_of(grid)
    # Laid out in the order in which the new array walks through it, the old one is read twice as fast. So is, again,
    # the scaling alone that then remains for grids with parallel axes.
    axes = nib.orientations.io_orientation(matrix)[:, 0].astype(int)
    linear = matrix[axes, :3]
    scaling = np.diag(linear)
    parallel = np.abs(linear - np.diag(scaling)).max() < _PARALLEL
    data, offset = np.ascontiguousarray(data.transpose(axes)), matrix[axes, 3]
    box = _seen(data.shape, scaling, offset, to_grid.shape) if parallel else to_grid.box
    moved = np.full(to_grid.shape, fill, np.float32)
    if min(box.shape):
        ndimage.affine_transform(
            data,
            scaling if parallel else linear,
            offset + scaling * box.start,  # of an oblique grid that is 0
            output=moved[box],
            order=1,
            mode="nearest" if parallel else "constant",
            cval=fill,
            prefilter=False,
        )
    return moved


def _seen(shape: tuple[int, ...], scaling: np.ndarray, offset: np.ndarray, to_shape: tuple[int, ...]) -> Box:
    """Return the voxels of a new grid that lie within an array whose axes are parallel; perhaps there are none.

    Left to SciPy, a whole plane of voxels would be outside that rounding puts 1e-14 beyond the outermost ones.
    """
    sides = []
    for side, to_side, step, first in zip(shape, to_shape, scaling, offset, strict=True):
        at = step * np.arange(to_side) + first
        within = np.flatnonzero((at >= -_ROUNDED) & (at <= side - 1 + _ROUNDED))
        sides.append(slice(int(within[0]), int(within[-1]) + 1) if within.size else slice(0, 0))
    return Box(sides)


def labels_to_grid(labels: np.ndarray, grid: Grid, to_grid: Grid) -> np.ndarray:
    """Return labels on another grid: every label's mask is interpolated linearly and the largest share wins.

    A compiled loop over the labelled part of the new grid: an int32 array of it and one of the old grid's are all the
    memory it takes. Of equal shares the smallest label above 0 wins. Beyond the old grid's outermost
    voxel centres a label's share falls to a half at the voxels' faces, so that labels end where the old field of
    view ends. Two grids that agree to 0.001 mm give the labels themselves.

    Parameters
    ----------
    labels : unsigned int (X, Y, Z)
        0 is the background.
    grid, to_grid : Grid

    Returns
    -------
    array of the labels' type and order in memory, on the new grid; 0 outside the old one

    Examples
    --------
    >>> fine = Grid(np.diag([1, 1, 0.5, 1]), (1, 1, 8))
    >>> labels_to_grid(np.array([[[0, 4, 4, 5]]], np.uint8), Grid(np.eye(4), (1, 1, 4)), fine).tolist()
    [[[0, 4, 4, 4, 4, 4, 5, 5]]]
    """
    from medsegmamba_bids.image.label_shares import largest_shares  # numba takes a while

    if grid.same_as(to_grid):
        return labels.copy(order="K")
    winner = np.zeros(to_grid.shape, labels.dtype, order="F" if labels.flags.fnc else "C")
    box, matrix = Box.around(labels), to_grid.to_voxels_of(grid)
    target = box and _target_box(box.grow(1), matrix, to_grid.shape)
    if target:
        winner[target] = largest_shares(labels[box], _between_boxes(matrix, box, target), target.shape)
    return winner


def _target_box(source: Box, matrix: np.ndarray, to_shape: tuple[int, ...]) -> Box | None:
    """Return voxels of the new grid that a box of the old one can reach; None where there are none."""
    back = np.linalg.inv(matrix)
    there = back[:3, :3] @ source.corners + back[:3, 3:]
    low = np.maximum(np.floor(there.min(1)).astype(int), 0)
    high = np.minimum(np.ceil(there.max(1)).astype(int) + 1, to_shape)
    return Box(map(slice, low.tolist(), high.tolist())) if (low < high).all() else None


def _between_boxes(matrix: np.ndarray, source: Box, target: Box) -> np.ndarray:
    """Return the matrix from new to old voxels, both counted from their boxes."""
    out = target.shift(matrix)
    out[:3, 3] -= source.start
    return out
