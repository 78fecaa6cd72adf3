"""Label maps made ready for synthesis: one naming of tissues, cropped to the head, with what sampling needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.anatomy import CORTEX, OUTSIDE_BRAIN, WHITE_MATTER
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.geometry import resample, turn_to_lia
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import atomic_path, load_labels
from medsegmamba_bids.image.labels import LabelTable, join_brain_labels
from medsegmamba_bids.inference.foreground import head_mask
from medsegmamba_bids.training.synthetic.subfields import SubfieldAtlas, paint_subfields
from medsegmamba_bids.training.synthetic.tissues import TissueTable

#: Labels of FreeSurfer and of SynthSeg's training maps that stand for another one here. 136/137 and 163/164 lie
#: inside the ventricles and look like choroid plexus (judged by position, not documented); 72 is the fifth
#: ventricle, 80 an unsided hypointensity.
SYNONYMS = {136: 31, 137: 31, 163: 63, 164: 63, 80: 77, 72: 224, 81: 77, 82: 77}
#: What a map cannot tell from each other when it lacks the second one: the class that it is merged into.
MERGED_INTO = {31: (4,), 63: (43,), 77: (2, 41)}
INNER_CSF, OUTER_CSF = 24, 224
LANDMARKS = (4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 26, 28, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
SHELL_MM, CSF_REACH_MM = 3, 1
VENTRICLES = (4, 5, 43, 44)
#: Ventricles that are narrow in the young, and all fluid within the brain.
NARROWED, FLUIDS = (*VENTRICLES, 14), (*VENTRICLES, 14, 15, 24)
#: White matter as near to cortex or to the fluid outside is never lost; nothing is lost further away from fluid.
KEPT_WHITE_MM, LARGEST_REACH_MM = 2, 8
#: Maps with labels from here on were drawn for synthesis: they name what lies outside the brain.
OUTSIDE_LABELS = 500
#: What is drawn too small for FreeSurfer's ways, beside what it is looked for, what it takes, up to how many mm away.
WIDENED = (
    (13, (12, 13), (2,), 2),
    (52, (51, 52), (41,), 2),
    (18, (18,), (2, 3), 2),
    (54, (54,), (41, 42), 2),
    (26, (26,), (2, 3), 1),
    (58, (58,), (41, 42), 1),
)


@dataclass(frozen=True)
class LabelMap:
    """One prepared map, LIA, 1 mm.

    Attributes
    ----------
    name : str
    tissue : uint8 (X, Y, Z), indices into the tissue table
    counts, centres : int64 (C,) and float64 (C, 3), voxels and mean position of every class (background 0)
    brain_box : float64 (3, 2), first and last voxel of the brain
    accepts : bool (C, C), see ``Synthesizer.sample``
    neighbour, neighbour_distance : uint8 (X, Y, Z), what a voxel turns into where its neighbour grows (tissue
        index), and how far away that is (tenths of mm; 255: it never happens). Ventricles grow into white matter and
        the fluid outside into cortex, or the ventricles give way to what surrounds them.
    image : float32 (X, Y, Z) with white matter near 1, or None
    stripped : bool, whether the image is skull-stripped
    weight : float, how often the map is drawn
    """

    name: str
    tissue: np.ndarray
    counts: np.ndarray
    centres: np.ndarray
    brain_box: np.ndarray
    accepts: np.ndarray
    neighbour: np.ndarray
    neighbour_distance: np.ndarray
    image: np.ndarray | None = None
    stripped: bool = False
    weight: float = 1.0

    def save(self, path: Path) -> None:
        """Write the map as an ``.npz`` file."""
        fields = {k: v for k, v in vars(self).items() if v is not None}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **fields)

    @classmethod
    def load(cls, path: Path) -> LabelMap:
        """Read what ``save`` wrote."""
        with np.load(path) as stored:
            fields = {k: stored[k] for k in stored.files}
        for scalar in ("name", "stripped", "weight"):
            fields[scalar] = fields[scalar].item()
        return cls(**fields)


def read_lia(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Return labels, int32 (X, Y, Z), and image of a 1 mm label image with its axes turned to LIA.

    Raises
    ------
    ImageError
        The file is no label image, or has other voxels.
    """
    image = load_labels(path)
    zooms = Grid.of(image).zooms
    if np.abs(zooms - 1).max() > 0.01:
        raise ImageError(f"{path}: voxels are {zooms.round(3)} mm; label maps must have 1 mm voxels")
    turned = turn_to_lia(image)
    return np.asarray(turned.dataobj).astype(np.int32), turned


@dataclass(frozen=True, eq=False)
class TemplateAtlas:
    """FreeSurfer labels of a template, int (A, B, D), LIA, 1 mm: where label 24 belongs, how far the pallidum goes."""

    labels: np.ndarray

    @cached_property
    def centres(self) -> dict[int, np.ndarray]:
        """Mean voxel of every landmark."""
        return _landmark_centres(self.labels)

    @cached_property
    def inner_csf(self) -> np.ndarray:
        """Where label 24 may lie, with a margin, bool (A, B, D)."""
        return ndimage.binary_dilation(self.labels == INNER_CSF, iterations=CSF_REACH_MM)


