import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nilearn.surface import load_surf_mesh

from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.meshes import mesh_of, save_mesh

TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.25)
OBLIQUE = nib.affines.from_matvec(TURN @ np.diag([-0.8, 0.9, 2.0]), [40, -30, 12])
CENTRE, RADII = np.array([8.0, -4.0, 30.0]), np.array([6.0, 9.0, 12.0])


def ellipsoid(affine, shape):
    """How far voxels lie from the middle of an ellipsoid in the scanner, where 1 is its surface."""
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return np.linalg.norm((points - CENTRE) / RADII, axis=-1)


def around(affine, side=64):
    """Return an affine with the ellipsoid in the middle of the grid."""
    out = affine.copy()
    out[:3, 3] = CENTRE - affine[:3, :3] @ np.full(3, side / 2)
    return out


@pytest.mark.parametrize("affine", [np.diag([-1.0, 1, 1, 1]), np.eye(4), OBLIQUE], ids=["LAS", "RAS", "oblique"])
def test_the_surface_lies_on_the_structure_and_keeps_its_volume(affine):
    affine = around(affine)
    mask = ellipsoid(affine, (64, 64, 64)) < 1
    mesh = mesh_of(mask, affine)
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert mesh.volume == pytest.approx(volume, rel=0.021)  # positive: normals point outwards
    radius = np.linalg.norm((mesh.vertices - CENTRE) / RADII, axis=1)
    assert abs(radius - 1).max() < 0.16
    a, b, c = (mesh.vertices[mesh.triangles[:, corner]] for corner in range(3))
    outwards = np.einsum("ij,ij->i", np.cross(b - a, c - a), (a + b + c) / 3 - CENTRE)
    assert (outwards > 0).mean() > 0.999
    edges = np.sort(np.concatenate([mesh.triangles[:, [i, j]] for i, j in ((0, 1), (1, 2), (2, 0))]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # closed


def test_a_mesh_of_conformed_labels_lies_on_the_native_ones():
    affine = around(OBLIQUE)
    distance = ellipsoid(affine, (64, 64, 64))
    native = nib.Nifti1Image(np.where(distance < 1, 90, 10 * (distance < 2)).astype(np.uint8), affine)
    grid = Grid.of(conform(native))
    labels = labels_to_grid((distance < 1).astype(np.uint16), Grid.of(native), grid)
    mesh = mesh_of(labels == 1, grid.affine)
    voxels = apply_affine(np.linalg.inv(affine), mesh.vertices)
    at = np.clip(np.rint(voxels).astype(int), 0, 63)
    assert abs(distance[tuple(at.T)] - 1).max() < 0.3  # half a voxel of 2 mm, of a radius of 6 mm


def test_thin_sheets_keep_their_volume():
    mask = np.zeros((30, 30, 30), bool)
    mask[5:25, 5:25, 14] = True
    assert mesh_of(mask, np.eye(4)).volume == pytest.approx(400, rel=0.03)
    assert mesh_of(np.zeros((5, 5, 5), bool), np.eye(4)) is None
    assert mesh_of(np.pad(np.ones((1, 1, 1), bool), 3), np.eye(4)).volume > 0


def test_others_read_the_file(tmp_path):
    mesh = mesh_of(ellipsoid(around(OBLIQUE), (64, 64, 64)) < 1, around(OBLIQUE))
    path = save_mesh(mesh, tmp_path / "ball.surf.gii", "Left-Caudate")
    found = load_surf_mesh(path)
    np.testing.assert_array_equal(found.coordinates, mesh.vertices)
    np.testing.assert_array_equal(found.faces, mesh.triangles)
    points, triangles = nib.load(path).darrays
    assert (points.intent, triangles.intent) == (1008, 1009)  # NIFTI_INTENT_POINTSET, _TRIANGLE
    assert (points.coordsys.dataspace, points.coordsys.xformspace) == (1, 1)  # scanner
    np.testing.assert_array_equal(points.coordsys.xform, np.eye(4))
    assert points.meta["AnatomicalStructurePrimary"] == "Left-Caudate"
