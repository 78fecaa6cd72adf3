"""How far two segmentations overlap: class indices in, numbers of voxels and Dice out."""

from __future__ import annotations

import numpy as np


def overlap_counts(found: np.ndarray, reference: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return voxels of every class in both segmentations, in the first and in the second, int64 (C,) each.

    Examples
    --------
    >>> [n.tolist() for n in overlap_counts(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 3)]
    [[1, 1, 1], [1, 2, 1], [1, 1, 2]]
    """
    agreeing = found[found == reference]
    return tuple(np.bincount(indices.ravel(), minlength=classes) for indices in (agreeing, found, reference))


def dice_scores(found: np.ndarray, reference: np.ndarray, classes: int) -> np.ndarray:
    """Return the Dice of every class, float64 (C,); NaN where the reference lacks it.

    Examples
    --------
    >>> dice_scores(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 4).round(2).tolist()
    [1.0, 0.67, 0.67, nan]
    """
    both, here, there = overlap_counts(found, reference, classes)
    with np.errstate(invalid="ignore"):
        return np.where(there > 0, 2 * both / (here + there), np.nan)
