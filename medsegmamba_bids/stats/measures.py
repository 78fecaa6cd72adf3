"""Measures of the whole brain: numbers of voxels, a brain mask and a registration in, volumes out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from medsegmamba_bids.anatomy import (
    BRAIN_STEM,
    CALLOSUM,
    CEREBELLUM,
    CEREBRUM,
    FIFTH_VENTRICLE,
    HYPOINTENSITIES,
    LEFT_CORTEX,
    LEFT_WHITE_MATTER,
    OPTIC_CHIASM,
    OUTER_CSF,
    RIGHT_CORTEX,
    RIGHT_WHITE_MATTER,
    WHITE_MATTER,
)
from medsegmamba_bids.image.components import fill_holes
from medsegmamba_bids.image.grid import Box

VENTRICLES_AND_PLEXUS = (4, 5, 31, 43, 44, 63)
OTHER_CSF = (14, 15, 24)
CEREBELLUM_CORTEX = (8, 47)
SUBCORTICAL_GRAY = (10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60)

#: Hypointensities with a side, left and right, which only FreeSurfer's segmentations have.
WHITE_LESIONS = (78, 79)
#: Key in ``aseg.stats``, as samseg's, and name of the intracranial volume from the segmentation.
SEGMENTED_ICV = ("SegmentedTotalIntraCranialVol", "sbTIV")

#: Measures of the head's size, which tables of subfields have as well.
INTRACRANIAL = ("eTIV", "sbTIV")

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


def brain_measures(
    rows: pd.DataFrame, voxel_mm3: float = 1.0, hypointensities: tuple[int, int] | None = None
) -> list[Measure]:
    """Return measures of the whole brain, from numbers of voxels.

    FreeSurfer takes some of them from surfaces; these are all voxel-based. Definitions follow FreeSurfer 7
    (``ComputeBrainVolumeStats2``): BrainSeg has neither brain-stem nor optic chiasm; "NotVent" leaves out ventricles,
    choroid plexus and CSF; the supratentorial volume is BrainSeg without the cerebellum; white matter of the cerebrum
    includes hypointensities and corpus callosum, half of which counts on either side.

    Parameters
    ----------
    rows : pandas.DataFrame
        From ``stats.structures.structure_statistics``. Measures that need labels unknown to the weights, or cortex
        and white matter where the table has none, are left out.
    voxel_mm3 : float
        Volume of a voxel, mm3.
    hypointensities : tuple of int, optional
        Voxels of white-matter hypointensities on the left and on the right, from :func:`hypointensity_sides`; white
        matter of either side is left out without them.
    """
    volumes = dict(zip(rows["SegId"], rows["NVoxels"] * voxel_mm3, strict=True))

    def total(*labels: int) -> float:
        return float(sum(volumes.get(label, math.nan) for label in labels))

    def occurring(*labels: int) -> float:
        """Return the total of labels that only FreeSurfer's own segmentations have."""
        return float(sum(volumes.get(label, 0.0) for label in labels))

    brain = total(*({*volumes, *CEREBRUM} - {BRAIN_STEM, OPTIC_CHIASM, OUTER_CSF}))
    plexus = total(*VENTRICLES_AND_PLEXUS)
    fluid = plexus + total(*OTHER_CSF) + occurring(FIFTH_VENTRICLE)
    cerebellum = total(*CEREBELLUM)
    cortex = total(LEFT_CORTEX, RIGHT_CORTEX)
    half_callosum = occurring(*CALLOSUM) / 2
    white = (
        total(LEFT_WHITE_MATTER, RIGHT_WHITE_MATTER, HYPOINTENSITIES) + 2 * half_callosum + occurring(*WHITE_LESIONS)
    )
    left, right = (math.nan, math.nan) if hypointensities is None else hypointensities
    left_white = total(LEFT_WHITE_MATTER) + half_callosum + left * voxel_mm3 + occurring(WHITE_LESIONS[0])
    right_white = total(RIGHT_WHITE_MATTER) + half_callosum + right * voxel_mm3 + occurring(WHITE_LESIONS[1])
    subcortical = total(*SUBCORTICAL_GRAY)
    gray = cortex + subcortical + total(*CEREBELLUM_CORTEX)
    entries = [
        ("BrainSeg", "BrainSegVol", "Brain Segmentation Volume", brain),
        ("BrainSegNotVent", "BrainSegVolNotVent", "Brain Segmentation Volume Without Ventricles", brain - fluid),
        ("VentricleChoroidVol", "VentricleChoroidVol", "Volume of ventricles and choroid plexus", plexus),
        ("lhCortex", "lhCortexVol", "Left hemisphere cortical gray matter volume (voxel-based)", total(LEFT_CORTEX)),
        ("rhCortex", "rhCortexVol", "Right hemisphere cortical gray matter volume (voxel-based)", total(RIGHT_CORTEX)),
        ("Cortex", "CortexVol", "Total cortical gray matter volume (voxel-based)", cortex),
        ("lhCerebralWhiteMatter", "lhCerebralWhiteMatterVol", f"Left hemisphere {_WHITE}", left_white),
        ("rhCerebralWhiteMatter", "rhCerebralWhiteMatterVol", f"Right hemisphere {_WHITE}", right_white),
        ("CerebralWhiteMatter", "CerebralWhiteMatterVol", f"Total {_WHITE}", white),
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
    return [Measure(*entry) for entry in entries if not math.isnan(entry[3])]


_WHITE = "cerebral white matter volume (voxel-based)"
_NEAR = 5  # voxels around a hypointensity, in which white matter of its own side is looked for


def hypointensity_sides(labels: np.ndarray) -> tuple[int, int]:
    """Return voxels of white-matter hypointensities on the left and on the right; FreeSurfer's label 77 has no side.

    A voxel lies on the side that has more white matter and cortex within 5 voxels along each axis; of equals, and
    where there is none, on the side of the nearer mean position of white matter.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer labels.
    """
    box = Box.around(labels == HYPOINTENSITIES, margin=_NEAR + 1)
    if box is None:
        return 0, 0
    part = labels[box]
    places = np.argwhere(part == HYPOINTENSITIES) + box.start
    sign = np.isin(part, (LEFT_WHITE_MATTER, LEFT_CORTEX)).astype(np.float32)
    sign -= np.isin(part, (RIGHT_WHITE_MATTER, RIGHT_CORTEX))
    near = ndimage.uniform_filter(sign, 2 * _NEAR + 1, mode="constant")
    more = near[tuple((places - box.start).T)]
    return _divided(labels, places, more)


def _divided(labels: np.ndarray, places: np.ndarray, more: np.ndarray) -> tuple[int, int]:
    """Count the places with more on the left, and of the others those that are nearer to the left's middle."""
    equal = np.abs(more) < 0.5 / (2 * _NEAR + 1) ** 3
    left = int(np.count_nonzero(more[~equal] > 0))
    if equal.any():
        middles = [
            np.argwhere(labels[::4, ::4, ::4] == side).mean(0) * 4 for side in WHITE_MATTER if (labels == side).any()
        ]
        if len(middles) == 2:
            distances = [np.linalg.norm(places[equal] - middle, axis=1) for middle in middles]
            left += int(np.count_nonzero(distances[0] < distances[1]))
        else:
            left += int(np.count_nonzero(equal)) // 2
    return left, len(places) - left


def intracranial_mask(brain: np.ndarray, voxel_mm: float = 1.0) -> np.ndarray:
    """Return the brain with sulci and cisterns filled: the mask closed by 10 mm, all cavities included.

    An estimate of the space inside the skull from the segmentation alone. CSF over the brain's convexity counts
    only where it lies in a furrow, so it is lower than a manual tracing.

    Parameters
    ----------
    brain : bool (X, Y, Z)
    voxel_mm : float
        Edge of the isotropic voxels, mm.
    """
    reach = math.ceil(_CLOSING_MM / voxel_mm) + _COARSE
    out = brain.copy(order="K")
    box = Box.around(brain)
    if box is None:
        return out
    coarse = np.pad(_halved(brain[box]), reach)
    size = voxel_mm * _COARSE
    grown = ndimage.distance_transform_edt(~coarse, sampling=size) <= _CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=size) > _CLOSING_MM
    closed = fill_holes(closed)[(slice(reach, -reach),) * 3]
    for axis in range(3):
        closed = closed.repeat(_COARSE, axis)
    out[box] |= closed[Box.whole(out[box].shape)]
    return out


