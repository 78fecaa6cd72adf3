"""The pictures of a T1w, ready to be put into a page."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from medsegmamba_bids.anatomy import CEREBRUM, HIPPOCAMPI, OUTER
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.viz import slices, surfaces
from medsegmamba_bids.viz.encoding import colors_of, to_uri

_SLICES = {"axial": 8, "coronal": 8, "sagittal": 8}
_CLOSE_UP = {"axial": 4, "coronal": 6, "sagittal": 6}
_HIPPOCAMPAL_VIEWS = {"from above": (180, 89), "from the left front": (50, 25)}
_THUMBNAIL = 72  # pixels high


@dataclass(frozen=True)
class Pictures:
    """Data URIs, by title.

    Attributes
    ----------
    planes, close_up : list of dict
        ``title``, ``base`` and, where they are known, ``outlines`` and ``entropy``; also ``width``, ``height``.
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
    data, affine = np.asarray(t1w.dataobj), t1w.affine
    nothing = np.zeros(data.shape, np.uint8)
    aseg = labels.get(ASEG.name, nothing)
    inside = brain > 0 if brain is not None else aseg > 0
    deep = slices.box_of((aseg > 0) & ~np.isin(aseg, CEREBRUM)).grow(4, data.shape)
    shown = slices.box_of(inside).grow(6 if brain is not None else 30, data.shape)
    top = slices.bright(data, inside)
    colors = colors_of(ASEG.widest)
    planes = [
        _layers(plane, plan, data, affine, top, aseg, colors, entropies.get(ASEG.name))
        for plane, plan in _plans(shown, deep, _SLICES, 4, 2.5 * detail)
    ]
    thumbnail = _thumbnail(data / top, aseg, shown, deep, colors)
    close_up, subfield_views = _hippocampus(data, affine, top, labels, entropies, detail)
    views = _views(aseg, affine, colors_of(ASEG.widest, OUTER), 3.0 * detail)
    return Pictures(planes, close_up, views, subfield_views, thumbnail)


def _plans(
    shown: Box, deep: Box, numbers: dict[str, int], columns: int, zoom: float
) -> list[tuple[str, slices.Mosaic]]:
    return [(plane, slices.plan(shown, deep, plane, number, columns, zoom)) for plane, number in numbers.items()]


def _layers(
    title: str,
    plan: slices.Mosaic,
    data: np.ndarray,
    affine: np.ndarray,
    top: float,
    labels: np.ndarray,
    colors: dict[int, str],
    entropy: np.ndarray | None,
) -> dict[str, Any]:
    """A mosaic's picture and what lies over it."""
    layers = _picture(title, slices.draw_base(plan, data, affine, top))
    if labels.any():
        layers["outlines"] = to_uri(slices.draw_outlines(plan, labels, colors))
    if entropy is not None:
        layers["entropy"] = to_uri(slices.draw_entropy(plan, entropy), quality=35)
    return layers


def _hippocampus(
    data: np.ndarray,
    affine: np.ndarray,
    top: float,
    labels: dict[str, np.ndarray],
    entropies: dict[str, np.ndarray],
    detail: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Close-up of both hippocampi, and their drawing in three dimensions; with subfields where they are known."""
    subfields, aseg = labels.get(HIPPOCAMPUS.name), labels.get(ASEG.name)
    if subfields is not None and subfields.any():
        kind, part = HIPPOCAMPUS, subfields
        colors = colors_of(kind.widest)
    elif aseg is not None and np.isin(aseg, list(HIPPOCAMPI)).any():
        kind, part = ASEG, np.where(np.isin(aseg, list(HIPPOCAMPI)), aseg, 0)
        colors = {label: colors_of(ASEG.widest)[label] for label in HIPPOCAMPI}
    else:
        return [], []
    found = []
    middle = round(float(-affine[0, 3] / affine[0, 0]))
    halves = {"left": part[:middle], "right": part[middle:]}
    for side, half in halves.items():
        if not half.any():
            continue
        box = slices.box_of(half)
        shift = middle if side == "right" else 0
        box = Box((slice(box[0].start + shift, box[0].stop + shift), *box[1:]))
        shown = box.grow(7, data.shape)
        for plane in ("coronal", "sagittal"):
            plan = slices.plan(shown, box, plane, _CLOSE_UP[plane], 6, 4.6 * detail)
            title = f"{side} hippocampus, {plane}"
            found.append(_layers(title, plan, data, affine, top, part, colors, entropies.get(kind.name)))
    views = [] if kind is ASEG else _views(part, affine, colors, 7.0 * detail, subfields=True)
    return found, views


def _views(
    labels: np.ndarray, affine: np.ndarray, colors: dict[int, str], scale: float, subfields: bool = False
) -> list[dict[str, Any]]:
    solids = surfaces.label_surfaces(labels, affine, colors, thin=subfields)
    pictures = surfaces.draw_views(solids, scale, _HIPPOCAMPAL_VIEWS if subfields else surfaces.VIEWS)
    return [_picture(title, picture) for title, picture in pictures.items()]


def _picture(title: str, picture: np.ndarray) -> dict[str, Any]:
    height, width = picture.shape[:2]
    return {"title": title, "height": height, "width": width, "base": to_uri(picture)}


def _thumbnail(base: np.ndarray, labels: np.ndarray, shown: Box, deep: Box, colors: dict[int, str]) -> bytes:
    """Three slices side by side, labels painted, as a small JPEG file."""
    parts = []
    for plane in slices.PLANES:
        plan = slices.plan(shown, deep, plane, 1, 1, 1.0)
        picture = slices.fill_labels(plan.slice(base, 0), plan.slice(labels, 0), colors, 0.5)
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