def prepare_map(
    path: Path,
    tissues: TissueTable,
    *,
    atlas: TemplateAtlas | None = None,
    image: nib.spatialimages.SpatialImage | None = None,
    stripped: bool = False,
    subfields: SubfieldAtlas | None = None,
) -> LabelMap:
    """Read a FreeSurfer-labelled map and prepare it.

    Parameters
    ----------
    path : Path
        Label image, 1 mm.
    tissues : TissueTable
    atlas : TemplateAtlas, optional
        Without it every voxel of label 24 keeps its label, and the pallidum its size. Maps of FreeSurfer, which
        name nothing outside the brain, keep both in any case.
    image : SpatialImage, optional
        A real image of this head, resampled onto the map.
    stripped : bool
        Whether that image is skull-stripped.
    subfields : SubfieldAtlas, optional
        Painted into labels 17 and 53.

    Raises
    ------
    ImageError
        The file is no label image of 1 mm, or a label is not in the tissue table.
    """
    labels, turned = read_lia(path)
    labels = _rename(labels)
    drawn_for_synthesis = labels.max() >= OUTSIDE_LABELS
    if atlas is not None and drawn_for_synthesis:
        matrix = _landmark_affine(labels, atlas)
        _limit_inner_csf(labels, atlas, matrix)
        _widen(labels, atlas, matrix)
    if not drawn_for_synthesis:  # some fluid belongs around the brain
        _surround_with_csf(labels)
    picture = None if image is None else _matching_image(image, turned, labels)
    if subfields is not None:
        labels = paint_subfields(labels, subfields, tissues.means_of(labels) if picture is None else picture)
    built = build_map(path.name.split(".")[0], labels, tissues, picture, stripped, source=path)
    return built if drawn_for_synthesis else replace(built, accepts=_with_fluid_unknown(built.accepts, tissues.table))


def _surround_with_csf(labels: np.ndarray) -> None:
    box = Box.around(labels, SHELL_MM + 1)
    near = ndimage.binary_dilation(labels[box] > 0, iterations=SHELL_MM)
    labels[box][near & (labels[box] == 0)] = OUTER_CSF


def build_map(
    name: str,
    labels: np.ndarray,
    tissues: TissueTable,
    picture: np.ndarray | None = None,
    stripped: bool = False,
    weight: float = 1.0,
    source: Path | str = "",
) -> LabelMap:
    """Crop labels (int, LIA, 1 mm) to the head and measure what sampling needs.

    Raises
    ------
    ImageError
        A label is not in the tissue table, or none of its voxels belongs to a class.
    """
    present = np.flatnonzero(np.bincount(labels.ravel()))
    known = set(tissues.rows["label"])
    foreign = [int(v) for v in present if int(v) not in known]
    if foreign:
        raise ImageError(f"{source or name}: labels {foreign} are not in the tissue table")
    lookup = np.zeros(int(present.max()) + 1, np.uint8)
    lookup[present] = tissues.index_of(present)
    box = Box.around(labels if picture is None or stripped else (labels > 0) | head_mask(picture))
    if box is None or not tissues.targets[lookup[present]].any():
        raise ImageError(f"{source or name}: none of its labels {present.tolist()} is a class of the network")
    tissue = lookup[labels[box]]
    classes = tissues.targets[tissue]
    counts, centres = _measure(classes, len(tissues.table.labels))
    inside = (classes > 0) & tissues.in_brain[tissue]
    brain_box = np.array([[s.start, s.stop - 1] for s in Box.around(inside)], float)
    picture = None if picture is None else picture[box].astype(np.float32)
    accepts = accepted_classes(counts, tissues.table)
    neighbour, distance = _neighbours(labels[box], tissues)
    return LabelMap(name, tissue, counts, centres, brain_box, accepts, neighbour, distance, picture, stripped, weight)


def _neighbours(labels: np.ndarray, tissues: TissueTable) -> tuple[np.ndarray, np.ndarray]:
    """Return what voxels turn into where their neighbour grows, and how far away it is: see ``LabelMap``."""
    neighbour, distance = np.zeros(labels.shape, np.uint8), np.full(labels.shape, 255, np.uint8)
    cortex, outside = np.isin(labels, CORTEX), labels == OUTER_CSF
    ventricles = np.isin(labels, VENTRICLES)
    kept = ndimage.binary_dilation(cortex | outside, iterations=KEPT_WHITE_MM)
    white = np.isin(labels, WHITE_MATTER) & ~kept
    tissue = (labels > 0) & (labels < OUTER_CSF) & ~np.isin(labels, (*FLUIDS, *MERGED_INTO))
    changes = ((white, ventricles), (cortex, outside), (np.isin(labels, NARROWED), tissue))
    for changing, growing in changes:
        box = Box.around(changing, LARGEST_REACH_MM)
        if box is None or not growing[box].any():
            continue
        mm, nearest = ndimage.distance_transform_edt(~growing[box], return_indices=True)
        here = changing[box] & (mm <= LARGEST_REACH_MM)
        distance[box][here] = np.rint(10 * mm[here])
        neighbour[box][here] = tissues.index_of(labels[box][tuple(axis[here] for axis in nearest)])
    return neighbour, distance


