"""The benchmark that compares subfields with FreeSurfer's: its numbers by hand, its files."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("SimpleITK")
import freesurfer_subfields as script

SHAPE = (30, 12, 10)


def write(mri, name, labels):
    nib.save(nib.MGHImage(labels.astype(np.int32), np.eye(4)), mri / name)


@pytest.fixture
def mri(tmp_path):
    """Every subfield in ten voxels of each side, the amygdala's nuclei beside."""
    for side in ("lh", "rh"):
        labels = np.zeros(SHAPE, int)
        start = 0 if side == "lh" else 15
        for row, name in enumerate(script.SUBFIELDS):
            labels[start, row] = script.TABLE.labels[script.NAMES.index(name)] - 1000
        labels[start + 5] = 7001
        write(tmp_path, f"{side}.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz", labels)
    return tmp_path


def test_files_of_freesurfer_become_classes_of_both_sides(mri):
    found = script.read_subfields(mri, nib.MGHImage(np.zeros(SHAPE, np.uint8), np.eye(4)))
    assert np.bincount(found.ravel()).tolist() == [found.size - 240] + 24 * [10]


def test_agreement_by_hand(mri):
    """On the left half of CA1 is lost; the rest agrees."""
    reference = script.read_subfields(mri, nib.MGHImage(np.zeros(SHAPE, np.uint8), np.eye(4)))
    found, row = reference.copy(), script.SUBFIELDS.index("CA1")
    found[0, row, :5] = 0
    table = script.agreement(found, reference)
    assert table.loc["CA1"].tolist() == pytest.approx([(2 / 3 + 1) / 2, np.sqrt(0.5)])
    assert table.loc["HP_tail"].tolist() == [1, 1]
    assert table.loc["all together"].tolist() == pytest.approx([(230 / 235 + 1) / 2, np.sqrt(115 / 120)])
    assert table.loc["mean, off by"].tolist() == pytest.approx([(23 + 2 / 3) / 24, np.exp(np.log(2) / 24)])


def test_finer_labels_of_freesurfer_6_are_sampled_where_the_image_has_voxels(mri, tmp_path):
    """As hippoSfLabels-T1.v10.mgz are: thirds of a voxel around the hippocampus."""
    fine = tmp_path / "fine"
    fine.mkdir()
    voxels_of_fine = np.diag([1 / 3, 1 / 3, 1 / 3, 1])
    voxels_of_fine[:3, 3] = -1 / 3  # the middle one of three lies in the middle of a coarse voxel
    for side in ("lh", "rh"):
        coarse = nib.load(mri / f"{side}.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz").get_fdata().astype(np.int32)
        labels = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)
        nib.save(nib.MGHImage(labels, voxels_of_fine), fine / f"{side}.hippoSfLabels-T1.v10.mgz")
    grid = nib.MGHImage(np.zeros(SHAPE, np.uint8), np.eye(4))
    np.testing.assert_array_equal(script.read_subfields(fine, grid), script.read_subfields(mri, grid))


def test_another_grid_and_absent_files_are_told(mri, tmp_path):
    with pytest.raises(SystemExit, match=r"lh\.hippoAmygLabels.* is not on the grid"):
        script.read_subfields(mri, nib.MGHImage(np.zeros(SHAPE, np.uint8), np.diag([2, 1, 1, 1])))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"has none of lh\.hippoAmygLabels"):
        script.read_subfields(tmp_path / "empty", nib.MGHImage(np.zeros(SHAPE, np.uint8), np.eye(4)))
