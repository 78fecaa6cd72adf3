"""A device is trusted only after a kernel ran on it and gave the right answer."""

from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch

from medsegmamba_bids.errors import DeviceError
from medsegmamba_bids.inference import beside, device
from medsegmamba_bids.inference.device import choose_device, limit_memory, use_threads, why_refused
from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume
from medsegmamba_bids.networks.registry import build_network

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device that the driver lists; returns how to say what its kernel does."""
    run = device._run_kernel
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def behave(answer):
        def kernel(where):
            if where.type != "cuda":
                return run(where)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(device, "_run_kernel", kernel)

    return behave


def test_the_kernel_runs_on_the_cpu():
    assert device._run_kernel(CPU) == 216
    assert why_refused(CPU) == ""
    assert choose_device("cpu") == CPU


def test_auto_takes_a_gpu_on_which_the_kernel_ran(gpu):
    gpu(216.0)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")


FAILURES = [
    (
        RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might"),
        "CUDA error: no kernel image is available for execution on the device",
    ),
    (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
    (RuntimeError(), "RuntimeError"),
    (0.0, "a small convolution gave 0.0 instead of 216"),
]


@pytest.mark.parametrize(("answer", "reason"), FAILURES)
def test_a_gpu_that_only_seems_to_work_is_refused_with_the_reason(gpu, caplog, answer, reason):
    gpu(answer)
    with pytest.raises(DeviceError) as refused:
        choose_device("cuda")
    assert str(refused.value) == f"device 'cuda' cannot be used: {reason}"
    assert choose_device("auto") == CPU
    assert caplog.messages == [f"the GPU is not used: {reason}"]


def test_auto_without_a_gpu_is_the_cpu_and_silent(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["abacus", "", "cuda:", "cuda:x", "cpu:0", "cuda:1 2"])
def test_unknown_names_are_refused(name):
    with pytest.raises(DeviceError, match="is unknown; allowed are auto, cpu, cuda, cuda:N, mps"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_it_cannot_be_used():
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: "):
        choose_device("cuda")


def test_threads():
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        use_threads(1)
        assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)
        use_threads(1000)
        assert torch.get_num_threads() == 1000
        assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def test_a_network_makes_way_for_steps_beside_it(monkeypatch):
    monkeypatch.setattr(beside, "_COUNTERS", [])
    used, counter = [], SimpleNamespace(value=0)
    monkeypatch.setattr(device, "use_threads", used.append)
    beside.make_way(4)
    beside.watch(counter)
    for counter.value in (0, 1, 3, 4, 9):
        beside.make_way(4)
    assert used == [4, 4, 3, 1, 1, 1]


def test_results_do_not_depend_on_when_a_network_makes_way(tmp_path):
    """Threads that change from patch to patch: the same labels, and probabilities to rounding."""
    torch.manual_seed(0)
    sizes = {"channels": [8, 8, 8, 8], "bottleneck": 64, "state": 4, "blocks": 1, "patch_size": 16}
    network = build_network("medsegmamba", {**sizes, "classes": 3}).eval()
    volume = np.random.default_rng(0).random((24, 24, 24), np.float32)
    before = torch.get_num_threads(), numba.get_num_threads()
    found = []
    try:
        for threads in ([2, 2], [2, 1]):
            resources = Resources(progress=lambda done, total, threads=threads: use_threads(threads[done % 2]))
            found.append(predict_volume(network, volume, 3, Patching(16, 8), resources).probabilities)
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
    assert torch.equal(found[0].argmax(0), found[1].argmax(0))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_limit_of_memory_is_a_fraction_of_the_gpus(monkeypatch):
    said = []
    properties = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: said.append(given))
    limit_memory(torch.device("cpu"))
    assert said == []
    limit_memory(torch.device("cuda:1"))
    limit_memory(torch.device("cuda:1"), 48 * 2**30)
    limit_memory(torch.device("cuda"))  # what "auto" chooses; torch's own function refuses it without a number
    assert said == [(1.5 / 24, 1), (1.0, 1), (1.5 / 24, 3)]
