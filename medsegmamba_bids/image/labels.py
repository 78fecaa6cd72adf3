"""Label tables: which class of a network is which FreeSurfer label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from medsegmamba_bids.data import data_path

TABLES = ("aseg", "aseg_brain", "hippoFS60")


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

    def to_labels(self, indices: np.ndarray) -> np.ndarray:
        """FreeSurfer labels, int32, of class indices."""
        return self.labels[indices]

    def to_indices(self, labels: np.ndarray) -> np.ndarray:
        """Class indices, int64, of FreeSurfer labels; labels outside the table become background.

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
    """One of the package's tables: ``aseg`` (32 classes), ``aseg_brain`` (36) or ``hippoFS60`` (25).

    Raises
    ------
    ValueError
        There is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"label table {name!r} is unknown; there are {list(TABLES)}")
    return LabelTable(name, pd.read_csv(data_path(f"labels/{name}.tsv"), sep="\t", skiprows=1))


def table_of_labels(labels: np.ndarray) -> LabelTable:
    """The table with exactly these labels in this order; raises ``ValueError`` if there is none."""
    for name in TABLES:
        table = load_label_table(name)
        if np.array_equal(table.labels, labels):
            return table
    raise ValueError(f"no label table has the classes {list(map(int, labels))}")
