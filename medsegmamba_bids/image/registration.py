"""A brain to a template: affine, then diffeomorphic demons, by SimpleITK.

Demons: Vercauteren et al. 2009, NeuroImage 45:S61.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.itk import to_itk, to_lps

_SEED = 20240908
_BINS = 32
_SAMPLED = 0.5  # of the template's brain, at a quarter of its resolution
_SHRINK, _ITERATIONS = (4, 2), (80, 40)  # of the demons; at 1 mm they take three times as long for 0.01 Dice
_FIELD_SIGMA = 1.5  # voxels
_LEVELS, _MATCHES = 128, 12  # of the histograms that are matched


def register_affine_brain(
    moving: np.ndarray, moving_grid: Grid, fixed: np.ndarray, fixed_grid: Grid, threads: int = 1
) -> Any:
    """Register a brain to a template's with 12 parameters; both are 0 outside the brain.

    Parameters
    ----------
    moving, fixed : float (X, Y, Z)
    moving_grid, fixed_grid : Grid
    threads : int

    Returns
    -------
    SimpleITK transform
        From points of the template to points of the brain, LPS+.

    Raises
    ------
    RuntimeError
        ITK could not register.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    images = to_itk(fixed, fixed_grid.affine), to_itk(moving, moving_grid.affine)
    start = _by_extent(moving, moving_grid, fixed, fixed_grid)
    return _affine(*images, to_lps(np.linalg.inv(start), centre=fixed_grid.centre))


def register_field(
    moving: np.ndarray, moving_grid: Grid, fixed: np.ndarray, fixed_grid: Grid, affine: Any, threads: int = 1
) -> Any:
    """Refine an affine registration of a brain by a field; parameters, result and errors as those of
    `register_affine_brain`.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    field = _demons(to_itk(fixed, fixed_grid.affine), to_itk(moving, moving_grid.affine), affine)
    return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])


def labels_through(labels: np.ndarray, grid: Grid, to_grid: Grid, transform: Any) -> np.ndarray:
    """Return labels on the grid of a template, the nearest voxel's.

    Parameters
    ----------
    labels : uint16 (X, Y, Z)
    grid, to_grid : Grid
    transform : SimpleITK transform
        From points of the template to points of the labels, LPS+.
    """
    import SimpleITK as sitk

    reference = to_itk(np.zeros(to_grid.shape, np.uint8), to_grid.affine, np.uint8)
    moved = sitk.Resample(to_itk(labels, grid.affine, np.uint16), reference, transform, sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(moved).T


def _by_extent(moving: np.ndarray, moving_grid: Grid, fixed: np.ndarray, fixed_grid: Grid) -> np.ndarray:
    """Return the affine that brings middle and spread of a brain to the template's along each axis."""
    centre, spread = _middle(moving, moving_grid)
    to_centre, to_spread = _middle(fixed, fixed_grid)
    scale = np.diag(to_spread / spread)
    return nib.affines.from_matvec(scale, to_centre - scale @ centre)


def _middle(data: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    points = grid.to_world(2 * np.argwhere(data[::2, ::2, ::2] > 0))
    return points.mean(0), points.std(0)


def _affine(fixed: Any, moving: Any, start: Any) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(sitk.Cast(fixed > 0, sitk.sitkUInt8))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.02, 60, 0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4])
    method.SetSmoothingSigmasPerLevel([2])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _demons(fixed: Any, moving: Any, affine: Any) -> Any:
    """Return the field that, before the affine, brings the template's points to the brain's."""
    import SimpleITK as sitk

    warped = sitk.Resample(moving, fixed, affine, sitk.sitkLinear)
    warped = sitk.HistogramMatching(warped, fixed, _LEVELS, _MATCHES, True)
    field = None
    for shrink, iterations in zip(_SHRINK, _ITERATIONS, strict=True):
        pair = [
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, shrink / 2), [shrink] * 3) for image in (fixed, warped)
        ]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(_FIELD_SIGMA)
        demons.SetSmoothDisplacementField(True)
        field = demons.Execute(*pair) if field is None else demons.Execute(*pair, _on(field, pair[0]))
    return _on(field, fixed)


def _on(field: Any, image: Any) -> Any:
    import SimpleITK as sitk

    return sitk.Resample(field, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
