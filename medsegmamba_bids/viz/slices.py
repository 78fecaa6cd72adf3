"""Mosaics of slices, as a picture below and drawings above it: outlines of labels, and the entropy.

All images are in RAS+ order. Pictures show the participant's left on the left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from medsegmamba_bids.image.grid import Box

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
#: Entropy in bit that is drawn clear and opaque: two classes that are equally likely, as at any border, have 1 bit;
#: four have 2.
ENTROPY_RANGE = (1.0, 2.0)
ENTROPY_COLORS = "inferno"
_SIGMA = 0.6  # voxels, smooths outlines
_LONG = 20  # points; of longer outlines every second will do
_BRIGHT = 99.7  # percentile that is drawn nearly white
_HEADROOM = 1.12
_APART = 4  # slices nearer to each other show nearly the same
_SEEN = 3  # voxels of a structure in a slice that can be seen


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
    def rows(self) -> int:
        """Number of rows."""
        return -(-len(self.indices) // self.columns)

    def slice(self, data: np.ndarray, number: int) -> np.ndarray:
        """Return a slice as it is seen: superior or anterior above, the participant's left (or front) on the left."""
        where = tuple(self.indices[number] if axis == self.axis else side for axis, side in enumerate(self.box))
        part = data[where].T[::-1]
        return part[:, ::-1] if self.axis == 0 else part

    def compose(self, tiles: list[np.ndarray]) -> np.ndarray:
        """Return slices (H, W, ...) of one size in rows below each other, zeros where none is left."""
        height, width = tiles[0].shape[:2]
        out = np.zeros((self.rows * height, self.columns * width, *tiles[0].shape[2:]), tiles[0].dtype)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, self.columns)
            out[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
        return out

    def positions(self, affine: np.ndarray) -> list[int]:
        """Return the position of each slice along its axis, mm."""
        step, start = affine[self.axis, self.axis], affine[self.axis, 3]
        return [round(float(start + step * index)) for index in self.indices]


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


def covering(labels: np.ndarray, axis: int, number: int, most: int) -> tuple[int, ...]:
    """Return slices in which every label is seen twice at least, where its size allows that.

    Takes the slice that shows most of what is still to be seen, after another; slices that are left over go where the
    widest gaps are.

    Parameters
    ----------
    labels : int (X, Y, Z)
        0 is background.
    axis : int
        Across which the slices are taken.
    number, most : int
        Slices that are wanted, and how many there may be where these do not show all.

    Examples
    --------
    >>> labels = np.zeros((1, 1, 40), int)
    >>> labels[..., 5:30], labels[..., 20:22] = 1, 2
    >>> covering(np.repeat(labels, 9, 0), 2, 3, 4)
    (5, 9, 20, 21)
    """
    areas = label_areas(labels, axis)
    if not areas.size:
        return ()
    seen = areas >= np.minimum(_SEEN, areas.max(0))
    wanted = np.minimum(2, seen.sum(0))
    share = np.where(seen, areas / areas.max(0), 0)
    chosen: list[int] = []
    while len(chosen) < most and (left := wanted > seen[chosen].sum(0)).any():
        gain = share[:, left].sum(1) * _nearness(len(areas), chosen)
        chosen.append(int(gain.argmax()))
    while len(chosen) < number:
        chosen.append(_widest_gap(chosen, np.flatnonzero(areas.sum(1))))
    return tuple(sorted(set(chosen)))


def label_areas(labels: np.ndarray, axis: int) -> np.ndarray:
    """Return voxels of each label that occurs in each slice, int (slices, labels)."""
    there = np.flatnonzero(np.bincount(labels.ravel()))
    there = there[there > 0]
    place = np.zeros(int(labels.max()) + 1, np.intp)
    place[there] = np.arange(len(there)) + 1
    slabs = np.moveaxis(place[labels], axis, 0)
    return np.array([np.bincount(slab.ravel(), minlength=len(there) + 1)[1:] for slab in slabs])


def _nearness(number: int, chosen: list[int]) -> np.ndarray:
    """Return how much a slice adds to those that are chosen: 1 far from them, near 0 beside one, 0 where it is one."""
    if not chosen:
        return np.ones(number)
    distance = np.abs(np.arange(number)[:, None] - np.array(chosen)).min(1)
    return np.minimum(distance / _APART, 1.0)


def _widest_gap(chosen: list[int], there: np.ndarray) -> int:
    """Return the slice in the middle of the widest gap between chosen slices, or those at the ends."""
    stops = np.unique([there[0] - 1, *chosen, there[-1] + 1])
    widest = int(np.diff(stops).argmax())
    return int(stops[widest] + stops[widest + 1]) // 2


def box_of(mask: np.ndarray) -> Box:
    """Return the smallest box around a mask, the middle half of the image where the mask is empty."""
    return Box.around(mask) or Box(slice(n // 4, 3 * n // 4 + 1) for n in mask.shape)


def draw_base(mosaic: Mosaic, data: np.ndarray, top: float) -> np.ndarray:
    """Return slices of an image, its intensity ``top`` nearly white; uint8 (H, W), enlarged by the mosaic's zoom."""
    size = tuple(round(side * mosaic.zoom) for side in mosaic.tile[::-1])
    tiles = []
    for number in range(len(mosaic.indices)):
        gray = np.clip(mosaic.slice(data, number).astype(np.float32) * (255 / top), 0, 255)
        tiles.append(np.asarray(Image.fromarray(np.rint(gray).astype(np.uint8)).resize(size, Image.LANCZOS)))
    return mosaic.compose(tiles)


def draw_entropy(mosaic: Mosaic, entropy: np.ndarray) -> np.ndarray:
    """Return the entropy, clear and bright at the ends of ``ENTROPY_RANGE``; uint8 (H, W, 4), a pixel per voxel."""
    from matplotlib import colormaps

    values = mosaic.compose([mosaic.slice(entropy, number) for number in range(len(mosaic.indices))])
    low, high = ENTROPY_RANGE
    share = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)
    picture = colormaps[ENTROPY_COLORS](entropy_shade(share))
    picture[..., 3] = np.clip(share * 1.6, 0, 0.9)
    return np.rint(picture * 255).astype(np.uint8)


def entropy_shade(share: np.ndarray) -> np.ndarray:
    """Return places in the colour map: its darkest part would not be seen on a T1w."""
    return 0.25 + 0.75 * share


def entropy_colors(number: int) -> list[str]:
    """Return colours from the clear to the bright end of ``ENTROPY_RANGE``, as #rrggbb."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps[ENTROPY_COLORS](entropy_shade(np.linspace(0, 1, number)))]


def outline_paths(mosaic: Mosaic, labels: np.ndarray, number: int) -> dict[int, str]:
    """Return the outlines of each label in a slice as an SVG path, in tenths of a voxel from the slice's corner."""
    paths: dict[int, list[str]] = {}
    for label, line in _outlines(mosaic.slice(labels, number)):
        paths.setdefault(label, []).append(_path(line))
    return {label: text for label, parts in paths.items() if (text := "".join(parts))}


def _outlines(part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield label and points (N, 2) as x and y, in voxels from the slice's corner, of each outline."""
    from contourpy import contour_generator

    for number, box in enumerate(ndimage.find_objects(part.astype(np.int32, copy=False)), 1):
        if box is None:
            continue
        mask = np.pad((part[box] == number).astype(np.float32), 2)
        # A speck vanishes when it is smoothed, and has to be seen all the same.
        smooth = ndimage.gaussian_filter(mask, _SIGMA)
        level = min(0.5, 0.6 * float(smooth.max()))
        for line in contour_generator(z=smooth).lines(level):
            yield number, line + [box[1].start - 1.5, box[0].start - 1.5]


def _path(line: np.ndarray) -> str:
    """Return a closed line as an SVG path of relative steps, rounded to tenths of its unit, in which they are; empty
    where nothing is left of it.

    Examples
    --------
    >>> _path(np.array([[1, 1], [3, 1], [3, 2.04], [1, 1]]))
    'M10 10l20 0 0 10z'
    """
    points = np.rint(line[: -1 : 2 if len(line) > _LONG else 1] * 10).astype(int)
    steps = np.diff(points, axis=0)
    if not steps.any():
        return ""
    return f"M{points[0][0]} {points[0][1]}l" + " ".join(map(str, steps[steps.any(1)].ravel().tolist())) + "z"


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
