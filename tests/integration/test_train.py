"""Both kinds of training, end to end on tiny data: they learn, stop, resume to the same result and are exported."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from medsegmamba_bids.cli.train import main
from medsegmamba_bids.training.learner import Learner
from medsegmamba_bids.weights.files import load_weights

LIA = np.array([[-1.0, 0, 0, 128], [0, 0, 1, -128], [0, -1, 0, 128], [0, 0, 0, 1]])
NETWORK = """
[network]
channels = [8, 8, 8, 8]
bottleneck = 16
state = 4
blocks = 1
dropout = 0.1
drop_path = 0.1
"""
PAIRS = f"""
name = "tiny-pairs"
table = "aseg"
epochs = 3
patch_size = 16
patches_per_axis = 2
rate = 1e-2
workers = 0
save_every = 1
ema = 0.5
{NETWORK}
[weights]
name = "tiny-pairs"
patch_size = 16
step = 8
skull_stripped = true
intensity = "freesurfer"
licence = "CC0-1.0"
training_data = "made up"
"""
SYNTHETIC = f"""
name = "tiny-synthetic"
tissues = "aseg_brain"
precision = "float32"
batch_size = 1
workers = 0
save_every = 5
log_every = 5
ema = 0.8
{NETWORK}
[[sources]]
labels = "maps/*.nii.gz"
[[stages]]
steps = 25
patch_size = 16
voxel_size = [2.0, 2.0]
rate = [2e-2, 1e-2]
[[stages]]
steps = 15
patch_size = 24
voxel_size = [1.4, 1.6]
rate = [1e-2, 1e-3]
"""
SPLIT = "participant_id\tset\nsub-a\ttrain\nsub-b\ttrain\nsub-c\ttrain\nsub-d\tvalidation\nsub-e\ttest\n"


def made_up_labels(rng, side=256):
    """Two caudates, two thalami and white matter around them; bright and dark as in a T1-weighted image."""
    labels = np.zeros((side,) * 3, np.uint8)
    middle = side // 2 + rng.integers(-2, 3, 3)

    def block(low, high):
        return tuple(slice(*edges) for edges in zip(middle + low, middle + high, strict=True))

    labels[block((-14, -12, -12), (14, 12, 12))] = 2
    for sign, caudate, thalamus in ((1, 50, 49), (-1, 11, 10)):
        for label, near in ((caudate, -8), (thalamus, 3)):
            centre = np.array([6 * sign, near // 2, near])
            labels[block(centre - 4, centre + 4)] = label
    return labels


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """FreeSurfer's folders of five participants, and a split of them."""
    folder, rng = tmp_path_factory.mktemp("subjects"), np.random.default_rng(0)
    for name in "abcde":
        labels = made_up_labels(rng)
        means = np.zeros(256)
        means[[2, 10, 11, 49, 50]] = 110, 90, 60, 95, 65
        image, brain = np.zeros(labels.shape), labels > 0
        image[brain] = means[labels[brain]] + rng.normal(0, 3, brain.sum())
        (folder / f"sub-{name}" / "mri").mkdir(parents=True)
        nib.save(nib.MGHImage(image.astype(np.uint8), LIA), folder / f"sub-{name}/mri/brain.mgz")
        nib.save(nib.MGHImage(labels, LIA), folder / f"sub-{name}/mri/aseg.mgz")
    (folder / "split.tsv").write_text(SPLIT)
    (folder / "config.toml").write_text(PAIRS)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A label map of 1 mm and a configuration for synthesis."""
    folder = tmp_path_factory.mktemp("synthesis")
    (folder / "maps").mkdir()
    labels = made_up_labels(np.random.default_rng(0), side=64)
    nib.save(nib.Nifti1Image(labels, LIA), folder / "maps" / "head.nii.gz")
    (folder / "config.toml").write_text(SYNTHETIC)
    return folder


def train_on_pairs(subjects, out, *options):
    paths = ["--subjects-dir", subjects, "--split", subjects / "split.tsv", "--out", out]
    return main([str(o) for o in ("pairs", subjects / "config.toml", *paths, "--device", "cpu", *options)])


def train_on_synthetic(maps, out, *options):
    paths = ["--data-dir", maps, "--out", out, "--device", "cpu"]
    return main([str(o) for o in ("synthetic", maps / "config.toml", *paths, *options)])


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_training(one, other):
    """Bitwise the same network, average, optimiser and log (times apart)."""
    first, second = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (one, other))
    assert first.keys() == second.keys()
    for part in ("network", "average"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name
    for key, moments in first["optimizer"]["state"].items():
        assert torch.equal(moments["exp_avg_sq"], second["optimizer"]["state"][key]["exp_avg_sq"])
    times = ("seconds", "seconds_per_step")
    lines = [[{k: v for k, v in line.items() if k not in times} for line in log_of(out)] for out in (one, other)]
    assert lines[0] == lines[1]


def interrupt_after(monkeypatch, steps):
    """Learner.step is interrupted, as by Ctrl-C, when it has run so often."""
    taken, step = iter(range(steps)), Learner.step

    def interrupted(self, *arguments):
        if next(taken, None) is None:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", interrupted)


@pytest.fixture(scope="module")
def trained_on_pairs(subjects, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    assert train_on_pairs(subjects, out, "--weights-out", out / "weights.safetensors") == 0
    return out


@pytest.fixture(scope="module")
def trained_on_synthetic(maps, tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic")
    assert train_on_synthetic(maps, out, "--weights-out", out / "weights.safetensors") == 0
    return out


def test_pairs_learn(trained_on_pairs):
    lines = log_of(trained_on_pairs)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    # The first epoch's loss has the cross-entropy as well; Dice alone lies in 0..1.
    assert lines[0]["loss"] > 1.2 > 1 > lines[1]["loss"] > lines[2]["loss"]
    assert lines[2]["validation_dice"] > lines[0]["validation_dice"] + 0.05
    assert set(lines[2]["dice"]) == {"Left-Thalamus", "Left-Caudate", "Right-Thalamus", "Right-Caudate"}
    assert list((trained_on_pairs / "tensorboard").glob("events*"))


def test_pairs_write_a_weights_file(trained_on_pairs):
    network, info = load_weights(trained_on_pairs / "weights.safetensors")
    best = max(line["validation_dice"] for line in log_of(trained_on_pairs))
    assert log_of(trained_on_pairs)[-1]["best"] == best
    assert (info.task, info.licence, info.training_data) == ("aseg", "CC0-1.0", "made up; seed 0")
    assert info.input.skull_stripped
    assert info.input.intensity == "freesurfer"
    assert network.probabilities(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 32, 16, 16, 16)


def test_interrupted_pairs_end_as_uninterrupted(subjects, trained_on_pairs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)  # within the second epoch
        assert train_on_pairs(subjects, tmp_path) == 130
    assert len(log_of(tmp_path)) == 1
    assert train_on_pairs(subjects, tmp_path) == 0
    assert_same_training(trained_on_pairs, tmp_path)


def test_synthesis_learns(trained_on_synthetic):
    lines = log_of(trained_on_synthetic)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["stage"] for line in lines] == [0] * 5 + [1] * 3
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_interrupted_synthesis_ends_as_uninterrupted(maps, trained_on_synthetic, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 33)  # 30 steps are kept
        assert train_on_synthetic(maps, tmp_path) == 130
    assert train_on_synthetic(maps, tmp_path) == 0
    assert_same_training(trained_on_synthetic, tmp_path)


def test_export_is_what_training_wrote(maps, trained_on_synthetic, tmp_path):
    config, out = maps / "config.toml", tmp_path / "exported.safetensors"
    assert main(["export", str(trained_on_synthetic), str(config), "--out", str(out)]) == 0
    _, exported = load_weights(out)
    _, written = load_weights(trained_on_synthetic / "weights.safetensors")
    assert exported == written
    assert exported.name == "tiny-synthetic"
    assert (exported.input.voxel_size, exported.input.patch_size) == (1.5, 24)


def test_a_training_from_other_weights_is_exported_with_the_same_option(maps, trained_on_synthetic, tmp_path, capsys):
    weights = str(trained_on_synthetic / "weights.safetensors")
    longer = tmp_path / "longer.toml"  # one step, from where the other training ended
    longer.write_text(SYNTHETIC.replace("steps = 25", "steps = 1").replace("steps = 15", "steps = 1"))
    written, exported = tmp_path / "written.safetensors", tmp_path / "exported.safetensors"
    running = ["--data-dir", maps, "--out", tmp_path / "run", "--device", "cpu", "--weights-out", written]
    assert main([str(word) for word in ("synthetic", longer, "--initial", weights, *running)]) == 0
    command = ["export", str(tmp_path / "run"), str(longer), "--out", str(exported)]
    capsys.readouterr()
    assert main(command) != 0
    assert "with the same --initial and --leave-out" in capsys.readouterr().err
    assert not exported.exists()
    assert main([*command, "--initial", weights]) == 0
    assert load_weights(exported)[1] == load_weights(written)[1]


def test_pairs_are_exported_without_initial_weights(subjects, trained_on_pairs, tmp_path, capsys):
    command = ["export", str(trained_on_pairs), str(subjects / "config.toml"), "--out", str(tmp_path / "a.safetensors")]
    assert main([*command, "--initial", "a"]) != 0
    assert "are for trainings on synthesised images" in capsys.readouterr().err


def test_torchrun_trains_in_two_processes(subjects, tmp_path, capsys):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--subjects-dir", subjects, "--split", subjects / "split.tsv", "--out", tmp_path, "--device", "cpu"]
    command = [*launcher, "-m", "medsegmamba_bids.cli.train", "pairs", subjects / "config.toml", *options]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([str(word) for word in command], env=threads, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = log_of(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3]  # written by one process alone
    assert lines[2]["loss"] < lines[1]["loss"]  # both Dice alone
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["world"] == 2
    moments = next(iter(state["optimizer"]["state"].values()))
    assert moments["step"] == 6  # three epochs of three scans, two at a time
    assert train_on_pairs(subjects, tmp_path) != 0
    assert "was begun with 2 processes, not 1" in capsys.readouterr().err
