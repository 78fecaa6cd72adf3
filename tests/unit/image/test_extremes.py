"""From a file to the conformed grid: images at the limits of what is taken."""

import logging

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_image


@pytest.fixture
def write(tmp_path):
    """Writes an uncompressed image that is empty but for a block; the file has holes, so that this takes no time."""

    def make(shape, affine, block, value, dtype=np.uint8):
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_data_dtype(dtype)
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        header["vox_offset"] = 352
        path = tmp_path / "head.nii"
        with path.open("wb") as file:
            header.write_to(file)
            file.truncate(352 + int(np.prod(shape)) * np.dtype(dtype).itemsize)
        data = np.memmap(path, dtype, "r+", 352, shape, "F")
        data[block] = value
        data.flush()
        return path

    return make


def middle(data, share=2):
    """Where an array is above half of its highest value: the centre of mass in voxels, and their number."""
    places = np.argwhere(data > data.max() / share)
    return places.mean(0), len(places)


def test_fine_voxels_in_512_cubed(write, caplog):
    """0.4 mm, 205 mm wide: a block of 40 x 48 x 56 mm stays where it is and as large as it is."""
    affine = from_matvec(np.diag([-0.4, 0.4, 0.4]), [102.4, -102.4, -102.4])
    block = (slice(200, 300), slice(150, 270), slice(100, 240))
    with caplog.at_level(logging.WARNING):
        image = load_image(write((512, 512, 512), affine, block, 200))
        conformed = conform(image)
    assert not caplog.text
    assert image.shape == (512, 512, 512)
    assert image.get_data_dtype() == np.uint8
    centre, voxels = middle(np.asarray(conformed.dataobj))
    assert voxels == pytest.approx(40 * 48 * 56, rel=0.03)
    world = nib.affines.apply_affine(conformed.affine, centre)
    np.testing.assert_allclose(world, nib.affines.apply_affine(affine, [249.5, 209.5, 169.5]), atol=0.5)


def test_labels_return_to_fine_voxels():
    """A part of such an image: a label of 20 mm a side keeps its volume."""
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[5:25, 5:25, 5:25] = 17
    to_affine = from_matvec(np.diag([0.4, 0.4, 0.4]), [-0.1, -0.1, -0.1])
    fine = labels_to_grid(labels, Grid(np.eye(4), labels.shape), Grid(to_affine, (75, 75, 75)))
    assert np.count_nonzero(fine == 17) * 0.064 == pytest.approx(8000, rel=0.02)  # edges are rounded
    assert set(np.unique(fine)) == {0, 17}


def test_thick_slices_are_taken_with_a_warning(write, caplog):
    affine = from_matvec(np.diag([1.0, 1.0, 6.5]), [-60, -60, -60])
    path = write((120, 120, 20), affine, (slice(40, 80), slice(40, 80), slice(6, 14)), 200)
    conformed = conform(load_image(path))
    assert f"{path}: its voxels are 1 x 1 x 6.5 mm; volumes of small structures will not be reliable" in caplog.text
    _, voxels = middle(np.asarray(conformed.dataobj))
    assert voxels == pytest.approx(40 * 40 * 52, rel=0.03)


def test_a_field_of_view_beyond_256_mm(write, caplog):
    """Head and neck over 320 mm: the ends are left out, and the warning says how much of that was body."""
    affine = from_matvec(np.diag([2.0, 2.0, 2.0]), [-40, -40, -160])
    path = write((40, 40, 160), affine, (slice(5, 35), slice(5, 35), slice(0, 100)), 200)
    conformed = conform(load_image(path))
    # 17 planes of 30 x 30 voxels of 8 mm3; the grid's centre is the voxel at half the shape.
    assert "15300 voxels with signal (0.12 litres) lie outside the conformed cube of 256 mm" in caplog.text
    _, voxels = middle(np.asarray(conformed.dataobj))
    assert voxels == 59 * 59 * (200 - 34)  # faces are at half intensity


def test_a_field_of_view_beyond_256_mm_of_air_is_silent(write, caplog):
    affine = from_matvec(np.diag([2.0, 2.0, 2.0]), [-40, -40, -160])
    conform(load_image(write((40, 40, 160), affine, (slice(5, 35), slice(5, 35), slice(40, 100)), 100)))
    assert not caplog.text


def test_sform_rules_over_qform_up_to_the_conformed_grid(tmp_path, caplog):
    """At odds by 30 mm: the conformed image lies where the sform says."""
    data = np.zeros((40, 40, 40), np.uint8)
    data[10:20, 15:25, 20:30] = 200
    image = nib.Nifti1Image(data, None)
    image.set_sform(from_matvec(np.eye(3), [-20, -20, 10]), 1)
    image.set_qform(from_matvec(np.eye(3), [-20, -20, -20]), 1)
    image.to_filename(tmp_path / "head.nii.gz")
    conformed = conform(load_image(tmp_path / "head.nii.gz"))
    centre, voxels = middle(np.asarray(conformed.dataobj))
    assert voxels == 1000
    np.testing.assert_allclose(nib.affines.apply_affine(conformed.affine, centre), [-5.5, -0.5, 34.5], atol=1e-3)
