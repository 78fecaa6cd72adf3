"""Where voxels lie: a grid in the world, and a box of its voxels, with their arithmetic.

Affines map voxel indices to mm (RAS+), as in nibabel; a voxel's index is that of its centre.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

_SAME_MM = 1e-3


class Box(tuple):
    """A box of voxels, as one slice per axis: ``array[box]`` cuts it out. Frozen; equals the tuple of its slices.

    Starts and stops are whole numbers, without steps.

    Examples
    --------
    >>> box = Box([slice(2, 4), slice(3, 8), slice(0, 1)])
    >>> box.shape, box.grow(2, (5, 9, 1)) == (slice(0, 5), slice(1, 9), slice(0, 1))
    ((2, 5, 1), True)
    """

    __slots__ = ()

    @classmethod
    def whole(cls, shape: Iterable[int]) -> Box:
        """Return all voxels of an array."""
        return cls(slice(0, int(side)) for side in shape)

    @classmethod
    def empty(cls) -> Box:
        """Return no voxel, at the start of an array of three axes."""
        return cls.whole((0, 0, 0))

    @classmethod
    def around(cls, mask: np.ndarray, margin: int = 0) -> Box | None:
        """Return the smallest box around the non-zero voxels, wider by a margin within the array; None where all are
        zero.

        Examples
        --------
        >>> Box.around(np.pad(np.ones((2, 2, 2)), 3), margin=1)
        (slice(2, 6, None), slice(2, 6, None), slice(2, 6, None))
        """
        there, sides = (mask if mask.dtype == bool else mask != 0), []
        for axis in range(there.ndim):
            others = tuple(other for other in range(there.ndim) if other != axis)
            found = np.flatnonzero(there.any(axis=others))
            if not found.size:
                return None
            sides.append(slice(int(found[0]), int(found[-1]) + 1))
            there = there[(slice(None),) * axis + (sides[-1],)]  # less is left to look through
        return cls(sides).grow(margin, mask.shape)

    @classmethod
    def around_each(cls, labels: np.ndarray) -> dict[int, Box]:
        """Return the smallest box around each label above 0 that is there.

        Examples
        --------
        >>> Box.around_each(np.array([[0, 7], [5, 7]]))
        {5: (slice(1, 2, None), slice(0, 1, None)), 7: (slice(0, 2, None), slice(1, 2, None))}
        """
        whole = cls.around(labels)
        if whole is None:
            return {}
        inside = np.ascontiguousarray(labels[whole], np.int32)  # a fraction of what there is to search
        boxes = enumerate(ndimage.find_objects(inside), 1)
        return {
            label: cls(slice(s.start + first, s.stop + first) for s, first in zip(box, whole.start, strict=True))
            for label, box in boxes
            if box
        }

    @classmethod
    def hull(cls, boxes: Iterable[Sequence[slice]]) -> Box:
        """Return the smallest box around boxes."""
        sides = zip(*boxes, strict=True)
        return cls(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels a side."""
        return tuple(s.stop - s.start for s in self)

    @property
    def start(self) -> tuple[int, ...]:
        """Its first voxel."""
        return tuple(s.start for s in self)

    @property
    def corners(self) -> np.ndarray:
        """Its outermost voxels, int (3, 8)."""
        return np.stack(np.meshgrid(*[(s.start, s.stop - 1) for s in self])).reshape(len(self), -1)

    def grow(self, margin: int, shape: Iterable[int] | None = None) -> Box:
        """Return a box wider by a margin on all sides; with the shape of an array no further than that goes."""
        wide = Box(slice(s.start - margin, s.stop + margin) for s in self)
        if shape is None:
            return wide
        return Box(slice(max(0, s.start), min(n, s.stop)) for s, n in zip(wide, shape, strict=True))

    def at_least(self, least: int, shape: Iterable[int]) -> Box:
        """Return the box widened about its centre to at least ``least`` voxels a side, as far as the array goes.

        At the border of the array the box is shifted inwards.

        Examples
        --------
        >>> Box([slice(0, 2), slice(4, 6), slice(0, 9)]).at_least(6, (10, 10, 10))
        (slice(0, 6, None), slice(2, 8, None), slice(0, 9, None))
        """
        return Box(_widened(side, length, least) for side, length in zip(self, shape, strict=True))

    def within(self, outer: Sequence[slice]) -> Box:
        """Return the same voxels, counted from the start of another box."""
        return Box(slice(s.start - o.start, s.stop - o.start) for s, o in zip(self, outer, strict=True))

    def out_of(self, outer: Sequence[slice]) -> Box:
        """Return the same voxels, which are counted from the start of another box, counted from that of the array.

        Examples
        --------
        >>> outer = Box.whole((9, 9, 9)).grow(-2)
        >>> Box.whole((1, 2, 3)).out_of(outer)
        (slice(2, 3, None), slice(2, 4, None), slice(2, 5, None))
        """
        return Box(slice(s.start + o.start, s.stop + o.start) for s, o in zip(self, outer, strict=True))

    def shift(self, affine: np.ndarray) -> np.ndarray:
        """Return the affine (4, 4) that takes indices counted from this box to where ``affine`` takes the array's.

        Examples
        --------
        >>> Box([slice(3, 5)] * 3).shift(np.diag([2.0, 2, 2, 1]))[:3, 3].tolist()
        [6.0, 6.0, 6.0]
        """
        out = affine.copy()
        out[:3, 3] = affine[:3, :3] @ self.start + affine[:3, 3]
        return out


