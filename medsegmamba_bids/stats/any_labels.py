"""Any image of FreeSurfer's labels in, whoever made it; the app's table and measures out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medsegmamba_bids.anatomy import ASEG_BACKGROUND, FREESURFER_ONLY, NUCLEI, covers_brain
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.labels import LabelTable, load_label_table, merge_parcels
from medsegmamba_bids.segmentations import CORRECTED, HIPPOCAMPUS, of_table
from medsegmamba_bids.stats.contrast import describe_contrast
from medsegmamba_bids.stats.intracranial import shows_skull
from medsegmamba_bids.stats.measures import Measure, brain_measures, hypointensity_sides, intracranial_space
from medsegmamba_bids.stats.structures import structure_statistics, volume_definition

_NAMED = 8  # unknown labels that a sentence lists
#: FreeSurfer's fissure is no part of the hippocampus that it reports as a whole.
_FISSURE = "fissure"
_HEAD = 258  # Head-ExtraCerebral, of samseg
_ROUNDING = 0.02  # by which probabilities may leave 0 to 1, as bytes and half precision round them


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a label image says.

    Attributes
    ----------
    rows : pandas.DataFrame
        A row per structure.
    measures : tuple of Measure
        Of the whole brain; none where the labels do not cover it.
    definition : str
        What the volumes are, a key of ``segmentations.VOLUME_DEFINITIONS``.
    """

    rows: pd.DataFrame
    measures: tuple[Measure, ...]
    definition: str


def sums_of_posteriors(posteriors: Any, classes: int) -> np.ndarray:
    """Return the sum of every class's probabilities, float64 (C,), a class at a time.

    Parameters
    ----------
    posteriors : (X, Y, Z, C)
        An array, or what reads one from a file.
    classes : int
        C.

    Raises
    ------
    ImageError
        Values are no probabilities: not finite, beyond 0 to 1, or more than 1 together in a voxel.
    """
    sums, whole = np.zeros(classes), 0.0
    for k in range(classes):
        values = np.asarray(posteriors[..., k], np.float32)
        if not np.isfinite(values).all():
            raise ImageError(f"class {k} has values that are not finite; probabilities are needed")
        if values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING:
            raise ImageError(f"class {k} has values from {values.min():g} to {values.max():g}; 0 to 1 is allowed")
        sums[k] = values.sum(dtype=np.float64)
        whole = whole + values
    if np.max(whole) > 1 + _ROUNDING * classes:
        raise ImageError(f"the classes add up to {np.max(whole):g} in a voxel; probabilities add up to 1")
    return sums


def measure_labels(
    labels: np.ndarray,
    norm: np.ndarray | None,
    table: LabelTable,
    voxel_mm3: float = 1.0,
    soft_volumes: Mapping[int, float] | None = None,
) -> Measurement:
    """Measure the structures of a label image.

    Parcels of aparc+aseg and wmparc become cortex and white matter. An image of intensities that shows the skull is set
    to 0 outside of it; FreeSurfer's ``norm.mgz`` is so already.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer's labels.
    norm : (X, Y, Z) or None
        Intensities, bias field corrected; without them voxels are counted.
    table : LabelTable
    voxel_mm3 : float
        Volume of a voxel, mm3.
    soft_volumes : mapping of int to float, optional
        Sum of the posteriors of each label, mm3.

    Raises
    ------
    ImageError
        There are no labels, labels of another table or that the table does not know; the intensities are 0 wherever
        there are labels.
    """
    is_aseg = of_table(table.name).volumes == CORRECTED
    if is_aseg:
        check_no_subfields(labels)
        labels = merge_parcels(labels)
    _check_labels(labels, table, is_aseg)
    if norm is not None:
        check_overlap(norm, labels)
    whole = is_aseg and _covers_brain(labels)
    if norm is not None:
        norm = without_skull(norm, labels, voxel_mm3)
    rows = structure_statistics(labels, norm, table, voxel_mm3, soft_volumes)
    measures = brain_measures(rows, voxel_mm3, hypointensity_sides(labels)) if whole else []
    definition = volume_definition(table, posteriors=soft_volumes is not None, guide=norm is not None)
    return Measurement(rows, tuple(measures), definition)


def check_overlap(norm: np.ndarray, labels: np.ndarray) -> None:
    """Refuse intensities that are 0 wherever there are labels: of another head, or in another space.

    Raises
    ------
    ImageError
    """
    there = labels > 0
    if there.any() and not norm[there].any():
        raise ImageError(
            "the intensities are 0 wherever there are labels; an image of the same head is needed (norm.mgz)"
        )


