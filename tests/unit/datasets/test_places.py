"""Label images are found where tools put them, under one name for one scan."""

import pytest

from medsegmamba_bids.datasets.places import find_images, find_labels
from medsegmamba_bids.datasets.scan_names import listed, parse_name
from medsegmamba_bids.errors import DatasetError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def files(place):
    """First choice of every scan: shown name -> names of files."""
    return {str(name): [file.name for file, _ in one.choices[0]] for name, one in place.scans.items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sub-01_ses-2_T1w", "sub-01_ses-2.long.sub-01"),
        ("sub-01_run-01_T1w_synthseg", "sub-01_run-1_space-orig_seg-aseg_desc-x_dseg"),
        ("sub-01_run-1_acq-b", "sub-01_acq-b_run-1_dseg"),
        ("sub-01_T1w", "01"),
        ("brain_a_aseg", "brain_a_T1w_synthseg"),
    ],
)
def test_names_of_one_scan(one, other):
    assert parse_name(one) == parse_name(other)
    assert len({parse_name(one), parse_name(other)}) == 1


@pytest.mark.parametrize(
    ("one", "other", "fit"),
    [("sub-01", "sub-01_ses-1", True), ("sub-01_ses-2", "sub-01_ses-1", False), ("sub-01", "sub-02", False)],
)
def test_names_of_different_scans(one, other, fit):
    one, other = parse_name(one), parse_name(other)
    assert one != other
    assert one.fits(other) is other.fits(one) is fit


def test_lists_end_with_how_many_more():
    assert listed(range(3), most=3) == "0, 1, 2"
    assert listed(range(9), most=2) == "0, 1 and 7 more"


def test_bids_derivatives_of_the_own_space(tmp_path):
    stem = "sub-01/ses-a/anat/sub-01_ses-a"
    root = touch(
        tmp_path,
        f"{stem}_seg-aseg_desc-medsegmamba_dseg.nii.gz",
        f"{stem}_space-conform_seg-aseg_desc-medsegmamba_dseg.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_seg-aseg_desc-medsegmamba_dseg.nii.gz",
        f"{stem}_seg-hippoFS60_desc-medsegmamba_dseg.nii.gz",
        f"{stem}_seg-aseg_desc-medsegmamba_probseg.nii.gz",
        "sub-02/anat/sub-02_desc-aseg_dseg.nii.gz",
        "sub-02/anat/sub-02_desc-aparcaseg_dseg.nii.gz",
        "sub-02/anat/sub-02_dseg.nii.gz",
    )
    place = find_labels(root, "aseg")
    assert place.kind == "BIDS derivatives"
    assert files(place) == {
        "sub-01_ses-a": ["sub-01_ses-a_seg-aseg_desc-medsegmamba_dseg.nii.gz"],
        "sub-02": ["sub-02_desc-aseg_dseg.nii.gz"],
    }
    second = place.scans[parse_name("sub-01_ses-a")].choices[1]
    assert [file.name for file, _ in second] == ["sub-01_ses-a_space-conform_seg-aseg_desc-medsegmamba_dseg.nii.gz"]
    subfields = find_labels(root, "hippoFS60")
    assert files(subfields) == {"sub-01_ses-a": ["sub-01_ses-a_seg-hippoFS60_desc-medsegmamba_dseg.nii.gz"]}


def test_freesurfer_and_fastsurfer_subjects(tmp_path):
    root = touch(
        tmp_path,
        "sub-01/mri/aseg.mgz",
        "sub-01/mri/aparc+aseg.mgz",
        "02/mri/aparc.DKTatlas+aseg.deep.mgz",
        "02/mri/aseg.auto_noCCseg.mgz",
        "sub-03_ses-1/mri/aparc.DKTatlas+aseg.mapped.mgz",
        "sub-04/mri/orig.mgz",
        "fsaverage/mri/aseg.mgz",
    )
    place = find_labels(root, "aseg")
    assert place.kind == "FreeSurfer subjects"
    assert files(place) == {
        "02": ["aparc.DKTatlas+aseg.deep.mgz"],
        "sub-01": ["aseg.mgz"],
        "sub-03_ses-1": ["aparc.DKTatlas+aseg.mapped.mgz"],
    }
    assert len(place.incomplete) == 1
    assert "sub-04: has none of mri/{aseg.mgz,aparc.DKTatlas+aseg.deep.mgz" in place.incomplete[0]
    assert files(find_labels(f"{root}/02", "aseg")) == {"02": ["aparc.DKTatlas+aseg.deep.mgz"]}


