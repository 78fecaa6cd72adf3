"""Volumes through networks that are easy to foresee, and what happens when memory ends."""

import logging
import os

import numpy as np
import pytest
import torch
from torch import nn

from medsegmamba_bids.devices import check_precision
from medsegmamba_bids.inference import predict
from medsegmamba_bids.inference.patches import PatchAverage
from medsegmamba_bids.inference.predict import _Plan, is_out_of_memory
from medsegmamba_bids.networks.kernels.selective_scan import selective_scan
from medsegmamba_bids.networks.registry import build_network


class Identity(nn.Module):
    """Class 1 has the intensity as its probability, class 0 the rest."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def probabilities(self, x):
        self.batches.append(len(x))
        return torch.cat((1 - x, x), 1)


class ByContext(Identity):
    """What it says about a voxel depends on the whole patch, so that patches disagree."""

    def probabilities(self, x):
        bright = x * torch.sigmoid(x.mean((2, 3, 4), keepdim=True) * 4 - 2)
        return super().probabilities(bright)


class Forgetful(Identity):
    """Runs out of memory as often as told, always with more patches than it can hold."""

    def __init__(self, failures=0, holds=1000):
        super().__init__()
        self.failures, self.holds = failures, holds

    def probabilities(self, x):
        if len(x) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        if self.failures:
            self.failures -= 1
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return super().probabilities(x)


def predict_volume(network, volume, *, box=None, n_classes, patch_size, step, gaussian=False, mirror=None, **resources):
    """The function of this name, with all of its options in one row."""
    patching = predict.Patching(patch_size, step, gaussian, mirror)
    return predict.predict_volume(network, volume, n_classes, patching, predict.Resources(**resources), box)


#: A device of its own name on which everything runs: it stands for a GPU.
OTHER = "cpu:0"


def volume_of(shape, filled=None, seed=0):
    """Intensities above 0 in a box, zeros around it."""
    volume = np.zeros(shape, np.float32)
    box = filled or tuple(slice(0, side) for side in shape)
    part = volume[box]
    part[:] = np.random.default_rng(seed).uniform(0.1, 1, part.shape)
    return volume


def whole(prediction, shape):
    """Probabilities of class 1 in the whole volume."""
    out = np.zeros(shape, np.float32)
    out[prediction.box] = prediction.probabilities[1].float().numpy()
    rest = prediction.probabilities.float().sum(0)
    torch.testing.assert_close(rest, torch.ones_like(rest), rtol=0, atol=2e-3)
    return out


CASES = {
    "smaller than a patch": ((5, 6, 7), None),
    "one patch": ((8, 8, 8), None),
    "a multiple of the step": ((16, 12, 20), None),
    "odd": ((13, 9, 17), None),
    "touching a border": ((30, 24, 20), (slice(0, 9), slice(14, 24), slice(3, 20))),
    "inside": ((30, 24, 20), (slice(7, 21), slice(8, 9), slice(5, 15))),
    "a flat side": ((20, 4, 9), (slice(2, 18), slice(1, 3), slice(0, 9))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(("step", "batch_size", "half"), [(4, 1, False), (3, 5, False), (8, 2, True)])
def test_an_identity_network_gives_the_volume_back(case, gaussian, step, batch_size, half):
    shape, filled = CASES[case]
    volume = volume_of(shape, filled)
    before = volume.copy()
    found = predict_volume(
        Identity(),
        volume,
        patch_size=8,
        step=step,
        n_classes=2,
        batch_size=batch_size,
        gaussian=gaussian,
        half_accumulator=half,
    )
    np.testing.assert_allclose(whole(found, shape), volume, rtol=0, atol=1e-3 if half else 1e-6)
    np.testing.assert_array_equal(volume, before)
    assert found.probabilities.dtype == (torch.float16 if half else torch.float32)
    assert found.notes == []


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_batch_size_does_not_matter(gaussian):
    volume = volume_of((15, 13, 18))
    options = {"patch_size": 8, "step": 3, "n_classes": 2, "gaussian": gaussian}
    alone = predict_volume(ByContext(), volume, **options)
    assert not np.allclose(alone.probabilities[1], volume, atol=0.05)
    for batch_size in (2, 7, 1000):
        network = ByContext()
        together = predict_volume(network, volume, batch_size=batch_size, **options)
        assert max(network.batches) == min(batch_size, alone.patches)
        assert sum(network.batches) == together.patches == alone.patches
        torch.testing.assert_close(together.probabilities, alone.probabilities, rtol=0, atol=1e-6)


def test_one_patch_of_a_real_network_is_what_the_network_says():
    torch.manual_seed(0)
    config = {"channels": (8, 8, 16, 16), "bottleneck": 16, "state": 2, "blocks": 1, "classes": 3, "patch_size": 16}
    network = build_network("medsegmamba", config).eval()
    volume = volume_of((16, 16, 16))
    found = predict_volume(network, volume, patch_size=16, step=8, n_classes=3)
    with torch.inference_mode():
        expected = network.probabilities(torch.from_numpy(volume)[None, None])[0]
    assert torch.equal(found.probabilities, expected)
    rough = predict_volume(network, volume, patch_size=16, step=8, n_classes=3, precision="bfloat16")
    error = float((rough.probabilities - expected).abs().max())
    assert 0 < error < 0.05


def test_an_empty_volume_is_background_and_the_network_is_not_asked():
    network, calls = Identity(), []
    volume = np.zeros((9, 20, 8), np.float32)
    options = {"patch_size": 8, "step": 4, "n_classes": 2}
    found = predict_volume(network, volume, progress=lambda *p: calls.append(p), **options)
    assert found.box == (slice(0, 9), slice(0, 20), slice(0, 8))
    assert found.probabilities.shape == (2, 9, 20, 8)
    assert (found.probabilities[0] == 1).all()
    assert (found.probabilities[1] == 0).all()
    assert found.patches == 0
    assert network.batches == calls == []


def test_patches_that_hold_nothing_are_not_computed():
    shape = (40, 8, 8)
    volume = volume_of(shape, (slice(0, 5), slice(0, 8), slice(0, 8)))
    volume[36:] = volume_of((4, 8, 8))
    network = Identity()
    found = predict_volume(network, volume, patch_size=8, step=8, n_classes=2)
    assert sum(network.batches) == found.patches == 2
    np.testing.assert_allclose(whole(found, shape), volume, rtol=0, atol=1e-6)


def test_only_the_box_is_segmented_and_it_is_widened_to_a_patch():
    volume = volume_of((30, 30, 30))
    box = (slice(10, 13), slice(0, 20), slice(28, 30))
    found = predict_volume(Identity(), volume, patch_size=8, step=4, n_classes=2, box=box)
    assert found.box == (slice(8, 16), slice(0, 20), slice(22, 30))
    np.testing.assert_allclose(found.probabilities[1], volume[found.box], rtol=0, atol=1e-6)


def test_progress_counts_the_patches():
    seen = []
    options = {"patch_size": 8, "step": 8, "n_classes": 2, "batch_size": 2}
    predict_volume(Identity(), volume_of((40, 8, 8)), progress=lambda *p: seen.append(p), **options)
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


class Sided(nn.Module):
    """Class 1 in the first half of axis 0, class 2 in the second; a little of class 0 at one end."""

    def probabilities(self, x):
        out = torch.zeros(len(x), 3, *x.shape[2:])
        half = x.shape[2] // 2
        out[:, 1, :half], out[:, 2, half:] = 1, 1
        out[:, :, 0] = torch.tensor([0.5, 0.5, 0])[:, None, None]
        return out


def test_the_mirror_image_is_averaged_in_with_sides_exchanged():
    found = predict_volume(Sided(), volume_of((8, 8, 8)), patch_size=8, step=8, n_classes=3, mirror=[0, 2, 1])
    along = found.probabilities[:, :, 3, 3]
    expected = torch.zeros(3, 8)
    expected[1, :4], expected[2, 4:] = 1, 1
    expected[:, 0] = torch.tensor([0.25, 0.75, 0])
    expected[:, 7] = torch.tensor([0.25, 0, 0.75])
    assert torch.equal(along, expected)


# Memory


def run_out(network, batch_size=4, device=OTHER, **options):
    volume = volume_of((14, 13, 18))
    found = predict_volume(
        network, volume, patch_size=8, step=4, n_classes=2, device=device, batch_size=batch_size, **options
    )
    np.testing.assert_allclose(whole(found, volume.shape), volume, rtol=0, atol=1e-6)
    assert sum(network.batches) == found.patches, "a patch was computed twice or not at all"
    return found


def test_out_of_memory_halves_the_batch_first(caplog):
    network = Forgetful(holds=2)
    found = run_out(network, batch_size=9)
    assert max(network.batches) == 2
    assert found.notes == [
        "cpu:0 ran out of memory: batches of 4 instead of 9",
        "cpu:0 ran out of memory: batches of 2 instead of 4",
    ]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == found.notes
    assert found.device == torch.device(OTHER)


def test_then_the_mean_is_kept_on_the_cpu_then_the_network_runs_there():
    network = Forgetful(failures=1)
    found = run_out(network, batch_size=1)
    assert found.notes == ["cpu:0 ran out of memory: the probabilities are kept on the CPU"]
    assert found.device == torch.device(OTHER)

    found = run_out(Forgetful(failures=3), batch_size=2)
    assert found.notes == [
        "cpu:0 ran out of memory: batches of 1 instead of 2",
        "cpu:0 ran out of memory: the probabilities are kept on the CPU",
        "cpu:0 ran out of memory: the network runs on the CPU, in float32",
    ]
    assert found.device == torch.device("cpu")


def test_when_the_cpu_runs_out_of_memory_as_well_the_error_goes_on():
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        run_out(Forgetful(failures=4), batch_size=2)


def test_memory_that_ends_amid_a_batch_repeats_no_patch(monkeypatch):
    added, add = [], PatchAverage.add

    def once_short(self, position, probabilities):
        if len(added) == 2 and "failed" not in added:
            added.append("failed")
            raise torch.OutOfMemoryError("CUDA out of memory")
        added.append(position)
        add(self, position, probabilities)

    monkeypatch.setattr(PatchAverage, "add", once_short)
    volume = volume_of((14, 13, 18))
    found = predict_volume(ByContext(), volume, patch_size=8, step=4, n_classes=2, device=OTHER, batch_size=4)
    positions = [position for position in added if position != "failed"]
    assert len(positions) == len(set(positions)) == found.patches
    monkeypatch.undo()
    expected = predict_volume(ByContext(), volume, patch_size=8, step=4, n_classes=2)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=1e-6)


def test_an_accumulator_that_does_not_fit_goes_to_the_cpu(monkeypatch):
    class Large(PatchAverage):
        def __init__(self, grid, n_classes, device, half=False):
            if str(device) == OTHER:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(grid, n_classes, device, half)

    monkeypatch.setattr(predict, "PatchAverage", Large)
    found = run_out(Identity(), batch_size=1)
    assert found.notes == ["cpu:0 ran out of memory: the probabilities are kept on the CPU"]


class Scanning(Forgetful):
    """Runs a selective scan like a network's, and fails on the way until it is on the CPU."""

    def probabilities(self, x):
        found = super().probabilities(x)
        one = torch.ones(1, 1, 1, 1)
        assert selective_scan(one[0], one, one, one, -one[0], torch.zeros(1, 1, dtype=torch.int32)).item() == 1
        return found


