"""``medsegmamba-segment`` on made-up images, with networks whose answer is known."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import minimum_filter

from medsegmamba_bids.cli.segment import SCAN_BACKENDS, main

ASEG = {0: 0.0, 16: 0.3, 17: 0.55, 53: 0.8, 10: 1.0}  # label: intensity of its class
SUBFIELDS = {0: 0.0, 1203: 0.55, 2203: 0.8}
SPEC = {"voxel_size": 4.0}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGMAMBA_WEIGHTS", str(tmp_path / "user"))
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", "")


def oblique():
    """Voxels of 4 x 3.9 x 4.1 mm, turned by 20 degrees about two axes."""
    turned = nib.eulerangles.euler2mat(0.35, 0.35, 0)
    return from_matvec(turned @ np.diag([4.0, 3.9, 4.1]), [-60, -50, -70])


def brain():
    """Labels of a brain of blocks, left of the middle 17, right 53, within a brain stem."""
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[4:28, 4:28, 4:28] = 16
    labels[6:14, 8:20, 8:20] = 17
    labels[18:26, 8:20, 8:20] = 53
    labels[10:22, 22:26, 8:20] = 10
    return labels


def intensities(labels):
    """An image, uint8, in which every label has the intensity of its class."""
    lookup = np.zeros(256, np.uint8)
    for label, level in ASEG.items():
        lookup[label] = round(255 * level)
    return lookup[labels]


def inner(labels):
    """Where all neighbours have the same label: there is nothing to interpolate."""
    return (minimum_filter(labels, 5) == labels) & (-minimum_filter(-labels.astype(np.int16), 5) == labels)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "head.nii.gz"
    made = nib.Nifti1Image(intensities(brain()), oblique())
    made.set_sform(oblique(), 2)
    made.set_qform(oblique(), 2)
    made.to_filename(path)
    return path


@pytest.fixture
def weights(intensity_weights):
    return intensity_weights("aseg", ASEG, **SPEC)


def check_labels(path, expected=None, exact_type=np.uint16):
    expected = brain() if expected is None else expected
    found = nib.load(path)
    labels = np.asarray(found.dataobj)
    assert labels.shape == expected.shape
    assert labels.dtype.newbyteorder("=") == exact_type
    np.testing.assert_allclose(found.affine, oblique(), atol=1e-3)
    sure = inner(brain())
    assert np.count_nonzero(sure & (brain() > 0)) > 1000
    np.testing.assert_array_equal(labels[sure], expected[sure])
    assert (labels == expected).mean() > 0.9
    return found


def test_labels_on_the_grid_of_the_image(image, weights, tmp_path):
    out = tmp_path / "labels.nii.gz"
    assert main([str(image), str(out), "--weights", str(weights)]) == 0
    header = check_labels(out).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 2
    np.testing.assert_allclose(header.get_qform(), oblique(), atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "head.nii.gz",
        "known-aseg.safetensors",
        "labels.nii.gz",
    ]


def test_mgz_in_and_out(weights, tmp_path):
    path, out = tmp_path / "head.mgz", tmp_path / "labels.mgz"
    nib.MGHImage(intensities(brain()), oblique()).to_filename(path)
    assert main([str(path), str(out), "--weights", str(weights)]) == 0
    check_labels(out, exact_type=np.int32)


def test_nifti_of_an_mgz(weights, tmp_path):
    path, out = tmp_path / "head.mgz", tmp_path / "labels.nii"
    nib.MGHImage(intensities(brain()), oblique()).to_filename(path)
    assert main([str(path), str(out), "--weights", str(weights)]) == 0
    header = check_labels(out).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 1


def test_subfields_go_to_a_second_file(image, weights, intensity_weights, tmp_path):
    out, subfields = tmp_path / "labels.nii.gz", tmp_path / "subfields.nii.gz"
    subfield_weights = intensity_weights("hippocampus", SUBFIELDS, voxel_size=2.0, patch_size=48, step=48)
    arguments = ["--hippocampus-out", subfields, "--hippocampus-weights", subfield_weights]
    assert main([str(a) for a in (image, out, "--weights", weights, *arguments)]) == 0
    check_labels(out)
    labels = np.asarray(nib.load(subfields).dataobj)
    sure = inner(brain())
    assert set(np.unique(labels)) == {0, 1203, 2203}
    # The box of 96 mm around both hippocampi leaves parts of these huge ones out.
    assert set(np.unique(labels[sure & (brain() == 17)])) <= {0, 1203}
    assert set(np.unique(labels[sure & (brain() == 53)])) <= {0, 2203}
    assert (labels[sure & (brain() == 17)] == 1203).mean() > 0.5
    assert (labels[sure & (brain() == 53)] == 2203).mean() > 0.5


def test_without_a_hippocampus_the_other_labels_are_kept(intensity_weights, tmp_path, capsys):
    path, out, subfields = tmp_path / "head.nii.gz", tmp_path / "labels.nii.gz", tmp_path / "subfields.nii.gz"
    labels = np.where(brain() > 0, 16, 0).astype(np.uint8)
    nib.Nifti1Image(np.where(labels > 0, 255, 0).astype(np.uint8), oblique()).to_filename(path)
    weights = intensity_weights("aseg", {0: 0.0, 16: 1.0, 17: 2.0, 53: 3.0}, **SPEC)
    subfield_weights = intensity_weights("hippocampus", SUBFIELDS, **SPEC)
    arguments = ["--hippocampus-out", subfields, "--hippocampus-weights", subfield_weights]
    assert main([str(a) for a in (path, out, "--weights", weights, *arguments)]) == 1
    assert f"error: {subfields}: not written, no hippocampus was found in {path}" in capsys.readouterr().err
    check_labels(out, labels)
    assert not subfields.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--step-size", "8", "--gaussian"],
        ["--step-size", "12", "--uniform", "--batch-size", "3"],
        ["--precision", "bfloat16", "--half-accumulator"],
        ["--threads", "1", "--scan-backend", "reference", "--device", "cpu", "-v"],
    ],
)
def test_options_do_not_change_what_is_clear(image, weights, tmp_path, options):
    import torch

    out, threads = tmp_path / "labels.nii.gz", torch.get_num_threads()
    try:
        assert main([str(image), str(out), "--weights", str(weights), *options]) == 0
    finally:
        torch.set_num_threads(threads)
    check_labels(out)


def test_imported_weights_are_known_by_name(image, weights, tmp_path):
    (tmp_path / "user").mkdir()
    weights.rename(tmp_path / "user" / "mine.safetensors")
    assert main([str(image), str(tmp_path / "labels.nii"), "--weights", "mine"]) == 0
    check_labels(tmp_path / "labels.nii")


def test_embedded_weights_are_the_default(image, weights, tmp_path, monkeypatch):
    from medsegmamba_bids.weights import folders as weights_folders

    monkeypatch.setattr(weights_folders, "embedded_weights", lambda: [weights])
    assert main([str(image), str(tmp_path / "labels.nii")]) == 0
    check_labels(tmp_path / "labels.nii")


def test_without_weights_it_says_what_to_do(image, tmp_path, monkeypatch, capsys):
    from medsegmamba_bids.weights import folders as weights_folders

    monkeypatch.setattr(weights_folders, "embedded_weights", list)
    assert main([str(image), str(tmp_path / "labels.nii")]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(
        "error: no aseg weights come with this version: name a weights file (--weights)"
    )
    assert "medsegmamba-weights import FILE.pt --task aseg" in error
    assert not (tmp_path / "labels.nii").exists()


def test_where_nothing_is_found_it_is_an_error(intensity_weights, image, tmp_path, capsys):
    out = tmp_path / "labels.nii.gz"
    blind = intensity_weights("aseg", {0: 0.5, 17: 5.0}, **SPEC)  # all of an image is nearest to the background
    assert main([str(image), str(out), "--weights", str(blind)]) == 1
    assert f"{image}: none of the structures was found" in capsys.readouterr().err
    assert not out.exists()


TISSUES = {0: 0.0, 3: 0.5, 42: 0.6, 2: 0.8, 41: 1.0}  # label: intensity of its class


@pytest.mark.parametrize("inverted", [False, True])
def test_another_contrast_is_told(intensity_weights, tmp_path, caplog, inverted):
    """The same head twice, by networks that know where its tissues are."""
    levels = {2: 0.5, 41: 0.6, 3: 0.8, 42: 1.0, 0: 0.0} if inverted else TISSUES
    levels = dict(sorted(levels.items()))
    data = np.zeros((32, 32, 32), np.uint8)
    for label, part in zip((2, 3, 41, 42), (slice(4, 10), slice(10, 16), slice(16, 22), slice(22, 28)), strict=True):
        data[part, 4:28, 4:28] = round(255 * levels[label])
    path = tmp_path / "head.nii.gz"
    nib.Nifti1Image(data, oblique()).to_filename(path)
    known = intensity_weights("aseg", levels, **SPEC)
    assert main([str(path), str(tmp_path / "labels.nii.gz"), "--weights", str(known)]) == 0
    assert set(np.unique(nib.load(tmp_path / "labels.nii.gz").dataobj)) >= {2, 3, 41, 42}
    said = f"{path}: the image does not look T1-weighted: white matter has 0.6"
    assert (said in caplog.text) is inverted


def test_all_notes_are_printed(intensity_weights, tmp_path, caplog):
    """What the Python face returns as notes is what the command logs."""
    import medsegmamba_bids as msm

    path = tmp_path / "head.nii.gz"
    labels = np.pad(brain(), 4)  # 3.8 litres
    labels[labels == 0] = 16
    nib.Nifti1Image(intensities(labels), oblique()).to_filename(path)
    stripped = intensity_weights("aseg", ASEG, skull_stripped=True, **SPEC)
    found = msm.segment(path, weights=stripped)
    assert any("seems to be a whole head" in note for note in found.notes)
    caplog.clear()
    assert main([str(path), str(tmp_path / "labels.nii.gz"), "--weights", str(stripped)]) == 0
    for note in found.notes:
        assert note in caplog.text


def test_the_lost_orientation_is_told(weights, tmp_path, caplog):
    path = tmp_path / "head.nii.gz"
    made = nib.Nifti1Image(intensities(brain()), oblique())
    made.set_sform(oblique(), 1)
    shifted = oblique()
    shifted[0, 3] += 7
    made.set_qform(shifted, 1)
    made.to_filename(path)
    assert main([str(path), str(tmp_path / "labels.nii.gz"), "--weights", str(weights)]) == 0
    assert f"{path}: sform and qform disagree by up to 7.0 mm; the sform is used" in caplog.text
    found = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(apply_affine(found.affine, [1, 2, 3]), apply_affine(oblique(), [1, 2, 3]), atol=1e-3)


@pytest.fixture
def no_work(monkeypatch):
    """Fails if weights or an image are read."""
    from medsegmamba_bids import api
    from medsegmamba_bids.inference import segmenter as segment

    def forbidden(*arguments, **options):
        raise AssertionError("work was begun before the options were checked")

    monkeypatch.setattr(api, "load_image", forbidden)
    monkeypatch.setattr(segment, "load_weights", forbidden)


def refused(arguments, capsys):
    assert main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.usefixtures("no_work")
def test_outputs_are_checked_first(image, tmp_path, capsys):
    for name in ("labels.png", "labels", "labels.nii.bz2", "labels.mgh"):
        path = tmp_path / name
        expected = f"error: {path}: cannot be written; allowed are .nii, .nii.gz, .mgz\n"
        assert refused([image, path], capsys) == expected
        assert refused([image, tmp_path / "a.nii", "--hippocampus-out", path], capsys) == expected
    absent = tmp_path / "absent" / "labels.nii.gz"
    expected = f"error: {absent}: its folder {absent.parent} does not exist; make it first\n"
    assert refused([image, absent], capsys) == expected
    assert not absent.parent.exists()
    (tmp_path / "folder.nii").mkdir()
    assert "is a folder" in refused([image, tmp_path / "folder.nii"], capsys)


@pytest.mark.usefixtures("no_work")
def test_the_image_is_not_overwritten(image, tmp_path, capsys):
    link = tmp_path / "link.nii.gz"
    link.symlink_to(image)
    assert f"error: {link}: is the image itself" in refused([image, link], capsys)
    twice = tmp_path / "labels.nii.gz"
    assert "named for both outputs" in refused([image, twice, "--hippocampus-out", twice], capsys)
    for table in ("--volumes", "--fs-stats"):
        assert "another file of this command has this name too" in refused([image, twice, table, link], capsys)
        assert "another file of this command has this name too" in refused([image, twice, table, twice], capsys)
        assert "is the name of an image, and tables are text" in refused([image, twice, table, "a.mgz"], capsys)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "abacus"], "device 'abacus' is unknown; allowed are auto, cpu, cuda, cuda:N, mps"),
        (["--device", "cpu", "--precision", "float16"], "precision float16 is for GPUs"),
        (["--device", "cpu", "--scan-backend", "cuda"], "scan backend 'cuda' does not work on cpu; usable here are"),
    ],
)
def test_what_cannot_run_is_refused_first(image, tmp_path, capsys, options, sentence):
    assert sentence in refused([image, tmp_path / "labels.nii", *options], capsys)


def test_wrong_weights_are_refused_before_the_image_is_conformed(
    image, weights, intensity_weights, tmp_path, capsys, monkeypatch
):
    from medsegmamba_bids.inference import single

    def forbidden(image):
        raise AssertionError("conformed before the weights were checked")

    monkeypatch.setattr(single, "conform", forbidden)
    subfield_weights = intensity_weights("hippocampus", SUBFIELDS, **SPEC)
    out = tmp_path / "labels.nii"
    wrong_task = refused([image, out, "--weights", subfield_weights], capsys)
    assert f"{subfield_weights}: weights for the task hippocampus, not for aseg" in wrong_task
    arguments = [image, out, "--weights", weights, "--hippocampus-out", tmp_path / "b.nii", "--hippocampus-weights"]
    assert "nothing.safetensors: no such weights file" in refused([*arguments, "nothing.safetensors"], capsys)
    step = refused([image, out, "--weights", weights, "--step-size", "17"], capsys)
    assert "step 17: must lie in 1..16, the patch size of the weights known-aseg" in step


def test_an_image_that_cannot_be_read_is_named(weights, tmp_path, capsys):
    out = tmp_path / "labels.nii"
    absent = tmp_path / "absent.nii"
    assert refused([absent, out, "--weights", weights], capsys) == f"error: {absent}: no such file\n"
    series = tmp_path / "series.nii"
    nib.Nifti1Image(np.random.default_rng(0).random((5, 5, 5, 3)), np.eye(4)).to_filename(series)
    assert f"error: {series}: has shape (5, 5, 5, 3)" in refused([series, out, "--weights", weights], capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--step-size", "0"],
        ["--batch-size", "many"],
        ["--gaussian", "--uniform"],
        ["--precision", "int8"],
        ["--hippocampus-weights", "x"],
    ],
)
def test_nonsense_is_a_usage_error(image, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(image), "labels.nii", *options])
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_choices_are_those_of_the_library():
    from medsegmamba_bids.devices import PRECISIONS
    from medsegmamba_bids.inference import predict
    from medsegmamba_bids.networks.kernels.selective_scan import BACKENDS

    assert set(SCAN_BACKENDS) == set(BACKENDS)
    assert set(PRECISIONS) == set(predict.AUTOCAST_TYPES)