def without_skull(norm: np.ndarray, labels: np.ndarray, voxel_mm3: float = 1.0) -> np.ndarray:
    """Return intensities with 0 outside the skull, as FreeSurfer's ``norm.mgz`` has it, where they show more than that.

    Labels that do not cover the brain do not tell where the skull is: intensities stay as they are.

    Parameters
    ----------
    norm : (X, Y, Z)
        Intensities.
    labels : int (X, Y, Z)
        FreeSurfer's labels, without parcels.
    voxel_mm3 : float
        Volume of a voxel, mm3.

    Returns
    -------
    the same type (X, Y, Z)
    """
    brain, voxel_mm = labels > 0, voxel_mm3 ** (1 / 3)
    if not _covers_brain(labels) or not shows_skull(norm, brain, voxel_mm):
        return norm
    return np.where(intracranial_space(labels, brain, voxel_mm).mask, norm, norm.dtype.type(0))


def _covers_brain(labels: np.ndarray) -> bool:
    return covers_brain(np.flatnonzero(np.bincount(labels.ravel())).tolist())


def describe_norm(norm: np.ndarray, labels: np.ndarray, rows: pd.DataFrame) -> str:
    """Return a sentence where intensities are hardly those of a T1w; empty where nothing is odd.

    Parameters
    ----------
    norm : (X, Y, Z)
        Intensities.
    labels : int (X, Y, Z)
        FreeSurfer's labels, parcels included.
    rows : pandas.DataFrame
        What :func:`measure_labels` says of both.

    Examples
    --------
    >>> labels = np.array([2, 2, 3, 3])
    >>> rows = pd.DataFrame({"NVoxels": [2, 2], "normStdDev": [0.0, 0.0]})
    >>> describe_norm(labels, labels, rows)[:52]
    'has a single value in 2 of 2 structures, as a label '
    """
    spread = rows.loc[rows["NVoxels"] > 1, "normStdDev"]
    constant = int((spread == 0).sum())
    if 2 * constant >= len(spread) > 1:
        return (
            f"has a single value in {constant} of {len(spread)} structures, as a label image has; volumes corrected "
            "for partial volume need intensities, such as norm.mgz"
        )
    return describe_contrast(norm, merge_parcels(labels), "volumes corrected by it will not be reliable")


def check_no_subfields(labels: np.ndarray) -> None:
    """Refuse hippocampal subfields where structures of the whole brain are asked for.

    Their numbers are in the range of cortical parcels, so that all of them would count as cortex.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer's labels, with parcels as they are.

    Raises
    ------
    ImageError
        Most of what is labelled is subfields.
    """
    counts = np.bincount(labels.ravel())[1:]
    subfields = load_label_table(HIPPOCAMPUS.widest).labels[1:]
    if counts[subfields[subfields <= len(counts)] - 1].sum() > counts.sum() / 2:
        raise ImageError(
            f"its labels are hippocampal subfields, of the table {HIPPOCAMPUS.name}, not structures of the whole "
            "brain; choose that table"
        )


def _check_labels(labels: np.ndarray, table: LabelTable, is_aseg: bool) -> None:
    counts = np.bincount(labels.ravel())
    present = set(np.flatnonzero(counts).tolist()) - {0}
    if not present:
        raise ImageError("there are no labels: all voxels are 0")
    beside = {*ASEG_BACKGROUND, *FREESURFER_ONLY, _HEAD} if is_aseg else set(NUCLEI)
    known = set(table.labels.tolist()) - {0}
    strange = sorted(present - known - beside)
    if strange:
        some = ", ".join(map(str, strange[:_NAMED])) + (" and more" if len(strange) > _NAMED else "")
        raise ImageError(
            f"labels {some} are not in the table {of_table(table.name).name}; "
            "allowed are FreeSurfer's numbers of it (aseg also takes aparc+aseg, hippoFS60 201 to 246 plus 1000 on the "
            "left and 2000 on the right). Is --table right?"
        )
    if not present & known:
        raise ImageError(f"no label is one of the table {of_table(table.name).name}")


def with_sums(rows: pd.DataFrame, table: LabelTable) -> pd.DataFrame:
    """Add sums of volumes after the rows: whole hippocampi without the fissure, as FreeSurfer has them, or all.

    Parameters
    ----------
    rows : pandas.DataFrame
        From :func:`measure_labels`.
    table : LabelTable
    """
    if of_table(table.name).volumes == CORRECTED:
        groups = {"All-structures": rows["StructName"].notna()}
    else:
        inside = ~rows["StructName"].str.contains(_FISSURE)
        groups = {
            f"{side}-Whole-hippocampus": inside & rows["StructName"].str.startswith(f"{side}-")
            for side in ("Left", "Right")
        }
    added = [_sum(rows[chosen], name) for name, chosen in groups.items()]
    return pd.concat([rows, pd.DataFrame(added)], ignore_index=True)[list(rows)]


def _sum(rows: pd.DataFrame, name: str) -> dict[str, float | str | int]:
    line = dict.fromkeys(rows, math.nan) | {"SegId": 0, "StructName": name, "Flag": ""}
    for column in ("NVoxels", "Volume_mm3", "SoftVolume_mm3"):
        line[column] = rows[column].sum(min_count=1)
    return line