def test_a_forced_scan_backend_does_not_bar_the_way_to_the_cpu(monkeypatch):
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", "cuda")
    found = run_out(Scanning(failures=2), batch_size=1)
    assert found.notes[-1] == (
        "cpu:0 ran out of memory: the network runs on the CPU, in float32, "
        "without scan backend 'cuda', which does not work there"
    )
    assert os.environ["MEDSEGMAMBA_SCAN"] == "cuda"
    with pytest.raises(ValueError, match="scan backend 'cuda' does not work on cpu"):
        run_out(Scanning(), batch_size=1)


def test_a_forced_scan_backend_that_works_on_the_cpu_stays(monkeypatch):
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", "reference")
    found = run_out(Scanning(failures=2), batch_size=1)
    assert found.notes[-1] == "cpu:0 ran out of memory: the network runs on the CPU, in float32"


def test_low_memory_begins_with_single_patches_and_the_mean_on_the_cpu():
    network, volume = ByContext(), volume_of((20, 16, 12))
    options = {"patch_size": 8, "step": 4, "n_classes": 2, "batch_size": 5, "device": OTHER}
    found = predict_volume(network, volume, low_memory=True, **options)
    assert set(network.batches) == {1}
    assert found.probabilities.device == torch.device("cpu") != torch.device(OTHER) == found.device
    expected = predict_volume(ByContext(), volume, **options)
    torch.testing.assert_close(found.probabilities, expected.probabilities.cpu(), rtol=0, atol=1e-6)
    assert found.notes == []


