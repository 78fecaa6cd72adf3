"""Nodes that write labels in other forms."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy import ndimage

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.space_templates import SpaceTemplate
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.interfaces.more_forms import FreeSurferSubfields, MakeMeshes, ToTemplate
from medsegmamba_bids.interfaces.sink import WriteOutputs
from medsegmamba_bids.workflows.networks import choose_networks

AFFINE = np.array([[-1.0, 0, 0, 40], [0, 0, 1, -40], [0, -1, 0, 40], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_freesurfers_files_of_subfields(tmp_path):
    labels = np.zeros((8, 8, 8), np.uint16)
    labels[0], labels[1], labels[5], labels[6] = 1206, 1215, 2203, 2226
    path = save_image(labels, AFFINE, tmp_path / "labels.nii.gz")
    numbers = {"SoftVolumes": {1206: 60.5, 1215: 10.0, 1226: 30.25, 2203: 7.0}, "MeanPosteriors": {}}
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    node = FreeSurferSubfields(labels_file=str(path), numbers_file=str(tmp_path / "numbers.json"))
    folder = node.run().outputs.out_dir
    sink = WriteOutputs(("freesurfer_subfields",), output_dir=str(tmp_path / "out"), prefix="sub-01_ses-a")
    sink.inputs.freesurfer_subfields = folder
    written = sink.run().outputs.out_files
    mri = tmp_path / "out" / "freesurfer" / "sub-01_ses-a" / "mri"
    assert {str(path) for path in mri.iterdir()} == set(written)
    for side, expected in (("lh", [0, 206, 215]), ("rh", [0, 203, 226])):
        image = nib.load(mri / f"{side}.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz")
        assert np.unique(image.dataobj).tolist() == expected
        np.testing.assert_allclose(image.affine, AFFINE)
    # quantifyHAsubregions.sh takes the first two words of each line.
    rows = dict(line.split() for line in (mri / "lh.hippoSfVolumes-T1.v22.txt").read_text().splitlines())
    assert float(rows["Whole_hippocampus"]) == pytest.approx(90.75)  # without the fissure
    assert (float(rows["CA1"]), float(rows["Hippocampal_tail"]), float(rows["CA3"])) == (60.5, 30.25, 0)


def test_files_of_subfields_that_are_left_out_are_refused():
    config = RunConfig("in", "out", fs_subfields=True, hippocampus_weights="none")
    with pytest.raises(
        ConfigError, match="--fs-subfields writes subfields, and --hippocampus-weights none leaves them"
    ):
        choose_networks(config)


def test_meshes_are_named_by_structure(tmp_path):
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[3:9, 5:9, 5:9], labels[11:16, 5:9, 5:9] = 11, 50
    path = save_image(labels, AFFINE, tmp_path / "labels.nii.gz")
    sink = WriteOutputs(("aseg_meshes",), output_dir=str(tmp_path / "out"), prefix="sub-01_ses-a")
    sink.inputs.aseg_meshes = MakeMeshes(labels_file=str(path), segmentation="aseg").run().outputs.out_dir
    names = [path.rsplit("/", 1)[1] for path in sink.run().outputs.out_files]
    stem = "sub-01_ses-a_seg-aseg_label"
    assert names == [f"{stem}-lCa_mesh.surf.gii", f"{stem}-rCa_mesh.surf.gii"]
    points = nib.load(tmp_path / "out/sub-01/ses-a/meshes" / names[0]).darrays[0].data
    corners = apply_affine(AFFINE, [[3, 5, 5], [8, 8, 8]])
    np.testing.assert_allclose(points.min(0), corners.min(0) - 0.5, atol=0.4)
    np.testing.assert_allclose(points.max(0), corners.max(0) + 0.5, atol=0.4)


def brain(points):
    """A brain of three tissues with a label in it, of points in the template."""
    radius = np.linalg.norm(points / [30, 36, 28], axis=-1)
    spot = np.linalg.norm((points - [10, 5, 3]) / [6, 8, 5], axis=-1) < 1
    data = np.select([radius < 0.7, radius < 1], [110.0, 70.0], 0.0)
    data[np.linalg.norm((points + [12, -4, 2]) / [5, 12, 5], axis=-1) < 1] = 25
    data[spot] = 60
    return ndimage.gaussian_filter(data, 0.7) * (radius < 1), spot


MOVE = np.array([[1.08, 0.05, 0, 4], [-0.06, 0.95, 0.03, -6], [0.02, 0, 1.05, 5], [0, 0, 0, 1]])  # template to head


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    grid = nib.affines.from_matvec(np.eye(3) * 1.5, [-45, -45, -45])
    points = apply_affine(grid, np.moveaxis(np.indices((61, 61, 61)), 0, -1))
    fixed, spot = brain(points)
    save_image(fixed.astype(np.float32), grid, folder / "template.nii.gz")
    save_image((fixed > 0).astype(np.uint8), grid, folder / "template_mask.nii.gz")
    own = apply_affine(AFFINE, np.moveaxis(np.indices((80, 80, 80)), 0, -1))
    moving, own_spot = brain(apply_affine(np.linalg.inv(MOVE), own))
    save_image(moving.astype(np.float32), AFFINE, folder / "norm.nii")
    save_image((moving > 0).astype(np.uint8), AFFINE, folder / "mask.nii.gz")
    save_image(np.where(own_spot, 12, 0).astype(np.uint16), AFFINE, folder / "aseg.nii.gz")
    return folder, spot


def to_template(folder, name="MNI152NLin2009cAsym"):
    template = SpaceTemplate(name, "", "1", folder / "template.nii.gz", folder / "template_mask.nii.gz", version="1.0")
    files = {"norm_file": "norm.nii", "mask_file": "mask.nii.gz", "aseg_file": "aseg.nii.gz"}
    inputs = {key: str(folder / value) for key, value in files.items()}
    return ToTemplate(template=template, metadata={"aseg": {"Sources": ["bids::x"]}}, **inputs).run().outputs


def dice(found, expected):
    return 2 * np.count_nonzero(found & expected) / (found.sum() + expected.sum())


def test_labels_come_to_lie_in_the_template(heads, tmp_path):
    folder, spot = heads
    outputs = to_template(folder)
    stem = "space-MNI152NLin2009cAsym_seg-aseg_res-1_desc-medsegmamba_dseg"
    out = tmp_path / outputs.out_dir
    image = nib.load(out / f"{stem}.nii.gz")
    assert dice(np.asarray(image.dataobj) == 12, spot) > 0.85
    assert int(image.header["sform_code"]) == 4
    entries = json.loads((out / f"{stem}.json").read_text())
    assert entries["Template"] == {"Name": "MNI152NLin2009cAsym", "Version": "1.0", "File": "template.nii.gz"}
    assert (entries["Registration"]["Method"], entries["Sources"]) == ("diffeomorphic demons", ["bids::x"])
    transform = sitk.ReadTransform(str(out / "from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"))
    flip = np.array([-1, -1, 1])
    points = np.array([[10.0, 5, 3], [-12, 4, -2], [0, 0, 0], [15, -10, 5]])
    there = np.array([transform.TransformPoint((point * flip).tolist()) for point in points]) * flip
    assert np.linalg.norm(there - apply_affine(MOVE, points), axis=1).max() < 3


def test_where_the_field_fails_labels_are_affine_and_say_so(heads, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no field")

    monkeypatch.setattr("medsegmamba_bids.image.registration.register_field", fails)
    outputs = to_template(heads[0], "OASIS30ANTs")
    stem = "space-OASIS30ANTs_seg-aseg_res-1_desc-medsegmambaAffine_dseg"
    image = nib.load(tmp_path / outputs.out_dir / f"{stem}.nii.gz")
    assert dice(np.asarray(image.dataobj) == 12, heads[1]) > 0.7
    assert int(image.header["sform_code"]) == 5
    assert "the nonlinear registration failed (no field); labels are affine" in outputs.record["Notes"][0]
