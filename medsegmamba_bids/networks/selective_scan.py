"""The selective scan of SS3D, with interchangeable backends.

Shape letters: B batch; K directions (8); L voxels = steps of a path; C channels; N states.
Every array is in voxel order; ``paths`` says in which order a direction visits the voxels.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

#: Environment variable that chooses the backend by name.
BACKEND_VARIABLE = "MEDSEGMAMBA_SCAN"


def reference_scan(
    u: torch.Tensor, delta: torch.Tensor, b: torch.Tensor, c: torch.Tensor, a: torch.Tensor, paths: torch.Tensor
) -> torch.Tensor:
    """The scan written down step by step: slow, differentiable, for any device and precision.

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
    """The scan by mamba_ssm's CUDA kernel, which needs copies in the order of the paths."""
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


def _numba(*arguments: torch.Tensor) -> torch.Tensor:
    from medsegmamba_bids.networks.scan_numba import numba_scan

    return numba_scan(*arguments)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "reference": reference_scan,
    "numba": _numba,
    "cuda": cuda_scan,
}


def available_backends(device: torch.device | str) -> list[str]:
    """Names of the backends that work on a device, the preferred one first."""
    kind = torch.device(device).type
    if kind == "cpu":
        return ["numba", "reference"]
    if kind == "cuda" and _has_cuda_extension():
        return ["cuda", "reference"]
    return ["reference"]


def _has_cuda_extension() -> bool:
    """Whether mamba_ssm's compiled kernel loads; ``import mamba_ssm`` works without it."""
    try:
        import selective_scan_cuda  # noqa: F401
    except ImportError:
        return False
    return True


def choose_backend(device: torch.device | str, name: str | None = None) -> str:
    """Return the backend for a device: the one named, or that of MEDSEGMAMBA_SCAN, or the best.

    Raises
    ------
    ValueError
        It does not work on the device.
    """
    usable = available_backends(device)
    name = name or os.environ.get(BACKEND_VARIABLE) or usable[0]
    if name not in usable:
        raise ValueError(f"scan backend {name!r} does not work on {device}; usable here are {usable}")
    return name


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    a: torch.Tensor,
    paths: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """``reference_scan`` by the best backend for the inputs' device, or by the one named.

    See :func:`choose_backend`.
    """
    return BACKENDS[choose_backend(u.device, backend)](u, delta, b, c, a, paths)
