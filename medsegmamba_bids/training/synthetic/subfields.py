"""Training labels for hippocampal subfields, propagated from one atlas of the left side.

No licensed scans with FS60 labels are at hand. The atlas' hippocampus is registered to each hippocampus of a
label map by shape alone (mirrored for the right side) and the subfields are painted into it, so the result is
an anatomical prior on real hippocampal shapes, not what FreeSurfer would find in the image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from medsegmamba_bids.anatomy import RIGHT_HIPPOCAMPUS, SUBFIELDS_FROM
from medsegmamba_bids.image.grid import Box

#: Subfield of every atlas name, without its head/body suffix: FreeSurfer's FS60 labels (Iglesias et al. 2015).
#: The alveus is not an FS60 class; its voxels go to the nearest subfield.
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


@dataclass(frozen=True)
class SubfieldAtlas:
    """Subfields of one left hippocampus: labels int32 (X, Y, Z), LIA, 1 mm, cropped with a margin."""

    labels: np.ndarray


def load_atlas(image_path: Path, names_path: Path) -> SubfieldAtlas:
    """Reads the atlas and its names (JSON with ``labels``, a list by index)."""
    image = nib.load(image_path)  # no label image of ours: -1 is background
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LIA"))
    indices = np.asarray(image.as_reoriented(turn).dataobj)
    names = json.loads(Path(names_path).read_text(encoding="utf-8"))["labels"]
    labels = np.zeros(indices.shape, np.int32)
    for index, name in enumerate(names):
        stem = name.removesuffix("-head").removesuffix("-body")
        if stem in SUBFIELDS:
            labels[indices == index] = SUBFIELDS[stem]
    return SubfieldAtlas(_crop(labels > 0, labels))


def paint_subfields(labels: np.ndarray, atlas: SubfieldAtlas) -> np.ndarray:
    """Replaces labels 17 and 53 by subfields.

    Parameters
    ----------
    labels : int (X, Y, Z), FreeSurfer labels, LIA, 1 mm
    atlas : SubfieldAtlas

    Returns
    -------
    int32 (X, Y, Z), the same with 1203..1226 on the left and 2203..2226 on the right
    """
    painted = labels.astype(np.int32).copy()
    for side, offset in SUBFIELDS_FROM.items():
        mask = labels == side
        if not mask.any():
            continue
        box = Box.around(mask, MARGIN_MM)
        mirrored = side == RIGHT_HIPPOCAMPUS
        local = mask[box][::-1] if mirrored else mask[box]
        subfields = propagate(atlas, local)
        if mirrored:
            subfields = subfields[::-1]
        painted[box][mask[box]] = subfields[mask[box]] + offset
    return painted


def propagate(atlas: SubfieldAtlas, mask: np.ndarray) -> np.ndarray:
    """Subfields in a left hippocampus' mask (A, B, D): registration of distance maps, then nearest label."""
    fixed, moving = _distance_image(mask), _distance_image(atlas.labels > 0)
    transform = _register(fixed, moving)
    atlas_image = sitk.GetImageFromArray(atlas.labels.astype(np.int16))
    warped = sitk.GetArrayFromImage(sitk.Resample(atlas_image, fixed, transform, sitk.sitkNearestNeighbor, 0))
    nearest = ndimage.distance_transform_edt(warped == 0, return_distances=False, return_indices=True)
    return np.where(mask, warped[tuple(nearest)], 0)


def _register(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    """Moments, then affine, then demons; deterministic (every voxel is used)."""
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
    demons.SetStandardDeviations(1.5)
    field = sitk.DisplacementFieldTransform(sitk.Cast(demons.Execute(fixed, near), sitk.sitkVectorFloat64))
    return sitk.CompositeTransform([affine, field])


def _distance_image(mask: np.ndarray) -> sitk.Image:
    """Signed distance to the surface in mm, limited to +-FAR_MM: the shape's inside and near surroundings."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return sitk.GetImageFromArray(np.clip(outside - inside, -FAR_MM, FAR_MM).astype(np.float32))


def _crop(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.pad(labels, MARGIN_MM)[Box.around(np.pad(mask, MARGIN_MM), MARGIN_MM)]
