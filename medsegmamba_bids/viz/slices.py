"""Mosaics of slices, as a picture below and pictures above it: outlines of labels, and the entropy.

All images are in RAS+ order. Pictures show the participant's left on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy import ndimage

from medsegmamba_bids.image.grid import Box

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
_SIGMA = 0.6  # voxels, smooths outlines
_GAP = 2  # voxels between slices
_ENTROPY_MAX = 1.0  # bit, drawn opaque
_BRIGHT = 99.7  # percentile that is drawn nearly white
_HEADROOM = 1.12


@dataclass(frozen=True)
class Mosaic:
    """Which slices are shown, and where.

    Attributes
    ----------
    axis : int
        Across which the slices are taken.
    indices : tuple of int
        Slices, in voxels.
    box : Box
        What is shown of the image.
    columns : int
    zoom : float
        Pixels per voxel.
    """

    axis: int
    indices: tuple[int, ...]
    box: Box
    columns: int
    zoom: float

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a slice, voxels."""
        sides = [side.stop - side.start for axis, side in enumerate(self.box) if axis != self.axis]
        return sides[1], sides[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the mosaic, voxels."""
        rows = -(-len(self.indices) // self.columns)
        height, width = self.tile
        return rows * (height + _GAP) - _GAP, self.columns * (width + _GAP) - _GAP

    def corner(self, number: int) -> tuple[int, int]:
        """Return the upper left corner of a slice, voxels."""
        row, column = divmod(number, self.columns)
        height, width = self.tile
        return row * (height + _GAP), column * (width + _GAP)

    def slice(self, data: np.ndarray, number: int) -> np.ndarray:
        """Return a slice as it is seen: superior or anterior above, the participant's left (or front) on the left."""
        where = tuple(self.indices[number] if axis == self.axis else side for axis, side in enumerate(self.box))
        part = data[where].T[::-1]
        return part[:, ::-1] if self.axis == 0 else part

    def compose(self, data: np.ndarray) -> np.ndarray:
        """Return all slices of an image in one array, zeros between."""
        out = np.zeros(self.shape, data.dtype)
        height, width = self.tile
        for number in range(len(self.indices)):
            top, left = self.corner(number)
            out[top : top + height, left : left + width] = self.slice(data, number)
        return out


def spread(box: Box, axis: int, number: int) -> tuple[int, ...]:
    """Return evenly spaced slices across a box, its ends left out.

    Examples
    --------
    >>> spread((slice(10, 20), slice(0, 1), slice(0, 1)), 0, 3)
    (12, 15, 17)
    """
    side = box[axis]
    steps = (np.arange(number) + 1) / (number + 1)
    return tuple(int(index) for index in side.start + np.floor(steps * (side.stop - side.start)).astype(int))


def plan(shown: Box, of_interest: Box, plane: str, number: int, columns: int, zoom: float) -> Mosaic:
    """Return a mosaic of a plane: what is shown of each slice, and between which ends slices are taken."""
    axis = PLANES[plane]
    return Mosaic(axis, spread(of_interest, axis, number), shown, columns, zoom)


def box_of(mask: np.ndarray) -> Box:
    """Return the smallest box around a mask, the middle half of the image where the mask is empty."""
    return Box.around(mask) or Box(slice(n // 4, 3 * n // 4 + 1) for n in mask.shape)


def draw_base(mosaic: Mosaic, data: np.ndarray, affine: np.ndarray, top: float) -> np.ndarray:
    """Return the T1w with left, right and positions written; uint8 (H, W, 3)."""
    figure, axes = _canvas(mosaic)
    axes.imshow(mosaic.compose(data), cmap="gray", vmin=0, vmax=top, interpolation="lanczos", extent=_extent(mosaic))
    height, width = mosaic.tile
    style = {"color": "#ffd24a", "fontsize": 8.5, "va": "top", "fontweight": "bold"}
    sides = ("A", "P") if mosaic.axis == 0 else ("L", "R")
    for number, index in enumerate(mosaic.indices):
        y, x = mosaic.corner(number)
        axes.text(x + 2, y + 2, sides[0], ha="left", **style)
        axes.text(x + width - 2, y + 2, sides[1], ha="right", **style)
        position = affine[mosaic.axis, 3] + affine[mosaic.axis, mosaic.axis] * index
        text = f"{'xyz'[mosaic.axis]} = {round(position)}"
        axes.text(x + 2, y + height - 2, text, color="#c8ccd4", fontsize=7, va="bottom", ha="left")
    return _render(figure)[..., :3]


def draw_outlines(mosaic: Mosaic, labels: np.ndarray, colors: Mapping[int, str], width: float = 1.1) -> np.ndarray:
    """Return outlines of labels; uint8 (H, W, 4), transparent elsewhere."""
    figure, axes = _canvas(mosaic)
    lines, shades = [], []
    for number in range(len(mosaic.indices)):
        top, left = mosaic.corner(number)
        for label, line in _outlines(mosaic.slice(labels, number), colors):
            lines.append(line + [left, top])
            shades.append(colors[label])
    axes.add_collection(LineCollection(lines, colors=shades, linewidths=width))
    return _render(figure)


def _outlines(part: np.ndarray, colors: Mapping[int, str]) -> list[tuple[int, np.ndarray]]:
    """Yield label and points (N, 2) as x and y of each outline in a slice."""
    from contourpy import contour_generator

    outlines = []
    boxes = ndimage.find_objects(part.astype(np.int32, copy=False), max_label=max(colors))
    for label in colors:
        box = boxes[label - 1]
        if box is None:
            continue
        mask = np.pad((part[box] == label).astype(np.float32), 2)
        # A speck vanishes when it is smoothed, and has to be seen all the same.
        smooth = ndimage.gaussian_filter(mask, _SIGMA)
        level = min(0.5, 0.6 * float(smooth.max()))
        for line in contour_generator(z=smooth).lines(level):
            outlines.append((label, line + [box[1].start - 1.5, box[0].start - 1.5]))
    return outlines


def draw_entropy(mosaic: Mosaic, entropy: np.ndarray) -> np.ndarray:
    """Return the entropy from transparent (0) to bright (1 bit and more); uint8 (H, W, 4)."""
    from matplotlib import colormaps

    share = np.clip(mosaic.compose(entropy.astype(np.float32)) / _ENTROPY_MAX, 0, 1)
    picture = colormaps["inferno"](0.15 + 0.85 * share)
    picture[..., 3] = np.clip(share * 1.6, 0, 0.9)
    figure, axes = _canvas(mosaic)
    axes.imshow(picture, interpolation="bilinear", extent=_extent(mosaic))
    return _render(figure)


def fill_labels(base: np.ndarray, labels: np.ndarray, colors: Mapping[int, str], opacity: float = 0.55) -> np.ndarray:
    """Return slices with labels painted over; uint8 (H, W, 3).

    Parameters
    ----------
    base : (H, W)
        0..1.
    labels : int (H, W)
    colors : mapping of label to colour
    opacity : float
    """
    from matplotlib.colors import to_rgb

    out = np.repeat(np.clip(base, 0, 1)[..., None], 3, -1)
    for label, color in colors.items():
        here = labels == label
        out[here] = (1 - opacity) * out[here] + opacity * np.array(to_rgb(color))
    return np.rint(out * 255).astype(np.uint8)


def bright(data: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Return the intensity that is drawn white: nearly the brightest of the brain, or of all that is not dark."""
    values = data[inside] if inside is not None and inside.any() else data[data > 0]
    return _HEADROOM * float(np.percentile(values, _BRIGHT)) if values.size else 1.0


def _canvas(mosaic: Mosaic) -> tuple[Figure, object]:
    height, width = mosaic.shape
    figure = Figure(figsize=(width * mosaic.zoom / 100, height * mosaic.zoom / 100), dpi=100)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return figure, axes


def _extent(mosaic: Mosaic) -> tuple[float, float, float, float]:
    height, width = mosaic.shape
    return 0, width, height, 0


def _render(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()
