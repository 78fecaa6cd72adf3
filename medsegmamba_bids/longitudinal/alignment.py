"""All visits of a person in the space in the middle between them, which favours none.

Every visit is registered to one of them in both directions, the mean of the rigid transforms is the middle, and with
more than two visits each is registered again to the median of all (Reuter et al. 2012, NeuroImage 61:1402). Which visit
comes first does not matter: images are taken in the order of their content, and equal ones are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.anatomy import CSF, HYPOINTENSITIES, OUTER_CSF, WHITE_MATTER
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.geometry import CONFORMED_SIDE, conformed_grid, resample
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import load_as_is, open_series
from medsegmamba_bids.longitudinal.rigid import (
    flattened,
    register_both_ways,
    register_rigid,
    rigid_from_labels,
    to_midspace,
)

#: Overlap (Dice, all structures) of two visits below which they are taken for two people; eight pairs of two people had
#: 0.41 to 0.58.
SAME_PERSON = 0.7
#: Of the brain, that a visit may lack because its field of view ends.
MOST_LACKING = 0.05
_MARGIN = 20  # voxels around the brain that a registration may look at
_COARSE_MM = 2.0
_NOT_COMPARED = (CSF, HYPOINTENSITIES, OUTER_CSF)
_MOSTLY_WHITE = 0.75  # of the visits


@dataclass(frozen=True)
class Visit:
    """A visit's images after it was processed by itself; read when they are needed, two visits at a time.

    Attributes
    ----------
    name : str
    native : Path
        The T1w as it came.
    conformed, labels, mask : Path
        On the conformed grid.
    """

    name: str
    native: Path
    conformed: Path
    labels: Path
    mask: Path

    @cached_property
    def content(self) -> str:
        """What tells its image from others: equal images on equal grids have the same."""
        image = open_series(self.native)
        digest = hashlib.sha256(np.asarray(image.dataobj).tobytes())
        digest.update(np.round(image.affine, 6).tobytes())
        return digest.hexdigest()

    def read(self) -> Head:
        """Return what a registration needs."""
        image = load_as_is(self.conformed)
        mask = np.asanyarray(load_as_is(self.mask).dataobj) > 0
        box = Box.around(mask, margin=_MARGIN)
        if box is None:
            raise ImageError(f"{self.mask}: the brain mask is empty")
        labels = np.asanyarray(load_as_is(self.labels).dataobj)[box]
        data = flattened(np.asarray(image.dataobj)[box], mask[box])
        return Head(data, Grid.of(image).cut(box), mask[box], labels)


@dataclass(frozen=True, eq=False)
class Head:
    """The part of a visit's images around its brain.

    Attributes
    ----------
    data : float32 (X, Y, Z)
        Intensities without the bias field.
    grid : Grid
    mask : bool (X, Y, Z)
    labels : uint16 (X, Y, Z)
    """

    data: np.ndarray
    grid: Grid
    mask: np.ndarray
    labels: np.ndarray

    @property
    def parts(self) -> tuple[np.ndarray, Grid, np.ndarray]:
        """Intensities, grid and mask."""
        return self.data, self.grid, self.mask


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where visits lie in the space in the middle.

    Attributes
    ----------
    transforms : list of float (4, 4)
        From points of each visit's T1w to points in the middle, mm, RAS+.
    grid : Grid
        256^3 voxels of 1 mm in LIA order, the brain in its middle.
    overlaps : list of float
        Of each visit's structures with those of the others, the median; 1 is all.
    """

    transforms: list[np.ndarray]
    grid: Grid
    overlaps: list[float]


def align(visits: Sequence[Visit], threads: int = 1) -> Alignment:
    """Find the space in the middle between visits.

    Parameters
    ----------
    visits : sequence of Visit
        Two or more.
    threads : int
        The result does not depend on it.

    Raises
    ------
    ImageError
        Visits do not show the same head; the message names the one that fits worst.
    """
    unique = {visit.content: visit for visit in visits}
    ordered = [unique[content] for content in sorted(unique)]
    matrices = _refined(ordered, _between(ordered, threads), threads)
    grid = _middle_grid(ordered, matrices)
    overlaps = _overlaps(ordered, matrices, grid)
    place = {visit.content: number for number, visit in enumerate(ordered)}
    alignment = Alignment(
        [matrices[place[visit.content]] for visit in visits], grid, [overlaps[place[visit.content]] for visit in visits]
    )
    _refuse_strangers(visits, alignment)
    return alignment


def _between(visits: Sequence[Visit], threads: int) -> list[np.ndarray]:
    """Return transforms to the middle, each visit registered to the first in both directions."""
    first = visits[0].read()
    matrices = [np.eye(4)]
    for visit in visits[1:]:
        head = visit.read()
        start = rigid_from_labels(head.labels, head.grid, first.labels, first.grid)
        matrices.append(register_both_ways(head.parts, first.parts, start, threads))
    return to_midspace(matrices)


def _refined(visits: Sequence[Visit], matrices: list[np.ndarray], threads: int) -> list[np.ndarray]:
    """Return transforms improved by the median of all visits; two visits have no median but their mean."""
    if len(visits) < 3:
        return matrices
    grid = _coarse(_middle_grid(visits, matrices))
    moved, masks = [], np.zeros(grid.shape, np.float32)
    for visit, matrix in zip(visits, matrices, strict=True):
        head = visit.read()
        seen = Grid(matrix @ head.grid.affine, head.grid.shape)
        moved.append(resample(head.data, seen, grid).astype(np.float16))
        masks += resample(head.mask.astype(np.float32), seen, grid)
    fixed = (np.median(moved, axis=0).astype(np.float32), grid, masks > len(visits) / 2)
    better = []
    for visit, matrix in zip(visits, matrices, strict=True):
        head = visit.read()
        better.append(register_rigid(head.parts[:2], fixed, matrix, threads))
    return to_midspace(better)


