"""Training labels for hippocampal subfields, propagated from one atlas of the left side.

No licensed scans with FS60 labels are at hand. The atlas' hippocampus is registered to each hippocampus of a
label map by shape (mirrored for the right side) and the subfields are painted into it. Where an atlas has its
``share``, borders then follow the image as FreeSurfer's do (``subfield_tissues``).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from medsegmamba_bids.anatomy import RIGHT_HIPPOCAMPUS, SUBFIELDS_FROM
from medsegmamba_bids.data import data_path
from medsegmamba_bids.image.geometry import turn_to_lia
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.training.synthetic.subfield_tissues import (
    ALVEUS,
    evidence,
    fluid_level,
    surroundings,
    white_level,
)

if TYPE_CHECKING:
    import SimpleITK as sitk  # 50 MB that training on whole brains does without

#: Subfield of every atlas name, without its head/body suffix: FreeSurfer's FS60 labels (Iglesias et al. 2015).
SUBFIELDS = {
    "Hippocampal_tail": 226,
    "subiculum": 205,
    "CA1": 206,
    "hippocampal-fissure": 215,
    "presubiculum": 204,
    "parasubiculum": 203,
    "molecular_layer_HP": 214,
    "GC-ML-DG": 210,
    "CA3": 208,
    "CA4": 209,
    "fimbria": 212,
    "HATA": 211,
}
MARGIN_MM = 12
FAR_MM = 6.0
#: How soft borders are where they are moved, and when moving them ends.
SOFT_MM, MOVES = 0.7, 300
#: How smooth the atlas is bent (standard deviation, mm): with and without a share of its own.
SMOOTH_MM, SMOOTHER_MM = 1.5, 2.5


@dataclass(frozen=True)
class SubfieldAtlas:
    """Subfields of one left hippocampus.

    Attributes
    ----------
    labels : int32 (X, Y, Z), LIA, 1 mm, cropped with a margin; ``ALVEUS`` besides subfields where there is a share
    volumes : mapping of int to float, or None
        Proportions to be met in every hippocampus that is painted; None: those that come of it.
    share : float
        How much of aseg's hippocampus is subfields; 0: all of it, by shape alone.
    """

    labels: np.ndarray
    volumes: Mapping[int, float] | None = None
    share: float = 0.0


def published_volumes() -> dict[int, float]:
    """Return mean volumes that FreeSurfer gives in adults, mm3 (the file says whose)."""
    rows = pd.read_csv(data_path("synthesis/hippoFS60_volumes.tsv"), sep="\t", comment="#")
    return dict(zip(rows["label"].tolist(), rows["volume"].tolist(), strict=True))


def with_volumes(
    labels: np.ndarray, volumes: Mapping[int, float], seen: Mapping[int, np.ndarray] | None = None
) -> np.ndarray:
    """Return subfields with their inner borders moved until they have these proportions; the outer border stays.

    Every subfield's mask is blurred to a likelihood, and the most likely one wins after each has been favoured or
    held back as its volume demands; who is nowhere likely gains nothing there, so that the pattern stays.

    Parameters
    ----------
    labels : int (X, Y, Z), one hippocampus, 1 mm
    volumes : mapping of int to float
        Of every subfield present, of any size: only their proportions count.
    seen : mapping of int to float (X, Y, Z), optional
        Of every subfield present how likely it is by what an image shows, logarithms.
    """
    inside = labels > 0
    present = np.unique(labels[inside])
    likely = [ndimage.gaussian_filter((labels == label).astype(float), SOFT_MM)[inside] for label in present]
    logarithm = np.log(np.array(likely) + 1e-6)
    if seen is not None:
        logarithm += [seen[int(label)][inside] for label in present]
    wanted = np.array([volumes[int(label)] for label in present], float)
    wanted *= inside.sum() / wanted.sum()
    best, least, favour = np.searchsorted(present, labels[inside]), np.inf, np.zeros(len(present))
    for _ in range(MOVES):
        winner = (logarithm + favour[:, None]).argmax(0)
        volumes = np.bincount(winner, minlength=len(present))
        wrong = np.abs(volumes - wanted).sum()
        if wrong < least:
            best, least = winner, wrong
        favour += 0.1 * np.log((wanted + 1) / (volumes + 1))
    moved = labels.copy()
    moved[inside] = present[best]
    return moved


def atlas_volumes(atlas: SubfieldAtlas) -> dict[int, float]:
    """Return voxels of every subfield of the atlas."""
    subfields = atlas.labels[(atlas.labels > 0) & (atlas.labels != ALVEUS)]
    present, counts = np.unique(subfields, return_counts=True)
    return dict(zip(present.tolist(), counts.astype(float).tolist(), strict=True))


def with_published_volumes(atlas: SubfieldAtlas) -> SubfieldAtlas:
    """Return the atlas, to be painted with the proportions that are published for adults."""
    return replace(atlas, volumes=published_volumes())


def of_a_person(atlas: SubfieldAtlas, name: str, spread: float) -> SubfieldAtlas:
    """Return the atlas, to be painted as it might be in someone else: every proportion is multiplied by a random
    factor.

    Parameters
    ----------
    atlas : SubfieldAtlas
    name : str
        Of the person; the same name gives the same factors, on both sides.
    spread : float
        Standard deviation of the factors' logarithms; 0 leaves the atlas alone.
    """
    if not spread:
        return atlas
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    volumes = atlas.volumes or atlas_volumes(atlas)
    return replace(atlas, volumes={label: volumes[label] * np.exp(rng.normal(0, spread)) for label in sorted(volumes)})


def load_atlas(image_path: Path, names_path: Path, share: float = 0.0) -> SubfieldAtlas:
    """Read the atlas and its names (JSON with ``labels``, a list by index).

    The alveus is no subfield: it is what is left of the hippocampus where there is a ``share``; else its voxels go to
    the nearest subfield.
    """
    image = nib.load(image_path)  # no label image of ours: -1 is background
    indices = np.asarray(turn_to_lia(image).dataobj)
    names = json.loads(Path(names_path).read_text(encoding="utf-8"))["labels"]
    numbers = {**SUBFIELDS, "alveus": ALVEUS} if share else SUBFIELDS
    labels = np.zeros(indices.shape, np.int32)
    for index, name in enumerate(names):
        stem = name.removesuffix("-head").removesuffix("-body")
        if stem in numbers:
            labels[indices == index] = numbers[stem]
    return SubfieldAtlas(_crop(labels > 0, labels), share=share)


def paint_subfields(labels: np.ndarray, atlas: SubfieldAtlas, image: np.ndarray | None = None) -> np.ndarray:
    """Replace labels 17 and 53 by subfields.

    Parameters
    ----------
    labels : int (X, Y, Z), FreeSurfer labels, LIA, 1 mm
    atlas : SubfieldAtlas
        Where it has a share, the rest of 17 and 53 stays what it is, and subfields may reach into what lies beside.
    image : (X, Y, Z), white matter near 1; only where the atlas has a share

    Returns
    -------
    int32 (X, Y, Z), the same with 1203..1226 on the left and 2203..2226 on the right
    """
    painted = labels.astype(np.int32).copy()
    fluid = fluid_level(image, labels) if atlas.share else 0.0
    for side, offset in SUBFIELDS_FROM.items():
        mask = labels == side
        if not mask.any():
            continue
        box = Box.around(mask, MARGIN_MM)
        turned = np.s_[::-1] if side == RIGHT_HIPPOCAMPUS else np.s_[:]
        local = mask[box][turned]
        if atlas.share:
            white = white_level(image[box], labels[box])
            subfields = _propagate_as_seen(atlas, local, image[box][turned] / white, fluid / white)
        else:
            subfields = propagate(atlas, local)
        subfields = subfields[turned]
        painted[box][subfields > 0] = subfields[subfields > 0] + offset
    return painted


def propagate(atlas: SubfieldAtlas, mask: np.ndarray) -> np.ndarray:
    """Return subfields in a left hippocampus' mask (A, B, D): registration of distance maps, then nearest label."""
    warped = _warped(atlas, mask, SMOOTH_MM)
    nearest = ndimage.distance_transform_edt(warped == 0, return_distances=False, return_indices=True)
    subfields = np.where(mask, warped[tuple(nearest)], 0)
    return subfields if atlas.volumes is None else with_volumes(subfields, atlas.volumes)


