"""mamba_ssm's interface is called as its version 2.3 documents it: by a stub with that signature."""

import sys
from types import ModuleType

import pytest
import torch

from medsegmamba_bids.networks.kernels.selective_scan import cuda_scan, reference_scan


def selective_scan_fn(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    return_last_state=False,
    cu_seqlens=None,
):
    """Of (batch, channels, L), the same, (channels, N), (batch, groups, N, L), the same; as the kernel checks them."""
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    assert delta.shape == u.shape
    assert A.shape == (channels, states)
    assert B.shape == C.shape == (batch, groups, states, length)
    assert {t.dtype for t in (u, delta, A, B, C)} == {torch.float32}
    assert B.stride(-1) == C.stride(-1) == 1
    assert channels % groups == 0
    assert (D, z, delta_bias, delta_softplus, return_last_state, cu_seqlens) == (None,) * 3 + (False,) * 2 + (None,)
    out = torch.empty_like(u)
    for channel in range(channels):
        group, state = channel // (channels // groups), torch.zeros(batch, states)
        for i in range(length):
            step = delta[:, channel, i, None]
            state = torch.exp(step * A[channel]) * state + step * B[:, group, :, i] * u[:, channel, i, None]
            out[:, channel, i] = (state * C[:, group, :, i]).sum(1)
    return out


@pytest.fixture
def stub(monkeypatch):
    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_called_as_it_documents(stub, dtype):
    torch.manual_seed(0)
    samples, directions, length, channels, states = 2, 3, 7, 4, 5
    u = torch.randn(samples, length, channels).to(dtype)
    delta = torch.rand(samples, directions, length, channels).to(dtype)
    b, c = (torch.randn(samples, length, directions, states).to(dtype) for _ in range(2))
    a = -torch.rand(directions, states, channels)
    paths = torch.stack([torch.randperm(length) for _ in range(directions)]).int()
    expected = reference_scan(u.float(), delta.float(), b.float(), c.float(), a, paths)
    assert torch.allclose(cuda_scan(u, delta, b, c, a, paths), expected, atol=1e-5)
