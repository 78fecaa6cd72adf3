"""Visits that inform each other: each visit's class probabilities, drawn a little towards what all visits say.

In log probabilities the fused visit lies between its own and the mean of all::

    log q_t = (1 - w) log p_t + w mean(log p_1, ..., log p_n, log p_template) + constant

which is the visit's posterior to the power 1 - w times the geometric mean of all, template included, to the power w.
At w = 0 visits do not know of each other, at w = 1 they agree. SAMSEG's longitudinal model (Cerri et al. 2020,
arXiv:2008.05117) ties visits by a latent atlas, FreeSurfer's (Reuter et al. 2012) by a start from the template.

What w costs: near a border log odds are about linear in the distance to it, so that a border which moved by d between
two visits moves by (1 - w) d after fusion. Noise of the border and true change shrink alike: w must be small, and most
of the precision has to come from what visits share before (grid, mask, crop, intensities).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.longitudinal.class_files import PosteriorFolder

#: How far a visit is drawn towards the others: nine tenths of a change are left; docs/longitudinal.md says why.
WEIGHT = 0.1
_FLOOR = 1e-5  # probabilities below count as this: one visit's 0 must not forbid a class to all


def fuse(own: PosteriorFolder, others: Sequence[PosteriorFolder], weight: float = WEIGHT) -> tuple[np.ndarray, Box]:
    """Draw a visit's class probabilities towards those of all visits.

    A class at a time, and a visit at a time: memory is that of one visit's classes, however many visits there are.

    Parameters
    ----------
    own : PosteriorFolder
        C classes.
    others : sequence of PosteriorFolder
        Of all visits, this one included, and of the template.
    weight : float
        0 to 1.

    Returns
    -------
    probabilities : float32 (C, X, Y, Z)
        In ``box``, adding up to 1.
    box : Box
        Of the grid that all share; everything else is background.
    """
    n_classes = len(own.boxes)
    box = Box.hull(folder.boxes[0] for folder in others)
    fused = np.zeros((n_classes, *box.shape), np.float32)
    total = np.zeros(box.shape, np.float32)
    for index in range(n_classes):
        boxes = [folder.boxes[index] for folder in others if min(folder.boxes[index].shape)]
        if not boxes:
            continue
        here = Box.hull(boxes)
        part = here.within(box)
        fused[(index, *part)] = _drawn(own, others, index, here, weight)
        total[part] += fused[(index, *part)]
    fused /= total
    return fused, box


def _drawn(own: PosteriorFolder, others: Sequence[PosteriorFolder], index: int, box: Box, weight: float) -> np.ndarray:
    """Return a class before all are made to add up to 1; 0 where it is as unlikely as can be."""
    logs = (1 - weight) * _log(own, index, box)
    for folder in others:
        logs += weight / len(others) * _log(folder, index, box)
    out = np.exp(logs)
    out[out < 2 * _FLOOR] = 0
    return out


def _log(folder: PosteriorFolder, index: int, box: Box) -> np.ndarray:
    return np.log(np.maximum(folder.within(index, box), _FLOOR))
