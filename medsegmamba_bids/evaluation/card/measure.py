"""A case segmented in all its variants, and compared: a long table of numbers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from medsegmamba_bids import segmentations
from medsegmamba_bids.anatomy import HIPPOCAMPI, OUTSIDE_BRAIN, WHITE_MATTER
from medsegmamba_bids.datasets.label_images import lies_on, read_parts
from medsegmamba_bids.errors import CaseError
from medsegmamba_bids.evaluation.card import calibration
from medsegmamba_bids.evaluation.card.cases import VARIANTS, Case, Image, mirror_array, swap_sides
from medsegmamba_bids.evaluation.metrics import COLUMNS as METRICS
from medsegmamba_bids.evaluation.metrics import structure_metrics
from medsegmamba_bids.image.components import fill_holes
from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_image
from medsegmamba_bids.image.labels import LabelTable, join_brain_labels, table_of_labels
from medsegmamba_bids.inference.segmenter import Segmenter
from medsegmamba_bids.inference.single import ImageLabels, conform_and_segment

logger = logging.getLogger(__name__)

#: What a row compares with: FreeSurfer; the same case unchanged; the twin; (union of subfields) the hippocampus.
REFERENCE, ORIGINAL, TWIN, HIPPOCAMPUS = "reference", "original", "twin", "hippocampus"
COLUMNS = ("case", "variant", "against", "structure", *METRICS)
BRAIN_MASK = "Brain-mask"


@dataclass(frozen=True)
class Networks:
    """The networks that are measured.

    Attributes
    ----------
    segmenter : Segmenter
    aseg, hippocampus : path, name, or None for the default
    subfields : bool
        Whether hippocampal subfields are measured as well.
    folds : mapping of str to path or name
        Other weights than ``aseg`` for some cases: those of a training that did not see them. Subfields are those
        that the released networks find, as a user of them has them: they end where aseg's hippocampi do.
    """

    segmenter: Segmenter
    aseg: str | os.PathLike | None = None
    hippocampus: str | os.PathLike | None = None
    subfields: bool = True
    folds: Mapping[str, str | os.PathLike] = field(default_factory=dict)

    def judging(self, case: str) -> Networks:
        """Return the networks that a case's structures are measured with."""
        return replace(self, aseg=self.folds.get(case, self.aseg), folds={})

    def segment_case(self, case: str, image: Image, subfields: bool, grid_of: Image | None = None) -> ImageLabels:
        """Return labels of a case's image: structures by the weights that judge it, subfields by the released ones."""
        judging = self.judging(case)
        if judging.aseg == self.aseg or not (subfields and self.subfields):
            return judging.segment(image, subfields, grid_of)
        structures = judging.segment(image, False, grid_of)
        return replace(structures, hippocampus=self.segment(image, True, grid_of).hippocampus)

    @property
    def aseg_table(self) -> LabelTable:
        """Structures of the first network."""
        return table_of_labels(np.array(self.segmenter.load(self.aseg, segmentations.ASEG.task)[1].labels))

    @property
    def subfield_table(self) -> LabelTable:
        """Structures of the second network."""
        return table_of_labels(
            np.array(self.segmenter.load(self.hippocampus, segmentations.HIPPOCAMPUS.task)[1].labels)
        )

    def segment(self, image: Image, subfields: bool, grid_of: Image | None = None) -> ImageLabels:
        """Return labels on the image's own grid, or that of another image."""
        wanted = subfields and self.subfields
        conformed = conform_and_segment(self.segmenter, image, self.aseg, wanted, self.hippocampus)
        return conformed.on_grid_of(grid_of or image)


def measure_case(case: Case, networks: Networks) -> pd.DataFrame:
    """Return numbers of a case; the columns are ``COLUMNS``.

    Raises
    ------
    ImageError, CaseError
        An image cannot be read, or its reference lies on another grid.
    """
    parts = []
    if case.reference is not None:
        parts += _measure_variants(case, networks)
    if case.twin is not None:
        parts.append(_named(_measure_twin(case, networks.judging(case.name)), case.name, "plain", TWIN))
    return pd.concat(parts, ignore_index=True)


def _measure_variants(case: Case, networks: Networks) -> list[pd.DataFrame]:
    image = load_image(case.image)
    reference = read_reference(case, image)
    white = np.isin(reference, WHITE_MATTER)
    judging = networks.judging(case.name)
    parts, plain = [], None
    for variant, change in VARIANTS.items():
        logger.info("%s, %s", case.name, variant)
        grid_of = image if variant == "thick" else None
        labels = networks.segment_case(case.name, change(image, white), variant in ("plain", "flipped"), grid_of)
        if variant == "flipped":
            labels = _mirrored_back(labels, image.affine, judging)
        if plain is None:
            plain = labels
        compared = _comparisons(labels, reference, None if variant == "plain" else plain, image, judging)
        parts += [_named(rows, case.name, variant, against) for against, rows in compared]
    return parts


