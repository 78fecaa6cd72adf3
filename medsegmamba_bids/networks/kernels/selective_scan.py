"""The selective scan of SS3D, with interchangeable backends.

Shape letters: B batch; K directions (8); L voxels = steps of a path; C channels; N states.
Every array is in voxel order; ``paths`` says in which order a direction visits the voxels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from medsegmamba_bids.errors import DeviceError

logger = logging.getLogger(__name__)

#: Environment variable that chooses the backend by name.
BACKEND_VARIABLE = "MEDSEGMAMBA_SCAN"
BEST = "best"
_WANTED: ContextVar[str | None] = ContextVar("scan backend", default=None)


def reference_scan(
    u: torch.Tensor, delta: torch.Tensor, b: torch.Tensor, c: torch.Tensor, a: torch.Tensor, paths: torch.Tensor
) -> torch.Tensor:
    """Return the scan written down step by step: slow, differentiable, for any device and precision.

    For each direction k, along its path (Gu and Dao 2023, equations 2 and 4)::

        h <- exp(delta A) h + delta B u
        y <- C h

    Parameters
    ----------
    u : float (B, L, C), inputs
    delta : float (B, K, L, C), step sizes, positive
    b, c : float (B, L, K, N), input and output projections of the state
    a : float (K, N, C), decay rates, negative
    paths : int (K, L), voxel visited at every step

    Returns
    -------
    float (B, L, C), the outputs at every voxel, summed over the directions
    """
    order = paths.long()
    outputs = []
    for k in range(order.shape[0]):
        state = u.new_zeros(u.shape[0], a.shape[1], u.shape[2])
        steps = []
        for voxel in order[k].tolist():
            dt = delta[:, k, voxel, None]  # (B, 1, C)
            state = torch.exp(dt * a[k]) * state + dt * b[:, voxel, k, :, None] * u[:, voxel, None]
            steps.append((state * c[:, voxel, k, :, None]).sum(1))
        outputs.append(torch.stack(steps, 1)[:, torch.argsort(order[k])])
    return torch.stack(outputs).sum(0)


def cuda_scan(
    u: torch.Tensor, delta: torch.Tensor, b: torch.Tensor, c: torch.Tensor, a: torch.Tensor, paths: torch.Tensor
) -> torch.Tensor:
    """Return the scan by mamba_ssm's CUDA kernel, which needs copies in the order of the paths."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    directions, length = paths.shape
    order, back = paths.long(), torch.argsort(paths.long(), 1)
    rows = u.float()[:, order].permute(0, 1, 3, 2).flatten(1, 2)  # (B, K C, L)
    steps = delta.float().gather(2, order[None, :, :, None].expand_as(delta)).transpose(2, 3).flatten(1, 2)
    write, read = (
        t.float().permute(0, 2, 3, 1).gather(3, order[None, :, None].expand(len(t), -1, t.shape[3], -1)) for t in (b, c)
    )
    rates = a.float().transpose(1, 2).flatten(0, 1)  # (K C, N)
    out = selective_scan_fn(rows, steps, rates, write.contiguous(), read.contiguous())
    out = out.view(len(u), directions, -1, length)
    out = out.gather(3, back[None, :, None].expand_as(out))
    return out.sum(1).transpose(1, 2)


def _numba(*arguments: torch.Tensor | None) -> torch.Tensor:
    from medsegmamba_bids.networks.kernels.scan_numba import numba_scan

    return numba_scan(*arguments)


def _triton(*arguments: torch.Tensor | None) -> torch.Tensor:
    from medsegmamba_bids.networks.kernels.scan_triton import triton_scan

    return triton_scan(*arguments)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "reference": reference_scan,
    "numba": _numba,
    "triton": _triton,
    "cuda": cuda_scan,
}

#: Backends that make step sizes of what they read, add the skipped input, and take any floating type.
_FUSED = {"numba", "triton"}
#: What the backends for GPUs need.
_NEEDS = {"triton": "triton", "cuda": "selective_scan_cuda"}