@dataclass(frozen=True, eq=False)
class IntracranialSpace:
    """Everything inside the skull.

    Attributes
    ----------
    mask : bool (X, Y, Z)
    from_classes : bool
        Whether it is all classes, of which one is the fluid around the brain; else the closed brain mask.
    """

    mask: np.ndarray
    from_classes: bool


def intracranial_space(labels: np.ndarray, brain: np.ndarray, voxel_mm: float = 1.0) -> IntracranialSpace:
    """Return everything inside the skull: all classes where they hold the fluid around the brain, else the closed brain
    mask.

    That a network knows this fluid does not mean that an image shows it: a head that was stripped to the brain may have
    a few voxels of it. The larger of both spaces is taken, as the closing fills no more than furrows; they are equally
    large where the choice changes, so that no voxel of fluid adds more than itself. In 26 heads that show the fluid,
    10 of them without a skull, classes hold 3 to 7 % more.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer labels.
    brain : bool (X, Y, Z)
        The brain mask; fluid around the brain in it does no harm.
    voxel_mm : float
        Edge of the isotropic voxels, mm.
    """
    fluid = labels == OUTER_CSF
    if not fluid.any():
        return IntracranialSpace(intracranial_mask(brain, voxel_mm), from_classes=False)
    classes = fill_holes((labels > 0) | brain)
    closed = intracranial_mask(brain & ~fluid, voxel_mm)
    from_classes = np.count_nonzero(classes) >= np.count_nonzero(closed)
    return IntracranialSpace(classes if from_classes else closed, bool(from_classes))