def measure_calibration(case: Case, networks: Networks) -> pd.DataFrame:
    """Return voxels of each structure by their posterior, on the conformed grid; see ``calibration.COLUMNS``.

    Raises
    ------
    ImageError, CaseError
        The image cannot be read, or its reference lies on another grid.
    """
    logger.info("%s, calibration", case.name)
    networks = networks.judging(case.name)
    image = load_image(case.image)
    conformed = conform(image)
    reference = labels_to_grid(read_reference(case, image), Grid.of(image), Grid.of(conformed))
    counter = calibration.BinCounter(reference, networks.aseg_table)
    found = networks.segmenter.segment(conformed, networks.aseg, counter)
    return counter.rows(found.labels, found.posterior).assign(case=case.name)[list(calibration.COLUMNS)]


def read_reference(case: Case, image: Image) -> np.ndarray:
    """Return FreeSurfer's labels on an image's grid, the corpus callosum as white matter: uint16 (X, Y, Z)."""
    reference = read_parts(((case.reference, 0),))
    if not lies_on(reference.grid, Grid.of(image)):
        raise CaseError(f"{case.reference}: does not lie on the grid of its image {case.image}")
    return join_brain_labels(reference.data)


def _mirrored_back(labels: ImageLabels, affine: np.ndarray, networks: Networks) -> ImageLabels:
    def back(labels: np.ndarray | None, table: LabelTable) -> np.ndarray | None:
        return None if labels is None else swap_sides(mirror_array(labels, affine), table)

    subfields = None if labels.hippocampus is None else back(labels.hippocampus, networks.subfield_table)
    return ImageLabels(back(labels.aseg, networks.aseg_table), subfields, labels.notes)


def _comparisons(
    labels: ImageLabels, reference: np.ndarray, plain: ImageLabels | None, image: Image, networks: Networks
) -> list[tuple[str, pd.DataFrame]]:
    """Return what a variant is compared with, and the numbers."""
    zooms = Grid.of(image).zooms
    table = networks.aseg_table
    parts = [
        (REFERENCE, compare(labels.aseg, reference, zooms, table)),
        (REFERENCE, compare_masks(labels.aseg, reference, zooms)),
    ]
    if plain is not None:
        parts.append((ORIGINAL, compare(labels.aseg, plain.aseg, zooms, table)))
    if labels.hippocampus is not None:
        parts.append((HIPPOCAMPUS, compare_unions(labels.hippocampus, reference, zooms)))
        original = (plain or labels).hippocampus
        if original is not None:
            parts.append((ORIGINAL, compare(labels.hippocampus, original, zooms, networks.subfield_table)))
    return parts


def compare(found: np.ndarray, reference: np.ndarray, zooms: np.ndarray, table: LabelTable) -> pd.DataFrame:
    """Return metrics of all structures of a table, with their names."""
    structures = table.table[~table.table["label"].isin((0, *OUTSIDE_BRAIN))]
    rows = structure_metrics(found, reference, zooms, structures["label"].tolist())
    return rows.assign(structure=structures["name"].tolist())


def compare_masks(found: np.ndarray, reference: np.ndarray, zooms: np.ndarray) -> pd.DataFrame:
    """Return metrics of the brain masks: all labels but the fluid outside, cavities filled, on both sides alike."""
    brains = ((labels > 0) & ~np.isin(labels, OUTSIDE_BRAIN) for labels in (found, reference))
    masks = (fill_holes(brain).astype(np.uint8) for brain in brains)
    return structure_metrics(*masks, zooms, [1]).assign(structure=BRAIN_MASK, label=0)


def compare_unions(subfields: np.ndarray, reference: np.ndarray, zooms: np.ndarray) -> pd.DataFrame:
    """Return metrics of the union of a side's subfields against the hippocampus of aseg."""
    union = np.zeros(subfields.shape, np.uint16)
    for label, side in HIPPOCAMPI.items():
        union[subfields // 1000 == (1 if side == "left" else 2)] = label
    rows = structure_metrics(union, reference, zooms, list(HIPPOCAMPI))
    return rows.assign(structure=[f"{side.title()}-Hippocampus" for side in HIPPOCAMPI.values()])


def _measure_twin(case: Case, networks: Networks) -> pd.DataFrame:
    """Return the case's conformed labels against its twin's."""
    logger.info("%s, twin", case.name)
    own, twin = (
        networks.segmenter.segment(conform(load_image(path)), networks.aseg) for path in (case.image, case.twin)
    )
    moved = labels_to_grid(own.labels, own.grid, twin.grid)
    return compare(moved, twin.labels, np.ones(3), networks.aseg_table)


def _named(rows: pd.DataFrame, case: str, variant: str, against: str) -> pd.DataFrame:
    return rows.assign(case=case, variant=variant, against=against)[list(COLUMNS)]
