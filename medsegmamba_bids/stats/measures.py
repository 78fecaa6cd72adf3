"""Labels and intensities in, numbers out: a row per structure, and measures of the whole brain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from medsegmamba_bids.anatomy import (
    BRAIN_STEM,
    CEREBRUM,
    HYPOINTENSITIES,
    LEFT_CORTEX,
    LEFT_WHITE_MATTER,
    RIGHT_CORTEX,
    RIGHT_WHITE_MATTER,
)
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import LabelTable
from medsegmamba_bids.stats.partial_volume import corrected_counts

NOT_FOUND = "not found"
UNKNOWN = "unknown to the weights"

VENTRICLES_AND_PLEXUS = (4, 5, 31, 43, 44, 63)
OTHER_CSF = (14, 15, 24)
CEREBELLUM = (7, 8, 46, 47)
CEREBELLUM_CORTEX = (8, 47)
SUBCORTICAL_GRAY = (10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60)

_CLOSING_MM = 10.0
_COARSE = 2  # the closing is done on every second voxel


@dataclass(frozen=True)
class Measure:
    """A number about the whole brain, as FreeSurfer lists them in ``aseg.stats``.

    Attributes
    ----------
    key, name, description, unit : str
        ``# Measure <key>, <name>, <description>, <value>, <unit>``.
    value : float
    """

    key: str
    name: str
    description: str
    value: float
    unit: str = "mm^3"


def structure_statistics(
    labels: np.ndarray,
    guide: np.ndarray,
    table: LabelTable,
    voxel_mm3: float = 1.0,
    soft_volumes: Mapping[int, float] | None = None,
    mean_posteriors: Mapping[int, float] | None = None,
) -> pd.DataFrame:
    """Measure each structure of a label table.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer labels.
    guide : (X, Y, Z)
        Intensities, bias field corrected, white matter near 110.
    table : LabelTable
        Its rows but the background are those of the result.
    voxel_mm3 : float
        Volume of a voxel, mm3.
    soft_volumes : mapping of int to float, optional
        Sum of the posteriors of each label that the weights know, mm3. A label without an entry was not looked
        for: its numbers are missing, not 0.
    mean_posteriors : mapping of int to float, optional

    Returns
    -------
    pandas.DataFrame
        Columns as ``stats.tables.COLUMNS`` describes them; missing numbers are NaN.
    """
    indices = table.to_indices(labels)
    n_classes = len(table.labels)
    known = set(map(int, table.labels)) if soft_volumes is None else set(soft_volumes)
    voxels = np.bincount(indices.ravel(), minlength=n_classes)
    rows = pd.DataFrame({"SegId": table.labels, "StructName": table.names, "NVoxels": voxels.astype(float)})
    rows["Volume_mm3"] = corrected_counts(indices, guide, n_classes) * voxel_mm3
    for column, values in (("SoftVolume_mm3", soft_volumes), ("MeanPosterior", mean_posteriors)):
        rows[column] = [math.nan if values is None else values.get(int(one), math.nan) for one in table.labels]
    rows = rows.join(_intensities(indices, guide, n_classes))
    rows["Flag"] = np.where(voxels == 0, NOT_FOUND, "")
    absent = voxels == 0
    # Partial volume may leave a class without voxels a trace; it was not found all the same.
    rows.loc[absent, "Volume_mm3"] = 0.0
    unknown = ~rows["SegId"].isin(known)
    rows.loc[unknown, [name for name in rows if name not in ("SegId", "StructName", "Flag")]] = math.nan
    rows.loc[unknown, "Flag"] = UNKNOWN
    return rows.iloc[1:].reset_index(drop=True)


def _intensities(indices: np.ndarray, guide: np.ndarray, n_classes: int) -> pd.DataFrame:
    """Mean, standard deviation (of a sample, as FreeSurfer's), lowest, highest and range of each class."""
    box = Box.around(indices) or Box.empty()
    inside = indices[box] > 0
    classes, values = indices[box][inside], guide[box][inside].astype(np.float64)
    counts = np.bincount(classes, minlength=n_classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.bincount(classes, values, minlength=n_classes) / counts
        squares = np.bincount(classes, (values - means[classes]) ** 2, minlength=n_classes)
        deviations = np.where(counts == 1, 0.0, np.sqrt(squares / (counts - 1)))
    lowest, highest = np.full(n_classes, np.inf), np.full(n_classes, -np.inf)
    np.minimum.at(lowest, classes, values)
    np.maximum.at(highest, classes, values)
    columns = {"normMean": means, "normStdDev": deviations, "normMin": lowest, "normMax": highest}
    columns["normRange"] = np.subtract(highest, lowest, where=counts > 0, out=np.full(n_classes, np.nan))
    out = pd.DataFrame(columns)
    out.loc[counts == 0] = math.nan
    return out


def brain_measures(rows: pd.DataFrame, voxel_mm3: float = 1.0) -> list[Measure]:
    """Measures of the whole brain, from numbers of voxels.

    FreeSurfer takes some of them from surfaces; these are all voxel-based. Definitions follow FreeSurfer 7
    (``ComputeBrainVolumeStats2``): BrainSeg has no brain-stem; "NotVent" leaves out ventricles,
    choroid plexus and CSF; the supratentorial volume is BrainSeg without the cerebellum.

    Parameters
    ----------
    rows : pandas.DataFrame
        From :func:`structure_statistics`. Measures that need labels unknown to the weights, or cortex and white
        matter where the table has none, are left out.
    voxel_mm3 : float
        Volume of a voxel, mm3.
    """
    volumes = dict(zip(rows["SegId"], rows["NVoxels"] * voxel_mm3, strict=True))

    def total(*labels: int) -> float:
        return float(sum(volumes.get(label, math.nan) for label in labels))

    brain = total(*({*volumes, *CEREBRUM} - {BRAIN_STEM}))
    plexus = total(*VENTRICLES_AND_PLEXUS)
    fluid = plexus + total(*OTHER_CSF)
    cerebellum = total(*CEREBELLUM)
    cortex = total(LEFT_CORTEX, RIGHT_CORTEX)
    white = total(LEFT_WHITE_MATTER, RIGHT_WHITE_MATTER, HYPOINTENSITIES)
    subcortical = total(*SUBCORTICAL_GRAY)
    gray = cortex + subcortical + total(*CEREBELLUM_CORTEX)
    found = [
        ("BrainSeg", "BrainSegVol", "Brain Segmentation Volume", brain),
        ("BrainSegNotVent", "BrainSegVolNotVent", "Brain Segmentation Volume Without Ventricles", brain - fluid),
        ("VentricleChoroidVol", "VentricleChoroidVol", "Volume of ventricles and choroid plexus", plexus),
        ("lhCortex", "lhCortexVol", "Left hemisphere cortical gray matter volume (voxel-based)", total(LEFT_CORTEX)),
        ("rhCortex", "rhCortexVol", "Right hemisphere cortical gray matter volume (voxel-based)", total(RIGHT_CORTEX)),
        ("Cortex", "CortexVol", "Total cortical gray matter volume (voxel-based)", cortex),
        ("CerebralWhiteMatter", "CerebralWhiteMatterVol", "Total cerebral white matter volume (voxel-based)", white),
        ("SubCortGray", "SubCortGrayVol", "Subcortical gray matter volume", subcortical),
        ("TotalGray", "TotalGrayVol", "Total gray matter volume (voxel-based)", gray),
        ("SupraTentorial", "SupraTentorialVol", "Supratentorial volume (voxel-based)", brain - cerebellum),
        (
            "SupraTentorialNotVent",
            "SupraTentorialVolNotVent",
            "Supratentorial volume without ventricles (voxel-based)",
            brain - cerebellum - fluid,
        ),
    ]
    return [Measure(*entry) for entry in found if not math.isnan(entry[3])]


def intracranial_mask(brain: np.ndarray, voxel_mm: float = 1.0) -> np.ndarray:
    """The brain with sulci and cisterns filled: the mask closed by 10 mm, all cavities included.

    An estimate of the space inside the skull from the segmentation alone. CSF over the brain's convexity counts
    only where it lies in a furrow, so it is lower than a manual tracing.

    Parameters
    ----------
    brain : bool (X, Y, Z)
    voxel_mm : float
        Edge of the isotropic voxels, mm.
    """
    reach = math.ceil(_CLOSING_MM / voxel_mm) + _COARSE
    out = brain.copy()
    box = Box.around(brain)
    if box is None:
        return out
    coarse = np.pad(_halved(brain[box]), reach)
    size = voxel_mm * _COARSE
    grown = ndimage.distance_transform_edt(~coarse, sampling=size) <= _CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=size) > _CLOSING_MM
    closed = ndimage.binary_fill_holes(closed)[(slice(reach, -reach),) * 3]
    for axis in range(3):
        closed = closed.repeat(_COARSE, axis)
    out[box] |= closed[Box.whole(out[box].shape)]
    return out


def _halved(mask: np.ndarray) -> np.ndarray:
    """Every second voxel; true where any of its eight is."""
    even = np.pad(mask, [(0, side % _COARSE) for side in mask.shape])
    parts = even.reshape([n for side in even.shape for n in (side // _COARSE, _COARSE)])
    return parts.any(axis=(1, 3, 5))


def intracranial_measures(
    brain: np.ndarray | None,
    etiv: float | None,
    brain_segmented: float | None,
    template: str = "",
    voxel_mm3: float = 1.0,
) -> list[Measure]:
    """Volumes of brain mask and intracranial space, and their ratios.

    Parameters
    ----------
    brain : bool (X, Y, Z) or None
        The brain mask.
    etiv : float or None
        Estimated total intracranial volume from a registration, mm3.
    brain_segmented : float or None
        BrainSegVol, mm3.
    template : str
        What was registered to.
    voxel_mm3 : float
    """
    found = []
    mask_volume = None
    if brain is not None:
        mask_volume = float(np.count_nonzero(brain)) * voxel_mm3
        inside = float(np.count_nonzero(intracranial_mask(brain, voxel_mm3 ** (1 / 3)))) * voxel_mm3
        found.append(Measure("Mask", "MaskVol", "Mask Volume", mask_volume))
        text = "Intracranial Volume from the segmentation (brain mask closed by 10 mm)"
        found.append(Measure("SegmentedIntraCranialVol", "sbTIV", text, inside))
    if etiv is None:
        return found
    for name, volume in (("BrainSegVol", brain_segmented), ("MaskVol", mask_volume)):
        if volume is not None and etiv > 0:
            key = f"{name}-to-eTIV"
            found.append(Measure(key, key, f"Ratio of {name} to eTIV", volume / etiv, "unitless"))
    text = f"Estimated Total Intracranial Volume (affine to {template})"
    found.append(Measure("EstimatedTotalIntraCranialVol", "eTIV", text, etiv))
    return found
