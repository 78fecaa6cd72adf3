"""What a network takes for brain in a neck, where an image shows one.

Muscles between fat look like the cerebellum between its folds, and the spinal cord goes on where FreeSurfer's brain
stem ends. Both hang together with the brain, so that they are no islands of it.

Shape letters: C classes; x, y, z a box of a network's grid, whose second axis points down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from medsegmamba_bids.anatomy import BRAIN_STEM, CEREBELLUM, OUTSIDE_BRAIN, THALAMI
from medsegmamba_bids.inference.merge import give_to_background

# No brain lies further below the middle of the thalami, mm: in 20 label maps of adult heads and 28 segmentations by
# FreeSurfer it ends after 60 to 81.
_DEEPEST_MM = 90.0
# A second piece of cerebellum whose middle lies further below is muscle; the middle of the whole is near 45.
_DEEPEST_PIECE_MM = 75.0
_NEAR_VOXELS = 2
_LIKELY = 0.5


def leave_out_neck(probabilities: torch.Tensor, labels: Sequence[int], voxel_mm: float) -> float:
    """Give to the background what classes of the brain have in the neck, in place.

    Nothing is done where no thalamus is found, or the labels have none.

    Parameters
    ----------
    probabilities : (C, x, y, z)
    labels : sequence of int (C,)
        FreeSurfer label of each class; the first is the background.
    voxel_mm : float
        Edge of a voxel.

    Returns
    -------
    float
        Volume of the voxels left out in which a class was likelier than all others, mm3; the cord does not count.
    """
    middle = _middle_of_thalami(probabilities, labels)
    if middle is None:
        return 0.0
    brain = [index for index, label in enumerate(labels) if index and label not in OUTSIDE_BRAIN]
    cerebellum = _classes(labels, CEREBELLUM)
    below = probabilities[:, :, math.floor(middle + _DEEPEST_MM / voxel_mm) + 1 :]
    everywhere = torch.ones((), dtype=torch.bool, device=probabilities.device)
    left_out = {index: _likely_voxels(give_to_background(below, index, everywhere)) for index in brain}
    pieces = _deep_pieces(_likely(probabilities, cerebellum), middle + _DEEPEST_PIECE_MM / voxel_mm)
    if pieces is not None:
        where = torch.from_numpy(pieces).to(probabilities.device)
        for index in cerebellum:
            left_out[index] += _likely_voxels(give_to_background(probabilities, index, where))
    return voxel_mm**3 * sum(left_out[index] for index in brain if labels[index] != BRAIN_STEM)


def _classes(labels: Sequence[int], wanted: Sequence[int]) -> list[int]:
    return [index for index, label in enumerate(labels) if label in wanted]


def _likely(probabilities: torch.Tensor, classes: list[int]) -> np.ndarray:
    """Return where some classes together are likelier than all others: bool (x, y, z)."""
    total = torch.zeros(probabilities.shape[1:], device=probabilities.device)
    for index in classes:
        total += probabilities[index]
    return (total > _LIKELY).cpu().numpy()


def _likely_voxels(probability: torch.Tensor) -> int:
    return int((probability > _LIKELY).sum())


def _middle_of_thalami(probabilities: torch.Tensor, labels: Sequence[int]) -> float | None:
    """Return the median index of the thalami's voxels along the second axis."""
    planes = _likely(probabilities, _classes(labels, THALAMI)).sum((0, 2))
    return float(np.median(np.repeat(np.arange(len(planes)), planes))) if planes.any() else None


def _deep_pieces(mask: np.ndarray, deepest: float) -> np.ndarray | None:
    """Return the pieces of a mask, but for the largest, whose middle lies below an index, and what is near them."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return None
    deep = np.array([middle[1] > deepest for middle in ndimage.center_of_mass(mask, pieces, range(1, count + 1))])
    deep[np.bincount(pieces.ravel())[1:].argmax()] = False
    if not deep.any():
        return None
    return ndimage.binary_dilation(np.concatenate(([False], deep))[pieces], iterations=_NEAR_VOXELS)
