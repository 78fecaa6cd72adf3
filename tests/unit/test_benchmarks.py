"""The benchmarks whose numbers stand in notes: precisions, memory, GPUs."""

import ast
import importlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.inference.device import LOW_MEMORY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path):
    """Functions of theirs import late, so that a name that moved would show on a machine with a GPU only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "medsegmamba_bids":
            for alias in node.names:
                inside = hasattr(importlib.import_module(node.module), alias.name)
                assert inside or importlib.util.find_spec(f"{node.module}.{alias.name}"), (node.module, alias.name)


@pytest.fixture
def precision():
    return importlib.import_module("precision")


def found(labels, posterior, volumes):
    return SimpleNamespace(
        labels=np.array(labels),
        posterior=np.array(posterior),
        voxels={label: labels.count(label) for label in volumes},
        soft_volumes=volumes,
    )


def test_agreement_in_numbers(precision):
    reference = found([0, 0, 4, 4, 4, 5, 0, 0], [0.9] * 8, {4: 3.0, 5: 1.0, 7: 0.0})
    other = found([0, 0, 4, 4, 0, 5, 0, 4], [0.9] * 7 + [0.6], {4: 3.3, 5: 1.0, 7: 0.0})
    result = precision.agreement(other, reference)
    assert result["argmax_agreement"] == 6 / 8
    assert result["argmax_agreement_labelled"] == 3 / 5
    assert result["mean_dice"] == pytest.approx((2 * 2 / 6 + 1) / 2)
    assert result["worst_dice"] == pytest.approx(2 / 3)
    assert (result["worst_label"], result["structures"]) == (4, 2)
    assert result["largest_posterior_difference"] == pytest.approx(0.3)
    assert result["mean_soft_volume_difference"] == pytest.approx(0.05)


def test_nothing_agrees_with_nothing(precision):
    empty = found([0, 0], [1.0, 1.0], {4: 0.0})
    result = precision.agreement(empty, empty)
    assert result["argmax_agreement"] == result["argmax_agreement_labelled"] == result["mean_dice"] == 1
    assert result["worst_label"] is None


def test_dice_lost_against_labels(precision):
    exact, other = (
        SimpleNamespace(
            labels=np.array(labels)[:, None, None], grid=Grid(np.eye(4), (5, 1, 1)), voxels={4: 1, 5: 1, 7: 0}
        )
        for labels in ([0, 4, 4, 4, 5], [0, 4, 4, 0, 5])
    )
    truth = nib.Nifti1Image(np.array([4, 4, 4, 4, 5], np.uint8)[:, None, None], np.eye(4))
    lost = precision.dice_loss(other, exact, truth)
    assert lost["mean_dice_float32"] == pytest.approx((6 / 7 + 1) / 2)
    assert lost["mean_dice_here"] == pytest.approx((4 / 6 + 1) / 2)
    assert lost["mean_dice_loss"] == pytest.approx((6 / 7 - 4 / 6) / 2)


@pytest.fixture
def known(intensity_weights, tmp_path):
    """Weights, an image of two structures, and its labels."""
    weights = intensity_weights("aseg", {0: 0.0, 16: 0.4, 17: 0.8}, voxel_size=4.0)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[8:32, 8:32, 8:32] = 16
    labels[12:20, 12:20, 12:20] = 17
    for name, data in (("labels.nii", labels), ("brain.nii", np.array([0, 102, 204], np.uint8)[labels % 15])):
        nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])).to_filename(tmp_path / name)
    return SimpleNamespace(weights=str(weights), image=str(tmp_path / "brain.nii"), labels=str(tmp_path / "labels.nii"))


def test_it_runs_on_weights_and_an_image(precision, known, capsys):
    assert precision.main([known.weights, known.image, "--device", "cpu", "--reference", known.labels]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["weights"], result["precision"], result["device"]) == ("known-aseg", "bfloat16", "cpu")
    assert result["structures"] == 2
    assert 0.9 < result["mean_dice"] <= 1
    assert 0.99 < result["argmax_agreement"] <= 1
    assert result["largest_posterior_difference"] > 0
    assert 0.8 < result["mean_dice_float32"] < 1
    assert abs(result["mean_dice_loss"]) < 0.05
    assert result["seconds_float32"] > 0


def test_memory_in_use_is_counted_to_the_end_of_storages():
    meter = importlib.import_module("memory").Meter([torch.zeros(100)])
    with meter:
        one = torch.zeros(1000)
        two = one + 1
        del one
        two.add_(1).view(10, 100)  # nothing new
        torch.zeros(500).sum()
    assert meter.peak == 4 * 2000
    assert meter.where["aten.add_.Tensor (1000,)"] == 4 * 1000


def test_low_memory_is_enough_for_the_published_network():
    """Batches of one, the mean on the CPU, against what limit_memory allows; a sixth is left for cuDNN's workspaces."""
    memory = importlib.import_module("memory")
    meter, network = memory.forward_on_meta(lambda network: memory.Meter(network.parameters()))
    volume = 4 * 160 * 176 * 208
    parameters = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert parameters < meter.peak
    assert meter.peak + volume < LOW_MEMORY * 5 / 6


def test_everything_about_a_gpu_runs_on_a_cpu_in_small(known, capsys):
    options = ["--tiny", "--device", "cpu", "--runs", "1", "--scans", "2", "--weights", known.weights]
    assert importlib.import_module("gpu").main([*options, "--image", known.image, "--reference", known.labels]) == 0
    lines, table = capsys.readouterr().out.split("\n\n")
    rows = {row["case"]: row for row in map(json.loads, lines.splitlines())}
    assert rows["card"]["torch"] == torch.__version__
    assert rows["patch, bfloat16, 2 at once"]["value"] > 0
    assert rows["patch, float32, 1 at once"]["fraction"] > 0
    assert {"scan of one block, numba, 1 patches", "scan of one block, reference, 1 patches"} <= rows.keys()
    assert rows["box of 24 x 20 x 28, step 8, bfloat16"]["patches"] == 2 * 2 * 3
    assert rows["box of 24 x 20 x 28, step 16, float32"]["patches"] == 2 * 2 * 2
    assert rows["--low-memory, step 16, float32: memory"]["value"] is None
    assert rows["agreement, bfloat16, brain.nii"]["met"] is True
    assert abs(rows["Dice loss, bfloat16, brain.nii"]["value"]) < 0.05
    assert 0 < rows["2 scans: part of the time in which patches run"]["value"] < 1
    assert len(table.splitlines()) == len(rows) + 2
    assert "| --low-memory, step 16, float32: memory | not measured GiB | under 2 GiB |  |" in table


def test_without_a_gpu_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert importlib.import_module("gpu").main([]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("no CUDA device: nothing was measured")


def test_arithmetic_of_the_published_patch():
    """527 GMAC (551 with the scans' own), and an exponential for every state of every channel at every step."""
    gpu = importlib.import_module("gpu")
    multiplications, exponentials = gpu.work_of_a_patch(SimpleNamespace(config=gpu.PUBLISHED))
    assert multiplications == pytest.approx(526.7e9, rel=1e-3)
    assert exponentials == 9 * 8 * 12**3 * 1024 * 64
