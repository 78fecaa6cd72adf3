"""The benchmark of precisions, whose numbers stand in notes."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision.py"


@pytest.fixture
def precision():
    spec = importlib.util.spec_from_file_location("precision", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_it_runs_on_weights_and_an_image(precision, intensity_weights, tmp_path, capsys):
    weights = intensity_weights("aseg", {0: 0.0, 16: 0.4, 17: 0.8}, voxel_size=4.0)
    data = np.zeros((40, 40, 40), np.uint8)
    data[8:32, 8:32, 8:32] = 102
    data[12:20, 12:20, 12:20] = 204
    nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])).to_filename(tmp_path / "brain.nii")
    assert precision.main([str(weights), str(tmp_path / "brain.nii"), "--device", "cpu"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["weights"], result["precision"], result["device"]) == ("known-aseg", "bfloat16", "cpu")
    assert result["structures"] == 2
    assert 0.9 < result["mean_dice"] <= 1
    assert 0.99 < result["argmax_agreement"] <= 1
    assert result["largest_posterior_difference"] > 0
    assert result["seconds_float32"] > 0
