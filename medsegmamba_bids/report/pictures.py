"""The pictures of a T1w, ready to be put into a page."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from medsegmamba_bids.anatomy import CEREBRUM, HIPPOCAMPI, OUTER, OUTSIDE_BRAIN, SUBFIELDS_FROM
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import is_one_of
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.viz import slices, surfaces
from medsegmamba_bids.viz.encoding import colors_of, to_uri

#: Slices of a plane: how many are wanted, and how many there may be to show every structure twice.
_SLICES, _CLOSE_UP = (8, 16), (6, 9)
_COLUMNS, _CLOSE_UP_COLUMNS = 4, 6
_HIPPOCAMPAL_VIEWS = {"from above": (180, 89), "from the left front": (50, 25)}
_MARGIN = 30  # voxels around the labels, where there is no mask
_THUMBNAIL = 72  # pixels high
_FULL_DETAIL = 3  # T1w images; where a page holds more, their pictures are smaller


@dataclass(frozen=True)
class Pictures:
    """Data URIs, by title.

    Attributes
    ----------
    planes, close_up : list of dict
        ``title``, ``base`` and, where it is known, ``entropy``: slices in ``rows`` and ``columns``, of which each has
        an entry in ``tiles``; ``width`` and ``height`` of a slice, voxels.
    views, hippocampal_views : list of dict
        ``title`` and ``base``.
    thumbnail : bytes
        A JPEG file, for the page of the group.
    """

    planes: list[dict[str, Any]]
    close_up: list[dict[str, Any]]
    views: list[dict[str, Any]]
    hippocampal_views: list[dict[str, Any]]
    thumbnail: bytes


def detail_of(scans: int) -> float:
    """Return how detailed pictures are on a page of so many T1w images, 1 at the most."""
    return min(1.0, math.sqrt(_FULL_DETAIL / scans))


def draw_pictures(
    t1w: nib.spatialimages.SpatialImage,
    labels: dict[str, np.ndarray],
    entropies: dict[str, np.ndarray],
    brain: np.ndarray | None = None,
    detail: float = 1.0,
) -> Pictures:
    """Draw all pictures of a T1w.

    Parameters
    ----------
    t1w : nibabel image (X, Y, Z)
        Conformed, in RAS+ order; all arrays are on its grid.
    labels, entropies : dict of str to (X, Y, Z)
        By name of the segmentation; what is absent is not drawn.
    brain : (X, Y, Z), optional
        Non-zero in the brain.
    detail : float
        Below 1 for smaller pictures, where a page has to hold many.
    """
    box = _box_of_all(t1w.shape, [*labels.values()] if brain is None else [*labels.values(), brain])
    data, affine = np.asarray(t1w.dataobj)[box], box.shift(t1w.affine)
    labels, entropies = ({name: array[box] for name, array in arrays.items()} for arrays in (labels, entropies))
    brain = None if brain is None else brain[box]
    structures = labels.get(ASEG.name, np.zeros(data.shape, np.uint8))
    structures = np.where(is_one_of(structures, OUTSIDE_BRAIN), 0, structures)
    aseg = _Overlay(structures, ASEG.widest, entropies.get(ASEG.name))
    inside = brain > 0 if brain is not None else aseg.labels > 0
    head = _Head(data, affine, slices.bright(data, inside))
    deep = slices.box_of((aseg.labels > 0) & ~is_one_of(aseg.labels, CEREBRUM)).grow(4, data.shape)
    shown = slices.box_of(inside).grow(6 if brain is not None else _MARGIN, data.shape)
    planes = [
        _layers(plane, _plan(aseg.labels, shown, deep, plane, _SLICES, _COLUMNS, 2.5 * detail), head, aseg)
        for plane in slices.PLANES
    ]
    thumbnail = _thumbnail(head, aseg.labels, shown, deep, colors_of(ASEG.widest))
    close_up, subfield_views = [], []
    if hippocampi := _hippocampi(labels, entropies):
        close_up = _close_up(head, hippocampi, detail)
        if hippocampi.table != ASEG.widest:
            subfield_views = _views(hippocampi, head.affine, 7.0 * detail, _HIPPOCAMPAL_VIEWS, thin=True)
    views = _views(aseg, head.affine, 3.0 * detail, surfaces.VIEWS, without=OUTER)
    return Pictures(planes, close_up, views, subfield_views, thumbnail)


def _box_of_all(shape: tuple[int, ...], arrays: list[np.ndarray]) -> Box:
    """Return what can be seen of an image: a box around all that is not 0, with the widest margin that is shown.

    Its sides start at even numbers: a middle between two voxels is rounded to the same as in the whole image.
    """
    found = [box for array in arrays if (box := Box.around(array))]
    if not found:
        return Box.whole(shape)
    box = Box(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*found, strict=True))
    return Box(slice(side.start // 2 * 2, side.stop) for side in box.grow(_MARGIN, shape))


def _plan(
    labels: np.ndarray, shown: Box, of_interest: Box, plane: str, wanted: tuple[int, int], columns: int, zoom: float
) -> slices.Mosaic:
    """Return a mosaic of a plane in which every label is seen; evenly spaced slices where there is none.

    Parameters
    ----------
    labels : int (X, Y, Z)
    shown, of_interest : Box
        What is shown of each slice; where labels are looked for.
    plane : str
    wanted : tuple of int
        How many slices, and how many at most.
    columns, zoom
        Of the mosaic.
    """
    axis = slices.PLANES[plane]
    start = of_interest[axis].start
    chosen = tuple(start + index for index in slices.covering(labels[of_interest], axis, *wanted))
    return slices.Mosaic(axis, chosen or slices.spread(of_interest, axis, wanted[0]), shown, columns, zoom)


@dataclass(frozen=True, eq=False)
class _Head:
    """A T1w in RAS+ order, and the intensity that is shown as white."""

    data: np.ndarray
    affine: np.ndarray
    top: float


@dataclass(frozen=True, eq=False)
class _Overlay:
    """Labels, the label table that colours them, and their entropy where it is known."""

    labels: np.ndarray
    table: str
    entropy: np.ndarray | None


def _layers(title: str, plan: slices.Mosaic, head: _Head, overlay: _Overlay) -> dict[str, Any]:
    """Draw a mosaic's picture and what lies over it."""
    height, width = plan.tile
    layers = {"title": title, "height": height, "width": width, "columns": plan.columns, "rows": plan.rows}
    layers["base"] = to_uri(slices.draw_base(plan, head.data, head.top))
    if overlay.entropy is not None:
        layers["entropy"] = to_uri(slices.draw_entropy(plan, overlay.entropy), quality=60)
    ends = ("A", "P") if plan.axis == 0 else ("L", "R")
    layers["tiles"] = [
        {
            "x": 100 * (number % plan.columns) / max(plan.columns - 1, 1),
            "y": 100 * (number // plan.columns) / max(plan.rows - 1, 1),
            "ends": ends,
            "position": f"{'xyz'[plan.axis]} = {position}",
            "outlines": slices.outline_paths(plan, overlay.labels, number),
        }
        for number, position in enumerate(plan.positions(head.affine))
    ]
    return layers


def _hippocampi(labels: dict[str, np.ndarray], entropies: dict[str, np.ndarray]) -> _Overlay | None:
    """Return the subfields where they are known, else the hippocampi of aseg, else nothing."""
    subfields, aseg = labels.get(HIPPOCAMPUS.name), labels.get(ASEG.name)
    if subfields is not None and subfields.any():
        return _Overlay(subfields, HIPPOCAMPUS.widest, entropies.get(HIPPOCAMPUS.name))
    if aseg is not None and (there := is_one_of(aseg, HIPPOCAMPI)).any():
        alone = np.where(there, aseg, 0)
        return _Overlay(alone, ASEG.widest, entropies.get(ASEG.name))
    return None


def _close_up(head: _Head, hippocampi: _Overlay, detail: float) -> list[dict[str, Any]]:
    """Draw each hippocampus that is there in two planes."""
    pictures = []
    for label, side in HIPPOCAMPI.items():
        box = Box.around(_one_hippocampus(hippocampi.labels, label))
        if box is None:
            continue
        shown = box.grow(7, head.data.shape)
        for plane in ("coronal", "sagittal"):
            plan = _plan(hippocampi.labels, shown, box, plane, _CLOSE_UP, _CLOSE_UP_COLUMNS, 4.6 * detail)
            pictures.append(_layers(f"{side} hippocampus, {plane}", plan, head, hippocampi))
    return pictures


def _one_hippocampus(labels: np.ndarray, label: int) -> np.ndarray:
    """Return where a hippocampus or its subfields are, by label: x = 0 may lie anywhere, as an affine may begin."""
    first = SUBFIELDS_FROM[label] + 200
    return (labels == label) | ((labels >= first) & (labels < first + 100))


def _views(
    overlay: _Overlay,
    affine: np.ndarray,
    scale: float,
    views: dict[str, tuple[int, int]],
    thin: bool = False,
    without: tuple[int, ...] = (),
) -> list[dict[str, Any]]:
    solids = surfaces.label_surfaces(overlay.labels, affine, colors_of(overlay.table, without), thin)
    return [_picture(title, picture) for title, picture in surfaces.draw_views(solids, scale, views).items()]


def _picture(title: str, picture: np.ndarray) -> dict[str, Any]:
    height, width = picture.shape[:2]
    return {"title": title, "height": height, "width": width, "base": to_uri(picture)}


def _thumbnail(head: _Head, labels: np.ndarray, shown: Box, deep: Box, colors: dict[int, str]) -> bytes:
    """Return three slices side by side, labels painted, as a small JPEG file."""
    parts = []
    for plane in slices.PLANES:
        axis = slices.PLANES[plane]
        plan = slices.Mosaic(axis, slices.spread(deep, axis, 1), shown, 1, 1.0)
        picture = slices.fill_labels(plan.slice(head.data, 0) / head.top, plan.slice(labels, 0), colors, 0.5)
        image = Image.fromarray(picture)
        parts.append(image.resize((round(image.width * _THUMBNAIL / image.height), _THUMBNAIL), Image.LANCZOS))
    out = Image.new("RGB", (sum(part.width for part in parts), _THUMBNAIL))
    left = 0
    for part in parts:
        out.paste(part, (left, 0))
        left += part.width
    file = io.BytesIO()
    out.save(file, "JPEG", quality=70)
    return file.getvalue()
