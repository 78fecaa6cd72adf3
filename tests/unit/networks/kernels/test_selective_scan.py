"""Every backend of the scan against the slow, obvious one."""

import numba
import numpy as np
import pytest
import torch

import scan_cases
from medsegmamba_bids.networks.kernels import scan_numba
from medsegmamba_bids.networks.kernels.selective_scan import available_backends, reference_scan, selective_scan
from medsegmamba_bids.networks.scan_paths import scan_paths

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_inputs(batch, side, channels, states, dtype=torch.float32, seed=0):
    """u, delta, B, C, A (all requiring gradients) and the paths of orientation 3."""
    rng = np.random.default_rng(seed)
    length, directions = side**3, 8
    arrays = (
        rng.standard_normal((batch, length, channels)),
        rng.uniform(0.001, 0.5, (batch, directions, length, channels)),
        rng.standard_normal((batch, length, directions, states)),
        rng.standard_normal((batch, length, directions, states)),
        -rng.uniform(0.1, 8, (directions, states, channels)),
    )
    tensors = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
    return tensors, torch.tensor(scan_paths(side, 3))


def loop_over_one_direction(u, delta, b, c, a, path):
    """The recurrence for one direction and sample in plain numpy, as a second opinion on the reference."""
    state, out = np.zeros(a.shape), np.zeros(u.shape)
    for voxel in path:
        state = np.exp(delta[voxel] * a) * state + np.outer(b[voxel], delta[voxel] * u[voxel])
        out[voxel] = c[voxel] @ state
    return out


def test_reference_is_the_recurrence():
    tensors, paths = random_inputs(1, 3, 4, 5, torch.float64)
    u, delta, b, c, a = (t.detach().numpy() for t in tensors)
    expected = sum(
        loop_over_one_direction(u[0], delta[0, k], b[0, :, k], c[0, :, k], a[k], paths[k].numpy()) for k in range(8)
    )
    np.testing.assert_allclose(reference_scan(*tensors, paths)[0].detach().numpy(), expected, rtol=1e-12)


def test_gradients_of_the_reference():
    tensors, paths = random_inputs(1, 2, 2, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: reference_scan(*t, paths), tensors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("batch", "side", "channels", "states"), [(2, 3, 64, 16), (1, 4, 24, 5), (1, 3, 130, 64)])
def test_backends_agree(device, batch, side, channels, states):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tensors, paths = random_inputs(batch, side, channels, states)
    expected = reference_scan(*tensors, paths)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, tensors, weight)
    for backend in set(available_backends(device)) - {"reference"}:
        moved = [t.detach().to(device).requires_grad_() for t in tensors]
        result = selective_scan(*moved, paths.to(device), backend=backend)
        assert_close_to_largest(result, expected, 2e-6, backend)
        found = torch.autograd.grad(result, moved, weight.to(device))
        for name, ours, theirs in zip(["u", "delta", "B", "C", "A"], found, gradients, strict=True):
            assert_close_to_largest(ours, theirs, 5e-6, f"{backend}, gradient of {name}")


def assert_close_to_largest(ours, theirs, tolerance, what):
    error = float((ours.detach().cpu() - theirs.detach()).abs().max() / theirs.abs().max())
    assert error < tolerance, f"{what}: {error:.1e} of the largest value"


def test_extreme_steps_stay_finite_and_right():
    """Decays from almost 1 to far below the smallest float."""
    tensors, paths = random_inputs(1, 2, 64, 3)
    with torch.no_grad():
        tensors[1][:, :, ::2] = 60.0
        tensors[1][:, :, 1::2] = 1e-6
    result = selective_scan(*tensors, paths, backend="numba")
    assert torch.isfinite(result).all()
    assert_close_to_largest(result, reference_scan(*tensors, paths), 2e-6, "numba")


def each(function, numbers):
    """A compiled function of each number, in a loop that the compiler turns into vectors."""

    @numba.njit
    def fill(t, out):
        for i in range(len(t)):
            out[i] = function(t[i])

    out = np.empty_like(numbers)
    fill(numbers, out)
    return out


