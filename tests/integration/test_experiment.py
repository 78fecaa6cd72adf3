"""The paper's experiment in small, by its command: train three networks, segment the test set, write the tables."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import small_experiment
from medsegmamba_bids.cli.segment import main as segment
from medsegmamba_bids.cli.train import main
from medsegmamba_bids.stats.overlap import dice_scores
from medsegmamba_bids.weights.files import load_weights, read_info

NETWORKS = {
    "small-aseg": "medsegmamba",
    "small-aseg-segmambabot": "segmambabot",
    "small-aseg-tabsurfer": "tabsurfer",
}


@pytest.fixture(scope="module", autouse=True)
def smaller_images():
    """Smaller ones than FreeSurfer's are quicker to read and compare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_experiment, "SIDE", 80)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The whole script for one epoch, with the fewest participants that can be divided."""
    folder = tmp_path_factory.mktemp("experiment")
    assert small_experiment.main([str(folder), "--participants", "5", "--epochs", "1", "--tasks", "aseg"]) == 0
    return folder


def participant(folder, name):
    rows = pd.read_csv(folder / "split.tsv", sep="\t")
    return rows.loc[rows["set"] == name, "participant_id"].tolist()


@pytest.mark.parametrize(("name", "network"), NETWORKS.items())
def test_every_network_is_trained_to_a_weights_file(folder, name, network):
    info = read_info(folder / "experiment" / f"{name}.safetensors")
    assert (info.name, info.network, info.task, info.input.patch_size) == (name, network, "aseg", 32)
    assert load_weights(folder / "experiment" / f"{name}.safetensors")[1].checksum == info.checksum


@pytest.mark.parametrize("name", NETWORKS)
def test_its_segmentations_are_those_of_the_command(folder, name, tmp_path):
    (tested,) = participant(folder, "test")
    image, weights = folder / "subjects" / tested / "mri" / "brain.mgz", folder / "experiment" / f"{name}.safetensors"
    assert segment([str(image), str(tmp_path / "labels.nii.gz"), "--weights", str(weights), "--device", "cpu"]) == 0
    ours = nib.load(folder / "experiment" / "test" / name / f"{tested}.nii.gz")
    theirs = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, nib.load(image).affine)


def test_the_tables_compare_the_test_set_alone(folder):
    (tested,) = participant(folder, "test")
    rows = pd.read_csv(folder / "experiment" / "tables-aseg" / "metrics.tsv", sep="\t")
    assert rows["participant"].unique().tolist() == [tested]
    assert rows["method"].unique().tolist() == ["MedSegMamba", "SegMambaBot", "TABSurfer"]
    reference = np.asanyarray(nib.load(folder / "subjects" / tested / "mri" / "aseg.mgz").dataobj)
    for name, method in zip(NETWORKS, rows["method"].unique(), strict=True):
        found = np.asanyarray(nib.load(folder / "experiment" / "test" / name / f"{tested}.nii.gz").dataobj)
        dice = rows[(rows["method"] == method) & (rows["reference_mm3"] > 0)].set_index("label")["dice"]
        assert dice.index.tolist() == [10, 11, 12, 17, 49, 50, 51, 53]
        want = dice_scores(found, reference, 256)[dice.index]
        np.testing.assert_allclose(dice, want, rtol=1e-6)


def test_nothing_is_done_twice(folder):
    files = [*folder.glob("experiment/test/*/*.nii.gz"), *folder.glob("experiment/*.safetensors")]
    before = {file: file.stat().st_mtime_ns for file in files}
    logs = {file: file.read_text() for file in folder.glob("experiment/*/log.jsonl")}
    assert len(files) == 6
    assert small_experiment.main([str(folder), "--epochs", "1", "--tasks", "aseg"]) == 0
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert {file: file.read_text() for file in logs} == logs


def options(folder, *configs):
    configs = [folder / "configs" / f"{config}.toml" for config in configs]
    places = ["--subjects-dir", folder / "subjects", "--split", folder / "split.tsv", "--out", folder / "other"]
    return [str(o) for o in ("experiment", *configs, *places)]


def test_unequal_conditions_are_refused(folder, capsys):
    changed = folder / "configs" / "changed.toml"
    text = (folder / "configs" / "small_aseg_tabsurfer.toml").read_text()
    changed.write_text(text.replace("epochs = 1\n", "epochs = 2\n").replace("step = 16", "step = 8"))
    assert main(options(folder, "small_aseg", "changed")) == 1
    shown = capsys.readouterr().err
    assert "small-aseg and small-aseg-tabsurfer differ in epochs, weights.step" in shown
    assert main(options(folder, "small_aseg", "small_aseg")) == 1
    assert "several configurations are called small-aseg" in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_weights_of_another_configuration_are_refused(folder, tmp_path, capsys):
    arguments = options(folder, "small_aseg_tabsurfer")
    arguments[arguments.index("--out") + 1] = str(tmp_path)
    other = folder / "experiment" / "small-aseg.safetensors"
    (tmp_path / "small-aseg-tabsurfer.safetensors").write_bytes(other.read_bytes())
    assert main(arguments) == 1
    assert "is not of the configuration small-aseg-tabsurfer, its network differs" in capsys.readouterr().err