def available_backends(device: torch.device | str) -> list[str]:
    """Return names of the backends that work on a device, the preferred one first."""
    kind = torch.device(device).type
    if kind == "cpu":
        return ["numba", "reference"]
    kernels = [name for name in ("triton", "cuda") if kind == "cuda" and why_refused(name, str(device)) is None]
    return [*kernels, "reference"]


@lru_cache
def why_refused(name: str, device: str) -> str | None:
    """Run a small scan on a device; say why a backend cannot be trusted there, or None if it can.

    Installed is not enough: ``import mamba_ssm`` works without its compiled kernel, and Triton needs a C compiler
    when it first runs. A backend that is installed and fails is warned of, once.
    """
    module = _NEEDS.get(name)
    if module and not find_spec(module):
        return f"{module} is not installed"
    try:
        error = _error_of_small_scan(BACKENDS[name], device)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # a compiler's, a driver's, a linker's: they have no type in common
        reason = str(failure).strip().partition("\n")[0] or type(failure).__name__
    else:
        if error < 1e-4:
            return None
        reason = f"a small scan was wrong by {error:.1e}"
    logger.warning("scan backend %r is not used on %s: %s", name, device, reason)
    return reason


def _error_of_small_scan(scan: Callable[..., torch.Tensor], device: str) -> float:
    """Return the largest difference from the reference for two directions, 8 voxels, 4 channels and 3 states."""
    numbers = torch.linspace(0.1, 1.0, 64, device=device)
    u, delta, b = numbers[:32].view(1, 8, 4), numbers.view(1, 2, 8, 4), numbers[:48].view(1, 8, 2, 3)
    path = torch.arange(8, dtype=torch.int32, device=device)
    inputs = (u, delta, b, b.flip(1), -numbers[:24].view(2, 3, 4), torch.stack((path, path.flip(0))))
    with torch.no_grad():
        return float((scan(*inputs) - reference_scan(*inputs)).abs().max())


@contextmanager
def scan_backend(name: str | None) -> Iterator[None]:
    """Yield within, scans run by this backend; None leaves it to MEDSEGMAMBA_SCAN, ``best`` to what works best."""
    token = _WANTED.set(name or _WANTED.get())
    try:
        yield
    finally:
        _WANTED.reset(token)


def forced_backend() -> str | None:
    """Return the backend that scans must run by; None where the best is taken."""
    name = _WANTED.get() or os.environ.get(BACKEND_VARIABLE)
    return None if name == BEST else name


def choose_backend(device: torch.device | str, name: str | None = None) -> str:
    """Return the backend for a device: the one named, or that of `scan_backend` or MEDSEGMAMBA_SCAN, or the best.

    Raises
    ------
    DeviceError
        It does not work on the device.
    """
    usable = available_backends(device)
    name = name or forced_backend() or usable[0]
    if name not in usable:
        on_gpu = torch.device(device).type == "cuda" and name in _NEEDS
        reason = f": {why_refused(name, str(device))}" if on_gpu else ""
        raise DeviceError(f"scan backend {name!r} does not work on {device}{reason}; usable here are {usable}")
    return name


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    a: torch.Tensor,
    paths: torch.Tensor,
    backend: str | None = None,
    bias: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``reference_scan`` in float32 by the best backend for the inputs' device, or by the one named.

    Parameters
    ----------
    u, delta, b, c, a, paths
        As :func:`reference_scan` takes them, of any floating type.
    backend : str, optional
        See :func:`choose_backend`.
    bias : float (K, C), optional
        If given, the step sizes are ``softplus(delta + bias)``.
    skip : float (K, C), optional
        If given, ``u * skip`` is added for every direction.

    Returns
    -------
    float32 (B, L, C)
    """
    name = choose_backend(u.device, backend)
    if name in _FUSED:
        return BACKENDS[name](u, delta, b, c, a, paths, bias, skip)
    u, delta, b, c, a = (t.float() for t in (u, delta, b, c, a))
    if bias is not None:
        delta = F.softplus(delta + bias[:, None])
    out = BACKENDS[name](u, delta, b, c, a, paths)
    return out if skip is None else out + u * skip.sum(0)
