"""Between nibabel's world (RAS+, arrays x, y, z) and ITK's (LPS+, arrays z, y, x)."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_itk(data: np.ndarray, affine: np.ndarray, dtype: type = np.float32) -> Any:
    """Return a SimpleITK image of an array (X, Y, Z) whose affine is in mm, RAS+."""
    import SimpleITK as sitk

    zooms = nib.affines.voxel_sizes(affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, dtype))
    flipped = _FLIP @ affine
    image.SetSpacing(zooms.tolist())
    image.SetDirection((flipped[:3, :3] / zooms).ravel().tolist())
    image.SetOrigin(flipped[:3, 3].tolist())
    return image


def to_lps(matrix: np.ndarray, centre: np.ndarray, rigid: bool = False) -> Any:
    """Return a transform of ITK, affine or rigid, which turns around a point of the fixed image (mm, RAS+)."""
    import SimpleITK as sitk

    linear, shift = nib.affines.to_matvec(_FLIP @ matrix @ _FLIP)
    middle = _FLIP[:3, :3] @ centre
    transform = sitk.Euler3DTransform() if rigid else sitk.AffineTransform(3)
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(linear.ravel().tolist())
    transform.SetTranslation((linear @ middle + shift - middle).tolist())
    return transform


def to_ras(transform: Any) -> np.ndarray:
    """Return the 4 x 4 matrix in RAS+ of a linear transform of ITK, which maps fixed to moving points in LPS+."""
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    out = np.eye(4)
    out[:3, :3] = matrix
    out[:3, 3] = shift + centre - matrix @ centre
    return _FLIP @ out @ _FLIP
