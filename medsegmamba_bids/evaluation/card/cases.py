"""Real cases to measure on, and the ways in which their images are changed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from medsegmamba_bids.errors import CaseError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.labels import LabelTable

ROTATION_DEGREES = 15.0
NOISE = 0.05  # of white matter
THICK_MM = 4.0
_NOISE_SEED = 1
_COLUMNS = ("case", "image", "reference", "aim", "twin")

Image = nib.spatialimages.SpatialImage


@dataclass(frozen=True)
class Case:
    """A real image and what it is compared with.

    Attributes
    ----------
    name : str
    image : Path
    reference : Path or None
        FreeSurfer's aseg on the image's grid.
    aim : bool
        Whether it counts for the mean that is to be reached.
    twin : Path or None
        An image of the same head.
    """

    name: str
    image: Path
    reference: Path | None = None
    aim: bool = False
    twin: Path | None = None


def read_cases(path: Path, data_dir: Path, names: list[str] | None = None) -> list[Case]:
    """Return cases of a table, all of them or those that are named.

    Parameters
    ----------
    path : Path
        Tab-separated: ``case``, ``image``, ``reference``, ``aim`` (0 or 1) and ``twin``; "n/a" where there is none.
    data_dir : Path
        What the paths in it are relative to.
    names : list of str, optional

    Raises
    ------
    CaseError
        The table lacks a column, a case that is named, or one of the files.
    """
    rows = read_columns(Path(path), "cases", _COLUMNS, dtype=str, na_values=["n/a"], keep_default_na=False)
    known = rows["case"].tolist()
    if unknown := sorted(set(names or ()) - set(known)):
        raise CaseError(f"{path}: has no case {', '.join(unknown)}; there are {', '.join(known)}")
    rows = rows[rows["case"].isin(names or known)]
    return [_case(row, Path(data_dir)) for _, row in rows.iterrows()]


def read_columns(path: Path, what: str, columns: Sequence[str], **options: Any) -> pd.DataFrame:
    """Return a tab-separated table that must have some columns; ``options`` are those of `pandas.read_csv`.

    Raises
    ------
    CaseError
        There is no such file, or it lacks a column.
    """
    if not path.is_file():
        raise CaseError(f"{path}: no such table of {what}")
    rows = pd.read_csv(path, sep="\t", comment="#", **options)
    if missing := [column for column in columns if column not in rows]:
        raise CaseError(f"{path}: the columns {missing} are missing; it has {list(rows)}")
    return rows


def _case(row: pd.Series, data_dir: Path) -> Case:
    files = {key: None if pd.isna(row[key]) else data_dir / row[key] for key in ("image", "reference", "twin")}
    for file in files.values():
        if file is not None and not file.is_file():
            raise CaseError(f"{file}: no such file, but the case {row['case']} needs it")
    if files["image"] is None or (files["reference"] is None and files["twin"] is None):
        raise CaseError(f"the case {row['case']} needs an image, and a reference or a twin to compare it with")
    return Case(row["case"], files["image"], files["reference"], row["aim"] == "1", files["twin"])


def mirrored(image: Image) -> Image:
    """Return the head as in a mirror: voxels in the opposite left-right order on the same grid.

    Examples
    --------
    >>> image = nib.Nifti1Image(np.arange(3, dtype=np.uint8).reshape(3, 1, 1), np.eye(4))
    >>> np.asarray(mirrored(image).dataobj).ravel().tolist()
    [2, 1, 0]
    """
    return _with_data(image, mirror_array(np.asanyarray(image.dataobj), image.affine))


def mirror_array(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return an array in the opposite order along the axis that runs most nearly left-right."""
    return np.ascontiguousarray(np.flip(data, _axis_along(affine, 0)))


def _axis_along(affine: np.ndarray, direction: int) -> int:
    """Return the axis of the voxels that runs most nearly left-right (0), back-front (1) or down-up (2)."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == direction)[0])


def swap_sides(labels: np.ndarray, table: LabelTable) -> np.ndarray:
    """Return every structure of a table under the label of its counterpart on the other side.

    Examples
    --------
    >>> from medsegmamba_bids.image.labels import load_label_table
    >>> swap_sides(np.array([0, 17, 53, 16], np.uint16), load_label_table("aseg")).tolist()
    [0, 53, 17, 16]
    """
    lookup = np.arange(max(int(labels.max()), int(table.labels.max())) + 1, dtype=labels.dtype)
    lookup[table.labels] = table.labels[table.mirror]
    return lookup[labels]


def rotated(image: Image, degrees: float = ROTATION_DEGREES) -> Image:
    """Return the head turned about its grid's centre, the axis as far from left, anterior and superior each.

    Only the affine changes, so that labels on this image's grid are labels on the first one's.
    """
    from scipy.spatial.transform import Rotation

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * np.ones(3) / np.sqrt(3)).as_matrix()
    centre = Grid.of(image).centre
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return nib.Nifti1Image(np.asanyarray(image.dataobj), turn @ image.affine)


def noisy(image: Image, white: np.ndarray, share: float = NOISE) -> Image:
    """Return Gaussian noise wherever the image is not zero, seeded, in the image's own type.

    Parameters
    ----------
    image : nibabel image (X, Y, Z)
    white : bool (X, Y, Z)
        White matter.
    share : float
        Standard deviation as a share of the white matter's median intensity.
    """
    data = np.asanyarray(image.dataobj)
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(data.shape, np.float32)
    changed = np.where(data > 0, data + noise * np.float32(share * np.median(data[white])), 0)
    if data.dtype.kind in "iu":
        span = np.iinfo(data.dtype)
        changed = np.rint(changed).clip(max(span.min, 0), span.max)
    return _with_data(image, np.maximum(changed, 0).astype(data.dtype))


def thick(image: Image, slice_mm: float = THICK_MM) -> Image:
    """Return the head in axial slices, each the mean of as many as come nearest to that thickness.

    What is left over at the top of the head's grid is dropped. The world position of everything stays.

    Examples
    --------
    >>> image = nib.Nifti1Image(np.arange(9, dtype=np.float32).reshape(1, 1, 9), np.eye(4))
    >>> thicker = thick(image)
    >>> np.asarray(thicker.dataobj).ravel().tolist(), thicker.affine[2].tolist()
    ([1.5, 5.5], [0.0, 0.0, 4.0, 1.5])
    """
    axis = _axis_along(image.affine, 2)
    several = max(1, round(slice_mm / Grid.of(image).zooms[axis]))
    slices = np.moveaxis(np.asanyarray(image.dataobj), axis, 0)
    kept = slices[: len(slices) // several * several]
    means = kept.reshape(-1, several, *kept.shape[1:]).mean(1, dtype=np.float32)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (several - 1) / 2
    affine[:3, axis] *= several
    return nib.Nifti1Image(np.moveaxis(means, 0, axis), affine)


def _with_data(image: Image, data: np.ndarray) -> Image:
    return nib.Nifti1Image(data, image.affine)


#: Variants of a case with a reference, in the order in which they are measured.
VARIANTS: dict[str, Callable[[Image, np.ndarray], Image]] = {
    "plain": lambda image, _: image,
    "flipped": lambda image, _: mirrored(image),
    "rotated": lambda image, _: rotated(image),
    "noisy": noisy,
    "thick": lambda image, _: thick(image),
}
