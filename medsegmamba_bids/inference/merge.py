"""From class probabilities in the network's grid to a segmentation at 1 mm, a class at a time.

No array of all classes exists at 1 mm: what follows from the posteriors (labels, confidence, entropy,
soft volumes) is accumulated while one class after the other is interpolated.

Shape letters: X, Y, Z conformed grid; x, y, z a box of the network's grid; C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medsegmamba_bids.anatomy import OUTSIDE_BRAIN, covers_brain
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.inference.foreground import fill_holes, largest_component
from medsegmamba_bids.inference.predict import Prediction
from medsegmamba_bids.inference.rescale import AlignedGrids

# A class is interpolated in the box where it has at least this probability; what lies beyond is the
# softmax's floor, which would add up to a volume although nothing is there.
_FLOOR = 1e-4
_NEAR_VOXELS = 2

#: Called for each class in order: index, box of the conformed grid, probabilities float32 in that box.
#: Outside the box the probability is 0, that of the background (index 0) is 1.
OnPosterior = Callable[[int, Box, np.ndarray], None]


@dataclass(frozen=True)
class Segmentation:
    """What a network says about a conformed image.

    Attributes
    ----------
    labels : uint16 (X, Y, Z)
        FreeSurfer labels; fluid outside the brain (257) may be among them.
    grid : Grid
        Of all arrays here.
    posterior : float32 (X, Y, Z)
        Probability of the label that each voxel got.
    entropy : float32 (X, Y, Z)
        Of the class probabilities, bits: 0 where the network is sure.
    voxels : dict of int to int
        Number of voxels of each label but the background; 0 where it was not found.
    soft_volumes : dict of int to float
        Sum of the posteriors of each label but the background, mm3.
    mean_posterior : dict of int to float
        Mean of ``posterior`` within each label but the background; NaN where it was not found.
    brain_mask : bool (X, Y, Z) or None
        All labels but the fluid outside, with cavities filled, if the classes cover the whole brain.
    device : str
        Where the network ran in the end.
    notes : tuple of str
        What the user should know, a sentence each.
    """

    labels: np.ndarray
    grid: Grid
    posterior: np.ndarray
    entropy: np.ndarray
    voxels: dict[int, int]
    soft_volumes: dict[int, float]
    mean_posterior: dict[int, float]
    brain_mask: np.ndarray | None
    device: str
    notes: tuple[str, ...] = ()


def background_only(grid: Grid, labels: Sequence[int], notes: Sequence[str]) -> Segmentation:
    """Return the segmentation in which nothing was found."""
    structures = [int(label) for label in labels[1:]]
    return Segmentation(
        labels=np.zeros(grid.shape, np.uint16),
        grid=grid,
        posterior=np.ones(grid.shape, np.float32),
        entropy=np.zeros(grid.shape, np.float32),
        voxels=dict.fromkeys(structures, 0),
        soft_volumes=dict.fromkeys(structures, 0.0),
        mean_posterior=dict.fromkeys(structures, math.nan),
        brain_mask=np.zeros(grid.shape, bool) if covers_brain(labels) else None,
        device="none",
        notes=tuple(notes),
    )


def merge_posteriors(
    prediction: Prediction,
    grids: AlignedGrids,
    labels: Sequence[int],
    groups: Sequence[Sequence[int]] = (),
    notes: Sequence[str] = (),
    on_posterior: OnPosterior | None = None,
) -> Segmentation:
    """Interpolate the probabilities of each class to the conformed grid and let the largest win.

    Parameters
    ----------
    prediction : Prediction
        Its probabilities are changed if ``groups`` are given: what lies apart goes to the background.
    grids : AlignedGrids
    labels : sequence of int (C,)
        FreeSurfer label of each class; the first is the background.
    groups : sequence of sequences of int
        Classes of which only the largest component is kept, all together; none keeps everything.
    notes, on_posterior
        See :class:`Segmentation` and ``OnPosterior``.
    """
    if not prediction.patches:
        return background_only(grids.conformed, labels, notes)
    for group in groups:
        drop_islands(prediction.probabilities, group)
    merger = _Merger(grids, prediction, len(labels))
    for index in range(len(labels)):
        box, posterior = merger.add(index)
        if on_posterior:
            on_posterior(index, box, posterior.cpu().numpy())
    merger.drop_islands(groups)
    return merger.segmentation(np.asarray(labels), notes)


def drop_islands(probabilities: torch.Tensor, group: Sequence[int]) -> None:
    """Give to the background what a group of classes has away from its largest component, in place.

    Removing islands from the probabilities, not only from the labels, keeps them out of the soft volumes.

    Parameters
    ----------
    probabilities : (C, x, y, z)
    group : sequence of int
        Classes that hang together; the background (0) is not among them.
    """
    winner = probabilities.argmax(0).cpu().numpy()
    component = largest_component(np.isin(winner, group))
    if not component.any():
        return
    near = ndimage.binary_dilation(component, iterations=_NEAR_VOXELS)
    far = torch.from_numpy(~near).to(probabilities.device)
    for index in group:
        probabilities[0].add_(probabilities[index] * far)
        probabilities[index].masked_fill_(far, 0)


class _Merger:
    """What is known at 1 mm after some of the classes."""

    def __init__(self, grids: AlignedGrids, prediction: Prediction, n_classes: int) -> None:
        self.grids, self.prediction = grids, prediction
        self.box = grids.to_conformed_box(prediction.box)
        shape, device = self.box.shape, prediction.probabilities.device
        self.best = torch.zeros(shape, device=device)
        self.entropy = torch.zeros(shape, device=device)
        self.winner = torch.zeros(shape, dtype=torch.int16, device=device)
        self.sums = np.zeros(n_classes)
        self.background: np.ndarray | None = None

    def add(self, index: int) -> tuple[Box, torch.Tensor]:
        """Interpolate a class and let it compete; return where it lies and its posterior there."""
        source = self._source(index)
        target = self.grids.to_conformed_box(source)
        values = self.prediction.probabilities[(index, *source.within(self.prediction.box))]
        posterior = self.grids.to_conformed(values, source, target)
        here = target.within(self.box)
        better = posterior > self.best[here]
        self.winner[here].masked_fill_(better, index)
        torch.maximum(self.best[here], posterior, out=self.best[here])
        self.entropy[here].add_(torch.special.entr(posterior), alpha=1 / math.log(2))
        self.sums[index] = float(posterior.sum(dtype=torch.float64))
        if index == 0:
            self.background = posterior.cpu().numpy()
        return target, posterior

    def _source(self, index: int) -> Box:
        """Return where in the network's grid a class is likely at all, one voxel wider; perhaps empty."""
        if index == 0:
            return self.prediction.box
        likely = (self.prediction.probabilities[index] > _FLOOR).cpu().numpy()
        box = Box.around(likely, margin=1) or Box.empty()
        return box.out_of(self.prediction.box)

    def drop_islands(self, groups: Sequence[Sequence[int]]) -> None:
        """Keep the largest component of each group; the rest becomes background."""
        winner = self.winner.cpu().numpy()
        for group in groups:
            mask = np.isin(winner, group)
            islands = mask & ~largest_component(mask)
            if islands.any():
                where = torch.from_numpy(islands).to(self.winner.device)
                self.winner[where] = 0
                self.best[where] = torch.from_numpy(self.background[islands]).to(self.best.device)

    def segmentation(self, labels: np.ndarray, notes: Sequence[str]) -> Segmentation:
        """Return everything on the whole conformed grid."""
        winner, best = self.winner.cpu().numpy(), self.best.cpu().numpy()
        counts = np.bincount(winner.ravel(), minlength=len(labels))
        with np.errstate(invalid="ignore"):
            means = np.bincount(winner.ravel(), best.ravel(), minlength=len(labels)) / counts
        grid = self.grids.conformed
        whole = grid.paste(labels.astype(np.uint16)[winner], self.box)
        return Segmentation(
            labels=whole,
            grid=grid,
            posterior=grid.paste(best, self.box, 1),
            entropy=grid.paste(self.entropy.cpu().numpy(), self.box),
            voxels=_by_label(labels, counts, int),
            soft_volumes=_by_label(labels, self.sums * grid.voxel_mm3, float),
            mean_posterior=_by_label(labels, means, float),
            brain_mask=fill_holes((whole > 0) & ~np.isin(whole, OUTSIDE_BRAIN))
            if covers_brain(labels.tolist())
            else None,
            device=str(self.prediction.device),
            notes=tuple(notes),
        )


def _by_label(labels: np.ndarray, values: np.ndarray, kind: type) -> dict[int, float]:
    """Return label -> value for all but the background."""
    return {int(label): kind(value) for label, value in zip(labels[1:], values[1:], strict=True)}
