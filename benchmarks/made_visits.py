"""Scans of one head as a scanner would make them on other days: moved, resampled, with noise and another bias field.

A deformation can be added, whose change of a structure's volume is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsegmamba_bids.image.grid import Box, Grid

_REACH = 4  # voxels that a structure's border moves at most


@dataclass(frozen=True)
class Scan:
    """How a scan is made: voxels in mm, motion in degrees and mm, noise and bias field in parts of white matter."""

    voxel: float = 1.0
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: float = 0.02
    bias: float = 0.1
    seed: int = 0


def random_scan(rng: np.random.Generator) -> Scan:
    """A scan of another day: up to 8 degrees and 8 mm, voxels of 0.9 to 1.2 mm, noise of 1.5 to 3.5 %, bias of 10 %."""
    return Scan(
        voxel=round(float(rng.uniform(0.9, 1.2)), 3),
        angles=tuple(rng.uniform(-8, 8, 3).round(3).tolist()),
        shift=tuple(rng.uniform(-8, 8, 3).round(3).tolist()),
        noise=round(float(rng.uniform(0.015, 0.035)), 4),
        seed=int(rng.integers(1 << 30)),
    )


def make_scan(head: nib.Nifti1Image, scan: Scan, pull: np.ndarray | None = None) -> nib.Nifti1Image:
    """Resample a head once, by cubic splines.

    Parameters
    ----------
    head : nibabel image (X, Y, Z)
    scan : Scan
    pull : float (X, Y, Z, 3), optional
        Where a voxel of the deformed head has its intensity from: mm (RAS+) to add, on the head's grid.
    """
    rng = np.random.default_rng(scan.seed)
    grid = Grid.of(head)
    data = np.asarray(head.dataobj, np.float32)
    data = ndimage.gaussian_filter(data, 0.425 * np.sqrt(np.maximum(scan.voxel**2 - grid.zooms**2, 0)) / grid.zooms)
    matrix = rigid_motion(scan, grid)
    extent = np.abs(grid.affine[:3, :3]) @ grid.shape
    shape = np.ceil(extent / scan.voxel).astype(int)
    middle = grid.to_world((np.array(grid.shape) - 1) / 2)
    affine = nib.affines.from_matvec(np.diag([scan.voxel] * 3), middle - scan.voxel * (shape - 1) / 2)
    back = np.linalg.inv(matrix @ grid.affine) @ affine
    spline = ndimage.spline_filter(data, order=3)
    out = np.empty(shape, np.float32)
    for z in range(shape[2]):  # a plane at a time, to save memory
        places = np.stack([*np.mgrid[0 : shape[0], 0 : shape[1]], np.full(shape[:2], z)]).reshape(3, -1)
        at = back[:3, :3] @ places + back[:3, 3:]
        if pull is not None:
            moved = np.stack([ndimage.map_coordinates(pull[..., k], at, order=1) for k in range(3)])
            at = at + np.linalg.inv(grid.affine[:3, :3]) @ moved
        out[..., z] = ndimage.map_coordinates(spline, at, order=3, prefilter=False).reshape(shape[:2])
    white = float(np.percentile(data[data > np.percentile(data, 50)], 85))
    out *= bias_field(tuple(shape), scan.bias, rng)
    sd = scan.noise * white
    out = np.hypot(out + rng.normal(0, sd, out.shape), rng.normal(0, sd, out.shape))
    return nib.Nifti1Image(np.clip(np.rint(out * 1000 / white), 0, 4000).astype(np.int16), affine)


def rigid_motion(scan: Scan, grid: Grid) -> np.ndarray:
    """From points of the head to points of the scan, mm, about the middle of the grid."""
    middle = grid.to_world((np.array(grid.shape) - 1) / 2)
    turn = Rotation.from_euler("xyz", scan.angles, degrees=True).as_matrix()
    return nib.affines.from_matvec(turn, middle + scan.shift - turn @ middle)


def bias_field(shape: tuple[int, ...], strength: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth field around 1: the exponential of polynomials of the second degree with random weights."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32) for side in shape], indexing="ij", sparse=True)
    terms = [x, y, z, x * y, y * z, x * z, x * x, y * y, z * z]
    weights = rng.uniform(-strength, strength, len(terms))
    return np.exp(sum(float(weight) * term for weight, term in zip(weights, terms, strict=True)))


def growth(mask: np.ndarray, grid: Grid, percent: float, smooth_mm: float = 2.5) -> tuple[np.ndarray, float]:
    """Return a smooth deformation that changes the volume of a structure by about so much, and by how much it does.

    Points move along the gradient of the smoothed mask, outwards where it grows.

    Returns
    -------
    pull : float32 (X, Y, Z, 3)
        As `make_scan` takes it.
    percent : float
        The change of the mask's volume: the integral of the Jacobian determinant of the map from the old head to the
        new one over the mask.
    """
    box = Box.around(mask, margin=round(6 * smooth_mm / float(grid.zooms.min())))
    inside, near = mask[box], grid.cut(box)
    soft = ndimage.gaussian_filter(inside.astype(np.float32), smooth_mm / grid.zooms)
    slopes = np.stack(np.gradient(soft), axis=-1) @ np.linalg.inv(grid.affine[:3, :3])  # 1/mm, in the world
    slopes = slopes.astype(np.float32)
    strength = 1.0
    for _ in range(4):
        strength *= percent / change_of(inside, near, strength * slopes)
    pull = np.zeros((*mask.shape, 3), np.float32)
    pull[box] = strength * slopes
    return pull, change_of(inside, near, strength * slopes)


def change_of(mask: np.ndarray, grid: Grid, pull: np.ndarray) -> float:
    """The change of a mask's volume in percent, from the Jacobian determinants of the inverse map.

    With y = x + u(x) from the new head to the old one, the new volume is the integral over the old mask of 1 / det(1 +
    grad u), taken at the point that y comes from, which is found by iteration.
    """
    box = Box.around(mask, margin=_REACH)
    mask, pull = mask[box], pull[box]
    inverse = np.linalg.inv(grid.affine[:3, :3])
    steps = np.moveaxis(pull @ inverse.T, -1, 0)  # voxels
    slopes = np.stack([np.stack(np.gradient(part), axis=0) for part in steps])  # [component, axis]
    determinant = np.linalg.det(np.eye(3) + np.moveaxis(slopes, (0, 1), (-2, -1)))
    old = np.argwhere(mask).T.astype(float)
    new = old.copy()
    for _ in range(8):
        new = old - np.stack([ndimage.map_coordinates(part, new, order=1) for part in steps])
    return 100 * float((1 / ndimage.map_coordinates(determinant, new, order=1)).mean() - 1)
