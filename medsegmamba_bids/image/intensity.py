"""Intensities: robust rescaling, negative values, bias field, white-matter normalisation."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
from scipy import ndimage

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box

logger = logging.getLogger(__name__)

WHITE_MATTER_PEAK = 110.0  # FreeSurfer's convention for normalised T1-weighted images
BRIGHTEST = 255.0
_BINS = 1000
_FRACTION_HIGH = 0.999
_COARSE_BIN = 10  # a limit in the first bins is too uncertain to be used
_NEGLIGIBLE = 0.01  # of the intensities' sum
_MASKED = 0.3  # of the voxels being exactly 0 make a background
_PEAK_BINS, _PEAK_SMOOTHING = 256, 4.0
_MAIN_PEAK = 0.3  # of the highest peak's height
_ENOUGH_WHITE_MATTER = 1000  # voxels
_WORK_UNITS = 8  # fixed, since sums over the parts of an image depend on their number


def robust_scale(data: np.ndarray) -> tuple[float, float]:
    """Return offset and factor that bring an image to 0..255, leaving out its brightest voxels.

    As FreeSurfer's ``mri_convert --conform`` and FastSurfer do: a histogram of 1000 bins over the whole range;
    from its top, bins are passed until they hold 0.1 % of the non-zero voxels; the lower edge of the bin below
    becomes 255. Where a few extreme voxels would leave nearly all others in the first ten bins, that voxel's
    own value is taken instead (FreeSurfer does not rescale then).

    Parameters
    ----------
    data : (X, Y, Z)
        Finite numbers.

    Returns
    -------
    offset, factor : float
        The rescaled image is ``clip((data - offset) * factor, 0, 255)``.

    Examples
    --------
    >>> offset, factor = robust_scale(np.arange(100_001))
    >>> offset, round(255 / factor)  # the topmost bin holds 101 voxels, more than 0.1 %
    (0.0, 99800)
    """
    low, high = float(data.min()), float(data.max())
    if low == high:
        return low, 1.0
    counts, _ = np.histogram(data, _BINS, (low, high))
    left_out = int((1 - _FRACTION_HIGH) * np.count_nonzero(data))
    passed = int(np.searchsorted(np.cumsum(counts[::-1]), left_out)) if left_out else -1
    edge = _BINS - 2 - passed  # of the bin below the last one passed
    limit = low + edge * (high - low) / _BINS
    if edge < _COARSE_BIN:
        limit = float(np.partition(data, -1 - left_out, axis=None)[-1 - left_out])
    return low, BRIGHTEST / (limit - low) if limit > low else 1.0


def rescale_uint8(data: np.ndarray, offset: float, factor: float) -> np.ndarray:
    """Return ``(data - offset) * factor`` cut off at 0 and 255 and rounded, uint8.

    Examples
    --------
    >>> rescale_uint8(np.array([90.0, 100, 101, 1000]), 100, 2.4).tolist()
    [0, 0, 2, 255]
    """
    scaled = (data.astype(np.float32) - np.float32(offset)) * np.float32(factor)
    return np.rint(np.clip(scaled, 0, BRIGHTEST, out=scaled), out=scaled).astype(np.uint8)


def without_negative(data: np.ndarray) -> tuple[np.ndarray, str]:
    """Remove negative values, which magnitude images cannot have.

    Where they make up less than 1 % of the sum of absolute intensities (ringing of an interpolation, a few wrong
    voxels), they become 0. Else the image was standardised or is not a magnitude: all intensities are shifted
    so that the lowest is 0, except for a background of exact zeros (30 % of the voxels or more), which stays 0.

    Returns
    -------
    data : (X, Y, Z)
        The array itself where nothing is negative; integers that were shifted are int32.
    note : str
        What was done, with the number of voxels; empty where nothing is negative.

    Examples
    --------
    >>> without_negative(np.array([-1, 0, 500, 500], np.int16))
    (array([  0,   0, 500, 500], dtype=int16), '1 voxels are negative; they are read as 0')
    """
    low = data.min()
    if low >= 0:
        return data, ""
    negative = data < 0
    count = int(np.count_nonzero(negative))
    below = -float(data.sum(where=negative, dtype=np.float64))
    if below < _NEGLIGIBLE * (float(data.sum(dtype=np.float64)) + 2 * below):
        return np.maximum(data, data.dtype.type(0)), f"{count} voxels are negative; they are read as 0"
    background = data == 0
    wide = data.dtype.kind == "f" or int(data.max()) - int(low) > np.iinfo(np.int32).max
    shifted = np.subtract(data, low, dtype=np.float32 if wide else np.int32)
    note = f"{count} voxels are negative; all intensities are shifted by {-float(low):g}"
    if background.mean() >= _MASKED:
        shifted[background] = 0
        note += ", the background of zeros excepted"
    return shifted, note


def correct_bias_field(data: np.ndarray, mask: np.ndarray, threads: int = 1, shrink: int = 4) -> np.ndarray:
    """Correct the bias field with N4 (Tustison et al. 2010, IEEE Trans Med Imaging 29:1310; SimpleITK).

    Four levels of 50, 50, 30 and 20 iterations at most, each until the field changes by less than 0.001. The
    field is estimated within the mask, and applies to the whole image. There is no random choice in it.

    Parameters
    ----------
    data : (X, Y, Z)
        Intensities, 0 or more.
    mask : bool (X, Y, Z)
        The brain.
    threads : int
        The result does not depend on it.
    shrink : int
        The field is estimated on every n-th voxel, and interpolated between them.

    Returns
    -------
    float32 (X, Y, Z)
        Intensities divided by the field, whose mean logarithm over the mask is 0: the brain's general
        brightness stays.

    Raises
    ------
    ImageError
        The mask is empty.
    ValueError
        It is of another shape.
    """
    import SimpleITK as sitk

    if mask.shape != data.shape:
        raise ValueError(f"a mask of shape {mask.shape} for an image of shape {data.shape}")
    inside = mask & (data > 0)  # N4 works on logarithms
    small = tuple(slice(shrink // 2, None, shrink) for _ in range(3))
    if not inside[small].any():
        raise ImageError("the mask is empty: there is no brain to estimate a bias field in")
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfThreads(threads)
    method.SetNumberOfWorkUnits(_WORK_UNITS)
    method.SetMaximumNumberOfIterations([50, 50, 30, 20])
    method.SetConvergenceThreshold(0.001)
    coarse = sitk.GetImageFromArray(data[small].astype(np.float32))
    method.Execute(coarse, sitk.GetImageFromArray(inside[small].astype(np.uint8)))
    field = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(coarse)).astype(np.float32)
    field = np.asarray(_stretched(field, data.shape, shrink // 2, shrink), order="F" if data.flags.fnc else "C")
    box = Box.around(inside)
    # Turned in the box alone, and not while they are looked through: the sum depends on the order of its terms.
    field -= np.ascontiguousarray(field[box])[np.ascontiguousarray(inside[box])].mean()
    return np.divide(data, np.exp(field, out=field), out=field, dtype=np.float32, casting="same_kind")


def _stretched(coarse: np.ndarray, shape: tuple[int, ...], first: int, step: int) -> np.ndarray:
    """Interpolate by cubic splines, axis by axis, between voxels ``first``, ``first + step``, ... of a finer grid.

    A bias field is smooth: evaluating its own B-splines at every voxel took as long as finding them. The first axis is
    next in memory, as in what nibabel reads.
    """
    from scipy.interpolate import CubicSpline  # takes a while

    for axis, side in enumerate(shape):
        known = coarse.shape[axis]
        at = np.clip((np.arange(side) - first) / step, 0, known - 1)
        weights = CubicSpline(np.arange(known), np.eye(known))(at) if known > 1 else np.ones((side, 1))
        coarse = np.tensordot(weights.astype(coarse.dtype), coarse, (1, axis))  # the new axis comes first
    return coarse.T


def normalize_white_matter(data: np.ndarray, white_matter: np.ndarray | float) -> np.ndarray:
    """Scale an image so that its white matter is at 110, as in FreeSurfer's ``T1.mgz``.

    One factor for the whole image: does not correct a bias field.

    Parameters
    ----------
    data : (X, Y, Z)
    white_matter : bool (X, Y, Z) or float
        A mask, whose median is taken, or the intensity itself, as :func:`white_matter_peak` finds it.

    Returns
    -------
    float32 (X, Y, Z), cut off at 0 and 255

    Raises
    ------
    ImageError
        The mask is empty, or white matter is not above 0.

    Examples
    --------
    >>> normalize_white_matter(np.array([0, 25, 50, 500]), 50.0).tolist()
    [0.0, 55.0, 110.0, 255.0]
    """
    if np.ndim(white_matter):
        inside = data.T[white_matter.T]  # in memory's order if nibabel read them; the median is the same in any
        peak = float(np.median(inside)) if inside.size else 0.0
    else:
        peak = float(white_matter)
    if not peak > 0:
        raise ImageError("no white matter was found to normalise the intensities with")
    scaled = data * np.float32(WHITE_MATTER_PEAK / peak)
    return np.clip(scaled, 0, BRIGHTEST, out=scaled).astype(np.float32, copy=False)


def white_matter_peak(data: np.ndarray, brain: np.ndarray) -> float:
    """Return the intensity of white matter: the brightest of the histogram's main peaks within the brain.

    For T1-weighted images, where white matter is the brightest tissue, after bias correction.

    Parameters
    ----------
    data : (X, Y, Z)
    brain : bool (X, Y, Z)

    Raises
    ------
    ImageError
        The mask is empty, or there is nothing above 0 in it.
    """
    inside = data[brain]
    inside = inside[inside > 0]
    if not inside.size:
        raise ImageError("the brain is empty: no white matter was found")
    high = float(np.quantile(inside, _FRACTION_HIGH))
    counts, edges = np.histogram(inside, _PEAK_BINS, (0, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), _PEAK_SMOOTHING, mode="constant")
    rising = np.diff(smooth, prepend=0, append=0)
    peaks = np.flatnonzero((rising[:-1] > 0) & (rising[1:] <= 0))
    main = peaks[smooth[peaks] >= _MAIN_PEAK * smooth.max()][-1]
    return float((edges[main] + edges[main + 1]) / 2)


def normalize(
    data: np.ndarray, brain: np.ndarray, white_matter: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Correct the bias field and bring white matter to 110.

    What cannot be done is left out, with a warning: the bias field where N4 fails, everything where there is no brain.

    Parameters
    ----------
    data : (X, Y, Z)
        Intensities, 0 or more.
    brain : bool (X, Y, Z)
    white_matter : bool (X, Y, Z), optional
        Where white matter is known to be; without it, or with less than 1000 voxels, its peak is looked for.
    threads : int
        The result does not depend on it.

    Returns
    -------
    float32 (X, Y, Z), cut off at 0 and 255
        The image itself where there is no brain to go by.
    """
    if not (brain & (data > 0)).any():
        logger.warning("no brain was found: intensities are not normalised")
        return data
    try:
        data = correct_bias_field(data, brain, threads)
    except (ImageError, RuntimeError) as error:  # ITK's errors are RuntimeErrors
        reason = " ".join(str(error).split())[-200:]
        logger.warning("the bias field could not be estimated (%s); intensities are scaled only", reason)
    if white_matter is not None and np.count_nonzero(white_matter) >= _ENOUGH_WHITE_MATTER:
        with contextlib.suppress(ImageError):
            return normalize_white_matter(data, white_matter)
    with contextlib.suppress(ImageError):
        return normalize_white_matter(data, white_matter_peak(data, brain))
    logger.warning("no white matter was found: intensities are not normalised")
    return data
