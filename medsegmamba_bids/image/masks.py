"""Brain masks that others made: which voxels are meant, and whether they can be a brain."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import Image, read_image, take_image, with_data

logger = logging.getLogger(__name__)

#: Of a brain with what a generous mask has around it; below, the brain of a fetus.
BRAIN_MM3 = (5e4, 2.5e6)
LEAST_WITHIN_HEAD = 0.6  # of a mask; the skull-stripped head of a generous mask has this much of it
_NEAR = 0.2  # of the level: what a resampling leaves or adds inside a mask
_MOSTLY = 0.75  # of a mask's voxels are inside, the rest are its border
_HALF = 0.5  # fewer voxels of one value than that have images and not masks
_FEW = 10  # whole values below are tissues or parts of the brain, and no rounded mask
_RARE = 0.05  # of a rounded mask's voxels have the low values that a resampling leaves at its border
_BETWEEN = 0.1  # of the level: less is the ripple of a resampling
_UNDERSHOOT = 0.3  # of the level: more than any spline's


def load_mask(path: str | os.PathLike) -> Image:
    """Read a brain mask, or a label or skull-stripped image that stands for one.

    Intensities are not rescaled. Where most voxels share one value, as in a mask that was resampled, those of half
    of it and more are brain; so are those of one half and more where values are not whole. Else all above 0 are.

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.mgz`` or ``.mgh``.

    Returns
    -------
    nibabel image, uint8 (X, Y, Z)
        1 in the brain.

    Raises
    ------
    ImageError
        The file cannot be read, has values that no mask has, or holds less than 0.05 or more than 2.5 litres.
    """
    return _mask_image(read_image(Path(path)), path)


def check_mask(image: Image, name: str = "the brain mask") -> Image:
    """Bring a brain mask in memory to what `load_mask` returns, or refuse it as that does."""
    return _mask_image(take_image(image, name), name)


def _mask_image(image: Image, path: str | os.PathLike) -> Image:
    data = np.asarray(image.dataobj)
    if data.dtype.kind == "f" and not np.isfinite(data.sum(dtype=np.float64)):
        odd = ~np.isfinite(data)
        logger.warning("%s: %d voxels are NaN or infinite; they are read as outside the brain", path, odd.sum())
        data = np.where(odd, np.float32(0), data)
    mask = _brain(data, path)
    volume = np.count_nonzero(mask) * Grid.of(image).voxel_mm3
    low, high = BRAIN_MM3
    if not low <= volume <= high:
        raise ImageError(
            f"{path}: this brain mask holds {volume / 1e6:.2f} litres, which no brain has "
            f"({low / 1e6:g} to {high / 1e6:g} are allowed); is it inverted, or of another kind?"
        )
    return with_data(image, mask.astype(np.uint8))


def _brain(data: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Return which voxels of a mask are meant, bool (X, Y, Z)."""
    highest, lowest = float(data.max()), float(data.min())
    if highest <= 0:
        raise ImageError(f"{path}: this brain mask is empty: none of its values is above 0")
    level = float(np.median(data[data > highest / 2]))
    if lowest < -_UNDERSHOOT * level:
        raise ImageError(
            f"{path}: has values down to {lowest:g}; "
            "a brain mask has none below 0 (distances and signed labels are no masks)"
        )
    whole = np.array_equal(data, np.rint(data))
    if whole and _are_labels(data, level):
        return data > 0
    inside = np.count_nonzero(np.abs(data - level) <= _NEAR * level) / np.count_nonzero(data > _BETWEEN * level)
    if inside >= _MOSTLY:
        return data >= level / 2
    if whole:
        return data > 0
    if highest <= 1 + _UNDERSHOOT and inside < _HALF:
        raise ImageError(f"{path}: has values all between 0 and 1, as intensities have; a brain mask is needed")
    return data >= 0.5


def _are_labels(data: np.ndarray, level: float) -> bool:
    """Return whether low whole values stand for parts of the brain, and not for a mask's border or noise around it."""
    if level < _FEW:
        return True
    low = np.count_nonzero((data > 0) & (data <= _BETWEEN * level))
    return data.min() >= 0 and low > _RARE * np.count_nonzero(data > _BETWEEN * level)


def check_within_head(mask: np.ndarray, head: np.ndarray, path: str | os.PathLike) -> None:
    """Refuse a mask that does not lie in the head.

    Parameters
    ----------
    mask, head : bool or uint8 (X, Y, Z)
        On one grid.
    path : path
        The mask's, for the message.

    Raises
    ------
    ImageError
        The mask is empty there, or less than 60 % of it is head.
    """
    voxels = np.count_nonzero(mask)
    if not voxels:
        raise ImageError(f"{path}: the mask is empty where the T1w is; is it in another space?")
    share = np.count_nonzero(mask & (head > 0)) / voxels
    if share < LEAST_WITHIN_HEAD:
        raise ImageError(
            f"{path}: only {100 * share:.0f} % of this brain mask lie in the head of the T1w; "
            "is it in another space, or inverted?"
        )
