"""What a device or a precision cannot do is said before any work."""

import multiprocessing as mp

import pytest

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.devices import check_precision, device_name
from medsegmamba_bids.errors import ConfigError, DeviceError
from medsegmamba_bids.execution.machine_check import check_machine


@pytest.mark.parametrize(
    ("given", "name"),
    [("gpu", "cuda"), ("GPU:1", "cuda:1"), ("CUDA", "cuda"), ("cpu", "cpu"), ("auto", "auto"), ("mps", "mps")],
)
def test_names(given, name):
    assert device_name(given) == name
    assert RunConfig("in", "out", device=given).device == name


@pytest.mark.parametrize("name", ["abacus", "gpus", "cuda:", "cuda:-1", "cuda:one", ""])
def test_names_of_nothing(name):
    with pytest.raises(DeviceError, match=rf"device '{name}' is unknown; allowed are auto, cpu, cuda, cuda:N, mps"):
        RunConfig("in", "out", device=name)


def test_float16_on_a_cpu_is_refused_with_the_options():
    with pytest.raises(DeviceError, match=r"float16 is for GPUs.* allowed on the CPU are float32 and bfloat16"):
        RunConfig("in", "out", device="cpu", precision="float16")
    check_precision("float16", "auto")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_gpu_that_is_not_there_is_refused_before_any_work(no_gpu):
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: "):
        check_machine(RunConfig("in", "out", device="gpu"))
    with pytest.raises(DeviceError, match="precision float16 is for GPUs"):
        check_machine(RunConfig("in", "out", precision="float16"))


def test_nothing_is_tried_where_nothing_can_fail(monkeypatch):
    monkeypatch.setattr("medsegmamba_bids.execution.machine_check._try_device", None)
    check_machine(RunConfig("in", "out"))
    check_machine(RunConfig("in", "out", device="cpu", precision="bfloat16"))
    check_machine(RunConfig("in", "out", device="cuda", reports_only=True))


def test_shared_memory_that_cannot_be_written_is_named(monkeypatch):
    class Context:
        def Lock(self):
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(mp, "get_context", lambda kind: Context())
    with pytest.raises(ConfigError, match=r"/dev/shm: processes cannot share memory there \(Read-only file system\)"):
        check_machine(RunConfig("in", "out"))
