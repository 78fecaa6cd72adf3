"""Choosing a device, trusted only after a small kernel ran on it."""

from __future__ import annotations

import logging

import torch

from medsegmamba_bids.devices import device_name
from medsegmamba_bids.errors import DeviceError

logger = logging.getLogger(__name__)

#: Bytes of a GPU's memory for tensors with --low-memory: 2 GiB, less half a GiB for the CUDA context.
LOW_MEMORY = 3 * 2**29

_EXPECTED = 8 * 27  # eight positions of a 3x3x3 kernel of ones in a 4x4x4 volume of ones


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return a device on which a kernel has just run and given the right answer.

    Parameters
    ----------
    name : str or torch.device
        "cpu", "cuda" or "gpu", "cuda:N", "mps", or "auto": the first CUDA device that works, else the CPU. A
        device that was chosen before is returned as it is.

    Raises
    ------
    DeviceError
        If the name is unknown or the device does not work; "auto" falls back instead, and warns
        if a CUDA device is there but fails.
    """
    if isinstance(name, torch.device):
        return name
    name = device_name(name)
    if name == "auto":
        return _first_that_works()
    if reason := why_refused(torch.device(name)):
        raise DeviceError(f"device {name!r} cannot be used: {reason}")
    return torch.device(name)


def _first_that_works() -> torch.device:
    if torch.cuda.is_available():
        reason = why_refused(torch.device("cuda"))
        if not reason:
            return torch.device("cuda")
        logger.warning("the GPU is not used: %s", reason)
    return torch.device("cpu")


def why_refused(device: torch.device) -> str:
    """Run a small kernel on a device; say why it cannot be trusted, or nothing if it can.

    Drivers may list a GPU on which no kernel runs (another architecture, a container without the
    right libraries), hence the trial.
    """
    try:
        result = _run_kernel(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        return str(error).strip().partition("\n")[0] or type(error).__name__
    if result != _EXPECTED:
        return f"a small convolution gave {result} instead of {_EXPECTED}"
    return ""


def _run_kernel(device: torch.device) -> float:
    volume = torch.ones((1, 1, 4, 4, 4), device=device)
    kernel = torch.ones((1, 1, 3, 3, 3), device=device)
    return float(torch.nn.functional.conv3d(volume, kernel).sum().cpu())


def limit_memory(device: torch.device, limit: int = LOW_MEMORY) -> None:
    """Have torch take at most so much of a GPU's memory in this process; other devices are left alone.

    An allocation beyond it fails as if the memory had ended, so that cuDNN takes smaller workspaces and the callers
    of :func:`predict_volume` get what it does then.

    Parameters
    ----------
    device : torch.device
    limit : int
        Bytes.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        number = torch.cuda.current_device() if device.index is None else device.index  # torch refuses "cuda"
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), number)


def use_threads(threads: int) -> None:
    """Compute with this many threads on the CPU, of those that the process was started with.

    Parameters
    ----------
    threads : int
        1 or more.
    """
    import numba

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