def _measure(classes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels (n,) and mean position (n, 3) of every class but the background, zeros where absent."""
    places = np.flatnonzero(classes)
    values = classes.ravel()[places]
    counts = np.bincount(values, minlength=n)
    sums = [np.bincount(values, axis, n) for axis in np.unravel_index(places, classes.shape)]
    return counts, np.stack(sums, 1) / np.maximum(counts, 1)[:, None]


def accepted_classes(counts: np.ndarray, table: LabelTable) -> np.ndarray:
    """Return which class is not wrong where the map says another: bool (C, C), the diagonal and the merged ones."""
    index = {int(label): i for i, label in enumerate(table.labels)}
    accepts = np.eye(len(index), dtype=bool)
    for label, hosts in MERGED_INTO.items():
        if label in index and counts[index[label]] == 0:
            for host in hosts:
                accepts[index[host], index[label]] = True
    return accepts


def _with_fluid_unknown(accepts: np.ndarray, table: LabelTable) -> np.ndarray:
    """Let the fluid outside the brain and the background stand for each other, as nobody drew the border."""
    if OUTSIDE_BRAIN[0] not in table.labels:
        return accepts
    fluid, merged = int(table.to_indices(np.array(OUTSIDE_BRAIN))[0]), accepts.copy()
    merged[0, fluid] = merged[fluid, 0] = True
    return merged


def _rename(labels: np.ndarray) -> np.ndarray:
    """Return synonyms, cortical parcels and corpus callosum as the classes they belong to."""
    lookup = np.arange(max(int(labels.max()), max(SYNONYMS)) + 1, dtype=labels.dtype)
    lookup[list(SYNONYMS)] = list(SYNONYMS.values())
    return join_brain_labels(lookup[labels])


def _limit_inner_csf(labels: np.ndarray, atlas: TemplateAtlas, matrix: np.ndarray) -> None:
    """Keep label 24 only where the atlas has it (nearby): these maps use it for all fluid around the brain."""
    voxels = np.argwhere(labels == INNER_CSF)
    kept = _look_up(atlas.inner_csf, voxels, matrix)
    labels[tuple(voxels[~kept].T)] = OUTER_CSF


def _widen(labels: np.ndarray, atlas: TemplateAtlas, matrix: np.ndarray) -> None:
    """Let what surrounds a structure become that structure where the atlas has it.

    Pallidum and white matter look alike in T1w. In SynthSeg's maps, drawn by hand, it has 0.28 of the putamen's
    volume; in FreeSurfer's output, which is to be met, 0.3 to 0.4, mostly further back (0.40 after this). Amygdala
    and accumbens are 0.87 and 0.80 of FreeSurfer's, relative to the brain.
    """
    for structure, beside, taken, reach in WIDENED:
        near = ndimage.binary_dilation(np.isin(labels, beside), iterations=reach) & np.isin(labels, taken)
        voxels = np.argwhere(near)
        added = _look_up(atlas.labels == structure, voxels, matrix)
        labels[tuple(voxels[added].T)] = structure


def _look_up(region: np.ndarray, voxels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return which of a map's voxels (N, 3) lie in a region of the atlas, bool (N,)."""
    mapped = np.rint(np.c_[voxels, np.ones(len(voxels))] @ matrix).astype(int)
    inside = ((mapped >= 0) & (mapped < region.shape)).all(1)
    values = np.zeros(len(voxels), bool)
    values[inside] = region[tuple(mapped[inside].T)]
    return values


def _landmark_affine(labels: np.ndarray, atlas: TemplateAtlas) -> np.ndarray:
    """Return the least-squares affine (4, 3), row vectors, from the map's voxels to the atlas' by structure centres."""
    here, there = _landmark_centres(labels), atlas.centres
    shared = [label for label in LANDMARKS if label in here and label in there]
    rows = np.array([[*here[label], 1.0] for label in shared])
    return np.linalg.lstsq(rows, np.array([there[label] for label in shared]), rcond=None)[0]


def _landmark_centres(labels: np.ndarray) -> dict[int, np.ndarray]:
    lookup = np.zeros(int(labels.max()) + max(LANDMARKS) + 1, np.uint8)
    lookup[list(LANDMARKS)] = np.arange(1, len(LANDMARKS) + 1)
    counts, centres = _measure(lookup[labels], len(LANDMARKS) + 1)
    return {label: centres[i] for i, label in enumerate(LANDMARKS, 1) if counts[i]}


def _matching_image(image: nib.spatialimages.SpatialImage, like: nib.Nifti1Image, labels: np.ndarray) -> np.ndarray:
    """Return the image on the map's grid, white matter at 1."""
    picture = resample(np.asarray(image.dataobj, np.float32), Grid.of(image), Grid.of(like))
    return picture / np.median(picture[np.isin(labels, WHITE_MATTER)])
