"""Label tables: which class of a network is which FreeSurfer label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import ndimage

from medsegmamba_bids.anatomy import CALLOSUM, PARCELS, WHITE_MATTER
from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image.grid import Box

TABLES = tuple(sorted(path.stem for path in data_path("labels").glob("*.tsv")))


def is_one_of(labels: np.ndarray, wanted: Iterable[int]) -> np.ndarray:
    """Return where labels are any of a few: bool, the same as ``numpy.isin``, which turns an image's axes for it.

    Examples
    --------
    >>> is_one_of(np.array([0, 2, 3, 41]), (2, 41)).tolist()
    [False, True, False, True]
    """
    found = np.zeros_like(labels, bool)
    for label in wanted:
        found |= labels == label
    return found


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The classes of a segmentation.

    Attributes
    ----------
    name : str
    table : pandas.DataFrame
        A row per class: ``index``, ``label`` (FreeSurfer's number), ``name``, ``abbreviation``, ``color``
        (#rrggbb) and ``side`` (left, right or none). Row 0 is the background.
    """

    name: str
    table: pd.DataFrame

    @property
    def labels(self) -> np.ndarray:
        """FreeSurfer label of every class, int32 (C,)."""
        return self.table["label"].to_numpy(np.int32)

    @property
    def names(self) -> list[str]:
        """FreeSurfer's name of every class."""
        return self.table["name"].tolist()

    @property
    def structures(self) -> dict[int, str]:
        """FreeSurfer's names of all classes but the background, by label."""
        return dict(zip(self.labels[1:].tolist(), self.names[1:], strict=True))

    @property
    def mirror(self) -> np.ndarray:
        """Class of the same structure on the other side, int64 (C,).

        Examples
        --------
        >>> table = load_label_table("aseg")
        >>> table.names[table.mirror[table.names.index("Left-Caudate")]]
        'Right-Caudate'
        """
        position = {name: i for i, name in enumerate(self.names)}
        return np.array([position[_other_side(name)] for name in self.names])

    def to_indices(self, labels: np.ndarray) -> np.ndarray:
        """Return class indices, int64, of FreeSurfer labels; labels outside the table become background.

        Examples
        --------
        >>> load_label_table("aseg").to_indices(np.array([0, 4, 1003])).tolist()
        [0, 1, 0]
        """
        labels = np.asarray(labels)
        lookup = np.zeros(max(int(labels.max(initial=0)), int(self.labels.max())) + 1, np.int64)
        lookup[self.labels] = np.arange(len(self.labels))
        return lookup[np.maximum(labels, 0)]


def _other_side(name: str) -> str:
    if name.startswith("Left-"):
        return "Right-" + name.removeprefix("Left-")
    if name.startswith("Right-"):
        return "Left-" + name.removeprefix("Right-")
    return name


@lru_cache
def load_label_table(name: str) -> LabelTable:
    """Return one of the package's tables: ``aseg`` (32 classes), ``aseg_brain`` (36), ``aseg_head`` (37),
    ``hippoFS60`` (25).

    Raises
    ------
    TableError
        There is no such table.
    """
    if name not in TABLES:
        raise TableError(f"label table {name!r} is unknown; there are {list(TABLES)}")
    return LabelTable(name, pd.read_csv(data_path(f"labels/{name}.tsv"), sep="\t", skiprows=1))


def table_of_labels(labels: np.ndarray) -> LabelTable:
    """Return the table with exactly these labels in this order; raises ``TableError`` if there is none."""
    for name in TABLES:
        table = load_label_table(name)
        if np.array_equal(table.labels, labels):
            return table
    raise TableError(f"no label table has the classes {list(map(int, labels))}")


def merge_parcels(labels: np.ndarray) -> np.ndarray:
    """Return parcels of aparc+aseg (also a2009s) as cortex, of wmparc as white matter; all else stays.

    Parameters
    ----------
    labels : int (X, Y, Z), FreeSurfer labels

    Returns
    -------
    the same type (X, Y, Z), a copy

    Examples
    --------
    >>> merge_parcels(np.array([10, 1003, 2035, 3005, 4034, 5001, 5002, 11101, 12175, 251])).tolist()
    [10, 3, 42, 2, 41, 2, 41, 3, 42, 251]
    """
    lookup = np.arange(max(int(labels.max(initial=0)), 14999) + 1).astype(labels.dtype)
    for first, last, label in _PARCELS:
        lookup[first:last] = label
    return lookup[labels]


# From FreeSurferColorLUT.txt: parcels of the cortex, of white matter, of white matter that is far from the cortex.
_PARCELS = ((1000, 2000, 3), (2000, 3000, 42), (3000, 4000, 2), (4000, 5000, 41), (5001, 5002, 2), (5002, 5003, 41))
_PARCELS += ((11100, 11200, 3), (12100, 12200, 42), (13100, 13200, 2), (14100, 14200, 41))


def join_brain_labels(labels: np.ndarray) -> np.ndarray:
    """Return cortical parcels as cortex and the corpus callosum as the white matter that is nearest.

    Parameters
    ----------
    labels : int (X, Y, Z), FreeSurfer labels

    Returns
    -------
    the same type (X, Y, Z), a copy
    """
    lookup = np.arange(max(int(labels.max()), 2999) + 1, dtype=labels.dtype)
    for cortex, parcels in PARCELS.items():
        lookup[parcels] = cortex
    labels = lookup[labels]
    callosum = np.isin(labels, CALLOSUM)
    if callosum.any():
        _dissolve(labels, callosum, np.isin(labels, WHITE_MATTER))
    return labels


def _dissolve(labels: np.ndarray, mask: np.ndarray, into: np.ndarray, margin: int = 16) -> None:
    """Give the voxels of a mask the label of the nearest voxel that may take them."""
    box = Box.around(mask, margin)
    distance, nearest = ndimage.distance_transform_edt(~into[box], return_indices=True)
    if distance[mask[box]].max() > margin:  # the nearest one may lie outside the box
        box = Box.whole(mask.shape)
        nearest = ndimage.distance_transform_edt(~into, return_distances=False, return_indices=True)
    part, inside = labels[box], mask[box]
    part[inside] = part[tuple(axis[inside] for axis in nearest)]


def side_of(name: str) -> tuple[str, str]:
    """Return side and name without it.

    Examples
    --------
    >>> side_of("Left-Caudate"), side_of("CSF")
    (('left', 'Caudate'), ('', 'CSF'))
    """
    for side in ("Left-", "Right-"):
        if name.startswith(side):
            return side[:-1].lower(), name.removeprefix(side)
    return "", name
