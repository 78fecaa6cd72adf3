"""Rigid transforms as 4 x 4 matrices in mm, RAS+: from labels, from intensities, and their mean."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.linalg import expm, logm

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.itk import to_itk, to_lps, to_ras

_FEWEST = 4  # structures in common that tell how a head is turned
# Voxels of the registration, coarse to fine. Down to 1 mm it took 10 times as long and erred as much.
_LEVELS_MM = (4.0, 2.0)
_FLAT_MM = 15.0  # wider than structures: what is left of a bias field moved heads by 0.3 mm
_MARGIN_MM = 12
_BRAIN_MARGIN_MM = 3  # of what is compared: the brain and its border
_STEPS = {"learningRate": 0.5, "minStep": 5e-4, "numberOfIterations": 60, "relaxationFactor": 0.6}  # mm
_CONVERGED = 1e-10
_MOST_ROUNDS = 50


def rigid_from_labels(labels: np.ndarray, grid: Grid, other_labels: np.ndarray, other_grid: Grid) -> np.ndarray:
    """Return the rigid transform that brings the structures of one label image onto those of another.

    Least squares over the centres of structures (Kabsch, Acta Cryst. A32:922, 1976), each weighted by the cube root of
    its smaller volume. A start for a registration: it is good to a millimetre or so, however the heads lie.

    Parameters
    ----------
    labels, other_labels : int (X, Y, Z)
        FreeSurfer labels.
    grid, other_grid : Grid

    Returns
    -------
    float (4, 4)
        From points of the first to points of the other, mm, RAS+.

    Raises
    ------
    ImageError
        They have fewer than four structures in common.
    """
    here, there = _centres(labels, grid), _centres(other_labels, other_grid)
    common = sorted(here.keys() & there.keys())
    if len(common) < _FEWEST:
        raise ImageError(f"the images have {len(common)} structures in common; {_FEWEST} tell how a head lies")
    points = np.array([here[label][0] for label in common])
    others = np.array([there[label][0] for label in common])
    weights = np.cbrt([min(here[label][1], there[label][1]) for label in common])[:, None]
    weights = weights / weights.sum()
    middle, other_middle = (weights * points).sum(0), (weights * others).sum(0)
    u, _, vt = np.linalg.svd((weights * (points - middle)).T @ (others - other_middle))
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))])
    rotation = vt.T @ turn @ u.T
    return nib.affines.from_matvec(rotation, other_middle - rotation @ middle)


def _centres(labels: np.ndarray, grid: Grid) -> dict[int, tuple[np.ndarray, float]]:
    """Return label -> centre in mm and volume in mm3; every second voxel is looked at."""
    coarse = labels[::2, ::2, ::2]
    places = np.argwhere(coarse)
    values = coarse[coarse > 0].astype(np.int64)
    counts = np.bincount(values)
    sums = np.stack([np.bincount(values, column) for column in places.T], axis=1)
    return {
        label: (grid.to_world(2 * sums[label] / counts[label]), counts[label] * 8 * grid.voxel_mm3)
        for label in np.flatnonzero(counts).tolist()
    }


def register_both_ways(
    first: tuple[np.ndarray, Grid, np.ndarray],
    second: tuple[np.ndarray, Grid, np.ndarray],
    start: np.ndarray,
    threads: int = 1,
) -> np.ndarray:
    """Return the rigid transform between two heads, found in both directions and averaged.

    Swapping the heads gives the inverse, so that neither is favoured: what interpolation does to the moving image
    alone would else bias the change that is found (Reuter and Fischl 2011, NeuroImage 57:19).

    Parameters
    ----------
    first, second : tuple
        Intensities (X, Y, Z), their grid, and a bool mask of the brain.
    start : float (4, 4)
        From points of the first to points of the second, mm, RAS+.
    threads : int

    Returns
    -------
    float (4, 4)
        From points of the first to points of the second, mm, RAS+.
    """
    forth = register_rigid(first[:2], second, start, threads)
    back = register_rigid(second[:2], first, np.linalg.inv(start), threads)
    return mean_rigid([forth, np.linalg.inv(back)])


def flattened(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image divided by its smooth mean within the brain, near 1 there and 0 far from it: no bias field.

    Parameters
    ----------
    data : (X, Y, Z)
        Voxels of about 1 mm.
    mask : bool (X, Y, Z)
        The brain.
    """
    inside = mask.astype(np.float32)
    total = ndimage.gaussian_filter(data * inside, _FLAT_MM, truncate=3)
    share = ndimage.gaussian_filter(inside, _FLAT_MM, truncate=3)
    near = ndimage.binary_dilation(mask, iterations=_MARGIN_MM // 2)
    return np.where(near, data * share / np.maximum(total, 1e-3), 0).astype(np.float32)


def register_rigid(
    moving: tuple[np.ndarray, Grid], fixed: tuple[np.ndarray, Grid, np.ndarray], start: np.ndarray, threads: int = 1
) -> np.ndarray:
    """Register a head to another one rigidly: largest correlation of intensities in and around the brain (SimpleITK).

    Two resolutions, all voxels of the brain at each, no random choice; images as `flattened` makes them.

    Parameters
    ----------
    moving : tuple
        Intensities (X, Y, Z) and their grid, voxels of about 1 mm.
    fixed : tuple
        The same, and a bool mask of the brain.
    start : float (4, 4)
        From points of the moving to points of the fixed head, mm, RAS+.
    threads : int
        The result does not depend on it.

    Returns
    -------
    float (4, 4)
        From points of the moving to points of the fixed head, mm, RAS+.

    Raises
    ------
    RuntimeError
        ITK could not register: too little of the heads overlaps.
    """
    data, grid, mask = fixed
    box = Box.around(mask, margin=_MARGIN_MM)
    data, grid, mask = data[box], grid.cut(box), mask[box]
    centre = grid.to_world(np.argwhere(mask).mean(0))
    mask = ndimage.binary_dilation(mask, iterations=_BRAIN_MARGIN_MM)
    other, other_grid = _seen_from(moving, grid, start)
    matrix = np.linalg.inv(start)
    for level in _LEVELS_MM:
        matrix = _at_level(
            _coarser(data, grid, level), _coarser(mask, grid, level), _coarser(other, other_grid, level), matrix,
            centre, threads,
        )  # fmt: skip
    return np.linalg.inv(matrix)


def _seen_from(moving: tuple[np.ndarray, Grid], grid: Grid, start: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Return the part of the moving head that a grid can see, with room to move."""
    data, moving_grid = moving
    there = np.linalg.inv(start @ moving_grid.affine) @ grid.affine
    corners = there[:3, :3] @ grid.box.corners + there[:3, 3:]
    low = np.clip(np.floor(corners.min(1)).astype(int) - _MARGIN_MM, 0, data.shape)
    high = np.clip(np.ceil(corners.max(1)).astype(int) + _MARGIN_MM, 0, data.shape)
    box = Box(map(slice, low.tolist(), high.tolist()))
    if min(box.shape) < 2:
        raise ImageError("the heads do not overlap: there is nothing to register")
    return data[box], moving_grid.cut(box)


def _coarser(data: np.ndarray, grid: Grid, size: float) -> tuple[np.ndarray, Grid]:
    """Return an image smoothed and on every n-th voxel, so that these are of about a size in mm."""
    step = max(1, round(size / float(grid.zooms.mean())))
    data = data.astype(np.float32)
    if step > 1:
        data = ndimage.gaussian_filter(data, step / 2)
    first = step // 2
    scale = nib.affines.from_matvec(np.diag([float(step)] * 3), [first] * 3)
    small = data[first::step, first::step, first::step]
    return small, Grid(grid.affine @ scale, small.shape)


def _at_level(
    fixed: tuple[np.ndarray, Grid],
    mask: tuple[np.ndarray, Grid],
    moving: tuple[np.ndarray, Grid],
    matrix: np.ndarray,
    centre: np.ndarray,
    threads: int,
) -> np.ndarray:
    """Return the matrix from fixed to moving points, improved at one resolution."""
    import SimpleITK as sitk

    transform = to_lps(matrix, centre, rigid=True)
    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(threads)
    method.SetNumberOfThreads(threads)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(to_itk(mask[0] > 0.5, mask[1].affine, np.uint8))
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(**_STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(to_itk(fixed[0], fixed[1].affine), to_itk(moving[0], moving[1].affine))
    return to_ras(transform)


def mean_rigid(transforms: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of rigid transforms: the one from which the logarithms of the ways to all others add up to 0.

    It depends neither on the order nor on where coordinates begin, and the mean of inverses is the inverse of the
    mean (Pennec and Arsigny 2013, "Exponential barycenters of the canonical Cartan connection").

    Parameters
    ----------
    transforms : sequence of float (4, 4)
        Less than half a turn apart.

    Examples
    --------
    >>> forth = nib.affines.from_matvec(np.eye(3), [2.0, 0, 0])
    >>> mean_rigid([np.eye(4), forth])[:3, 3].tolist()
    [1.0, 0.0, 0.0]
    """
    mean = np.array(transforms[0], float)
    for _ in range(_MOST_ROUNDS):
        step = np.mean([logm(np.linalg.inv(mean) @ transform).real for transform in transforms], axis=0)
        mean = mean @ expm(step)
        if np.abs(step).max() < _CONVERGED:
            break
    return mean


def to_midspace(transforms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return transforms to the space in the middle, from transforms to any one common space.

    Examples
    --------
    >>> there = nib.affines.from_matvec(np.eye(3), [2.0, 0, 0])
    >>> [matrix[0, 3].item() for matrix in to_midspace([np.eye(4), there])]
    [-1.0, 1.0]
    """
    back = np.linalg.inv(mean_rigid(transforms))
    return [back @ transform for transform in transforms]


def motion(matrix: np.ndarray) -> tuple[float, float]:
    """Return angle in degrees and length of the shift of the origin in mm of a rigid transform."""
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), float(np.linalg.norm(matrix[:3, 3]))
