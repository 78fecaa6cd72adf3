"""Building blocks: both ways of each give the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from medsegmamba_bids.networks.blocks import Conv3d, ResidualBlock, UpSampling, linear, upsampled_convolution
from medsegmamba_bids.networks.kernels.group_norm import group_norm_relu


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(2, 16, 5, 6, 7), (1, 8, 3, 3, 3), (1, 64, 9, 4, 4)])
def test_group_norm_and_its_gradients_are_those_of_torch(shape):
    x = (3 * torch.randn(shape) + 5).requires_grad_()
    weight, bias = torch.randn(shape[1]).requires_grad_(), torch.randn(shape[1]).requires_grad_()
    ours = group_norm_relu(x, 8, weight, bias)
    theirs = F.relu(F.group_norm(x, 8, weight, bias))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    given = torch.randn(shape)
    for one, other in zip(
        torch.autograd.grad(ours, (x, weight, bias), given),
        torch.autograd.grad(theirs, (x, weight, bias), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_group_norm_without_gradients_is_the_same():
    x, weight, bias = torch.randn(1, 16, 6, 6, 6), torch.randn(16), torch.randn(16)
    expected = F.relu(F.group_norm(x, 8, weight, bias))
    with torch.inference_mode():
        torch.testing.assert_close(group_norm_relu(x.clone(), 8, weight, bias), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 5, 6, 7), (1, 8, 3, 3, 3), (1, 64, 9, 4, 4)])
def test_group_norm_of_bfloat16_is_that_of_float32_rounded(shape):
    x = (3 * torch.randn(shape) - 1).bfloat16()
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    expected = F.relu(F.group_norm(x.double(), 8, weight.double(), bias.double())).bfloat16()
    with torch.inference_mode():
        found = group_norm_relu(x.clone(), 8, weight, bias)
    assert found.dtype == torch.bfloat16
    same = (found == expected).float().mean()
    assert same > 0.999, "but for what lies half-way"
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-6)


def test_upsampled_convolution_is_the_plain_one():
    x, weight, bias = torch.randn(2, 8, 4, 5, 6), torch.randn(3, 8, 3, 3, 3), torch.randn(3)
    expected = F.conv3d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(upsampled_convolution(x, weight, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.bfloat16
def test_upsampling_in_bfloat16_is_folded_and_as_exact_as_it_was():
    module, x = UpSampling(64, 16), torch.randn(1, 64, 6, 5, 7)
    exact = module(x).detach()
    rounded = x.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = module(rounded)
        plain = module.norm(module.conv(F.interpolate(rounded, scale_factor=2, mode="nearest")))
    assert found.dtype == plain.dtype == torch.bfloat16
    assert not torch.equal(found, plain), "it was not folded"
    errors = [(one.float() - exact).square().mean().sqrt() for one in (found, plain)]
    assert errors[0] < 1.1 * errors[1] < 0.02


@pytest.mark.parametrize("half", [False, pytest.param(True, marks=pytest.mark.bfloat16)])
def test_layers_of_one_channel_answer_with_channels_innermost(half):
    """Its strides do not say which layout it has; norms would have to turn the answer around."""
    layer, x = Conv3d(1, 8, 3, padding=1), torch.randn(2, 1, 5, 6, 7)
    expected = layer(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = layer(x)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02 if half else 1e-5)


@pytest.mark.parametrize("make", [lambda: UpSampling(16, 8), lambda: ResidualBlock(16, 8), lambda: Conv3d(16, 8, 3)])
def test_training_and_inference_agree(make):
    module, x = make(), torch.randn(1, 16, 6, 6, 6)
    expected = module(x)
    with torch.no_grad():
        torch.testing.assert_close(module(x.clone()), expected, rtol=1e-4, atol=1e-4)


def test_inference_leaves_its_input_alone():
    block, x = ResidualBlock(16, 16), torch.randn(1, 16, 6, 6, 6)
    before = x.clone()
    with torch.inference_mode():
        block(x)
    assert torch.equal(x, before)


def test_linear_is_a_matrix_product():
    x, weight, bias = torch.randn(2, 7, 24), torch.randn(5, 24), torch.randn(5)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + bias, rtol=1e-5, atol=1e-5)
