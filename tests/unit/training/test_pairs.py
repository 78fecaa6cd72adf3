"""Pairs found in FreeSurfer's folders and in BIDS derivatives, and what of them is refused."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from medsegmamba_bids.errors import DatasetError, PairError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.training.pairs.finder import Pair, find_bids_pairs, find_freesurfer_pairs
from medsegmamba_bids.training.pairs.pair_patches import PreparedPair, merged_labels, prepare_pair, prepare_pairs
from medsegmamba_bids.training.processes import Processes
from medsegmamba_bids.training.training_config import PairsConfig

ASEG = PairsConfig("tiny", "aseg", {}, patch_size=16, patches_per_axis=2)
SUBFIELDS = PairsConfig("tiny", "hippoFS60", {}, patch_size=16, patches_per_axis=1)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def names(pairs):
    return [(pair.name, pair.participant) for pair in pairs]


def test_freesurfer_subjects(tmp_path):
    for subject in ("sub-01", "sub-02_ses-1", "sub-02_ses-2", "03", "sub-04.long.base", "fsaverage", "sub_05"):
        for file in ("brain.mgz", "aseg.mgz"):
            touch(tmp_path / subject / "mri" / file)
    (tmp_path / "logs").mkdir()
    participants = ["sub-01", "sub-02", "sub-03", "sub-04", "sub-sub_05", "sub-99"]
    pairs = find_freesurfer_pairs(tmp_path, ASEG, participants)
    assert names(pairs) == [
        ("03", "sub-03"),
        ("sub-01", "sub-01"),
        ("sub-02_ses-1", "sub-02"),
        ("sub-02_ses-2", "sub-02"),
        ("sub-04.long.base", "sub-04"),
        ("sub_05", "sub-sub_05"),
    ]
    assert pairs[0].image == tmp_path / "03/mri/brain.mgz"
    assert pairs[0].labels == ((tmp_path / "03/mri/aseg.mgz", 0),)


def test_freesurfer_subfields_take_the_latest_version(tmp_path):
    mri = tmp_path / "sub-01" / "mri"
    touch(mri / "brain.mgz")
    for side in ("lh", "rh"):
        for version in ("v21", "v22"):
            touch(mri / f"{side}.hippoAmygLabels-T1.{version}.FS60.FSvoxelSpace.mgz")
    (pair,) = find_freesurfer_pairs(tmp_path, SUBFIELDS, ["sub-01"])
    expected = [("lh.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz", 1000)]
    expected.append(("rh.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz", 2000))
    assert [(path.name, added) for path, added in pair.labels] == expected


def test_freesurfer_files_that_are_missing(tmp_path):
    touch(tmp_path / "sub-01" / "mri" / "brain.mgz")
    with pytest.raises(PairError, match=r"sub-01/mri/aseg\.mgz: no such file"):
        find_freesurfer_pairs(tmp_path, ASEG, ["sub-01"])
    (tmp_path / "sub-01" / "mri" / "brain.mgz").unlink()
    with pytest.raises(PairError, match=r"sub-01/mri/brain\.mgz: no such file; which image"):
        find_freesurfer_pairs(tmp_path, ASEG, ["sub-01"])
    with pytest.raises(PairError, match="no such folder of FreeSurfer subjects"):
        find_freesurfer_pairs(tmp_path / "none", ASEG, ["sub-01"])


def dataset(folder, kind):
    folder.mkdir()
    description = {"Name": "tiny", "BIDSVersion": "1.9.0", "DatasetType": kind}
    if kind == "derivative":
        description["GeneratedBy"] = [{"Name": "tiny"}]
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return folder


def test_bids_derivatives(tmp_path, caplog):
    raw, derived = dataset(tmp_path / "raw", "raw"), dataset(tmp_path / "derived", "derivative")
    for prefix in ("sub-01/anat/sub-01", "sub-02/ses-1/anat/sub-02_ses-1", "sub-02/ses-2/anat/sub-02_ses-2"):
        touch(raw / f"{prefix}_T1w.nii.gz")
    touch(raw / "sub-03/anat/sub-03_T1w.nii.gz")
    for prefix in ("sub-01/anat/sub-01", "sub-02/ses-2/anat/sub-02_ses-2"):
        touch(derived / f"{prefix}_seg-aseg_desc-other_dseg.nii.gz")
        touch(derived / f"{prefix}_space-T1w_seg-aseg_desc-first_dseg.nii.gz")
        touch(derived / f"{prefix}_space-conform_seg-aseg_dseg.nii.gz")
        touch(derived / f"{prefix}_seg-hippoFS60_dseg.nii.gz")
    pairs = find_bids_pairs(raw, [derived], ASEG, ["sub-01", "sub-02"])
    assert names(pairs) == [("sub-01", "sub-01"), ("sub-02_ses-2", "sub-02")]
    assert pairs[0].labels == ((derived / "sub-01/anat/sub-01_seg-aseg_desc-other_dseg.nii.gz", 0),)
    assert "sub-02_ses-1_T1w.nii.gz: has no seg-aseg*_dseg image and is left out" in caplog.text
    assert "sub-03" not in caplog.text
    (subfields, _) = find_bids_pairs(raw, [derived], SUBFIELDS, ["sub-01", "sub-02"])
    assert subfields.labels[0][0].name == "sub-01_seg-hippoFS60_dseg.nii.gz"
    with pytest.raises(PairError, match="none: no BIDS dataset"):
        find_bids_pairs(raw, [tmp_path / "none"], ASEG, ["sub-01"])


@pytest.mark.parametrize("above", ["sub-02", "run-1", "ses-1_acq-x", "desc-y"])
def test_folders_above_the_datasets_say_nothing(tmp_path, above):
    (tmp_path / above).mkdir()
    raw, derived = dataset(tmp_path / above / "raw", "raw"), dataset(tmp_path / above / "derived", "derivative")
    for prefix in ("sub-01/anat/sub-01", "sub-02/anat/sub-02", "sub-03/anat/sub-03_run-1", "sub-03/anat/sub-03_run-02"):
        touch(raw / f"{prefix}_T1w.nii.gz")
        touch(derived / f"{prefix}_seg-aseg_dseg.nii.gz")
    for name in ("sub-01_part-phase", "sub-02", "._sub-01"):
        touch(raw / f"sub-01/anat/{name}_T1w.nii.gz")
        touch(derived / f"sub-01/anat/{name}_seg-aseg_dseg.nii.gz")
    pairs = find_bids_pairs(raw, [derived], ASEG, ["sub-01", "sub-03", "sub-99"])
    assert names(pairs) == [("sub-01", "sub-01"), ("sub-03_run-02", "sub-03"), ("sub-03_run-1", "sub-03")]
    for pair in pairs:
        ((labels, _),) = pair.labels
        assert labels == derived / "/".join([pair.participant, "anat", f"{pair.name}_seg-aseg_dseg.nii.gz"])
        assert pair.image == raw / "/".join([pair.participant, "anat", f"{pair.name}_T1w.nii.gz"])


def test_two_segmentations_of_a_scan_are_told_apart_by_their_name(tmp_path):
    raw, derived = dataset(tmp_path / "raw", "raw"), dataset(tmp_path / "derived", "derivative")
    touch(raw / "sub-01/anat/sub-01_T1w.nii.gz")
    for name in ("seg-asegA", "seg-asegB"):
        touch(derived / f"sub-01/anat/sub-01_{name}_dseg.nii.gz")
    with pytest.raises(DatasetError, match=r"several segmentations for sub-01: .*asegA_dseg\.nii\.gz, .*asegB_dseg"):
        find_bids_pairs(raw, [derived], ASEG, ["sub-01"])
    (pair,) = find_bids_pairs(raw, [derived], dataclasses.replace(ASEG, segmentation="asegB"), ["sub-01"])
    assert pair.labels[0][0].name == "sub-01_seg-asegB_dseg.nii.gz"


def pair_of(folder, labels, affine=None, image_affine=None, labels_list=None):
    """A pair of small NIfTI files; the image is bright where there are labels."""
    affine = np.diag([-1.0, 1, 1, 1]) if affine is None else affine
    image = (labels[0] > 0).astype(np.uint8) * 200  # bytes of a full range stay what they are
    image[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(image, affine if image_affine is None else image_affine), folder / "image.nii.gz")
    files = []
    for number, array in enumerate(labels):
        nib.save(nib.Nifti1Image(array, affine), folder / f"labels{number}.nii.gz")
        files.append(folder / f"labels{number}.nii.gz")
    added = (0,) if len(files) == 1 else (1000, 2000)
    return Pair("one", "sub-one", folder / "image.nii.gz", tuple(zip(files, added, strict=True)))


def cube(value, shape=(40, 40, 40), place=slice(10, 30), dtype=np.int16):
    labels = np.zeros(shape, dtype)
    labels[place, place, place] = value
    return labels


def test_a_pair_becomes_classes_on_the_conformed_grid(tmp_path):
    found = prepare_pair(pair_of(tmp_path, [cube(17)]), ASEG, load_label_table("aseg"))
    index = load_label_table("aseg").labels.tolist().index(17)
    assert found.image.shape == found.target.shape == (20, 20, 20)  # around the labels, at least a patch
    assert (found.target == index).sum() == 20**3
    assert found.image[10, 10, 10] == 200


@pytest.mark.parametrize(
    ("shift", "message"), [(np.diag([-1.0, 1, 1.1, 1]), "lies up to"), (np.diag([-1.0, 1, 1.001, 1]), "")]
)
def test_other_positions_are_refused(tmp_path, shift, message):
    pair = pair_of(tmp_path, [cube(17)], image_affine=shift)
    if not message:  # within 0.1 mm
        prepare_pair(pair, ASEG, load_label_table("aseg"))
        return
    with pytest.raises(PairError, match=rf"labels0\.nii\.gz: {message} .* from its image .*image\.nii\.gz; both must"):
        prepare_pair(pair, ASEG, load_label_table("aseg"))


def test_other_shapes_are_refused(tmp_path):
    pair = pair_of(tmp_path, [cube(17)])
    nib.save(nib.Nifti1Image(cube(50, (40, 40, 41)), np.diag([-1.0, 1, 1, 1])), tmp_path / "image.nii.gz")
    with pytest.raises(PairError, match=r"labels0\.nii\.gz: has \(40, 40, 40\) voxels, but its image"):
        prepare_pair(pair, ASEG, load_label_table("aseg"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (cube(999), r"the labels \[999\] are neither classes of the table aseg nor named as background"),
        (cube(1005), "none of the classes of the table aseg is there"),
        (cube(2.5, dtype=np.float32), "its values are not whole numbers from 0 to 65535"),
        (cube(-4), "its values are not whole numbers from 0 to 65535"),
        (cube(2**17, dtype=np.int32), "its values are not whole numbers from 0 to 65535"),
    ],
)
def test_labels_that_cannot_be_trained_on(tmp_path, labels, message):
    pair = pair_of(tmp_path, [labels])
    with pytest.raises(ValueError, match=message) as error:
        prepare_pair(pair, ASEG, load_label_table("aseg"))
    assert "labels0.nii.gz" in str(error.value)


def test_subfield_files_of_both_sides_are_joined(tmp_path):
    """Sides are told apart by what is added; nuclei of the amygdala are no subfields."""
    left, right = cube(206, place=slice(8, 12)), cube(206, place=slice(20, 24))
    left[9, 9, 9], right[20, 20, 20] = 7001, 226
    pair = pair_of(tmp_path, [left, right])
    merged = merged_labels(pair, nib.load(pair.image))
    assert sorted(np.unique(merged).tolist()) == [0, 1206, 2206, 2226]
    assert merged[9, 9, 9] == 0
    found = prepare_pair(pair, SUBFIELDS, load_label_table("hippoFS60"))
    assert found.image.shape == (96, 96, 96)  # what inference looks at, whatever the size of a patch


def test_prepared_pairs_are_kept_until_a_file_changes(tmp_path):
    pair = pair_of(tmp_path, [cube(17)])
    alone = Processes(0, 1, torch.device("cpu"))
    (first,) = prepare_pairs([pair], ASEG, load_label_table("aseg"), tmp_path / "cache", alone)
    written = first.stat().st_mtime_ns
    (again,) = prepare_pairs([pair], ASEG, load_label_table("aseg"), tmp_path / "cache", alone)
    assert (again, again.stat().st_mtime_ns) == (first, written)
    nib.save(nib.Nifti1Image(cube(18, place=slice(5, 30)), np.diag([-1.0, 1, 1, 1])), tmp_path / "labels0.nii.gz")
    (other,) = prepare_pairs([pair], ASEG, load_label_table("aseg"), tmp_path / "cache", alone)
    assert other != first


def test_patches_cover_a_scan_from_end_to_end():
    image = np.arange(20 * 18 * 16, dtype=np.uint32).reshape(20, 18, 16)
    pair = PreparedPair("a", (image % 256).astype(np.uint8), (image % 7).astype(np.uint8))
    images, targets = pair.patches(16, 3)
    assert images.shape == (27, 1, 16, 16, 16)
    assert np.array_equal(targets[0].numpy(), pair.target[:16, :16, :16])
    assert np.array_equal(targets[-1].numpy(), pair.target[4:, 2:, :])
    assert np.allclose(images[-1, 0].numpy(), pair.image[4:, 2:, :] / 255)
