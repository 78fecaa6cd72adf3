"""Whether a posterior of 0.7 means that the reference agrees in 70 % of such voxels; a structure at a time.

A structure's voxels are counted in narrow bins of its posterior, on the conformed grid, with those that are the
structure in the reference. Everything else follows from these counts: the reliability table, the expected
calibration error, soft volumes. Volumes are in voxels of 1 mm3.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from medsegmamba_bids.anatomy import OUTSIDE_BRAIN
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import LabelTable

_TENTHS = [tenth / 10 for tenth in range(1, 10)]
#: Borders of the bins that are counted, narrow near 0 and 1, where the logarithm of the odds changes fast.
EDGES = np.array([0, 0.001, 0.003, 0.01, 0.03, *_TENTHS, 0.97, 0.99, 0.997, 1])
#: Borders of the ten bins of the reliability table. Below the first lies the empty outside: counted, it would bring
#: every error near 0.
TABLE_EDGES = np.array([0.01, *_TENTHS, 1])
COUNTS = ("voxels", "posterior_sum", "reference_voxels")
COLUMNS = ("case", "structure", "label", "from", "to", *COUNTS, "labelled_voxels")


def bin_of(posterior: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of each value, lower border included: int, 0 for the first; below the first border -1.

    Examples
    --------
    >>> bin_of(np.array([0.0, 0.01, 0.1, 0.15, 1.0]), TABLE_EDGES).tolist()
    [-1, 0, 1, 1, 9]
    """
    return np.searchsorted(edges[:-1], posterior, side="right") - 1


def count_bins(posterior: np.ndarray, is_structure: np.ndarray) -> pd.DataFrame:
    """Return voxels by posterior, a line for each bin between ``EDGES``.

    Parameters
    ----------
    posterior : float (...)
        Of one structure.
    is_structure : bool (...)
        Whether the reference has the structure there.

    Returns
    -------
    pandas.DataFrame
        ``from``, ``to``, ``voxels``, ``posterior_sum`` and ``reference_voxels`` (those that are the structure).
    """
    posterior = posterior.ravel()
    bins = bin_of(posterior, EDGES)
    n_bins = len(EDGES) - 1
    return pd.DataFrame(
        {
            "from": EDGES[:-1],
            "to": EDGES[1:],
            "voxels": np.bincount(bins, minlength=n_bins),
            "posterior_sum": np.bincount(bins, posterior, minlength=n_bins),
            "reference_voxels": np.bincount(bins[is_structure.ravel()], minlength=n_bins),
        }
    )


class BinCounter:
    """Counts the structures of a network while they are interpolated one by one: an ``OnPosterior``.

    Parameters
    ----------
    reference : int (X, Y, Z)
        FreeSurfer labels on the conformed grid.
    table : LabelTable
        Of the network's classes. Background and fluid outside the brain, which FreeSurfer does not draw, are passed.
    """

    def __init__(self, reference: np.ndarray, table: LabelTable) -> None:
        self.reference, self.table = reference, table
        self.parts: list[pd.DataFrame] = []

    def __call__(self, index: int, box: Box, posterior: np.ndarray) -> None:
        """Count one class, of which ``posterior`` is given in ``box`` and 0 elsewhere."""
        label = int(self.table.labels[index])
        if label in (0, *OUTSIDE_BRAIN):
            return
        is_structure = self.reference == label
        counts = count_bins(posterior, is_structure[box])
        counts.loc[0, "voxels"] += is_structure.size - posterior.size
        counts.loc[0, "reference_voxels"] += is_structure.sum() - is_structure[box].sum()
        name = self.table.table.set_index("label").loc[label, "name"]
        self.parts.append(counts.assign(structure=name, label=label))

    def rows(self, labels: np.ndarray, posterior: np.ndarray) -> pd.DataFrame:
        """Return all counts, with ``labelled_voxels``: those that got the structure's label, by their posterior.

        Parameters
        ----------
        labels : int (X, Y, Z)
            What was found.
        posterior : float (X, Y, Z)
            Of the label that each voxel got.
        """
        return pd.concat([_with_labelled(part, labels, posterior) for part in self.parts], ignore_index=True)


def _with_labelled(counts: pd.DataFrame, labels: np.ndarray, posterior: np.ndarray) -> pd.DataFrame:
    bins = bin_of(posterior[labels == counts["label"].iloc[0]], EDGES)
    return counts.assign(labelled_voxels=np.bincount(bins, minlength=len(counts)))


def reliability(counts: pd.DataFrame) -> pd.DataFrame:
    """Return the reliability table: ten bins from 0.01 to 1.

    Parameters
    ----------
    counts : pandas.DataFrame
        As :func:`count_bins` returns them, of a structure; or several of these, which are added.

    Returns
    -------
    pandas.DataFrame
        ``from``, ``to``, ``voxels``, ``mean_posterior`` and ``share`` (that is the structure); NaN where no voxel is.
    """
    n_bins = len(TABLE_EDGES) - 1
    coarse = bin_of(counts["from"].to_numpy(), TABLE_EDGES)
    sums = counts[list(COUNTS)].groupby(coarse).sum().reindex(range(n_bins), fill_value=0)
    voxels = sums["voxels"].where(sums["voxels"] > 0)
    return pd.DataFrame(
        {
            "from": TABLE_EDGES[:-1],
            "to": TABLE_EDGES[1:],
            "voxels": sums["voxels"],
            "mean_posterior": sums["posterior_sum"] / voxels,
            "share": sums["reference_voxels"] / voxels,
        }
    )


def expected_calibration_error(counts: pd.DataFrame) -> float:
    """Return the mean over voxels with a posterior from 0.01 of their bin's |mean posterior - share|; NaN without any.

    The bins are the ten of :func:`reliability`. 0 is calibrated.
    """
    table = reliability(counts)
    voxels = table["voxels"].sum()
    gaps = (table["mean_posterior"] - table["share"]).abs()
    return float((gaps * table["voxels"]).sum() / voxels) if voxels else math.nan


def soft_volume_ratio(counts: pd.DataFrame) -> float:
    """Return the sum of all posteriors over the reference's voxels; NaN where the reference has none."""
    return _ratio(counts, "posterior_sum")


def labelled_volume_ratio(counts: pd.DataFrame) -> float:
    """Return the number of voxels with the label over the reference's; NaN where the reference has none."""
    return _ratio(counts, "labelled_voxels")


def _ratio(counts: pd.DataFrame, column: str) -> float:
    reference = counts["reference_voxels"].sum()
    return float(counts[column].sum() / reference) if reference else math.nan
