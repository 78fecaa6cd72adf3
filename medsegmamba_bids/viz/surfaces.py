"""Shaded pictures of structures in three dimensions.

Surfaces are scikit-image's marching cubes. They are drawn as dense points with a depth buffer: matplotlib sorts
triangles by their middles, which shows what lies behind, and every other renderer needs a graphics library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numba
import numpy as np
from matplotlib.colors import to_rgb
from scipy import ndimage

from medsegmamba_bids.image.grid import Box

#: Azimuth and elevation of what a page shows, by title.
VIEWS = {"from the left front": (55, 18), "from the right back": (215, 18), "from above": (180, 89)}
_PAD = 3  # voxels
_SIGMA = 0.8  # voxels, smooths the steps of labels
_THIN_SIGMA, _THIN_LEVEL = 0.5, 0.4  # keep sheets of a voxel, which a stronger filter would lose
_LIGHT = np.array([-0.35, 0.5, 0.8]) / np.linalg.norm([-0.35, 0.5, 0.8])
_SUPERSAMPLE = 2
#: Share of a structure's voxels that a piece must have to be drawn.
SMALLEST_PIECE = 0.05


@dataclass(frozen=True)
class Surface:
    """Corners of the small triangles of a surface.

    Attributes
    ----------
    points : float32 (N, 3, 3)
        mm.
    normals : float32 (N, 3, 3)
        Of unit length, pointing outwards.
    color : (3,)
        Red, green and blue, 0..1.
    """

    points: np.ndarray
    normals: np.ndarray
    color: tuple[float, float, float]


def find_surface(
    mask: np.ndarray, color: tuple[float, float, float], origin: np.ndarray, thin: bool = False
) -> Surface | None:
    """Return the surface of a mask; None where it is too small to have one.

    Parameters
    ----------
    mask : bool (X, Y, Z)
        Voxels of 1 mm, RAS+.
    color : (3,)
    origin : (3,)
        Position of the first voxel, mm.
    thin : bool
        Smooth less, for structures of one or two voxels.

    Examples
    --------
    >>> ball = find_surface(np.hypot.reduce(np.indices((9, 9, 9)) - 4) < 3.5, (1, 0, 0), np.zeros(3))
    >>> radii = np.linalg.norm(ball.points - 4, axis=-1)
    >>> bool(abs(radii.mean() - 3.2) < 0.2)
    True
    """
    from skimage.measure import marching_cubes

    sigma, level = (_THIN_SIGMA, _THIN_LEVEL) if thin else (_SIGMA, 0.5)
    field = ndimage.gaussian_filter(np.pad(mask, _PAD).astype(np.float32), sigma)
    if field.max() <= level:
        return None
    vertices, triangles, _, _ = marching_cubes(field, level)
    outwards = -np.stack(np.gradient(ndimage.gaussian_filter(field, 1.0)), -1)
    normals = outwards[tuple(np.rint(vertices).astype(int).T)]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    points = vertices - _PAD + origin
    return Surface(points[triangles].astype(np.float32), normals[triangles].astype(np.float32), color)


def label_surfaces(
    labels: np.ndarray, affine: np.ndarray, colors: Mapping[int, str], thin: bool = False
) -> list[Surface]:
    """Return surfaces of some labels of a segmentation in RAS+ order with voxels of 1 mm; colours are matplotlib's.

    Specks are left out, see ``SMALLEST_PIECE``: the quality flags count them.
    """
    solids = []
    boxes = Box.around_each(labels)
    for label, color in colors.items():
        box = boxes.get(label)
        if box is None:
            continue
        origin = affine[:3, 3] + np.array([side.start for side in box])
        surface = find_surface(_large_pieces(labels[box] == label), to_rgb(color), origin, thin)
        if surface is not None:
            solids.append(surface)
    return solids


def _large_pieces(mask: np.ndarray) -> np.ndarray:
    """Return a mask without specks: pieces (26 neighbours) smaller than ``SMALLEST_PIECE`` of it, but the largest."""
    pieces, number = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=number + 1)
    sizes[0] = 0
    return (sizes >= min(SMALLEST_PIECE * sizes.sum(), sizes.max()))[pieces] & mask


def view_matrix(azimuth: float, elevation: float) -> np.ndarray:
    """Return rows right, up and towards the viewer (3, 3), in RAS+.

    Parameters
    ----------
    azimuth : float
        Degrees around the vertical: 0 looks from the front, 90 from the participant's left.
    elevation : float
        Degrees above the horizon.

    Examples
    --------
    >>> (view_matrix(0, 0).round(3) + 0.0).tolist()  # from the front the participant's left is on the right
    [[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    a, e = np.radians([azimuth, elevation])
    viewer = np.array([-np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), np.sin(e)])
    right = np.array([-np.cos(a), -np.sin(a), 0.0])
    return np.stack([right, np.cross(viewer, right), viewer])


def draw_views(
    surfaces: list[Surface], pixels_per_mm: float, views: Mapping[str, tuple[float, float]] = VIEWS
) -> dict[str, np.ndarray]:
    """Draw surfaces from several sides; nothing where there is no surface. See :func:`draw`."""
    angles = views if surfaces else {}
    return {title: draw(surfaces, view_matrix(*pair), pixels_per_mm) for title, pair in angles.items()}


def draw(surfaces: list[Surface], view: np.ndarray, pixels_per_mm: float, margin: int = 8) -> np.ndarray:
    """Draw surfaces as a viewer far away sees them.

    Parameters
    ----------
    surfaces : list of Surface
    view : float (3, 3)
        From :func:`view_matrix`.
    pixels_per_mm : float
    margin : int
        Pixels around.

    Returns
    -------
    uint8 (height, width, 4)
        Transparent where there is nothing.
    """
    scale = pixels_per_mm * _SUPERSAMPLE
    parts = [_facing(surface, view) for surface in surfaces]
    points = np.concatenate([part[0] for part in parts]) * np.float32(scale)
    normals = np.concatenate([part[1] for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    low = points[..., :2].min((0, 1)) - margin * _SUPERSAMPLE
    size = np.ceil((points[..., :2].max((0, 1)) - low) + margin * _SUPERSAMPLE).astype(int)
    size += size % _SUPERSAMPLE
    steps = max(2, int(np.ceil(scale * 1.5)))
    depth, normal, which = _splat(points - np.append(low, 0).astype(np.float32), normals, owner, *size, steps)
    picture = _shade(depth, normal, which, np.array([surface.color for surface in surfaces]), scale)
    return _shrunk(picture[::-1])


def _facing(surface: Surface, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points and normals in the viewer's axes, without triangles that look away."""
    turn = view.T.astype(np.float32)
    kept = (surface.normals.reshape(-1, 3) @ turn[:, 2]).reshape(-1, 3).max(1) > -0.2
    points, normals = (
        (corners[kept].reshape(-1, 3) @ turn).reshape(-1, 3, 3) for corners in (surface.points, surface.normals)
    )
    return points, normals


@numba.njit(cache=True, nogil=True)
def _splat(points, normals, owner, width, height, steps):  # noqa: ANN001, ANN202
    """Return depth, normal and owner of the nearest point in each pixel; owner is -1 where there is none.

    Each triangle is drawn as ``steps * (steps + 1) / 2`` points, a good half of a pixel apart.
    """
    depth = np.full(height * width, -np.inf, np.float32)
    normal, which = np.zeros((height * width, 3), np.float32), np.full(height * width, -1, np.int32)
    for n in range(len(points)):
        for i in range(steps):
            for j in range(steps - i):
                s, t = np.float32((i + 1 / 3) / steps), np.float32((j + 1 / 3) / steps)
                r = np.float32(1) - s - t
                x = points[n, 0, 0] * r + points[n, 1, 0] * s + points[n, 2, 0] * t
                y = points[n, 0, 1] * r + points[n, 1, 1] * s + points[n, 2, 1] * t
                z = points[n, 0, 2] * r + points[n, 1, 2] * s + points[n, 2, 2] * t
                pixel = int(x) + width * int(y)
                if z > depth[pixel]:
                    depth[pixel], which[pixel] = z, owner[n]
                    for k in range(3):
                        normal[pixel, k] = normals[n, 0, k] * r + normals[n, 1, k] * s + normals[n, 2, k] * t
    return depth.reshape(height, width), normal.reshape(height, width, 3), which.reshape(height, width)


def _shade(depth: np.ndarray, normal: np.ndarray, which: np.ndarray, colors: np.ndarray, scale: float) -> np.ndarray:
    """Return light from above left, a soft highlight, and darker rims where depth jumps; float (H, W, 4)."""
    there = which >= 0
    near = np.where(there, depth, depth[there].min() - 5 * scale if there.any() else 0)
    jump = (ndimage.maximum_filter(near, 3) - near)[there]
    rim = 1 - np.clip(jump / (1.5 * scale), 0, 1) * np.float32(0.55)
    unit = normal[there]
    unit /= np.sqrt(np.einsum("ij,ij->i", unit, unit))[:, None] + np.float32(1e-9)
    light = (np.float32(0.38) + np.float32(0.68) * np.clip(unit @ _LIGHT.astype(np.float32), 0, 1)) * rim
    halfway = (_LIGHT + [0, 0, 1]) / np.linalg.norm(_LIGHT + [0, 0, 1])
    shine = _thirtieth_power(np.clip(unit @ halfway.astype(np.float32), 0, 1))
    lit = colors.astype(np.float32)[which[there]] * light[:, None] + (np.float32(0.18) * shine * rim)[:, None]
    out = np.zeros((*depth.shape, 4), np.float32)
    out[there, :3] = np.clip(lit, 0, 1)
    out[..., 3] = there
    return out


def _thirtieth_power(base: np.ndarray) -> np.ndarray:
    """Return it by multiplying: NumPy's power of single precision takes ten times as long."""
    second = base * base
    fourth = second * second
    eighth = fourth * fourth
    return eighth * eighth * eighth * fourth * second


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """Return the mean of blocks of pixels; float (H, W, 4), opaque, or 0 in all four, to uint8."""
    height, width, n = picture.shape[0] // _SUPERSAMPLE, picture.shape[1] // _SUPERSAMPLE, _SUPERSAMPLE
    whole = picture[: height * n, : width * n]
    out = sum(whole[row::n, column::n] for row in range(n) for column in range(n))
    out[..., :3] /= np.maximum(out[..., 3:], 1)  # colours weighted by opacity
    out[..., 3] /= n * n
    return np.rint(out * 255).astype(np.uint8)
