"""From class probabilities in the network's grid to a segmentation at 1 mm, a class at a time.

No array of all classes exists at 1 mm: what follows from the posteriors (labels, confidence, entropy,
soft volumes) is accumulated while one class after the other is interpolated.

Shape letters: X, Y, Z conformed grid; x, y, z a box of the network's grid; C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medsegmamba_bids.anatomy import OUTSIDE_BRAIN, TOLD_BY_INTENSITY, covers_brain
from medsegmamba_bids.image.components import fill_holes, largest_component
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.labels import is_one_of
from medsegmamba_bids.inference.predict import Prediction
from medsegmamba_bids.inference.rescale import AlignedGrids

# A class is interpolated in the box where it has at least this probability; what lies beyond is the
# softmax's floor, which would add up to a volume although nothing is there.
_FLOOR = 1e-4
_NEAR_VOXELS = 2
_FADING = 6  # voxels at the faces of a view that sees a part


@dataclass(frozen=True)
class View:
    """What the network says of the image on one grid; of several the probabilities are averaged.

    Attributes
    ----------
    prediction : Prediction
    grids : AlignedGrids
        The conformed grid, the same in all views, and the view's own.
    fades : bool
        It sees a part of what the others see, and counts as one of them in its middle, but less towards its faces.
    """

    prediction: Prediction
    grids: AlignedGrids
    fades: bool = False


#: Called for each class in order: index, box of the conformed grid, probabilities float32 in that box.
#: Outside the box the probability is 0, that of the background (index 0) is 1.
OnPosterior = Callable[[int, Box, np.ndarray], None]


@dataclass(frozen=True)
class Guide:
    """What decides between tissues where the views are unsure.

    Attributes
    ----------
    image : (X, Y, Z)
        On the conformed grid; any unit, finite.
    weight : float
        How much its intensities count; see :func:`follow_intensities`.
    """

    image: np.ndarray
    weight: float


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
    views: Iterable[View],
    labels: Sequence[int],
    groups: Sequence[Sequence[int]] = (),
    notes: Sequence[str] = (),
    on_posterior: OnPosterior | None = None,
    guide: Guide | None = None,
) -> Segmentation:
    """Interpolate the probabilities of each class to the conformed grid, average the views and let the largest win.

    Parameters
    ----------
    views : iterable of View
        One or more; where they are made one after the other, no two are in memory at once. Their probabilities are
        changed if ``groups`` are given: what lies apart goes to the background.
    labels : sequence of int (C,)
        FreeSurfer label of each class; the first is the background.
    groups : sequence of sequences of int
        Classes of which only the largest component is kept, all together; none keeps everything.
    notes, on_posterior
        See :class:`Segmentation` and ``OnPosterior``.
    guide : Guide, optional
    """
    seen = list(map(functools.partial(_Seen.of, groups=groups), views))  # map keeps none of what it was given
    if not any(view.patches for view in seen):
        return background_only(seen[0].grids.conformed, labels, notes)
    merger = _Merger(seen, len(labels))
    if guide:
        merger.follow(guide, [index for index, label in enumerate(labels) if label in TOLD_BY_INTENSITY])
    for index in range(len(labels)):
        box, posterior = merger.add(index)
        if on_posterior:
            on_posterior(index, box, posterior.cpu().numpy())
    merger.drop_islands(groups)
    return merger.segmentation(np.asarray(labels), notes)


def merge_probabilities(
    probabilities: np.ndarray,
    box: Box,
    grid: Grid,
    labels: Sequence[int],
    groups: Sequence[Sequence[int]] = (),
) -> Segmentation:
    """Let the largest of probabilities win that lie on the conformed grid already.

    Parameters
    ----------
    probabilities : float32 (C, X, Y, Z)
        In ``box`` of the grid. They are changed if ``groups`` are given.
    box : Box
    grid : Grid
        The conformed one.
    labels, groups
        As :func:`merge_posteriors` takes them.
    """
    prediction = Prediction(torch.from_numpy(probabilities), box, torch.device("cpu"), patches=1)
    view = View(prediction, AlignedGrids(grid, 1.0))
    return merge_posteriors([view], labels, groups)


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
        give_to_background(probabilities, index, far)


def give_to_background(probabilities: torch.Tensor, index: int, where: torch.Tensor) -> torch.Tensor:
    """Give to the background (0) what another class has where a mask is true, in place; return what it was."""
    given = probabilities[index] * where
    probabilities[0].add_(given)
    probabilities[index].masked_fill_(where, 0)
    return given


@dataclass(frozen=True)
class _Seen:
    """A view of which each class is kept where it is likely: a fifth of the memory, and the same sums.

    Attributes
    ----------
    grids : AlignedGrids
    box : Box
        Of the view, in its own grid.
    parts : list of (Box, torch.Tensor)
        Of each class: where in the view's grid it is likely at all, one voxel wider, perhaps nowhere; and its
        probabilities there.
    device : torch.device
        Where the network ran.
    patches : int
    fades : bool
        As in :class:`View`.
    """

    grids: AlignedGrids
    box: Box
    parts: list[tuple[Box, torch.Tensor]]
    device: torch.device
    patches: int
    fades: bool

    @classmethod
    def of(cls, view: View, groups: Sequence[Sequence[int]]) -> _Seen:
        """Keep of a view what counts, without the islands of groups; faces of a part may cut off what is none."""
        prediction = view.prediction
        for group in () if view.fades else groups:
            drop_islands(prediction.probabilities, group)
        parts = [_likely_part(prediction, index) for index in range(len(prediction.probabilities))]
        return cls(view.grids, prediction.box, parts, prediction.device, prediction.patches, view.fades)

    def share_in(self, target: Box, device: torch.device) -> torch.Tensor | float:
        """Return how much the view counts in a box of the conformed grid."""
        if not self.fades:
            return 1.0
        share = torch.ones((), device=device)
        for axis, (own, wanted) in enumerate(zip(self.grids.to_conformed_box(self.box), target, strict=True)):
            places = torch.arange(wanted.start, wanted.stop, device=device)
            to_face = torch.minimum(places - own.start, own.stop - 1 - places) + 0.5
            shape = [-1 if other == axis else 1 for other in range(3)]
            share = share * (to_face / _FADING).clamp(0, 1).reshape(shape)
        return share


def _likely_part(prediction: Prediction, index: int) -> tuple[Box, torch.Tensor]:
    """Return where a class is likely, in the view's grid, and a copy of its probabilities there."""
    values, box = prediction.probabilities[index], prediction.box
    if index:
        near = Box.around((values > _FLOOR).cpu().numpy(), margin=1) or Box.empty()
        values, box = values[near], near.out_of(box)
    return box, values.clone()


