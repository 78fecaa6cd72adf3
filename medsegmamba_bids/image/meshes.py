"""Surfaces of labelled structures, as closed meshes in the coordinates of the scanner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.io import atomic_path

_PAD = 4  # voxels
_SIGMA = 0.8  # voxels, smooths the steps of labels
_TRIALS, _TOLERANCE = 10, 0.02


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed surface.

    Attributes
    ----------
    vertices : float32 (N, 3)
        mm, RAS+.
    triangles : int32 (M, 3)
        Corners, so turned that normals point outwards.
    """

    vertices: np.ndarray
    triangles: np.ndarray

    @property
    def volume(self) -> float:
        """What it encloses, mm3; negative where normals point inwards."""
        a, b, c = (self.vertices[self.triangles[:, corner]].astype(float) for corner in range(3))
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def mesh_of(mask: np.ndarray, affine: np.ndarray) -> Mesh | None:
    """Return the smoothed surface of a mask, by marching cubes; None where the mask is empty.

    The level is where the surface encloses what the mask has, to 2 %: at half height smoothing would take much of thin
    structures away.

    Parameters
    ----------
    mask : bool (X, Y, Z)
    affine : float (4, 4)
        mm, RAS+; may be oblique, and turn left and right around.

    Examples
    --------
    >>> ball = np.linalg.norm(np.indices((21, 21, 21)) - 10, axis=0) < 7
    >>> bool(abs(mesh_of(ball, np.eye(4)).volume / ball.sum() - 1) < 0.02)
    True
    """
    box = Box.around(mask)
    if box is None:
        return None
    field = ndimage.gaussian_filter(np.pad(mask[box], _PAD).astype(np.float32), _SIGMA)
    inside = int(np.count_nonzero(mask[box]))
    found = _enclosing(field, inside)
    world = nib.affines.apply_affine(box.shift(affine), found.vertices - _PAD).astype(np.float32)
    mesh = Mesh(world, found.triangles)
    return mesh if mesh.volume > 0 else Mesh(world, np.ascontiguousarray(mesh.triangles[:, ::-1]))


def _enclosing(field: np.ndarray, voxels: int) -> Mesh:
    """Return the surface of equal values, in voxels, that encloses a volume; by bisection from the value that as many
    voxels exceed.
    """
    from skimage.measure import marching_cubes

    level = float(np.partition(field.ravel(), [-voxels - 1, -voxels])[[-voxels - 1, -voxels]].mean())
    low, high = 0.0, float(field.max())
    for _ in range(_TRIALS):
        vertices, triangles, _, _ = marching_cubes(field, level)
        mesh = Mesh(vertices, triangles.astype(np.int32))
        share = abs(mesh.volume) / voxels
        if abs(share - 1) < _TOLERANCE:
            break
        low, high = (level, high) if share > 1 else (low, level)
        level = (low + high) / 2
    return mesh


def save_mesh(mesh: Mesh, path: Path, name: str) -> Path:
    """Write a mesh as GIFTI.

    Parameters
    ----------
    mesh : Mesh
    path : Path
        ``.surf.gii``
    name : str
        Of the structure.
    """
    scanner = nib.gifti.GiftiCoordSystem("NIFTI_XFORM_SCANNER_ANAT", "NIFTI_XFORM_SCANNER_ANAT", np.eye(4))
    meta = nib.gifti.GiftiMetaData(AnatomicalStructurePrimary=name, GeometricType="Anatomical", Name=name)
    arrays = [
        nib.gifti.GiftiDataArray(
            mesh.vertices, "NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32", coordsys=scanner, meta=meta
        ),
        nib.gifti.GiftiDataArray(mesh.triangles, "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32", coordsys=None),
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(nib.gifti.GiftiImage(darrays=arrays).to_xml())
    return path
