"""Images of all visits on the grid in the middle: resampled once, normalised alike, and their median."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.intensity import BRIGHTEST, WHITE_MATTER_PEAK, normalize

_SLAB = 16  # planes at a time


def into_midspace(data: np.ndarray, grid: Grid, to_grid: Grid, view: np.ndarray) -> np.ndarray:
    """Return a visit's image on the grid in the middle: the only time that it is resampled, by cubic splines.

    Parameters
    ----------
    data : (X, Y, Z)
        0 or more, as it came.
    grid : Grid
        Of the data, its affine leading into the middle.
    to_grid : Grid
    view : bool (X, Y, Z)
        What all visits show; 0 elsewhere.

    Returns
    -------
    float32 (X, Y, Z), 0 or more
    """
    matrix = to_grid.to_voxels_of(grid)
    spline = ndimage.spline_filter(data, order=3, output=np.float32)
    moved = ndimage.affine_transform(
        *(spline, matrix[:3, :3], matrix[:3, 3]),
        output_shape=to_grid.shape,
        output=np.float32,
        order=3,
        mode="nearest",
        prefilter=False,
    )
    np.maximum(moved - np.float32(data.min()), 0, out=moved)
    moved[~view] = 0
    return moved


def normalized_alike(
    moved: np.ndarray, brain: np.ndarray, white: np.ndarray | None, level: float, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Correct the bias field within the visits' common mask and bring their common white matter to one level.

    Parameters
    ----------
    moved : float32 (X, Y, Z)
    brain : bool (X, Y, Z)
        The same mask for all visits.
    white : bool (X, Y, Z) or None
        White matter in most visits; its peak is looked for where there is none.
    level : float
        Of white matter in the second image; 0 for that of the first.
    threads : int

    Returns
    -------
    normalised : float32 (X, Y, Z)
        White matter at 110.
    conformed : uint8 (X, Y, Z)
        The same with white matter at ``level``, as networks see images.
    """
    normalised = normalize(moved, brain, white, threads)
    scaled = normalised * np.float32((level or WHITE_MATTER_PEAK) / WHITE_MATTER_PEAK)
    return normalised, np.rint(np.clip(scaled, 0, BRIGHTEST)).astype(np.uint8)


def median_image(paths: Sequence[str | Path]) -> nib.Nifti1Image:
    """Return the median of images on one grid, voxel by voxel; of an even number the mean of the two in the middle.

    A few planes at a time, so that memory does not grow with the number of images.

    Parameters
    ----------
    paths : sequence of path
        Uncompressed, so that planes are read and not whole images.

    Returns
    -------
    Nifti1Image, of the images' type (X, Y, Z)
    """
    images = [nib.load(path) for path in paths]
    first = images[0]
    out = np.empty(first.shape, first.get_data_dtype())
    for start in range(0, first.shape[2], _SLAB):
        slab = (slice(None), slice(None), slice(start, start + _SLAB))
        middle = np.median([np.asarray(image.dataobj[slab], np.float32) for image in images], axis=0)
        out[slab] = np.rint(middle) if out.dtype.kind in "iu" else middle
    return nib.Nifti1Image(out, first.affine)
