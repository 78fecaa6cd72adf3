"""Where FreeSurfer draws subfields: not in all of aseg's hippocampus, and by what the image shows.

FreeSurfer's subfields are the most likely ones given an atlas and the intensities of three tissues (Iglesias et al.
2015, NeuroImage 115:117): grey matter, white matter (fimbria, and the alveus, which is no subfield) and fluid (the
fissure). They leave out the alveus and what lies on it, and reach beyond aseg's hippocampus: fimbria, tail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medsegmamba_bids.anatomy import WHITE_MATTER

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of the atlas' labels: of aseg's hippocampus, but no subfield.
ALVEUS = 201
FIMBRIA, FISSURE = 212, 215
#: How far beyond aseg's hippocampus subfields may reach, voxels of 1 mm.
REACH = 2
#: Intensity of the fimbria and how much of the way from fluid to grey matter the fissure has, being thin.
_FIMBRIA_LEVEL, _FISSURE_LEVEL = 0.9, 0.35
#: How much intensities vary within a tissue, white matter being 1; the alveus shares its voxels with all others.
_GREY_SD, _OTHER_SD, _ALVEUS_SD = 0.08, 0.1, 0.2
_ALVEUS_BRIGHTER = 0.05
#: What a voxel shows counts less than once, as its neighbours show the same.
_COUNTS = 0.6
_FLUIDS = (4, 14, 15, 43)
_TYPICAL_FLUID = 0.2


def surroundings(mask: np.ndarray) -> np.ndarray:
    """Return where subfields of a hippocampus may lie, bool (X, Y, Z), from aseg's hippocampus."""
    return ndimage.binary_dilation(mask, iterations=REACH)


def fluid_level(image: np.ndarray, labels: np.ndarray) -> float:
    """Return the intensity of fluid, from the ventricles of a head (FreeSurfer's labels)."""
    ventricles = image[np.isin(labels, _FLUIDS)]
    return float(np.percentile(ventricles, 25)) if ventricles.size else _TYPICAL_FLUID


def white_level(image: np.ndarray, labels: np.ndarray) -> float:
    """Return the intensity of white matter in part of a head, where it may be darker than elsewhere."""
    white = image[np.isin(labels, WHITE_MATTER)]
    return float(np.median(white)) if white.size else 1.0


def evidence(image: np.ndarray, mask: np.ndarray, fluid: float, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return how likely an image's intensities are in each subfield.

    Parameters
    ----------
    image : (X, Y, Z)
        White matter is 1.
    mask : bool (X, Y, Z)
        aseg's hippocampus.
    fluid : float
        Intensity of fluid.
    labels : int (N,)
        Subfields, and ``ALVEUS``.

    Returns
    -------
    mapping of label to float (X, Y, Z), logarithms
    """
    inner = ndimage.binary_erosion(mask)
    grey = float(np.median(image[inner if inner.any() else mask]))
    levels: Mapping[int, tuple[float, float]] = {
        FIMBRIA: (_FIMBRIA_LEVEL, _OTHER_SD),
        FISSURE: (fluid + _FISSURE_LEVEL * (grey - fluid), _OTHER_SD),
        ALVEUS: (grey + _ALVEUS_BRIGHTER, _ALVEUS_SD),
    }
    return {int(label): _log_normal(image, *levels.get(int(label), (grey, _GREY_SD))) for label in labels}


def _log_normal(values: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    return _COUNTS * (-0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation))