def test_freesurfer_subfields_are_of_both_sides_and_the_latest_version(tmp_path):
    names = [
        f"sub-01/mri/{side}.hippoAmygLabels-T1.{version}.FS60.FSvoxelSpace.mgz"
        for side in ("lh", "rh")
        for version in ("v21", "v22")
    ]
    root = touch(tmp_path, *names, "sub-02/mri/lh.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz")
    place = find_labels(root, "hippoFS60")
    (parts,) = place.scans[parse_name("sub-01")].choices
    assert [(file.name, added) for file, added in parts] == [
        ("lh.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz", 1000),
        ("rh.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz", 2000),
    ]
    assert list(map(str, place.scans)) == ["sub-01"]
    assert "sub-02: has none of" in place.incomplete[0]


def test_synthseg_and_plain_folders(tmp_path):
    root = touch(
        tmp_path,
        "sub-01_T1w_synthseg.nii.gz",
        "sub-01_T1w_resampled.nii.gz",
        "sub-01_T1w_posteriors.nii.gz",
        "brain_a_aseg.mgz",
        "brain_a_T1w.nii.gz",
        "volumes.csv",
    )
    place = find_labels(root, "aseg")
    assert place.kind == "label images"
    assert files(place) == {"brain_a": ["brain_a_aseg.mgz"], "sub-01": ["sub-01_T1w_synthseg.nii.gz"]}


def test_patterns_say_where_the_participant_stands(tmp_path):
    touch(
        tmp_path,
        "x/head_sub-01_v1.nii.gz",
        "x/head_sub-02_v1.nii.gz",
        "x/other_sub-01_v1.nii.gz",
        "deep/sub-01/ses-1/sub-01_run-02.nii",
        "deep/sub-01/ses-2/sub-01_run-02.nii",
        "deep/sub-01/ses-2/sub-02_run-02.nii",
        "[odd]/01.mgz",
    )
    assert files(find_labels(f"{tmp_path}/x/head_{{participant}}_v?.nii.gz", "aseg")) == {
        "sub-01": ["head_sub-01_v1.nii.gz"],
        "sub-02": ["head_sub-02_v1.nii.gz"],
    }
    deep = find_labels(f"{tmp_path}/**/{{participant}}/{{session}}/{{participant}}_run-{{run}}.nii", "aseg")
    expected = {"sub-01_ses-1_run-02", "sub-01_ses-2_run-02"}
    assert set(map(str, deep.scans)) == expected
    assert set(files(find_labels(f"{tmp_path}/[odd]/{{participant}}.mgz", "aseg"))) == {"01"}


@pytest.mark.parametrize(
    "name",
    ["*{participant}_dseg.nii.gz", "sub-{participant}*.nii.gz", "sub-{participant}?_dseg.nii.gz",
     "{participant}{run}.nii.gz", "{participant}_ses-{session}*.nii.gz"],
)  # fmt: skip
def test_a_pattern_that_leaves_open_where_a_label_ends_is_refused(tmp_path, name):
    """sub-11 of one folder and sub-12 of another were both 1, and were compared."""
    touch(tmp_path, "sub-11_ses-1_dseg.nii.gz")
    for find in (lambda place: find_labels(place, "aseg"), find_images):
        with pytest.raises(DatasetError, match="where the label ends is open in"):
            find(f"{tmp_path}/{name}")
    assert set(files(find_labels(f"{tmp_path}/*_{{participant}}.nii.gz", "aseg"))) == {"dseg"}
    assert set(files(find_labels(f"{tmp_path}/{{participant}}_ses-*.nii.gz", "aseg"))) == {"sub-11"}


def test_a_single_file_is_a_scan(tmp_path):
    place = find_labels(touch(tmp_path, "a_labels.nii.gz") + "/a_labels.nii.gz", "aseg")
    assert place.kind == "one file"
    assert files(place) == {"a": ["a_labels.nii.gz"]}