def _halved(mask: np.ndarray) -> np.ndarray:
    """Return every second voxel; true where any of its eight is."""
    even = np.pad(mask, [(0, side % _COARSE) for side in mask.shape])
    parts = even.reshape([n for side in even.shape for n in (side // _COARSE, _COARSE)])
    return parts.any(axis=(1, 3, 5))


def intracranial_measures(
    brain: np.ndarray | None,
    etiv: float | None,
    brain_segmented: float | None,
    template: str = "",
    voxel_mm3: float = 1.0,
    space: IntracranialSpace | None = None,
) -> list[Measure]:
    """Return volumes of brain mask and intracranial space, and their ratios.

    Parameters
    ----------
    brain : bool (X, Y, Z) or None
        The brain mask: the brain itself, without the fluid around it.
    etiv : float or None
        Estimated total intracranial volume from a registration, mm3.
    brain_segmented : float or None
        BrainSegVol, mm3.
    template : str
        What was registered to.
    voxel_mm3 : float
    space : IntracranialSpace, optional
        From :func:`intracranial_space`; the closed brain mask by default.
    """
    measures = []
    if brain is not None:
        description = "Volume of the brain mask (without the fluid around it; FreeSurfer's MaskVol has a margin)"
        measures.append(Measure("BrainMask", "BrainMaskVol", description, float(np.count_nonzero(brain)) * voxel_mm3))
        space = space or IntracranialSpace(intracranial_mask(brain, voxel_mm3 ** (1 / 3)), from_classes=False)
        how = "all classes inside the skull" if space.from_classes else "brain mask closed by 10 mm"
        text = f"Intracranial Volume from the segmentation ({how})"
        measures.append(Measure(*SEGMENTED_ICV, text, float(np.count_nonzero(space.mask)) * voxel_mm3))
    if etiv is None:
        return measures
    if brain_segmented is not None and etiv > 0:
        key = "BrainSegVol-to-eTIV"
        measures.append(Measure(key, key, "Ratio of BrainSegVol to eTIV", brain_segmented / etiv, "unitless"))
    text = f"Estimated Total Intracranial Volume (affine to {template})"
    measures.append(Measure("EstimatedTotalIntraCranialVol", "eTIV", text, etiv))
    return measures
