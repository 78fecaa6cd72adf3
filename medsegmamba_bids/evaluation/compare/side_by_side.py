"""One scan by the reference and all methods, side by side: slices, differences and structures in 3D."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from medsegmamba_bids.anatomy import OUTER
from medsegmamba_bids.datasets.label_images import LabelImage, read_on_grid, read_reference
from medsegmamba_bids.evaluation.compare.scans import Settings
from medsegmamba_bids.evaluation.compare.study import REFERENCE, Item
from medsegmamba_bids.image.geometry import labels_to_grid, resample
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import load_image
from medsegmamba_bids.segmentations import HIPPOCAMPUS, of_table
from medsegmamba_bids.viz import slices, surfaces
from medsegmamba_bids.viz.encoding import colors_of

_TILE = 330  # pixels, about the width of a slice
_MARGIN_MM = 5
_DIFFERENT = "#ff2d20"
_SIDES = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("A", "P")}


@dataclass(frozen=True, eq=False)
class SideBySide:
    """A scan's labels by everyone, on one RAS grid of 1 mm.

    Attributes
    ----------
    labels : dict of str to uint16 (X, Y, Z)
        By method, the reference first; structures that are compared alone.
    affine : float (4, 4)
    image : float32 (X, Y, Z) or None
        The T1-weighted image, 0 (black) to 1.
    table : str
        The label table.
    """

    labels: Mapping[str, np.ndarray]
    affine: np.ndarray
    image: np.ndarray | None
    table: str

    @property
    def box(self) -> Box:
        """What holds everyone's labels."""
        return slices.box_of(np.any([labels > 0 for labels in self.labels.values()], axis=0))


def load_side_by_side(item: Item, settings: Settings, image: Path | None = None) -> SideBySide:
    """Read a scan's labels for pictures.

    Raises
    ------
    ImageError, EvaluationError
        A file cannot be read.
    """
    table = settings.label_table
    reference = read_reference(item.reference, table, settings.background)
    images = {REFERENCE: reference}
    for method, files in item.methods.items():
        images[method] = read_on_grid(files, reference, table, settings.background)[0]
    grid = _picture_grid(images, image is not None)
    structures = list(settings.structures)
    labels = {name: _placed(labelled, grid, structures) for name, labelled in images.items()}
    # Subfields are grey matter alone: what is bright is seen around them.
    inside = None if of_table(settings.table) is HIPPOCAMPUS else labels[REFERENCE] > 0
    shades = None if image is None else _shades(image, grid, inside)
    return SideBySide(labels, grid.affine, shades, settings.table)


def _picture_grid(images: Mapping[str, LabelImage], whole_head: bool) -> Grid:
    """Return a RAS grid of 1 mm around all labels."""
    boxes = [(image, Box.around(image.data)) for image in images.values()]
    points = np.concatenate([image.grid.to_world(box.corners.T) for image, box in boxes if box])
    margin = 2 * _MARGIN_MM if whole_head else _MARGIN_MM
    low, high = np.floor(points.min(0)) - margin, np.ceil(points.max(0)) + margin
    affine = np.eye(4)
    affine[:3, 3] = low
    return Grid(affine, high - low + 1)


def _placed(image: LabelImage, grid: Grid, structures: list[int]) -> np.ndarray:
    box = Box.around(image.data)
    if box is None:
        return np.zeros(grid.shape, np.uint16)
    moved = labels_to_grid(image.data[box], image.grid.cut(box), grid)
    return np.where(np.isin(moved, structures), moved, 0)


def _shades(path: Path, grid: Grid, inside: np.ndarray | None) -> np.ndarray:
    """Return an image from 0 (black) to 1 (as bright as the brightest inside, or anywhere)."""
    image = load_image(path)
    data = resample(np.asarray(image.dataobj, np.float32), Grid.of(image), grid)
    return np.clip(data / slices.bright(data, inside), 0, 1)


def draw_slices(sides: SideBySide) -> np.ndarray:
    """Return three slices of everyone's labels, painted; uint8 (H, W, 3). A column per method, the reference first."""
    colors = colors_of(of_table(sides.table).widest)
    rows = {}
    for plane, plan in _plans(sides).items():
        rows[plane] = [_painted(plan, sides.image, labels, colors) for labels in sides.labels.values()]
    return _composed(rows, list(sides.labels))


def draw_differences(sides: SideBySide) -> np.ndarray:
    """Return the same slices with all voxels in red whose label differs from the reference's; uint8 (H, W, 3)."""
    reference, *others = sides.labels.values()
    rows = {}
    for plane, plan in _plans(sides).items():
        different = [np.where(labels != reference, 1, 0) for labels in others]
        rows[plane] = [_painted(plan, sides.image, changed, {1: _DIFFERENT}) for changed in different]
    return _composed(rows, list(sides.labels)[1:])


