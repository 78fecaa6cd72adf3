"""From an image as the scanner made it to labels on its own grid."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from medsegmamba_bids.errors import SegmentationError
from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.inference.merge import Segmentation
from medsegmamba_bids.inference.segmenter import Segmenter, missing_hippocampi
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageLabels:
    """FreeSurfer labels on the grid of an image.

    Attributes
    ----------
    aseg : uint16 (X, Y, Z)
    hippocampus : uint16 (X, Y, Z) or None
        The subfields; None if they were not asked for or no hippocampus was found.
    notes : tuple of str
        What the user should know, a sentence each.
    """

    aseg: np.ndarray
    hippocampus: np.ndarray | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ConformedSegmentation:
    """An image on the conformed grid, and what the networks say about it there.

    Attributes
    ----------
    image : nibabel image, uint8 (256, 256, 256)
    aseg : Segmentation
    hippocampus : Segmentation or None
        The subfields; None if they were not asked for or no hippocampus was found.
    """

    image: nib.Nifti1Image
    aseg: Segmentation
    hippocampus: Segmentation | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of both, a sentence each."""
        return self.aseg.notes + (self.hippocampus.notes if self.hippocampus else ())

    def on_grid_of(self, image: nib.spatialimages.SpatialImage) -> ImageLabels:
        """Interpolate the labels linearly, a class at a time, to the grid of an image."""
        subfields = self.hippocampus
        return ImageLabels(
            aseg=_to_grid(self.aseg, image),
            hippocampus=None if subfields is None else _to_grid(subfields, image),
            notes=self.notes,
        )


def _to_grid(segmentation: Segmentation, image: nib.spatialimages.SpatialImage) -> np.ndarray:
    return labels_to_grid(segmentation.labels, segmentation.grid, Grid.of(image))


def check_not_empty(segmentation: Segmentation, name: str | os.PathLike) -> None:
    """Refuse a segmentation in which nothing was found; ``name`` is the image's, for the message.

    Raises
    ------
    SegmentationError
    """
    if not segmentation.labels.any():
        raise SegmentationError(
            f"{name}: none of the structures was found; is it a T1-weighted image of a head, in mm, and are the "
            "weights made for such?"
        )


def conform_and_segment(
    segmenter: Segmenter,
    image: nib.spatialimages.SpatialImage,
    weights: str | os.PathLike | None = None,
    hippocampus: bool = False,
    hippocampus_weights: str | os.PathLike | None = None,
) -> ConformedSegmentation:
    """Conform an image and segment it.

    Does not strip skulls and does not normalise intensities: the image must be what the weights expect.

    Parameters
    ----------
    segmenter : Segmenter
    image : nibabel image (X, Y, Z)
        As :func:`medsegmamba_bids.image.io.load_image` returns it.
    weights, hippocampus_weights : path-like or None
        As :meth:`Segmenter.load` takes them.
    hippocampus : bool
        Segment the hippocampal subfields as well.

    Raises
    ------
    WeightsError, SegmentationError
        Weights cannot be used, all of them checked before any work; or the step does not fit them.
    """
    segmenter.load(weights, ASEG.task)
    if hippocampus:
        segmenter.load(hippocampus_weights, HIPPOCAMPUS.task)
    conformed = conform(image)
    logger.info("segmenting on %s", segmenter.device)
    aseg = segmenter.segment(conformed, weights)
    subfields = None
    if hippocampus and len(missing_hippocampi(aseg.labels)) < 2:
        logger.info("segmenting the hippocampal subfields")
        subfields = segmenter.segment_hippocampus(conformed, aseg.labels, hippocampus_weights)
    return ConformedSegmentation(conformed, aseg, subfields)