def _propagate_as_seen(atlas: SubfieldAtlas, mask: np.ndarray, image: np.ndarray, fluid: float) -> np.ndarray:
    """Return subfields in and around a left hippocampus' mask (A, B, D), as many as its share, where the image has
    them.
    """
    warped = _warped(atlas, mask, SMOOTHER_MM)
    near = surroundings(mask)
    pattern = np.where(near, np.where(warped == 0, ALVEUS, warped), 0)
    wanted = atlas.volumes or atlas_volumes(atlas)
    scale = atlas.share * mask.sum() / sum(wanted.values())
    volumes = {label: volume * scale for label, volume in wanted.items()}
    volumes[ALVEUS] = near.sum() - atlas.share * mask.sum()
    found = with_volumes(pattern, volumes, evidence(image, mask, fluid, np.unique(pattern[near])))
    return np.where(found == ALVEUS, 0, found)


def _warped(atlas: SubfieldAtlas, mask: np.ndarray, smooth_mm: float) -> np.ndarray:
    """Return the atlas' labels bent to a mask."""
    import SimpleITK as sitk

    fixed, moving = _distance_image(mask), _distance_image(atlas.labels > 0)
    transform = _register(fixed, moving, smooth_mm)
    atlas_image = sitk.GetImageFromArray(atlas.labels.astype(np.int16))
    return sitk.GetArrayFromImage(sitk.Resample(atlas_image, fixed, transform, sitk.sitkNearestNeighbor, 0))


def _register(fixed: sitk.Image, moving: sitk.Image, smooth_mm: float) -> sitk.Transform:
    """Register by moments, then affine, then demons; deterministic (every voxel is used)."""
    import SimpleITK as sitk

    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2])
    method.SetSmoothingSigmasPerLevel([0])
    method.SetInitialTransform(start, inPlace=False)
    affine = method.Execute(fixed, moving)
    near = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, FAR_MM)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(60)
    demons.SetStandardDeviations(smooth_mm)
    field = sitk.DisplacementFieldTransform(sitk.Cast(demons.Execute(fixed, near), sitk.sitkVectorFloat64))
    return sitk.CompositeTransform([affine, field])


def _distance_image(mask: np.ndarray) -> sitk.Image:
    """Return the signed distance to the surface in mm, limited to +-FAR_MM: the shape and its surroundings."""
    import SimpleITK as sitk

    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return sitk.GetImageFromArray(np.clip(outside - inside, -FAR_MM, FAR_MM).astype(np.float32))


def _crop(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.pad(labels, MARGIN_MM)[Box.around(np.pad(mask, MARGIN_MM), MARGIN_MM)]
