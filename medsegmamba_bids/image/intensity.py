"""Intensities: robust rescaling, bias field, white-matter normalisation."""

from __future__ import annotations

import numpy as np

WHITE_MATTER_PEAK = 110.0  # FreeSurfer's convention for normalised T1-weighted images
_BINS = 1000
_FRACTION_HIGH = 0.999


def robust_scale(data: np.ndarray) -> tuple[float, float]:
    """Offset and factor that bring an image to 0..255, ignoring the brightest 0.1 % of its voxels above 0.

    As FreeSurfer's ``mri_convert --conform`` does: a histogram of 1000 bins over the whole range.

    Parameters
    ----------
    data : (X, Y, Z)

    Returns
    -------
    offset, factor : float
        The rescaled image is ``clip((data - offset) * factor, 0, 255)``.
    """
    low, high = float(data.min()), float(data.max())
    counts, edges = np.histogram(data, _BINS, (low, high))
    foreground = int(np.count_nonzero(np.abs(data) >= 1e-15))
    beyond = data.size - int((1 - _FRACTION_HIGH) * foreground)
    top = min(int(np.searchsorted(np.cumsum(counts), beyond)) + 1, _BINS - 1)
    limit = low + top * (high - low) / _BINS
    return low, 255.0 / (limit - low) if limit > low else 1.0


def rescale_uint8(data: np.ndarray, offset: float, factor: float) -> np.ndarray:
    """``clip((data - offset) * factor)`` rounded to uint8."""
    scaled = (data.astype(np.float32) - np.float32(offset)) * np.float32(factor)
    return np.rint(np.clip(scaled, 0, 255, out=scaled)).astype(np.uint8)


def correct_bias_field(data: np.ndarray, mask: np.ndarray, threads: int = 1, shrink: int = 4) -> np.ndarray:
    """N4 bias-field correction (Tustison et al. 2010, through SimpleITK).

    Parameters
    ----------
    data : (X, Y, Z), intensities
    mask : bool (X, Y, Z), the brain
    threads : int
        The result does not depend on it.
    shrink : int
        The field is estimated on a grid this many times coarser.

    Returns
    -------
    float32 (X, Y, Z)
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(data.astype(np.float32))
    inside = sitk.GetImageFromArray(mask.astype(np.uint8))
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfThreads(threads)
    method.SetMaximumNumberOfIterations([50, 50, 30, 20])
    factors = [shrink] * 3
    method.Execute(sitk.Shrink(image, factors), sitk.Shrink(inside, factors))
    field = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(image))
    return (data / np.exp(field)).astype(np.float32)


def normalize_white_matter(data: np.ndarray, white_matter: np.ndarray) -> np.ndarray:
    """Scales an image so that the median of its white matter is 110, float32, clipped to 0..255.

    Raises
    ------
    ValueError
        The white-matter mask is empty or dark.
    """
    inside = data[white_matter]
    peak = float(np.median(inside)) if inside.size else 0.0
    if peak <= 0:
        raise ValueError("no white matter was found to normalise the intensities with")
    return np.clip(data * (WHITE_MATTER_PEAK / peak), 0, 255).astype(np.float32)