class _Merger:
    """What is known at 1 mm after some of the classes."""

    def __init__(self, views: Sequence[_Seen], n_classes: int) -> None:
        self.views = views
        self.grid, self.ran_on = views[0].grids.conformed, views[0].device
        self.box = Box.hull(view.grids.to_conformed_box(view.box) for view in views)
        shape, device = self.box.shape, views[0].parts[0][1].device
        self.best = torch.zeros(shape, device=device)
        self.entropy = torch.zeros(shape, device=device)
        self.winner = torch.zeros(shape, dtype=torch.int16, device=device)
        self.sums = np.zeros(n_classes)
        self.background: np.ndarray | None = None
        self.followed: dict[int, tuple[Box, torch.Tensor]] = {}

    def follow(self, guide: Guide, indices: Sequence[int]) -> None:
        """Interpolate classes that are tissues, and divide between them by the image's intensities."""
        from medsegmamba_bids.inference.tissue_borders import follow_intensities  # numba takes a while

        posteriors = np.zeros((len(indices), *self.box.shape), np.float32)
        for values, index in zip(posteriors, indices, strict=True):
            target, posterior = self._posterior(index)
            values[target.within(self.box)] = posterior.cpu().numpy()
        follow_intensities(posteriors, guide.image[self.box], guide.weight)
        for values, index in zip(posteriors, indices, strict=True):
            near = Box.around(values > _FLOOR) or Box.empty() if index else Box.whole(values.shape)
            posterior = torch.from_numpy(values[near].copy()).to(self.best.device)
            self.followed[index] = near.out_of(self.box), posterior

    def add(self, index: int) -> tuple[Box, torch.Tensor]:
        """Let a class compete; return where it lies and its posterior there."""
        target, posterior = self.followed.pop(index, None) or self._posterior(index)
        here = target.within(self.box)
        better = posterior > self.best[here]
        self.winner[here].masked_fill_(better, index)
        torch.maximum(self.best[here], posterior, out=self.best[here])
        self.entropy[here].add_(torch.special.entr(posterior), alpha=1 / math.log(2))
        self.sums[index] = float(posterior.sum(dtype=torch.float64))
        if index == 0:
            self.background = posterior.cpu().numpy()
        return target, posterior

    def _posterior(self, index: int) -> tuple[Box, torch.Tensor]:
        """Interpolate a class; return where it lies and its posterior there."""
        sources = [(view.grids, view.parts[index][0]) for view in self.views]
        boxes = [grids.to_conformed_box(source) for grids, source in sources if math.prod(source.shape)]
        target = Box.hull(boxes) if boxes else Box.empty().out_of(self.box)
        return target, self._mean(index, target)

    def _mean(self, index: int, target: Box) -> torch.Tensor:
        """Return the mean of what the views see of a class, in a box of the conformed grid; perhaps it is nowhere."""
        total, shares = torch.zeros(target.shape, device=self.best.device), 0.0
        for view in self.views:
            source, values = view.parts[index]
            share = view.share_in(target, total.device)
            shares = shares + share
            if values.numel():
                total += share * view.grids.to_conformed(values.to(total.device), source, target)
        return total / shares

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
        grid = self.grid
        whole = grid.paste(labels.astype(np.uint16)[winner], self.box)
        return Segmentation(
            labels=whole,
            grid=grid,
            posterior=grid.paste(best, self.box, 1),
            entropy=grid.paste(self.entropy.cpu().numpy(), self.box),
            voxels=_by_label(labels, counts, int),
            soft_volumes=_by_label(labels, self.sums * grid.voxel_mm3, float),
            mean_posterior=_by_label(labels, means, float),
            brain_mask=fill_holes((whole > 0) & ~is_one_of(whole, OUTSIDE_BRAIN))
            if covers_brain(labels.tolist())
            else None,
            device=str(self.ran_on),
            notes=tuple(notes),
        )


def _by_label(labels: np.ndarray, values: np.ndarray, kind: type) -> dict[int, float]:
    """Return label -> value for all but the background."""
    return {int(label): kind(value) for label, value in zip(labels[1:], values[1:], strict=True)}
