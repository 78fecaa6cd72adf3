"""What label maps are made of: a row per tissue, with how it looks and which class of the network it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from medsegmamba_bids.data import data_path
from medsegmamba_bids.image.labels import LabelTable, load_label_table


@dataclass(frozen=True)
class TissueTable:
    """What the tissues of a label map look like and what they are called.

    Attributes
    ----------
    rows : pandas.DataFrame
        Columns ``label`` (in the prepared map), ``mirror`` (label of the other side), ``target``
        (FreeSurfer label that the network learns, 0 for background), ``brain`` (0 or 1), ``mean`` and
        ``spread`` (intensity relative to white matter = 1 and its variation between scans), ``grain``
        (variation within a scan), ``weight`` (of the class in the cross-entropy).
    table : LabelTable
        Classes of the network.
    """

    rows: pd.DataFrame
    table: LabelTable

    @property
    def targets(self) -> np.ndarray:
        """Class index of every tissue, uint8 (T,)."""
        return self.table.to_indices(self.rows["target"].to_numpy()).astype(np.uint8)

    @property
    def in_brain(self) -> np.ndarray:
        """Whether a tissue belongs to the brain, bool (T,)."""
        return self.rows["brain"].to_numpy() == 1

    @property
    def mirror(self) -> np.ndarray:
        """Tissue index on the other side, uint8 (T,)."""
        return self.index_of(self.rows["mirror"].to_numpy())

    @property
    def class_weights(self) -> np.ndarray:
        """Weight of every class in the cross-entropy, float32 (C,)."""
        weights = np.ones(len(self.table.labels), np.float32)
        weights[self.targets] = self.rows["weight"]  # rows of one target share their weight
        return weights

    def index_of(self, labels: np.ndarray) -> np.ndarray:
        """Return tissue indices of map labels; raises ``KeyError`` for a label outside the table."""
        position = {int(label): i for i, label in enumerate(self.rows["label"])}
        return np.array([position[int(label)] for label in labels], np.uint8)

    def means_of(self, labels: np.ndarray) -> np.ndarray:
        """Return how bright every voxel of a map is, float32 of its shape, without variation; 0 outside the table."""
        lookup = np.zeros(max(int(labels.max()), int(self.rows["label"].max())) + 1, np.float32)
        lookup[self.rows["label"]] = self.rows["mean"]
        return lookup[labels]


def load_tissue_table(name: str) -> TissueTable:
    """Return the tissue table ``data/synthesis/<name>.tsv``, for the label table of the same name."""
    rows = pd.read_csv(data_path(f"synthesis/{name}.tsv"), sep="\t", comment="#")
    return TissueTable(rows, load_label_table(name))
