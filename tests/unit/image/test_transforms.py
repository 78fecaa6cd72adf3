"""Transforms as files are read with the libraries of others, and applied to points."""

import nibabel as nib
import nitransforms
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine

from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.transforms import save_itk, to_lta

MATRIX = np.array([[1.1, 0.2, -0.1, 7], [-0.15, 0.95, 0.25, -11], [0.05, -0.3, 1.05, 20], [0, 0, 0, 1]])
POINTS = np.random.default_rng(5).uniform(-90, 90, (20, 3))
AXES = nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.7, 1.2, 3])
OBLIQUE = Grid(nib.affines.from_matvec(AXES, [30, -50, 9]), (60, 70, 20))
TARGET = Grid(nib.affines.from_matvec(np.diag([2.0, 2, 2]), [-90, -126, -72]), (91, 109, 91))


def test_itk_maps_points_of_the_template_to_the_t1w_in_lps(tmp_path):
    transform = sitk.ReadTransform(str(save_itk(MATRIX, tmp_path / "affine.tfm")))
    flip = np.array([-1, -1, 1])
    there = np.array([transform.TransformPoint((point * flip).tolist()) for point in apply_affine(MATRIX, POINTS)])
    np.testing.assert_allclose(there * flip, POINTS, atol=1e-9)


def test_nitransforms_reads_itk_as_it_resamples(tmp_path):
    path = save_itk(MATRIX, tmp_path / "affine.tfm")
    transform = nitransforms.linear.load(path, fmt="itk")
    np.testing.assert_allclose(
        transform.map(apply_affine(MATRIX, POINTS)), POINTS, atol=1e-4
    )  # it keeps single precision


def volume_info(lines):
    """Rebuild an affine from what FreeSurfer documents: voxels are centred on cras."""
    info = dict(line.split("=", 1) for line in lines if "=" in line)
    info = {key.strip(): value.split("#")[0].split() for key, value in info.items()}
    shape = np.array(info["volume"], int)
    axes = np.array([info[key] for key in ("xras", "yras", "zras")], float).T * np.array(info["voxelsize"], float)
    return nib.affines.from_matvec(axes, np.array(info["cras"], float) - axes @ (shape / 2)), tuple(shape)


def test_lta_maps_points_of_the_t1w_to_the_template():
    lines = to_lta(MATRIX, OBLIQUE, TARGET, ("T1w.nii.gz", "template.nii.gz")).splitlines()
    assert lines[0].split("#")[0].split() == ["type", "=", "1"]  # RAS to RAS
    start = lines.index("1 4 4") + 1
    matrix = np.loadtxt(lines[start : start + 4])
    np.testing.assert_allclose(apply_affine(matrix, POINTS), apply_affine(MATRIX, POINTS), atol=1e-9)
    middle = lines.index("dst volume info")
    for part, grid in ((lines[start + 5 : middle], OBLIQUE), (lines[middle + 1 :], TARGET)):
        affine, shape = volume_info(part)
        np.testing.assert_allclose(affine, grid.affine, atol=1e-9)
        assert shape == grid.shape


def test_nitransforms_reads_the_lta(tmp_path):
    (tmp_path / "affine.lta").write_text(to_lta(MATRIX, OBLIQUE, TARGET, ("T1w.nii.gz", "template.nii.gz")))
    found = nitransforms.io.lta.FSLinearTransform.from_filename(tmp_path / "affine.lta")
    assert found["type"] == 1
    np.testing.assert_allclose(found["m_L"], MATRIX, atol=1e-6)
    np.testing.assert_allclose(found["src"].as_affine(), OBLIQUE.affine, atol=1e-5)
    assert tuple(found["dst"]["volume"]) == TARGET.shape


def test_transforms_say_the_same(tmp_path):
    itk = sitk.ReadTransform(str(save_itk(np.eye(4), tmp_path / "same.tfm")))
    assert itk.TransformPoint((1.0, 2.0, 3.0)) == pytest.approx((1, 2, 3))
