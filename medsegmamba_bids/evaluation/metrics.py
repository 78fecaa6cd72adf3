"""Agreement of two segmentations, structure by structure.

Dice (DSC) and volume similarity (VS) follow Taha and Hanbury (2015, BMC Medical Imaging 15:29), the average
symmetric surface distance (ASSD) Yeghiazaryan and Voiculescu (2018, Journal of Medical Imaging 5:015006): the
references of the paper (section 2.5). Distances are in mm between centres of voxels, right for any voxel size. They
are SciPy's distance transform within the box of each structure: scikit-image has the Hausdorff distance alone, and
libraries that have the others make the same transform over the whole array. Where axes are not at right angles it would
be wrong, and the nearest voxel is looked for instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import KDTree

from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.stats.overlap import overlap_counts

COLUMNS = (
    "label",
    "found_mm3",
    "reference_mm3",
    "error_mm3",
    "error_percent",
    "dice",
    "volume_similarity",
    "assd_mm",
    "hd95_mm",
)
_RIGHT_ANGLE = 1e-4  # cosine that rounding of a header leaves between axes


def structure_metrics(
    found: np.ndarray, reference: np.ndarray, zooms: Sequence[float] | np.ndarray, labels: Sequence[int]
) -> pd.DataFrame:
    """Compare two label images on one grid.

    A structure that one of them lacks has Dice 0, volume similarity 0 and no surface distances (NaN); one that
    both lack has neither (all NaN). The error in percent is NaN where the reference lacks the structure.

    Parameters
    ----------
    found, reference : unsigned int (X, Y, Z)
    zooms : three float, or float (3, 3), mm
        Edges of a voxel; of an affine the columns that are these edges, which may be sheared.
    labels : sequence of int
        Structures to compare; what else the images hold counts as background.

    Returns
    -------
    pandas.DataFrame
        A row per label in their order; the columns are ``COLUMNS``. Volumes and errors in mm3, the error being
        found minus reference; distances in mm.

    Raises
    ------
    EvaluationError
        The shapes differ, or a label is below 1.

    Examples
    --------
    >>> reference = np.zeros((4, 4, 4), np.uint8)
    >>> reference[:2] = 17
    >>> rows = structure_metrics(np.roll(reference, 1, axis=0), reference, (2, 1, 1), [17])
    >>> rows[["dice", "volume_similarity", "assd_mm", "error_mm3"]].values.tolist()
    [[0.5, 1.0, 1.0, 0.0]]
    """
    if found.shape != reference.shape:
        raise EvaluationError(f"label images of shapes {found.shape} and {reference.shape} cannot be compared")
    if min(labels) < 1:
        raise EvaluationError(f"the label {min(labels)} is no structure; labels are 1 and more")
    edges, voxel_mm3 = _edges(zooms)
    box = Box.around((found != 0) | (reference != 0)) or Box.whole((1, 1, 1))
    pair = [_indices(array[box], labels) for array in (found, reference)]
    counts = overlap_counts(*pair, len(labels) + 1)
    boxes = [ndimage.find_objects(indices, len(labels)) for indices in pair]
    rows = []
    for number, label in enumerate(labels, 1):
        both, here, there = (int(count[number]) for count in counts)
        distances = (math.nan, math.nan)
        if here and there:
            around = Box.hull([boxes[0][number - 1], boxes[1][number - 1]])
            distances = summarise(*surface_distances(*(indices[around] == number for indices in pair), edges))
        rows.append((label, *_volumes(both, here, there, voxel_mm3), *distances))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _edges(zooms: Sequence[float] | np.ndarray) -> tuple[np.ndarray, float]:
    """Return edges of a voxel, mm, as three lengths where they are at right angles, and its volume, mm3."""
    edges = np.asarray(zooms, float)
    if edges.ndim == 1:
        return edges, float(np.prod(edges))
    lengths = np.linalg.norm(edges, axis=0)
    cosines = (edges / lengths).T @ (edges / lengths) - np.eye(3)
    if np.abs(cosines).max() <= _RIGHT_ANGLE:
        return lengths, float(np.prod(lengths))
    return edges, abs(float(np.linalg.det(edges)))


def _indices(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return the position + 1 of every voxel's label among the labels, 0 for others."""
    lookup = np.zeros(max(int(array.max()), *labels) + 1, np.uint16)
    lookup[list(labels)] = np.arange(1, len(labels) + 1)
    return lookup[array]


def _volumes(both: int, here: int, there: int, voxel_mm3: float) -> tuple[float, ...]:
    """Return volumes, their difference, Dice and volume similarity from numbers of voxels."""
    total, error = here + there, here - there
    dice = 2 * both / total if total else math.nan
    similarity = 1 - abs(error) / total if total else math.nan
    percent = 100 * error / there if there else math.nan
    return here * voxel_mm3, there * voxel_mm3, error * voxel_mm3, percent, dice, similarity


def surface_distances(
    found: np.ndarray, reference: np.ndarray, zooms: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of every surface voxel of each mask to the other mask's surface, mm.

    A voxel of the surface belongs to the mask, and one of its six neighbours does not; beyond the array nothing does.

    Parameters
    ----------
    found, reference : bool (X, Y, Z)
        Neither may be empty.
    zooms : three float, or float (3, 3) of sheared axes, mm

    Returns
    -------
    found_to_reference, reference_to_found : float64 (N,), (M,)
    """
    own, other = surface(found), surface(reference)
    if np.ndim(zooms) == 2:
        here, there = (np.argwhere(border) @ np.transpose(zooms) for border in (own, other))
        return KDTree(there).query(here)[0], KDTree(here).query(there)[0]
    to_other, to_own = (ndimage.distance_transform_edt(~border, sampling=zooms) for border in (other, own))
    return to_other[own], to_own[other]


def surface(mask: np.ndarray) -> np.ndarray:
    """Return voxels of a mask with a neighbour by faces outside it, bool (X, Y, Z)."""
    return mask & ~ndimage.binary_erosion(mask)


def summarise(forth: np.ndarray, back: np.ndarray) -> tuple[float, float]:
    """Return ASSD and 95th percentile of surface distances, mm.

    The ASSD is the mean over the voxels of both surfaces; of the two directed percentiles the larger one counts.
    """
    assd = (forth.sum() + back.sum()) / (len(forth) + len(back))
    return float(assd), float(max(np.percentile(forth, 95), np.percentile(back, 95)))
