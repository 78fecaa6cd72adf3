"""The helper around FastSurfer, with a script in its place that records how it was called."""

import pytest

from medsegmamba_bids.cli.evaluate import main
from medsegmamba_bids.datasets.places import find_images

SCRIPT = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *sub-03*) exit 3;; *sub-04*) exit 0;; esac
mkdir -p "$6/$4/mri" && touch "$6/$4/mri/aparc.DKTatlas+aseg.deep.mgz"
"""


@pytest.fixture
def dataset(tmp_path):
    """Four participants, one with two sessions."""
    for stem in ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02"):
        image = tmp_path / "bids" / f"{stem}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        image.touch()
    return tmp_path / "bids"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "run_fastsurfer.sh"
    path.write_text(SCRIPT.format(log=tmp_path / "calls.txt"))
    path.chmod(0o755)
    return path


def calls(tmp_path):
    log = tmp_path / "calls.txt"
    return log.read_text().splitlines() if log.exists() else []


def test_every_image_is_segmented_once(tmp_path, dataset, script, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command = ["fastsurfer", "--images", str(dataset), "--out", str(tmp_path / "out"), "--options", "--device cpu"]
    assert main([*command, "--participant-label", "sub-01"]) == 0
    first = dataset / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"
    assert calls(tmp_path)[0] == f"--t1 {first} --sid sub-01_ses-a --sd {tmp_path}/out --seg_only --device cpu"
    assert len(calls(tmp_path)) == 2
    assert main(command) == 0
    assert len(calls(tmp_path)) == 3  # sub-02 alone was left
    assert (tmp_path / "out/sub-02/mri/aparc.DKTatlas+aseg.deep.mgz").is_file()


def test_failures_are_named_and_the_others_go_on(tmp_path, dataset, script, capsys):
    for participant in ("sub-03", "sub-04"):
        (dataset / f"{participant}_T1w.nii.gz").touch()
    command = ["fastsurfer", "--images", str(dataset), "--out", str(tmp_path / "out"), "--fastsurfer", str(script)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "error: sub-03: run_fastsurfer.sh ended with 3; its log is in" in error
    assert "error: sub-04: run_fastsurfer.sh ended well, but wrote no mri/aparc.DKTatlas+aseg.deep.mgz" in error
    assert len(calls(tmp_path)) == 5


def test_where_fastsurfer_is_absent_it_is_said(tmp_path, dataset, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("FASTSURFER_HOME", raising=False)
    command = ["fastsurfer", "--images", str(dataset), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "FastSurfer is not installed: there is no run_fastsurfer.sh on the PATH" in capsys.readouterr().err
    assert main([*command, "--fastsurfer", str(tmp_path / "none.sh")]) == 1
    assert "none.sh: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fastsurfer_home_is_looked_in(tmp_path, dataset, script, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("FASTSURFER_HOME", str(tmp_path))
    command = ["fastsurfer", "--images", str(dataset), "--out", str(tmp_path / "out")]
    assert main([*command, "--participant-label", "02"]) == 0
    assert len(calls(tmp_path)) == 1
    assert main([*command, "--participant-label", "09"]) == 1
    assert "has no image of 09; there are 01, 02" in capsys.readouterr().err
    assert main(["fastsurfer", "--images", str(tmp_path / "out"), "--out", str(tmp_path / "more")]) == 1
    assert "no T1-weighted images" in capsys.readouterr().err


def test_images_of_all_places(tmp_path, dataset):
    conformed = dataset / "sub-02/anat/sub-02_space-conform_desc-preproc_T1w.nii.gz"
    standard = dataset / "sub-07/anat/sub-07_space-MNI152Lin_T1w.nii.gz"
    standard.parent.mkdir(parents=True)
    conformed.touch(), standard.touch()
    found = {str(name): file.name for name, file in find_images(str(dataset)).items()}
    assert found == {
        "sub-01_ses-a": "sub-01_ses-a_T1w.nii.gz",
        "sub-01_ses-b": "sub-01_ses-b_T1w.nii.gz",
        "sub-02": "sub-02_T1w.nii.gz",
    }
    for name in ("T1.mgz", "orig.mgz"):
        file = tmp_path / "fs/sub-01/mri" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert [file.name for file in find_images(str(tmp_path / "fs")).values()] == ["T1.mgz"]
    assert [str(name) for name in find_images(str(conformed))] == ["sub-02"]
    assert [str(name) for name in find_images(f"{dataset}/{{participant}}/anat/*_T1w.nii.gz")] == ["sub-02", "sub-07"]
    assert find_images(str(tmp_path / "none")) == {}
