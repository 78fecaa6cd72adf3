"""Label images as structures of a label table, on the reference's grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from medsegmamba_bids.anatomy import NUCLEI
from medsegmamba_bids.datasets.places import LabelFiles, Parts
from medsegmamba_bids.datasets.scan_names import listed
from medsegmamba_bids.errors import DatasetError
from medsegmamba_bids.image.geometry import labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_labels
from medsegmamba_bids.image.labels import LabelTable, join_brain_labels
from medsegmamba_bids.segmentations import ASEG, of_table

#: Images lie on one grid where no voxel is further apart; headers are rounded.
SAME_MM = 0.1
LARGEST_LABEL = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class LabelImage:
    """Labels on a grid.

    Attributes
    ----------
    path : str
    data : uint16 (X, Y, Z)
        FreeSurfer labels; cortical parcels are cortex, the corpus callosum is white matter.
    grid : Grid
        Where the labels lie.
    """

    path: str
    data: np.ndarray
    grid: Grid


def read_parts(parts: Parts) -> LabelImage:
    """Read a label image, or one of each side as one, with the labels of its files.

    Parameters
    ----------
    parts : Parts
        Files with what is added to their labels; where both have a label the first counts. Nuclei of the amygdala in
        files of subfields are left out.

    Raises
    ------
    ImageError
        A file cannot be read as labels.
    DatasetError
        Both sides lie on different grids, or labels are too large.
    """
    images = [load_labels(path) for path, _ in parts]
    path = " and ".join(str(file) for file, _ in parts)
    first = LabelImage(path, np.zeros(images[0].shape, np.uint16), Grid.of(images[0]))
    for image, (file, added) in zip(images, parts, strict=True):
        if not lies_on(Grid.of(image), first.grid):
            raise DatasetError(f"{path}: lie on different grids")
        values = np.asarray(image.dataobj)
        if int(values.max()) + added > LARGEST_LABEL:
            raise DatasetError(f"{file}: has the label {values.max()}; with {added} added at most {LARGEST_LABEL} fits")
        fresh = (values > 0) & (first.data == 0)
        if added:
            fresh &= ~np.isin(values, NUCLEI)
        first.data[fresh] = values[fresh] + added
    return first


def lies_on(grid: Grid, other: Grid) -> bool:
    """Return whether voxels of two grids are each other's: of one shape, and nowhere further apart than rounding puts
    them.
    """
    return grid.shape == other.shape and grid.distance(other) <= SAME_MM


def foreign_labels(labels: np.ndarray, table: LabelTable, background: Collection[int]) -> list[int]:
    """Return labels that are there, but neither structures of a table nor background."""
    present = np.flatnonzero(np.bincount(labels.ravel())).tolist()
    return sorted(set(present) - {0, *table.labels.tolist(), *background})


def read_labels(parts: Parts, table: LabelTable, background: Collection[int] = ()) -> LabelImage:
    """Read labels as structures of a table.

    Parameters
    ----------
    parts : Parts
        As for :func:`read_parts`.
    table : LabelTable
        Its structures.
    background : collection of int
        Labels that may be there besides, and mean nothing.

    Raises
    ------
    ImageError, DatasetError
        As for :func:`read_parts`; or a label is unknown.
    """
    image = read_parts(parts)
    if unknown := foreign_labels(image.data, table, {*background, *of_table(table.name).beside}):
        raise DatasetError(
            f"{image.path}: the labels {listed(unknown)} are neither structures of the table {table.name} nor known "
            "beside them. If they are to count as background, name them with --background; else choose another --table"
        )
    if of_table(table.name) is ASEG:
        return LabelImage(image.path, join_brain_labels(image.data), image.grid)
    return image


def read_reference(files: LabelFiles, table: LabelTable, background: Collection[int] = ()) -> LabelImage:
    """Return the reference of a scan; it must hold a structure.

    Raises
    ------
    ImageError, DatasetError
        As :func:`read_labels`; or none of the table's structures is there.
    """
    image = read_labels(files.choices[0], table, background)
    if not np.isin(image.data, table.labels[1:]).any():
        present = np.flatnonzero(np.bincount(image.data.ravel())).tolist()
        what = "every voxel is 0" if present == [0] else f"it holds the labels {listed(present)}"
        raise DatasetError(
            f"{image.path}: this reference has none of the structures of the table {table.name}, {what}; "
            "replace or remove it"
        )
    return image


def read_on_grid(
    files: LabelFiles, like: LabelImage, table: LabelTable, background: Collection[int] = ()
) -> tuple[LabelImage, bool]:
    """Return a method's labels on the reference's grid, and whether they were resampled for that.

    Of several grids the reference's own is taken where there is one. Positions are compared in mm.

    Raises
    ------
    ImageError, DatasetError
        As :func:`read_labels`; or the labels lie outside the reference's field of view.
    """
    parts = next((choice for choice in files.choices if _on_grid(choice, like)), files.choices[0])
    image = read_labels(parts, table, background)
    if image.grid.same_as(like.grid):
        return LabelImage(image.path, image.data, like.grid), False
    moved = labels_to_grid(image.data, image.grid, like.grid)
    if image.data.any() and not moved.any():
        raise DatasetError(
            f"{image.path}: none of its labels lies within the field of view of {like.path}; "
            "they must share one space (mm), as images of one scan do"
        )
    return LabelImage(image.path, moved, like.grid), True


def _on_grid(parts: Parts, like: LabelImage) -> bool:
    """Return whether files have a grid, from their headers; a file that cannot be read has not."""
    try:
        headers = [nib.load(path) for path, _ in parts]
    except (OSError, nib.filebasedimages.ImageFileError):
        return False
    return all(Grid.of(header).same_as(like.grid) for header in headers)
