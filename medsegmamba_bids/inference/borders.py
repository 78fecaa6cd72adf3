"""Where the hippocampal subfields end: one network's outer border for another network's parts.

Shape letters: X, Y, Z conformed grid; x, y, z a box of the network's grid; C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from medsegmamba_bids.anatomy import HIPPOCAMPI, LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS, SUBFIELDS_FROM
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.inference.merge import View

_REACH_MM = 12  # beyond the hippocampi; farther away nothing is a subfield
_LEAST = 1e-6


def follow_hippocampi(views: Sequence[View], labels: Sequence[int], aseg_labels: np.ndarray, slope: float) -> None:
    """Multiply the subfields of each side by how likely its hippocampus is there, in place.

    Subfields of FreeSurfer can hardly be had to learn from, whole hippocampi can: the network of the whole brain knows
    better where a hippocampus ends, that of the subfields how it is divided. The chance that a place is
    in the hippocampus is a logistic function of its distance from the border of the label.

    Parameters
    ----------
    views : sequence of View
        Their probabilities (C, x, y, z) are changed; they add up to 1 again.
    labels : sequence of int (C,)
        FreeSurfer label of each class; the first is the background.
    aseg_labels : int (X, Y, Z)
        FreeSurfer labels on the conformed grid, 17 and 53 among them.
    slope : float
        Change of the chance's log odds by distance, 1/mm.
    """
    grid = views[0].grids.conformed
    chances = {label: _chance(aseg_labels == label, grid, slope) for label in HIPPOCAMPI}
    for view in views:
        box, probabilities = view.prediction.box, view.prediction.probabilities
        inside = {label: torch.from_numpy(view.grids.to_network(chance)[box]) for label, chance in chances.items()}
        outside = 1 - sum(inside.values())
        factors = [outside if index == 0 else inside[_side(label)] for index, label in enumerate(labels)]
        _multiply(probabilities, factors)


def _side(label: int) -> int:
    """Return the label of the hippocampus that a subfield is part of."""
    return RIGHT_HIPPOCAMPUS if label >= SUBFIELDS_FROM[RIGHT_HIPPOCAMPUS] else LEFT_HIPPOCAMPUS


def _chance(mask: np.ndarray, grid: Grid, slope: float) -> np.ndarray:
    """Return how likely each place is in a structure of this mask, float32 (X, Y, Z); 0 where there is none."""
    near = Box.around(mask, margin=_REACH_MM)
    if near is None:
        return np.zeros(mask.shape, np.float32)
    within = ndimage.distance_transform_edt(mask[near])
    beyond = ndimage.distance_transform_edt(~mask[near])
    depth = np.where(mask[near], within - 0.5, 0.5 - beyond)  # voxels of 1 mm; a border lies between voxels
    return grid.paste((1 / (1 + np.exp(-slope * depth))).astype(np.float32), near)


def _multiply(probabilities: torch.Tensor, factors: Sequence[torch.Tensor]) -> None:
    """Multiply each class and have all add up to 1, in place."""
    factors = [factor.clamp_min(_LEAST).to(probabilities.device) for factor in factors]
    total = sum(values.float() * factor for values, factor in zip(probabilities, factors, strict=True))
    for values, factor in zip(probabilities, factors, strict=True):
        values.copy_(values.float() * factor / total)
