"""What Python programs call: images in, labels, volumes and their agreement out.

``import medsegmamba_bids`` has all of these names; each is imported when it is first used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from medsegmamba_bids.anatomy import WHITE_MATTER
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.evaluation.metrics import structure_metrics
from medsegmamba_bids.image.components import fill_holes
from medsegmamba_bids.image.geometry import labels_to_grid, resample
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.header import describe_orientation, orientation_code
from medsegmamba_bids.image.intensity import normalize
from medsegmamba_bids.image.io import (
    check_image,
    check_labels,
    check_writable,
    load_image,
    load_labels,
    place,
    save_image,
    write_text,
)
from medsegmamba_bids.image.labels import LabelTable, is_one_of, join_brain_labels, load_label_table, merge_parcels
from medsegmamba_bids.image.masks import check_mask, load_mask
from medsegmamba_bids.inference.merge import Segmentation
from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter
from medsegmamba_bids.inference.single import ConformedSegmentation, check_not_empty, conform_and_segment
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, of_table
from medsegmamba_bids.stats.any_labels import check_no_subfields, check_overlap, without_skull
from medsegmamba_bids.stats.contrast import describe_contrast
from medsegmamba_bids.stats.measures import (
    brain_measures,
    hypointensity_sides,
    intracranial_measures,
    intracranial_space,
)
from medsegmamba_bids.stats.structures import structure_statistics
from medsegmamba_bids.stats.tables import COLUMNS, to_aseg_stats, to_tsv

__all__ = ["InferenceSettings", "SegmentedImage", "Segmenter", "compare", "load_image", "segment", "statistics"]

logger = logging.getLogger(__name__)

Image = nib.spatialimages.SpatialImage
ImageOrPath = Image | str | os.PathLike

_NAMED = 8  # labels that a sentence lists


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """What `segment` makes of an image.

    Attributes
    ----------
    aseg : nibabel image, uint16 (X, Y, Z)
        FreeSurfer's labels of the subcortical structures, on the image's own grid.
    subfields : nibabel image, uint16 (X, Y, Z), or None
        FreeSurfer's labels (FS60) of the hippocampal subfields there; None if they were not asked for or no
        hippocampus was found.
    notes : tuple of str
        What is worth knowing, a sentence each.
    conformed : ConformedSegmentation
        The image at 1 mm, and labels, entropy and soft volumes there: what ``volumes`` is measured on.
    """

    aseg: Image
    subfields: Image | None
    notes: tuple[str, ...]
    conformed: ConformedSegmentation

    @cached_property
    def volumes(self) -> pd.DataFrame:
        """A row per structure, subfields last, with the columns of the app's ``*_stats.tsv``; volumes in mm3.

        Measured when it is first asked for, which takes the time of a bias-field correction.
        """
        image, aseg = self.conformed.image, self.conformed.aseg
        data = np.asanyarray(image.dataobj)
        brain = fill_holes(data > 0) if aseg.brain_mask is None else aseg.brain_mask
        # Weights that know no white matter have no mask either: its peak is looked for instead.
        white_matter = None if aseg.brain_mask is None else is_one_of(aseg.labels, WHITE_MATTER)
        guide = normalize(data, brain, white_matter)
        guide = np.where(intracranial_space(aseg.labels, brain).mask, guide, np.float32(0))  # as in FreeSurfer's norm
        parts = [(aseg, ASEG.listed)]
        if self.conformed.hippocampus is not None:
            parts.append((self.conformed.hippocampus, HIPPOCAMPUS.listed))
        return pd.concat([_measured(*part, guide) for part in parts], ignore_index=True)[list(COLUMNS)]

    @property
    def aseg_stats(self) -> str:
        """Text of FreeSurfer's ``aseg.stats``; without an intracranial volume from a registration."""
        rows = self.volumes[~self.volumes["SegId"].isin(load_label_table(HIPPOCAMPUS.listed).labels)]
        aseg = self.conformed.aseg
        measures = brain_measures(rows, hypointensities=hypointensity_sides(aseg.labels))
        whole = next((measure.value for measure in measures if measure.name == "BrainSegVol"), None)
        if aseg.brain_mask is not None:
            space = intracranial_space(aseg.labels, aseg.brain_mask)
            measures += intracranial_measures(aseg.brain_mask, None, whole, space=space)
        return to_aseg_stats(rows, measures, "image", {})

    def save(
        self,
        aseg: str | os.PathLike | None = None,
        subfields: str | os.PathLike | None = None,
        volumes: str | os.PathLike | None = None,
        fs_stats: str | os.PathLike | None = None,
    ) -> list[Path]:
        """Write what is named, each file in one go.

        Parameters
        ----------
        aseg, subfields : path, optional
            ``.nii``, ``.nii.gz`` or ``.mgz``. Subfields that were not segmented are not written.
        volumes : path, optional
            The table as tab-separated text; missing numbers are ``n/a``.
        fs_stats : path, optional
            FreeSurfer's ``aseg.stats``.

        Returns
        -------
        list of Path
            What was written.

        Raises
        ------
        ImageError
            An image cannot be written there: the extension is another one, or the folder is absent.
        """
        asked = ((self.aseg, aseg, ASEG), (self.subfields, subfields, HIPPOCAMPUS))
        images = [(image, path, kind) for image, path, kind in asked if path]
        for _, path, _ in images:
            check_writable(path)
        written = [
            save_image(
                *(np.asanyarray(image.dataobj), image.affine, path),
                code=orientation_code(image),
                segmentation=kind.name,
            )
            for image, path, kind in images
            if image is not None
        ]
        for path, text in ((volumes, lambda: to_tsv(self.volumes)), (fs_stats, lambda: self.aseg_stats)):
            if path:
                written.append(write_text(path, text()))
        return written