def _coarse(grid: Grid) -> Grid:
    """Return the same volume in voxels of 2 mm."""
    scale = nib.affines.from_matvec(np.diag([_COARSE_MM] * 3), [(_COARSE_MM - 1) / 2] * 3)
    return Grid(grid.affine @ scale, tuple(int(side // _COARSE_MM) for side in grid.shape))


def _middle_grid(visits: Sequence[Visit], matrices: Sequence[np.ndarray]) -> Grid:
    """Return the conformed grid around the mean position of the brains."""
    centres = []
    for visit, matrix in zip(visits, matrices, strict=True):
        image = load_as_is(visit.mask)
        mask = np.asanyarray(image.dataobj) > 0
        centres.append(nib.affines.apply_affine(matrix @ image.affine, ndimage.center_of_mass(mask)))
    around = np.eye(4)
    around[:3, 3] = np.mean(centres, axis=0) - CONFORMED_SIDE / 2
    return conformed_grid(Grid(around, (CONFORMED_SIDE,) * 3))


def _overlaps(visits: Sequence[Visit], matrices: Sequence[np.ndarray], grid: Grid) -> list[float]:
    """Return the median overlap of each visit's structures with those of every other; 1 for one alone."""
    coarse = _coarse(grid)
    seen = []
    for visit, matrix in zip(visits, matrices, strict=True):
        image = load_as_is(visit.labels)
        labels = np.asanyarray(image.dataobj)
        back = np.linalg.inv(matrix @ image.affine) @ coarse.affine
        seen.append(ndimage.affine_transform(labels, back[:3, :3], back[:3, 3], coarse.shape, order=0))
    return [
        float(np.median([_dice(here, there) for j, there in enumerate(seen) if j != i] or [1.0]))
        for i, here in enumerate(seen)
    ]


def _dice(labels: np.ndarray, others: np.ndarray) -> float:
    """Return the overlap of all structures: twice the voxels of equal label, over those that have one."""
    here, there = (~np.isin(array, (0, *_NOT_COMPARED)) for array in (labels, others))
    total = np.count_nonzero(here) + np.count_nonzero(there)
    return 2 * np.count_nonzero(here & there & (labels == others)) / total if total else 0.0


def _refuse_strangers(visits: Sequence[Visit], alignment: Alignment) -> None:
    worst = int(np.argmin(alignment.overlaps))
    if (overlap := alignment.overlaps[worst]) < SAME_PERSON:
        raise ImageError(
            f"{visits[worst].name} does not show the same head as the other visits: their structures overlap by "
            f"{overlap:.2f} after registration, and visits of one person by {SAME_PERSON} and more; "
            "are the sessions of one person?"
        )


def common_masks(visits: Sequence[Visit], alignment: Alignment) -> tuple[np.ndarray, np.ndarray]:
    """Return brain and white matter that most visits have in the middle, bool (X, Y, Z)."""
    grid = alignment.grid
    brain, white = (np.zeros(grid.shape, np.float32) for _ in range(2))
    for visit, matrix in zip(visits, alignment.transforms, strict=True):
        image = load_as_is(visit.mask)
        seen = Grid(matrix @ image.affine, image.shape)
        brain += resample((np.asanyarray(image.dataobj) > 0).astype(np.float32), seen, grid)
        labels = np.asanyarray(load_as_is(visit.labels).dataobj)
        white += resample(np.isin(labels, WHITE_MATTER).astype(np.float32), seen, grid)
    return brain > len(visits) / 2, white > _MOSTLY_WHITE * len(visits)


def common_view(visits: Sequence[Visit], alignment: Alignment, brain: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return which voxels in the middle lie within all visits' images, and what each lacks of the brain.

    Parameters
    ----------
    visits : sequence of Visit
    alignment : Alignment
    brain : bool (X, Y, Z)

    Returns
    -------
    view : bool (X, Y, Z)
    lacking : list of float
        Share of the brain that lies outside each visit's field of view, of that which any visit shows.
    """
    grid = alignment.grid
    view, anywhere = np.ones(grid.shape, bool), np.zeros(grid.shape, bool)
    shown = []
    for visit, matrix in zip(visits, alignment.transforms, strict=True):
        own = field_of_view(visit, matrix, grid)
        view &= own
        anywhere |= own
        shown.append(np.count_nonzero(own & brain))
    return view, [1 - voxels / max(1, np.count_nonzero(anywhere & brain)) for voxels in shown]


def field_of_view(visit: Visit, matrix: np.ndarray, grid: Grid) -> np.ndarray:
    """Return which voxels in the middle lie within a visit's own image, bool (X, Y, Z)."""
    image = open_series(visit.native)
    native = Grid(matrix @ image.affine, image.shape[:3])
    axes = [np.arange(side, dtype=np.float32) for side in grid.shape]
    inside = np.ones(grid.shape, bool)
    for row, side in zip(grid.to_voxels_of(native)[:3], native.shape, strict=True):
        at = (row[0] * axes[0])[:, None, None] + (row[1] * axes[1])[:, None] + row[2] * axes[2] + row[3]
        inside &= (at > -0.5) & (at < side - 0.5)
    return inside


def white_level(visits: Sequence[Visit]) -> float:
    """Return the mean over visits of white matter's intensity in the conformed images; 0 where none is labelled."""
    levels = []
    for visit in visits:
        white = np.isin(np.asanyarray(load_as_is(visit.labels).dataobj), WHITE_MATTER)
        if white.any():
            levels.append(float(np.median(np.asanyarray(load_as_is(visit.conformed).dataobj)[white])))
    return float(np.mean(levels)) if levels else 0.0
