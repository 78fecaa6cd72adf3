"""Label images as structures of a label table, on the reference's grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from medsegmamba_bids.anatomy import NUCLEI
from medsegmamba_bids.datasets.places import LabelFiles, Parts
from medsegmamba_bids.datasets.scan_names import listed
from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.image.geometry import labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_labels
from medsegmamba_bids.image.labels import LabelTable, join_brain_labels
from medsegmamba_bids.segmentations import ASEG, of_table


@dataclass(frozen=True, eq=False)
class LabelImage:
    """Labels on a grid.

    Attributes
    ----------
    path : str
    data : uint16 (X, Y, Z)
        FreeSurfer labels; cortical parcels are cortex, the corpus callosum is white matter.
    affine : float (4, 4)
    """

    path: str
    data: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        """Where the labels lie."""
        return Grid(self.affine, self.data.shape)


def read_labels(parts: Parts, table: LabelTable, background: Collection[int] = ()) -> LabelImage:
    """Read a label image, or one of each side as one.

    Parameters
    ----------
    parts : Parts
        Files with what is added to their labels; where both have a label the first counts.
    table : LabelTable
        Its structures.
    background : collection of int
        Labels that may be there besides, and mean nothing.

    Raises
    ------
    ImageError, EvaluationError
        A file cannot be read; both sides lie on different grids; a label is unknown.
    """
    images = [load_labels(path) for path, _ in parts]
    path = " and ".join(str(file) for file, _ in parts)
    first = images[0]
    merged = np.zeros(first.shape, np.uint16)
    for image, (_, added) in zip(images, parts, strict=True):
        if not Grid.of(image).same_as(Grid.of(first)):
            raise EvaluationError(f"{path}: lie on different grids")
        values = np.asarray(image.dataobj)
        fresh = (values > 0) & (merged == 0)
        if added:
            fresh &= ~np.isin(values, NUCLEI)
        merged[fresh] = values[fresh] + added
    _check_labels(merged, path, table, background)
    if of_table(table.name) is ASEG:
        merged = join_brain_labels(merged)
    return LabelImage(path, merged, first.affine)


def _check_labels(labels: np.ndarray, path: str, table: LabelTable, background: Collection[int]) -> None:
    known = {0, *table.labels.tolist(), *background, *of_table(table.name).beside}
    found = np.flatnonzero(np.bincount(labels.ravel())).tolist()
    if unknown := [label for label in found if label not in known]:
        raise EvaluationError(
            f"{path}: the labels {listed(unknown)} are neither structures of the table {table.name} nor known beside "
            "them. If they are to count as background, name them with --background; else choose another --table"
        )


def read_reference(files: LabelFiles, table: LabelTable, background: Collection[int] = ()) -> LabelImage:
    """The reference of a scan; it must hold a structure.

    Raises
    ------
    ImageError, EvaluationError
        As :func:`read_labels`; or none of the table's structures is there.
    """
    image = read_labels(files.choices[0], table, background)
    if not np.isin(image.data, table.labels[1:]).any():
        found = np.flatnonzero(np.bincount(image.data.ravel())).tolist()
        what = "every voxel is 0" if found == [0] else f"it holds the labels {listed(found)}"
        raise EvaluationError(
            f"{image.path}: this reference has none of the structures of the table {table.name}, {what}; "
            "replace or remove it"
        )
    return image


def read_on_grid(
    files: LabelFiles, like: LabelImage, table: LabelTable, background: Collection[int] = ()
) -> tuple[LabelImage, bool]:
    """A method's labels on the reference's grid, and whether they were resampled for that.

    Of several grids the reference's own is taken where there is one. Positions are compared in mm.

    Raises
    ------
    ImageError, EvaluationError
        As :func:`read_labels`; or the labels lie outside the reference's field of view.
    """
    parts = next((one for one in files.choices if _on_grid(one, like)), files.choices[0])
    image = read_labels(parts, table, background)
    if image.grid.same_as(like.grid):
        return LabelImage(image.path, image.data, like.affine), False
    moved = labels_to_grid(image.data, image.grid, like.grid)
    if image.data.any() and not moved.any():
        raise EvaluationError(
            f"{image.path}: none of its labels lies within the field of view of {like.path}; "
            "they must share one space (mm), as images of one scan do"
        )
    return LabelImage(image.path, moved, like.affine), True


def _on_grid(parts: Parts, like: LabelImage) -> bool:
    """Whether files have a grid, from their headers; a file that cannot be read has not."""
    try:
        headers = [nib.load(path) for path, _ in parts]
    except (OSError, nib.filebasedimages.ImageFileError):
        return False
    return all(Grid.of(one).same_as(like.grid) for one in headers)