def _widened(side: slice, length: int, least: int) -> slice:
    width = min(max(side.stop - side.start, least), length)
    start = side.start - (width - (side.stop - side.start)) // 2
    start = min(max(start, 0), length - width)
    return slice(start, start + width)


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of an image in the world.

    Attributes
    ----------
    affine : float (4, 4)
        From voxel indices to mm, RAS+.
    shape : tuple of int
        Voxels a side (X, Y, Z).

    Examples
    --------
    >>> grid = Grid(np.diag([2.0, 2, 2, 1]), (10, 10, 10))
    >>> part = grid.cut(Box.whole((10, 10, 10)).grow(-1))
    >>> part.shape, part.to_world([0, 0, 0]).tolist(), round(part.voxel_mm3, 6)
    ((8, 8, 8), [2.0, 2.0, 2.0], 8.0)
    """

    affine: np.ndarray
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", np.asarray(self.affine, float))
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))

    @classmethod
    def of(cls, image: Any) -> Grid:
        """Return the grid of an image of nibabel's: of its first three axes."""
        return cls(image.affine, image.shape[:3])

    @property
    def box(self) -> Box:
        """All its voxels."""
        return Box.whole(self.shape)

    @property
    def zooms(self) -> np.ndarray:
        """Edges of a voxel, mm, float (3,)."""
        return voxel_sizes(self.affine)

    @property
    def edges(self) -> np.ndarray:
        """The edges themselves, a column each, mm, float (3, 3); in a sheared grid they are not at right angles."""
        return self.affine[:3, :3]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, mm3."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    @property
    def centre(self) -> np.ndarray:
        """The point at half the shape in mm, float (3,): FreeSurfer's centre, half a voxel beyond the middle."""
        return (self.affine @ [*(np.array(self.shape) / 2), 1.0])[:3]

    def to_world(self, voxels: np.ndarray) -> np.ndarray:
        """Return positions (..., 3) in mm of voxel indices (..., 3)."""
        return apply_affine(self.affine, voxels)

    def to_voxels_of(self, other: Grid) -> np.ndarray:
        """Return the matrix (4, 4) from this grid's voxel indices to another's."""
        return np.linalg.inv(other.affine) @ self.affine

    def distance(self, other: Grid) -> float:
        """Return how far voxels of equal index lie apart at most, mm; that is at a corner."""
        apart = self.affine - other.affine
        return float(np.linalg.norm(apart[:3, :3] @ self.box.corners + apart[:3, 3:], axis=0).max())

    def same_as(self, other: Grid) -> bool:
        """Return whether two grids agree: one shape, and voxels within 0.001 mm.

        Examples
        --------
        >>> Grid(np.eye(4), (2, 2, 2)).same_as(Grid(np.eye(4) + 1e-6, (2, 2, 2)))
        True
        """
        return self.shape == other.shape and self.distance(other) <= _SAME_MM

    def cut(self, box: Box) -> Grid:
        """Return the part that a box cuts out."""
        return Grid(box.shift(self.affine), box.shape)

    def paste(self, part: np.ndarray, box: Box, fill: float = 0) -> np.ndarray:
        """Return an array of the whole grid and of the part's type, that is ``fill`` outside the box."""
        whole = np.full(self.shape, fill, part.dtype)
        whole[box] = part
        return whole
