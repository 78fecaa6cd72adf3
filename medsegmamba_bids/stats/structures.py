"""Labels and intensities in, a row of numbers per structure out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from medsegmamba_bids.anatomy import FREESURFER_ONLY
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import LabelTable
from medsegmamba_bids.segmentations import CORRECTED, POSTERIORS, VOXELS, of_table

NOT_FOUND = "not found"
UNKNOWN = "unknown to the weights"

_HIGHEST_LABEL = 1 << 16
INTENSITIES = ("normMean", "normStdDev", "normMin", "normMax", "normRange")


def structure_statistics(
    labels: np.ndarray,
    guide: np.ndarray | None,
    table: LabelTable,
    voxel_mm3: float = 1.0,
    soft_volumes: Mapping[int, float] | None = None,
    mean_posteriors: Mapping[int, float] | None = None,
    around: np.ndarray | None = None,
) -> pd.DataFrame:
    """Measure each structure of a label table.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer labels. Those outside the table are neighbours in the correction for partial volume; of them,
        vessels, corpus callosum and others that ``aseg.stats`` lists have rows after the table's, where they occur.
    guide : (X, Y, Z) or None
        Intensities, bias field corrected, white matter near 110, 0 outside the skull. Without them there are no
        intensities, and no volumes corrected for partial volume.
    table : LabelTable
        Its rows but the background are those of the result.
    voxel_mm3 : float
        Volume of a voxel, mm3.
    soft_volumes : mapping of int to float, optional
        Sum of the posteriors of each label that the weights know, mm3. A label without an entry was not looked
        for: its numbers are missing, not 0.
    mean_posteriors : mapping of int to float, optional
    around : int (X, Y, Z), optional
        What lies where ``labels`` are 0, such as white matter and cortex around subcortical structures: neighbours
        in the correction for partial volume, and no more.

    Returns
    -------
    pandas.DataFrame
        Columns as ``stats.tables.COLUMNS`` describes them, missing numbers are NaN. What ``Volume_mm3`` is,
        :func:`volume_definition` says.
    """
    labels, guide, around = _cropped(labels, guide, around)
    counts = np.bincount(labels.ravel("K"), minlength=_HIGHEST_LABEL)
    is_aseg = of_table(table.name).volumes == CORRECTED
    beside = {label: name for label, name in FREESURFER_ONLY.items() if is_aseg and counts[label]}
    listed = [*map(int, table.labels[1:]), *beside]
    voxels = counts[listed].astype(float)
    rows = pd.DataFrame({"SegId": listed, "StructName": [*table.names[1:], *beside.values()], "NVoxels": voxels})
    for column, values in (("SoftVolume_mm3", soft_volumes), ("MeanPosterior", mean_posteriors)):
        rows[column] = [math.nan if values is None else values.get(label, math.nan) for label in listed]
    definition = volume_definition(table, soft_volumes is not None, guide is not None)
    if definition == POSTERIORS:
        rows["Volume_mm3"] = rows["SoftVolume_mm3"]
    else:
        rows["Volume_mm3"] = voxel_mm3 * (voxels if definition == VOXELS else _corrected(labels, guide, listed, around))
    rows = rows.join(_intensities(labels, guide, listed))
    absent = voxels == 0
    rows["Flag"] = np.where(absent, NOT_FOUND, "")
    if definition == CORRECTED:  # a label without voxels may have got a trace; it was not found all the same
        rows.loc[absent, "Volume_mm3"] = 0.0
    if soft_volumes is not None:
        unknown = ~rows["SegId"].isin(set(soft_volumes))
        rows.loc[unknown, [name for name in rows if name not in ("SegId", "StructName", "Flag")]] = math.nan
        rows.loc[unknown, "Flag"] = UNKNOWN
    return rows


def _cropped(labels: np.ndarray, *others: np.ndarray | None) -> list[np.ndarray | None]:
    """Cut them to the labels, and as far around as volumes depend on it; to a voxel where there are none."""
    from medsegmamba_bids.stats.partial_volume import REACH  # numba takes a while

    box = Box.around(labels, margin=REACH) or Box.whole((1, 1, 1))
    if any(array is not None and array.shape != labels.shape for array in others):
        raise ValueError(
            f"labels and other images differ in shape: {[x.shape for x in (labels, *others) if x is not None]}"
        )
    return [None if array is None else array[box] for array in (labels, *others)]


def volume_definition(table: LabelTable, posteriors: bool, guide: bool) -> str:
    """Return what ``Volume_mm3`` is: a key of ``segmentations.VOLUME_DEFINITIONS``.

    FreeSurfer reports the aseg corrected for partial volume, subfields as sums of posteriors; where what is needed
    for that is not there, voxels are counted.
    """
    wanted = of_table(table.name).volumes
    there = {CORRECTED: guide, POSTERIORS: posteriors}
    return wanted if there[wanted] else VOXELS


def _corrected(labels: np.ndarray, guide: np.ndarray, listed: list[int], around: np.ndarray | None) -> np.ndarray:
    """Return corrected numbers of voxels of the listed labels; every label is a class of its own, in ascending
    order.
    """
    from medsegmamba_bids.stats.partial_volume import corrected_counts  # numba takes a while

    if around is not None:
        labels = np.where((labels == 0) & ~np.isin(around, listed), around, labels)
    present = np.union1d([0], np.flatnonzero(np.bincount(labels.ravel("K"))))
    lookup = np.zeros(int(present[-1]) + 1, np.int16)
    lookup[present] = np.arange(len(present))
    counts = corrected_counts(lookup[labels], guide, len(present))
    voxels_of = dict(zip(present.tolist(), counts.tolist(), strict=True))
    return np.array([voxels_of.get(label, 0.0) for label in listed])


def _intensities(labels: np.ndarray, guide: np.ndarray | None, listed: list[int]) -> pd.DataFrame:
    """Return mean, standard deviation (of a sample, as FreeSurfer's), lowest, highest and range in each label."""
    if guide is None:
        return pd.DataFrame(math.nan, range(len(listed)), INTENSITIES)
    n = len(listed)
    lookup = np.full(_HIGHEST_LABEL, -1)
    lookup[listed] = np.arange(n)
    classes = lookup[labels]
    inside = classes >= 0
    classes, values = classes[inside], guide[inside].astype(np.float64)
    counts = np.bincount(classes, minlength=n)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.bincount(classes, values, minlength=n) / counts
        squares = np.bincount(classes, (values - means[classes]) ** 2, minlength=n)
        deviations = np.where(counts == 1, 0.0, np.sqrt(squares / (counts - 1)))
    lowest, highest = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(lowest, classes, values)
    np.maximum.at(highest, classes, values)
    ranges = np.subtract(highest, lowest, where=counts > 0, out=np.full(n, np.nan))
    out = pd.DataFrame(dict(zip(INTENSITIES, (means, deviations, lowest, highest, ranges), strict=True)))
    out.loc[counts == 0] = math.nan
    return out