def test_other_errors_are_not_taken_for_lack_of_memory():
    class Broken(nn.Module):
        def probabilities(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_out(Broken())


def test_float16_becomes_float32_on_the_cpu():
    plan = _Plan(1, torch.device("cuda"), torch.device("cpu"), "float16")
    after, said = plan.with_less_memory()
    assert after == _Plan(1, torch.device("cpu"), torch.device("cpu"), "float32")
    assert said == "the network runs on the CPU, in float32"
    assert after.with_less_memory() == (None, "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("step 0"), False),
    ],
)
def test_what_is_lack_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


# Refusals


class Infinite(Identity):
    def probabilities(self, x):
        out = super().probabilities(x)
        out[0, 1, 2, 3, 4] = float("nan")
        return out


def test_what_is_not_finite_is_refused():
    volume, options = volume_of((8, 8, 8)), {"patch_size": 8, "step": 8, "n_classes": 2}
    with pytest.raises(ValueError, match=r"probabilities that are not finite$"):
        predict_volume(Infinite(), volume, **options)
    with pytest.raises(ValueError, match="not finite in bfloat16; use float32"):
        predict_volume(Infinite(), volume, precision="bfloat16", **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch size 0: must be 1 or more"),
        ({"precision": "int8"}, "precision 'int8' is unknown; allowed are float32, bfloat16, float16"),
        ({"precision": "float16"}, "float16 is for GPUs"),
        ({"mirror": [0, 0]}, "mirror must hold each of the 2 classes once"),
        ({"step": 9}, r"step 9: must lie in 1\.\.8"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    network = Identity()
    with pytest.raises(ValueError, match=sentence):
        predict_volume(network, volume_of((8, 8, 8)), **{"patch_size": 8, "step": 8, "n_classes": 2, **options})
    assert network.batches == []


def test_a_volume_has_three_axes():
    with pytest.raises(ValueError, match=r"shape \(8, 8\): three axes are needed"):
        predict_volume(Identity(), np.ones((8, 8), np.float32), patch_size=8, step=8, n_classes=2)


def test_precisions_by_device():
    check_precision("float16", "cuda")
    check_precision("bfloat16", "cpu")
    with pytest.raises(ValueError, match="allowed on the CPU are float32 and bfloat16"):
        check_precision("float16", "cpu")


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volume = volume_of((20, 13, 18))
    options = {"patch_size": 8, "step": 4, "n_classes": 2, "gaussian": True}
    expected = predict_volume(ByContext(), volume, **options)
    for more in ({"batch_size": 1}, {"batch_size": 4}, {"batch_size": 3, "half_accumulator": True}):
        found = predict_volume(ByContext(), volume, device="cuda", **more, **options)
        tolerance = 2e-3 if "half_accumulator" in more else 1e-5
        torch.testing.assert_close(found.probabilities.cpu().float(), expected.probabilities, rtol=0, atol=tolerance)