def draw_views(sides: SideBySide) -> np.ndarray:
    """Return structures in three dimensions; uint8 (H, W, 3). A column per method, a row per view."""
    thin = of_table(sides.table) is HIPPOCAMPUS
    colors = colors_of(of_table(sides.table).widest, OUTER)
    zoom = _TILE / (max(side.stop - side.start for side in sides.box) + 4)
    columns = [
        surfaces.draw_views(surfaces.label_surfaces(labels, sides.affine, colors, thin), zoom)
        for labels in sides.labels.values()
    ]
    rows = {title: [_on_white(views.get(title)) for views in columns] for title in surfaces.VIEWS}
    return _composed(rows, list(sides.labels), dark=False)


def _plans(sides: SideBySide) -> dict[str, slices.Mosaic]:
    """Return a slice of each plane: the one in which the reference has most structures."""
    reference = next(iter(sides.labels.values()))
    box = sides.box
    if sides.image is not None and of_table(sides.table) is not HIPPOCAMPUS:
        box = Box.whole(reference.shape)
    shown = box.grow(2 * _MARGIN_MM, reference.shape)
    plans = {}
    for plane, axis in slices.PLANES.items():
        other = next(side for number, side in enumerate(shown) if number != axis)
        zoom = _TILE / (other.stop - other.start)
        plans[plane] = slices.Mosaic(axis, (_richest(reference, axis),), shown, 1, zoom)
    return plans


def _richest(labels: np.ndarray, axis: int) -> int:
    """Return the slice with most structures; of several the one with most of their voxels."""
    planes = np.moveaxis(labels, axis, 0)
    scores = [(len(np.unique(plane)), np.count_nonzero(plane)) for plane in planes]
    return max(range(len(scores)), key=scores.__getitem__)


def _painted(
    plan: slices.Mosaic, image: np.ndarray | None, labels: np.ndarray, colors: Mapping[int, str]
) -> np.ndarray:
    """Return a slice with labels over it, enlarged."""
    part = plan.slice(labels, 0)
    size = (round(part.shape[1] * plan.zoom), round(part.shape[0] * plan.zoom))
    if image is None:
        base = np.zeros((size[1], size[0]), np.float32)
    else:
        base = np.asarray(Image.fromarray(plan.slice(image, 0)).resize(size, Image.Resampling.BICUBIC))
    enlarged = np.asarray(Image.fromarray(part.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    return slices.fill_labels(base, enlarged, colors, 1.0 if image is None else 0.6)


def _on_white(picture: np.ndarray | None) -> np.ndarray:
    if picture is None:
        return np.full((_TILE // 2, _TILE, 3), 255, np.uint8)
    opacity = picture[..., 3:].astype(np.float32) / 255
    return np.rint(picture[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def _composed(rows: Mapping[str, list[np.ndarray]], titles: list[str], dark: bool = True) -> np.ndarray:
    """Return pictures in a grid with the columns' titles above and the rows' at the left; uint8 (H, W, 3)."""
    gap, head, side = 8, 26, 26
    widths = [max(row[column].shape[1] for row in rows.values()) for column in range(len(titles))]
    heights = [max(picture.shape[0] for picture in row) for row in rows.values()]
    width, height = side + sum(widths) + gap * len(widths), head + sum(heights) + gap * len(heights)
    ground, ink = ("#000000", "#ffffff") if dark else ("#ffffff", "#1b2330")
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=ground)
    canvas = FigureCanvasAgg(figure)
    style = {"color": ink, "ha": "center", "va": "center", "fontsize": 11}
    top = head
    for (name, row), tall in zip(rows.items(), heights, strict=True):
        left = side
        for picture, wide in zip(row, widths, strict=True):
            x, y = left + (wide - picture.shape[1]) // 2, top + (tall - picture.shape[0]) // 2
            figure.figimage(picture, x, height - y - picture.shape[0])
            for mark, at in zip(_SIDES.get(name, ()), (x + 10, x + picture.shape[1] - 10), strict=False):
                figure.text(at / width, 1 - (y + 12) / height, mark, color="#ffd24a", ha="center", va="center")
            left += wide + gap
        figure.text(side / 2 / width, 1 - (top + tall / 2) / height, name, rotation=90, **style)
        top += tall + gap
    left = side
    for title, wide in zip(titles, widths, strict=True):
        figure.text((left + wide / 2) / width, 1 - head / 2 / height, title, fontweight="bold", **style)
        left += wide + gap
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