def _measured(segmentation: Segmentation, table: str, guide: np.ndarray) -> pd.DataFrame:
    present = {label: mean for label, mean in segmentation.mean_posterior.items() if segmentation.voxels[label]}
    return structure_statistics(
        segmentation.labels,
        guide,
        load_label_table(table),
        soft_volumes=segmentation.soft_volumes,
        mean_posteriors=present,
    )


def segment(
    image: ImageOrPath,
    *,
    hippocampus: bool = False,
    weights: str | os.PathLike | None = None,
    hippocampus_weights: str | os.PathLike | None = None,
    segmenter: Segmenter | None = None,
) -> SegmentedImage:
    """Segment a T1-weighted image.

    Does not strip skulls and does not normalise intensities: the image must be what the weights expect, which for
    those of the package is the whole head as the scanner made it.

    Parameters
    ----------
    image : path or nibabel image (X, Y, Z)
        NIfTI or MGZ. What `load_image` says of files holds for images in memory as well.
    hippocampus : bool
        Segment the hippocampal subfields as well.
    weights, hippocampus_weights : path or str, optional
        A weights file or the name of one; those of the package by default.
    segmenter : Segmenter, optional
        Keeps the networks from one image to the next, and says on what device they run and how.

    Returns
    -------
    SegmentedImage

    Raises
    ------
    ImageError
        The image cannot be used.
    WeightsError, SegmentationError
        The weights cannot be used or do not fit the segmenter's settings, or nothing was found.
    """
    segmenter = segmenter or Segmenter()
    head = _taken(image, load_image, check_image)
    name = image if isinstance(image, (str, os.PathLike)) else "the image"
    if odd := describe_orientation(head):
        logger.warning("%s: %s", name, odd)
    conformed = conform_and_segment(segmenter, head, weights, hippocampus, hippocampus_weights)
    check_not_empty(conformed.aseg, name)
    notes = list(conformed.notes)
    if other := describe_contrast(np.asanyarray(conformed.image.dataobj), conformed.aseg.labels):
        logger.warning("%s: %s", name, other)
        notes.append(other)
    labels = conformed.on_grid_of(head)
    subfields = None if labels.hippocampus is None else _like(labels.hippocampus, head)
    return SegmentedImage(_like(labels.aseg, head), subfields, tuple(notes), conformed)


def _like(labels: np.ndarray, image: Image) -> nib.Nifti1Image:
    """Return labels as an image with the affine of another, and its code."""
    made = nib.Nifti1Image(labels, image.affine)
    place(made, image.affine, orientation_code(image))
    return made


def statistics(
    labels: ImageOrPath, image: ImageOrPath, *, table: str = ASEG.listed, brain: ImageOrPath | None = None
) -> pd.DataFrame:
    """Measure the structures of a label image, of whatever origin.

    Parameters
    ----------
    labels : path or nibabel image (X, Y, Z)
        FreeSurfer's labels; those outside the table are background. Parcels of aparc+aseg and wmparc count as cortex
        and white matter.
    image : path or nibabel image
        The T1-weighted image of the same space. It is resampled linearly to the grid of the labels where it lies on
        another. What it shows outside the skull counts as 0, where the labels cover the brain or ``brain`` is given.
    table : {"aseg_brain", "aseg", "hippoFS60"}
        The structures to measure: aseg with cerebral cortex and white matter, without them, or subfields.
    brain : path or nibabel image, optional
        A brain mask. With it intensities are corrected for the bias field and white matter is brought to 110, as the
        app does; without it they are taken as they are.

    Returns
    -------
    pandas.DataFrame
        A row per structure, with the columns of the app's ``*_stats.tsv``: volumes in mm3, corrected for partial
        volume and not; what only a network knows is NaN.

    Raises
    ------
    ImageError
        An image cannot be used, none of its labels is in the table, or the image is 0 wherever there are labels.
    ValueError
        There is no such table.
    """
    structures = load_label_table(table)
    segmented = _taken(labels, load_labels, check_labels)
    data, voxel_mm3 = np.asanyarray(segmented.dataobj), Grid.of(segmented).voxel_mm3
    if of_table(table) is ASEG:
        _check_structures(data, labels)
        data = merge_parcels(data)
    _check_found(data, structures)
    guide = _on_grid(_taken(image, load_image, check_image), segmented)
    check_overlap(guide, data)
    if brain is None:
        guide = without_skull(guide, data, voxel_mm3)
    else:
        mask = _on_grid(_taken(brain, load_mask, check_mask), segmented) >= 0.5
        guide = normalize(guide, mask, is_one_of(data, WHITE_MATTER))
        guide = np.where(intracranial_space(data, mask, voxel_mm3 ** (1 / 3)).mask, guide, guide.dtype.type(0))
    return structure_statistics(data, guide, structures, voxel_mm3)[list(COLUMNS)]


