"""Label maps made ready for synthesis: one naming of tissues, cropped to the head, with what sampling needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.io import atomic_path, load_image
from medsegmamba_bids.image.labels import LabelTable

#: Labels of FreeSurfer and of SynthSeg's training maps that stand for another one here. 136/137 and 163/164 lie
#: inside the ventricles and look like choroid plexus (judged by position, not documented); 72 is the fifth
#: ventricle, 80 an unsided hypointensity.
SYNONYMS = {136: 31, 137: 31, 163: 63, 164: 63, 80: 77, 72: 224, 81: 77, 82: 77}
#: What a map cannot tell from each other when it lacks the second one: the class that it is merged into.
MERGED_INTO = {31: (4,), 63: (43,), 77: (2, 41)}
CALLOSUM = (251, 252, 253, 254, 255)
INNER_CSF, OUTER_CSF = 24, 224
WHITE_MATTER = (2, 41)
LANDMARKS = (4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 26, 28, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
SHELL_MM = 3


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
    image: np.ndarray | None = None
    stripped: bool = False
    weight: float = 1.0

    def save(self, path: Path) -> None:
        """Writes the map as an ``.npz`` file."""
        fields = {k: v for k, v in vars(self).items() if v is not None}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **fields)

    @classmethod
    def load(cls, path: Path) -> LabelMap:
        """Reads what ``save`` wrote."""
        with np.load(path) as stored:
            fields = {k: stored[k] for k in stored.files}
        for scalar in ("name", "stripped", "weight"):
            fields[scalar] = fields[scalar].item()
        return cls(**fields)


def read_lia(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Array and image of a 1 mm file with its axes turned to LIA; raises ``ValueError`` for other voxel sizes."""
    image = load_image(path)
    zooms = np.array(image.header.get_zooms()[:3])
    if np.abs(zooms - 1).max() > 0.01:
        raise ValueError(f"{path}: voxels are {zooms.round(3)} mm; label maps must have 1 mm voxels")
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LIA"))
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned


def prepare_map(
    path: Path,
    tissues,
    *,
    atlas: np.ndarray | None = None,
    image: nib.spatialimages.SpatialImage | None = None,
    stripped: bool = False,
    weight: float = 1.0,
) -> LabelMap:
    """Reads a FreeSurfer-labelled map and prepares it.

    Parameters
    ----------
    path : Path
        Label image, 1 mm.
    tissues : TissueTable
    atlas : int (A, B, D), optional
        FreeSurfer segmentation of a template (LIA, 1 mm) that says where label 24 belongs; without it every
        voxel of label 24 keeps its label.
    image : SpatialImage, optional
        A real image of this head, resampled onto the map.

    Raises
    ------
    ValueError
        A label is not in the tissue table.
    """
    labels, turned = read_lia(path)
    labels = _rename(labels.astype(np.int32))
    if atlas is not None:
        labels = _limit_inner_csf(labels, atlas)
    if labels.max() < 500:  # a map of the brain alone: some fluid belongs around it
        near = ndimage.binary_dilation(labels > 0, iterations=SHELL_MM)
        labels[near & (labels == 0)] = OUTER_CSF
    picture = None if image is None else _matching_image(image, turned, labels)
    return build_map(path.name.split(".")[0], labels, tissues, picture, stripped, weight, path)


def build_map(
    name: str,
    labels: np.ndarray,
    tissues,
    picture: np.ndarray | None = None,
    stripped: bool = False,
    weight: float = 1.0,
    source: Path | str = "",
) -> LabelMap:
    """Crops labels (int, LIA, 1 mm) to the head and measures what sampling needs."""
    present = np.unique(labels)
    known = set(tissues.rows["label"])
    foreign = [int(v) for v in present if int(v) not in known]
    if foreign:
        raise ValueError(f"{source or name}: labels {foreign} are not in the tissue table")
    lookup = np.zeros(int(present.max()) + 1, np.uint8)
    lookup[present] = tissues.index_of(present)
    box = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    tissue = lookup[labels[box]]
    classes = tissues.targets[tissue]
    n = len(tissues.table.labels)
    counts = np.bincount(classes.ravel(), minlength=n)
    counts[0] = 0
    centres = np.nan_to_num(np.array(ndimage.center_of_mass(classes > -1, classes, range(n))))
    where = [np.flatnonzero((classes > 0).any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    brain_box = np.array([[w[0], w[-1]] for w in where], float)
    picture = None if picture is None else picture[box].astype(np.float32)
    accepts = accepted_classes(counts, tissues.table)
    return LabelMap(name, tissue, counts, centres, brain_box, accepts, picture, stripped, weight)


def accepted_classes(counts: np.ndarray, table: LabelTable) -> np.ndarray:
    """Which class is not wrong where the map says another: bool (C, C), the diagonal and the merged ones."""
    index = {int(label): i for i, label in enumerate(table.labels)}
    accepts = np.eye(len(index), dtype=bool)
    for label, hosts in MERGED_INTO.items():
        if label in index and counts[index[label]] == 0:
            for host in hosts:
                accepts[index[host], index[label]] = True
    return accepts


def _rename(labels: np.ndarray) -> np.ndarray:
    """Synonyms, cortical parcels and corpus callosum as the classes they belong to."""
    for old, new in SYNONYMS.items():
        labels[labels == old] = new
    labels[(labels >= 1000) & (labels < 2000)] = 3
    labels[(labels >= 2000) & (labels < 3000)] = 42
    callosum = np.isin(labels, CALLOSUM)
    if callosum.any():
        nearest = ndimage.distance_transform_edt(
            ~np.isin(labels, WHITE_MATTER), return_distances=False, return_indices=True
        )
        labels[callosum] = labels[tuple(axis[callosum] for axis in nearest)]
    return labels


def _limit_inner_csf(labels: np.ndarray, atlas: np.ndarray, reach_mm: int = 3) -> np.ndarray:
    """Label 24 only where the atlas has it (nearby): these maps use it for all fluid around the brain."""
    matrix = _landmark_affine(labels, atlas)
    region = ndimage.binary_dilation(atlas == INNER_CSF, iterations=reach_mm)
    voxels = np.argwhere(labels == INNER_CSF)
    mapped = np.rint(np.c_[voxels, np.ones(len(voxels))] @ matrix).astype(int)
    inside = ((mapped >= 0) & (mapped < atlas.shape)).all(1)
    keep = np.zeros(len(voxels), bool)
    keep[inside] = region[tuple(mapped[inside].T)]
    labels[tuple(voxels[~keep].T)] = OUTER_CSF
    return labels


def _landmark_affine(labels: np.ndarray, atlas: np.ndarray) -> np.ndarray:
    """Least-squares affine (4, 3), row vectors, from the map's voxels to the atlas' by structure centres."""
    shared = [k for k in LANDMARKS if (labels == k).any() and (atlas == k).any()]
    here = np.array(ndimage.center_of_mass(labels > 0, labels, shared))
    there = np.array(ndimage.center_of_mass(atlas > 0, atlas, shared))
    return np.linalg.lstsq(np.c_[here, np.ones(len(here))], there, rcond=None)[0]


def _matching_image(image: nib.spatialimages.SpatialImage, like: nib.Nifti1Image, labels: np.ndarray) -> np.ndarray:
    """The image on the map's grid, white matter at 1."""
    from medsegmamba_bids.image.geometry import resample

    picture = resample(np.asarray(image.dataobj, np.float32), image.affine, like.affine, like.shape, order=1)
    return picture / np.median(picture[np.isin(labels, WHITE_MATTER)])