def test_powers_of_two():
    """Each is right to 2e-7 of itself, whole ones are exact, and what is too small becomes negligible."""
    exponents = np.linspace(-126, 0, 1_000_003).astype(np.float32)
    expected = np.exp2(exponents.astype(float))
    assert np.abs(each(scan_numba.exp2_of_negative, exponents) / expected - 1).max() < 2e-7
    whole = np.arange(-126, 1).astype(np.float32)
    assert np.array_equal(each(scan_numba.exp2_of_negative, whole), np.exp2(whole))
    edges = each(scan_numba.exp2_of_negative, np.float32([-0.0, -1e-30, -126.4, -126.6, -150, -3e38, -np.inf, np.nan]))
    np.testing.assert_array_equal(edges, np.float32([1, 1, *[2**-126] * 5, np.nan]))


def test_rough_powers_of_two():
    """They are right to 1.3e-4 of themselves, and near 0, where errors of many steps add up, as exact as others."""
    exponents = np.linspace(-126, 0, 1_000_003).astype(np.float32)
    found = each(scan_numba._rough_exp2_of_negative, exponents)
    assert np.abs(found / np.exp2(exponents.astype(float)) - 1).max() < 1.3e-4
    slow = -np.logspace(-6, -2, 1000).astype(np.float32)
    loss = 1 - each(scan_numba._rough_exp2_of_negative, slow).astype(float)
    assert (np.abs(loss + np.expm1(slow.astype(float) * np.log(2))) < 1e-7 + 2e-4 * loss).all()


def test_softplus():
    numbers = np.linspace(-80, 100, 1_000_003).astype(np.float32)
    error = each(scan_numba._softplus, numbers) / np.logaddexp(0, numbers.astype(float)) - 1
    assert (np.abs(error) < 5e-7 + 6e-8 * np.abs(numbers)).all(), "the exponent itself is rounded"


def soft_inputs():
    """Inputs whose step sizes are softplus(delta + bias), with the input of a skip; without gradients."""
    leaves, paths = scan_cases.fused_inputs(2, 3, 130, 16)
    *arguments, bias, skip = (t.detach() for t in scan_cases.arguments(leaves))
    return (*arguments, paths), bias, skip


def softened(arguments, bias, skip):
    """The same by the reference, in double precision."""
    u, delta, b, c, a = (t.double() for t in arguments[:5])
    steps = torch.nn.functional.softplus(delta + bias.double()[:, None])
    return reference_scan(u, steps, b, c, a, arguments[5]) + u * skip.double().sum(0)


@pytest.mark.parametrize("gradients", [True, False])
def test_step_sizes_and_skips_are_made_on_the_way(gradients):
    arguments, bias, skip = soft_inputs()
    with torch.set_grad_enabled(gradients):
        found = selective_scan(*arguments, backend="numba", bias=bias, skip=skip)
    assert found.dtype == torch.float32
    assert_close_to_largest(found, softened(arguments, bias, skip), 2e-6, "numba")


def test_step_sizes_in_bfloat16():
    """Decays are rougher then, by far less than the step sizes have been rounded."""
    (u, delta, *others), bias, skip = soft_inputs()
    rounded = delta.bfloat16()
    with torch.no_grad():
        found = selective_scan(u, rounded, *others, backend="numba", bias=bias, skip=skip)
    expected = softened((u, rounded.float(), *others), bias, skip)
    assert_close_to_largest(found, expected, 2e-4, "numba")
    assert (found - expected).abs().max() < 0.2 * (softened((u, delta, *others), bias, skip) - expected).abs().max()


def test_numba_does_not_depend_on_threads():
    tensors, paths = random_inputs(1, 4, 128, 16)
    every = selective_scan(*tensors, paths, backend="numba")
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = selective_scan(*tensors, paths, backend="numba")
    finally:
        numba.set_num_threads(before)
    assert torch.equal(every, one)


def test_backend_by_environment(monkeypatch):
    tensors, paths = random_inputs(1, 2, 8, 2)
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", "reference")
    assert torch.equal(selective_scan(*tensors, paths), reference_scan(*tensors, paths))
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", "cuda")
    with pytest.raises(ValueError, match=r"'cuda' does not work on cpu; usable here are \['numba', 'reference'\]"):
        selective_scan(*tensors, paths)
