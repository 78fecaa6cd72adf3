"""How a visit's brain differs in shape from the template of all visits, and how much larger that makes structures.

A network that is asked twice where a border lies answers from what hippocampi look like as well as from the image, and
so sees about two thirds of a small change of one (docs/longitudinal.md). A smooth deformation between images does not
know what hippocampi look like. It is found between the template, which favours no visit, and each visit; the Jacobian
determinant says how much larger each place of the template is in the visit (Holland and Dale 2011, Med Image Anal
15:489; Ashburner and Ridgway 2013, Front Neurosci 6:197).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.grid import Box

if TYPE_CHECKING:
    import SimpleITK as sitk

# Voxels of 1 mm, coarse to fine: how much coarser, and rounds.
_LEVELS = ((2, 20), (1, 30))
_SMOOTH_UPDATE = 2.0  # voxels, standard deviation
_SMOOTH_IMAGE = 1.0  # voxels
_LONGEST_STEP = 0.5  # voxels
_WORK_UNITS = 8  # fixed, as in `image.intensity`
_BRIGHTEST = 140.0  # white matter is at 110: vessels and fat must not pull
_FLAT = 8.0  # voxels: what differs more smoothly is a bias field
_STEEP = 8.0  # a voxel; a border between gray and white matter has more
_FAINT = 0.1  # mean brightness that tells nothing
_MARGIN = 8


def displacement(
    template: np.ndarray, visit: np.ndarray, brain: np.ndarray, threads: int = 1
) -> tuple[np.ndarray, Box]:
    """Find the smooth deformation from the template to a visit (demons with symmetric forces, SimpleITK).

    Vercauteren et al. 2009, NeuroImage 45:S61; the updates are smoothed and not the deformation, which would make it
    smaller. Equal images give exactly none.

    Parameters
    ----------
    template, visit : float32 (X, Y, Z)
        White matter at 110, on one grid of 1 mm.
    brain : bool (X, Y, Z)
    threads : int
        The result does not depend on it.

    Returns
    -------
    field : float32 (x, y, z, 3)
        Where the visit has what the template has at a voxel: voxels to add.
    box : Box
        Of the field: the brain and a margin.
    """
    box = Box.around(brain, margin=_MARGIN)
    fixed = np.minimum(template[box], _BRIGHTEST)
    moving = np.minimum(visit[box] * _flattening(template[box], visit[box], brain[box]), _BRIGHTEST)
    field = None
    for factor, rounds in _LEVELS:
        field = _improved(field, _coarser(fixed, factor), _coarser(moving, factor), rounds, threads)
    return _to_array(field), box


def expansion(field: np.ndarray) -> np.ndarray:
    """Return how many times larger each place is in the visit: the Jacobian determinant, float32 (x, y, z).

    Examples
    --------
    >>> wider = np.stack(np.meshgrid(*[0.1 * np.arange(4)] * 3, indexing="ij"), axis=-1)
    >>> bool(np.allclose(expansion(wider), 1.1**3))
    True
    """
    (a, b, c), (d, e, f), (g, h, i) = (np.gradient(field[..., k].astype(np.float32)) for k in range(3))
    return (1 + a) * ((1 + e) * (1 + i) - f * h) - b * (d * (1 + i) - f * g) + c * (d * h - (1 + e) * g)


def relative_volumes(labels: np.ndarray, larger: np.ndarray) -> dict[int, float]:
    """Return how many times larger each structure of the template is in the visit.

    Parameters
    ----------
    labels : int (x, y, z)
        Of the template.
    larger : float32 (x, y, z)
        As `expansion` returns it.
    """
    counts = np.bincount(labels.ravel())
    sums = np.bincount(labels.ravel(), larger.ravel())
    return {int(label): float(sums[label] / counts[label]) for label in np.flatnonzero(counts) if label}


def _flattening(template: np.ndarray, visit: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the factor that gives a visit the template's local brightness: what is left of its bias field.

    As Lewis and Fox 2004, NeuroImage 23:75, but from voxels away from borders alone: where a border moved both differ
    in brightness, which is what is to be found.
    """
    steep = ndimage.gaussian_gradient_magnitude(template, 1.0)
    weight = inside * np.exp(-((steep / _STEEP) ** 2)).astype(np.float32)
    here, there = (ndimage.gaussian_filter(data * weight, _FLAT, truncate=3) for data in (template, visit))
    return (here + _FAINT) / (there + _FAINT)


def _coarser(data: np.ndarray, factor: int) -> sitk.Image:
    """Return every n-th voxel of a smoothed image; lengths are in voxels of the finest."""
    import SimpleITK as sitk

    smooth = ndimage.gaussian_filter(data, factor * _SMOOTH_IMAGE)[(slice(None, None, factor),) * 3]
    image = sitk.GetImageFromArray(np.ascontiguousarray(smooth))
    image.SetSpacing([float(factor)] * 3)
    return image


def _improved(field: sitk.Image | None, fixed: sitk.Image, moving: sitk.Image, rounds: int, threads: int) -> sitk.Image:
    """Return the deformation after some more rounds at one resolution."""
    import SimpleITK as sitk

    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfThreads(threads)
    method.SetNumberOfWorkUnits(_WORK_UNITS)
    method.SetNumberOfIterations(rounds)
    method.SetMaximumRMSError(0)  # all rounds
    method.SetSmoothUpdateField(True)
    method.SetUpdateFieldStandardDeviations(_SMOOTH_UPDATE)
    method.SetSmoothDisplacementField(False)
    method.SetMaximumUpdateStepLength(_LONGEST_STEP)
    start = () if field is None else (sitk.Resample(field, fixed),)
    return method.Execute(fixed, moving, *start)


def _to_array(field: sitk.Image) -> np.ndarray:
    """Return a deformation with axes and components in the order of our arrays, which ITK has the other way round."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(field)[..., ::-1].astype(np.float32)
