"""A whole network over a volume, on a GPU against the CPU."""

import numpy as np
import pytest
import torch

from medsegmamba_bids.inference.device import LOW_MEMORY, limit_memory
from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume
from medsegmamba_bids.networks.medsegmamba import MedSegMamba

CONFIG = {"channels": (8, 16, 16, 32), "bottleneck": 64, "state": 16, "blocks": 2, "classes": 6, "patch_size": 32}
OPTIONS = (6, Patching(32, 16))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MedSegMamba(**CONFIG).eval()


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).random((48, 40, 56), dtype=np.float32)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 1e-2), ("bfloat16", 5e-2)])
def test_as_on_the_cpu(cuda, network, volume, precision, tolerance):
    expected = predict_volume(network, volume, *OPTIONS)
    found = predict_volume(network, volume, *OPTIONS, Resources(cuda, precision, 4))
    assert found.probabilities.device.type == "cuda"
    assert float((found.probabilities.cpu() - expected.probabilities).abs().max()) < tolerance
    assert found.notes == []


def test_low_memory_gives_the_same_and_leaves_the_gpu(cuda, network, volume):
    expected = predict_volume(network, volume, *OPTIONS, Resources(cuda))
    found = predict_volume(network, volume, *OPTIONS, Resources(cuda, low_memory=True))
    assert found.probabilities.device == torch.device("cpu")
    assert next(network.parameters()).device == torch.device("cpu")
    torch.testing.assert_close(found.probabilities, expected.probabilities.cpu(), rtol=0, atol=1e-6)


def test_the_published_network_fits_into_low_memory(cuda):
    network = MedSegMamba().eval()
    volume = np.random.default_rng(0).random((96, 96, 128), dtype=np.float32)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    limit_memory(cuda)
    try:
        found = predict_volume(network, volume, 32, Patching(96, 32), Resources(cuda, low_memory=True))
        assert found.notes == []
        assert torch.cuda.max_memory_reserved(cuda) <= LOW_MEMORY
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_limit_makes_allocations_fail(cuda):
    limit_memory(cuda)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(LOW_MEMORY + 2**20, dtype=torch.uint8, device=cuda)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
