"""Winograd's convolution against torch's, in double precision."""

import numba
import pytest
import torch
import torch.nn.functional as F

from medsegmamba_bids.networks.blocks import Conv3d
from medsegmamba_bids.networks.kernels import winograd


def case(channels_in=64, channels_out=64, size=(24, 24, 24), batch=1):
    torch.manual_seed(0)
    x = torch.relu(torch.randn(batch, channels_in, *size))
    weight = torch.randn(channels_out, channels_in, 3, 3, 3) / (27 * channels_in) ** 0.5
    return x, weight, torch.randn(channels_out)


def exact(x, weight, bias):
    return F.conv3d(x.double(), weight.double(), bias.double(), padding=1)


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "size", "batch"),
    [
        (32, 32, (8, 8, 8), 1),
        (64, 32, (1, 5, 9), 2),
        (32, 96, (3, 1, 2), 1),
        (64, 64, (6, 23, 26), 1),
        (96, 32, (2, 30, 4), 3),
    ],
)
def test_it_is_the_convolution(channels_in, channels_out, size, batch):
    given = case(channels_in, channels_out, size, batch)
    expected = exact(*given)
    found = winograd.winograd_convolution(*given)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert (found - expected).abs().max() < 4e-6 * expected.abs().max()


@pytest.mark.bfloat16
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "size", "batch"),
    [(32, 32, (8, 8, 8), 1), (64, 32, (1, 5, 9), 2), (32, 96, (3, 1, 2), 1), (64, 64, (6, 23, 26), 1)],
)
def test_bfloat16_is_the_convolution_but_for_rounding(channels_in, channels_out, size, batch):
    """Sums and products are rounded to 8 bits: 1.2 % of what the outputs vary by, where plain sums have .2 %."""
    x, weight, bias = case(channels_in, channels_out, size, batch)
    x = x.bfloat16()
    expected = exact(x, weight, bias)
    found = winograd.winograd_convolution(x, weight, bias)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert (found - expected).square().mean().sqrt() < 0.02 * expected.std()
    assert (found - expected).abs().max() < 0.1 * expected.std()
    assert abs((found - expected).mean()) < 0.002 * expected.std(), "rounding is to the nearest"


def test_every_weight_and_every_voxel_counts():
    """A lone voxel answers with the kernel itself, wherever it lies in its tile and at the borders."""
    weight = torch.randn(32, 32, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    for place in [(0, 0, 0), (1, 4, 3), (2, 5, 6), (2, 8, 8), (0, 7, 2)]:
        x = torch.zeros(1, 32, 3, 9, 9)
        x[(0, 5, *place)] = 1
        torch.testing.assert_close(
            winograd.winograd_convolution(x, weight, torch.zeros(32)),
            F.conv3d(x, weight, padding=1), rtol=0, atol=1e-5,
        )  # fmt: skip


def test_result_depends_on_neither_threads_nor_batch():
    x, weight, bias = case(size=(5, 26, 24), batch=2)
    together = winograd.winograd_convolution(x, weight, bias)
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        torch.set_num_threads(1)
        numba.set_num_threads(1)
        for n in range(2):
            assert torch.equal(winograd.winograd_convolution(x[n : n + 1], weight, bias)[0], together[n])
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


@pytest.mark.bfloat16
def test_layers_take_it_in_bfloat16():
    """They answer as autocast does, and as exactly as the sums allow."""
    torch.manual_seed(0)
    layer, (x, _, _) = Conv3d(128, 64, 3, padding=1), case(128)
    expected = exact(x.bfloat16(), layer.weight, layer.bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert 0.005 < error < 0.02, "plain sums would be nearer"


@pytest.mark.parametrize(
    ("changed", "used"),
    [
        ({}, 1),
        ({"padding": 0}, 0),
        ({"stride": 2}, 0),
        ({"groups": 2}, 0),
        ({"dilation": 2}, 0),
        ({"bias": False}, 0),
    ],
)
def test_a_layer_takes_it_where_it_is_the_same(changed, used, monkeypatch):
    taken, ours = [], winograd.winograd_convolution

    def counted(*arguments):
        taken.append(1)
        return ours(*arguments)

    monkeypatch.setattr("medsegmamba_bids.networks.blocks.winograd_convolution", counted)
    layer, x = Conv3d(128, 128, 3, **{"padding": 1} | changed), case(128)[0]
    expected = layer(x)
    assert not taken, "autograd cannot follow it"
    with torch.inference_mode():
        found = layer(x)
    assert len(taken) == used
    assert (found - expected).abs().max() < 4e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (case(size=(27, 28, 30)), True),
        (case(size=(27, 28, 26)), False),
        (case(32, 64, (40, 40, 40)), True),
        (case(32, 64, (39, 39, 39)), False),
        (case(256, 256, (16, 16, 16)), True),
        (case(256, 256, (15, 15, 15)), False),
        (case(64, 80, (40, 40, 40)), False),
        ((torch.zeros(1, 64, 40, 40, 40), torch.zeros(64, 64, 1, 1, 1)), False),
    ],
)
def test_where_it_pays(given, expected):
    assert winograd.pays(*given[:2]) is expected