def _check_found(labels: np.ndarray, table: LabelTable, name: str = "the labels") -> None:
    """Refuse labels of another table: zeros would pass for volumes. An image without labels has those."""
    if labels.any() and not is_one_of(labels, table.labels[1:]).any():
        some = ", ".join(map(str, np.unique(labels[labels > 0])[:_NAMED]))
        raise ImageError(
            f"{name} ({some}) are none of the table {table.name}: aseg has FreeSurfer's own numbers, hippoFS60 "
            "201 to 246 plus 1000 on the left and 2000 on the right"
        )


def _taken(source: ImageOrPath, load: Callable[[str | os.PathLike], Image], check: Callable[[Image], Image]) -> Image:
    """Return an image from a file, or one in memory that is held to the same."""
    return load(source) if isinstance(source, (str, os.PathLike)) else check(source)


def _check_structures(labels: np.ndarray, source: ImageOrPath) -> None:
    """Refuse subfields where structures of the whole brain are asked for, with the name of their file."""
    try:
        check_no_subfields(labels)
    except ImageError as error:
        name = source if isinstance(source, (str, os.PathLike)) else "the labels"
        raise ImageError(f"{name}: {error}") from error


def _on_grid(image: Image, like: Image) -> np.ndarray:
    """Return intensities on the grid of another image."""
    data = np.asanyarray(image.dataobj)
    if Grid.of(image).same_as(Grid.of(like)):
        return data
    return resample(data, Grid.of(image), Grid.of(like))


def compare(labels: ImageOrPath, reference: ImageOrPath, *, table: str = ASEG.published) -> pd.DataFrame:
    """Say how well a label image agrees with a reference, structure by structure.

    Labels on another grid are resampled to that of the reference. Parcels of aparc+aseg and wmparc count as cortex and
    white matter, the corpus callosum as white matter.

    Parameters
    ----------
    labels, reference : path or nibabel image (X, Y, Z)
        FreeSurfer's labels in one space (mm).
    table : {"aseg", "aseg_brain", "hippoFS60"}
        The structures to compare; other labels are background.

    Returns
    -------
    pandas.DataFrame
        A row per structure: ``structure``, ``label``, volumes and their difference in mm3, ``dice``,
        ``volume_similarity``, and the distances of the surfaces, ``assd_mm`` and ``hd95_mm``.

    Raises
    ------
    ImageError
        An image cannot be used, none of its labels is in the table, or none lies within the field of view of the
        reference.
    ValueError
        There is no such table.
    """
    known = load_label_table(table)
    own, other = _taken(labels, load_labels, check_labels), _taken(reference, load_labels, check_labels)
    pair = [np.asanyarray(image.dataobj) for image in (own, other)]
    if of_table(table) is ASEG:  # before they are resampled, where each parcel would stand alone against what is around
        for array, source in zip(pair, (labels, reference), strict=True):
            _check_structures(array, source)
        pair = [join_brain_labels(merge_parcels(array)) for array in pair]
    for array, name in zip(pair, ("the labels", "the labels of the reference"), strict=True):
        _check_found(array, known, name)
    if not Grid.of(own).same_as(Grid.of(other)):
        pair[0] = _moved(pair[0], Grid.of(own), Grid.of(other))
    rows = structure_metrics(*pair, Grid.of(other).edges, list(known.structures))
    rows.insert(0, "structure", list(known.structures.values()))
    return rows


def _moved(labels: np.ndarray, grid: Grid, to_grid: Grid) -> np.ndarray:
    """Return labels on another grid; refused where none lies within it: volumes of 0 would pass for a result."""
    moved = labels_to_grid(labels, grid, to_grid)
    if labels.any() and not moved.any():
        raise ImageError(
            "none of the labels lies within the field of view of the reference; "
            "they must share one space (mm), as images of one scan do"
        )
    return moved