def test_nothing_is_said_with_what_is_expected(tmp_path):
    with pytest.raises(DatasetError, match=r"none: no such file or folder"):
        find_labels(str(tmp_path / "none"), "aseg")
    with pytest.raises(DatasetError, match=r"no label images found; expected are BIDS derivatives .*_seg-aseg\*_dseg"):
        find_labels(touch(tmp_path / "empty", "readme.txt"), "aseg")
    with pytest.raises(DatasetError, match=r"_seg-hippo\*_dseg.*\*/mri/lh\.hippoAmygLabels"):
        find_labels(str(tmp_path / "empty"), "hippoFS60")
    with pytest.raises(DatasetError, match=r"\{participant\}\.nii: no file matches"):
        find_labels(f"{tmp_path}/{{participant}}.nii", "aseg")
    with pytest.raises(DatasetError, match=r"no subject has labels; .*sub-01: has none of mri/\{aseg\.mgz"):
        find_labels(touch(tmp_path / "fs", "sub-01/mri/T1.mgz"), "aseg")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sub-01_aseg.nii", "sub-01_synthseg.nii"], "two label images for sub-01, .*sub-01_aseg.nii and "),
        (["sub-01/mri/aseg.mgz", "01/mri/aseg.mgz"], "two subjects for (sub-)?01, "),
        (
            ["sub-01/anat/sub-01_seg-aseg_desc-a_dseg.nii", "sub-01/anat/sub-01_seg-aseg_desc-b_dseg.nii"],
            "several segmentations for sub-01: .*desc-a_dseg.nii, .*desc-b_dseg.nii; one must be named: to",
        ),
    ],
)
def test_two_label_images_for_a_scan_are_refused(tmp_path, names, message):
    with pytest.raises(DatasetError, match=message):
        find_labels(touch(tmp_path, *names), "aseg")


def test_hidden_files_and_copies_are_no_labels_and_links_are_followed(tmp_path):
    root = tmp_path / "derivatives"
    touch(root, "sub-01/anat/._sub-01_seg-aseg_dseg.nii.gz", "sub-01/anat/sub-01_seg-aseg_dseg.nii.gz")
    touch(root, "sub-01_old/anat/sub-01_seg-aseg_dseg.nii.gz", "sub-02/anat/sub-01_seg-aseg_dseg.nii.gz")
    touch(tmp_path / "store", "sub-03_seg-aseg_dseg.nii.gz", "sub-03_T1w.nii.gz")
    (root / "sub-03").mkdir()
    (root / "sub-03/anat").symlink_to(tmp_path / "store")
    place = find_labels(str(root), "aseg")
    assert [[parts[0][0] for parts in files.choices] for files in place.scans.values()] == [
        [root / "sub-01/anat/sub-01_seg-aseg_dseg.nii.gz"],
        [root / "sub-03/anat/sub-03_seg-aseg_dseg.nii.gz"],
    ]
    assert place.incomplete == [
        f"{root}/sub-01_old/anat/sub-01_seg-aseg_dseg.nii.gz: it lies in the folder sub-01_old, but is named after "
        "sub-01; it is left out",
        f"{root}/sub-02/anat/sub-01_seg-aseg_dseg.nii.gz: it lies in the folder sub-02, but is named after sub-01; it "
        "is left out",
    ]
    plain = tmp_path / "plain"
    touch(plain, "a_labels.nii.gz", "._a_labels.nii.gz")
    assert [str(name) for name in find_labels(str(plain), "aseg").scans] == ["a"]


def test_images_are_whole_heads_that_belong_to_the_dataset(tmp_path):
    root = tmp_path / "sub-99" / "bids"
    touch(root, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/._sub-01_T1w.nii.gz")
    touch(root, "sub-01/anat/sub-01_part-phase_T1w.nii.gz", "sub-01/anat/sub-01_chunk-1_T1w.nii.gz")
    touch(root, "sub-02/anat/sub-02_T1w.nii", "sub-02/anat/sub-01_T1w.nii", "sub-01 copy/anat/sub-01_T1w.nii.gz")
    touch(tmp_path / "store", "sub-03_T1w.nii.gz")
    (root / "sub-03").mkdir()
    (root / "sub-03/anat").symlink_to(tmp_path / "store")
    (root / ".bidsignore").write_text("sub-02\n")
    assert {str(name): file.relative_to(root).as_posix() for name, file in find_images(str(root)).items()} == {
        "sub-01": "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-03": "sub-03/anat/sub-03_T1w.nii.gz",
    }
