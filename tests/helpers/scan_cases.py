"""Inputs of a fused selective scan, and what the reference makes of them; for tests on any device."""

import torch

from medsegmamba_bids.networks.kernels.selective_scan import selective_scan
from medsegmamba_bids.networks.scan_paths import scan_paths


def fused_inputs(batch, side, channels, states, orientation=3, dtype=torch.float32, rank=3, seed=0):
    """Leaves that a network would hold, and the arguments that it would make of them: views, strides and all.

    What is projected (rank, B and C in one array) and u may be of a lower precision.
    """
    torch.manual_seed(seed)
    length = side**3
    u = torch.randn(batch, channels, length).to(dtype).requires_grad_()  # channels first
    mixed = torch.randn(batch, length, 8, rank + 2 * states).to(dtype).requires_grad_()
    steps = torch.randn(8, batch, length, channels, requires_grad=True)
    log_rates = torch.rand(8, channels, states).mul(2).requires_grad_()
    bias = torch.randn(8, channels).sub(1).requires_grad_()
    skip = torch.randn(8, channels, requires_grad=True)
    leaves = (u, mixed, steps, log_rates, bias, skip)
    return leaves, torch.tensor(scan_paths(side, orientation))


def arguments(leaves, rank=3):
    """``selective_scan``'s arguments but the paths, none of which is contiguous where that can be."""
    u, mixed, steps, log_rates, bias, skip = leaves
    states = log_rates.shape[2]
    _, b, c = mixed.split((rank, states, states), -1)
    return u.transpose(1, 2), steps.transpose(0, 1), b, c, -torch.exp(log_rates).transpose(1, 2), bias, skip


def run(scan, leaves, paths):
    """Output, and gradients of a weighted sum of it, on the CPU."""
    u, delta, b, c, a, bias, skip = arguments(leaves)
    out = scan(u, delta, b, c, a, paths, bias=bias, skip=skip)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    gradients = torch.autograd.grad(out, leaves, weight)
    return [t.detach().float().cpu() for t in (out, *gradients)]


def reference(*args, **options):
    """The scan's fused form by the reference."""
    return selective_scan(*args, backend="reference", **options)


def errors(found, expected):
    """Largest difference as a part of the largest value, for the output and the gradient of each leaf."""
    names = ("out", "u", "mixed", "steps", "log_rates", "bias", "skip")
    return {name: float((f - e).abs().max() / e.abs().max()) for name, f, e in zip(names, found, expected, strict=True)}
