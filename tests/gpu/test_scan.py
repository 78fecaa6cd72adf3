"""Every kernel for GPUs against the reference, at sizes that matter."""

import pytest
import torch

import scan_cases
from medsegmamba_bids.networks.kernels.selective_scan import available_backends, reference_scan, selective_scan


@pytest.fixture(params=["triton", "cuda"])
def backend(request, cuda):
    if request.param not in available_backends(cuda):
        pytest.skip(f"scan backend {request.param} does not run here")
    return request.param


def on(device, leaves):
    return [leaf.detach().to(device).requires_grad_() for leaf in leaves]


CASES = [
    {"batch": 2, "side": 3, "channels": 37, "states": 5},
    {"batch": 1, "side": 4, "channels": 64, "states": 64},
    {"batch": 2, "side": 4, "channels": 40, "states": 16, "orientation": 5},
    {"batch": 1, "side": 3, "channels": 24, "states": 128, "orientation": 1},
    {"batch": 1, "side": 3, "channels": 20, "states": 256},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients(backend, cuda, case):
    leaves, paths = scan_cases.fused_inputs(**case)
    expected = scan_cases.run(scan_cases.reference, leaves, paths)
    found = scan_cases.run(
        lambda *args, **options: selective_scan(*args, backend=backend, **options), on(cuda, leaves), paths.to(cuda)
    )
    errors = scan_cases.errors(found, expected)
    assert all(error < 2e-5 for error in errors.values()), errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scanned_in_float32(backend, cuda, dtype):
    leaves, paths = scan_cases.fused_inputs(2, 4, 48, 64, dtype=dtype)
    expected = scan_cases.run(scan_cases.reference, leaves, paths)[0]
    with torch.no_grad():
        *args, bias, skip = scan_cases.arguments(on(cuda, leaves))
        found = selective_scan(*args, paths.to(cuda), backend=backend, bias=bias, skip=skip)
    assert found.dtype == torch.float32
    assert float((found.cpu() - expected).abs().max() / expected.abs().max()) < 2e-5


def test_published_size_against_float64(backend, cuda):
    leaves, paths = scan_cases.fused_inputs(1, 12, 64, 64)
    with torch.no_grad():
        u, delta, b, c, a, bias, skip = (t.to(cuda) for t in scan_cases.arguments(leaves))
        found = selective_scan(u, delta, b, c, a, paths.to(cuda), backend=backend, bias=bias, skip=skip)
        exact = [t.double() for t in (u, torch.nn.functional.softplus(delta + bias[:, None]), b, c, a)]
        expected = reference_scan(*exact, paths.to(cuda)) + u.double() * skip.sum(0)
    assert float((found - expected).abs().max() / expected.abs().max()) < 5e-6


def test_triton_gives_the_same_bits_in_every_batch_and_run(cuda):
    if "triton" not in available_backends(cuda):
        pytest.skip("scan backend triton does not run here")
    leaves, paths = scan_cases.fused_inputs(5, 6, 80, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        u, delta, b, c, a, bias, skip = (t.to(cuda) for t in scan_cases.arguments(leaves))

        def scan(part):
            one = (t[part] for t in (u, delta, b, c))
            return selective_scan(*one, a, paths.to(cuda), backend="triton", bias=bias, skip=skip)

        whole = scan(slice(None))
        assert torch.equal(scan(slice(None)), whole)
        assert all(torch.equal(scan(slice(i, i + 1))[0], whole[i]) for i in range(5))
