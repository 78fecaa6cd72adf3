"""The softmax over channels on a CPU, against one in float64."""

import numpy as np
import pytest
import torch

from medsegmamba_bids.networks.kernels.softmax import channel_softmax


def scores_of(shape, seed=0):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 20
    return scores.to(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("shape", [(1, 36, 5, 7, 9), (2, 3, 8, 8, 8), (1, 1, 2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities(shape, dtype):
    """A number of voxels that is no multiple of what is turned at once, batches, any floating type."""
    scores = scores_of(shape).to(dtype)
    with torch.inference_mode():
        found = channel_softmax(scores)
    values = scores.double().numpy()
    powers = np.exp(values - values.max(1, keepdims=True))
    np.testing.assert_allclose(found.numpy(), powers / powers.sum(1, keepdims=True), rtol=1e-5, atol=1e-12)
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)


def test_scores_in_the_other_layout_give_the_same():
    scores = scores_of((1, 4, 3, 3, 3))
    with torch.inference_mode():
        assert torch.equal(channel_softmax(scores), channel_softmax(scores.contiguous()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(bad):
    scores = scores_of((1, 4, 6, 6, 6))
    scores[0, 2, 1, 2, 3] = bad
    with torch.inference_mode():
        sums = channel_softmax(scores).sum(1)[0]
    assert torch.isnan(sums[1, 2, 3])
    assert torch.isfinite(sums).sum() == 6**3 - 1


def test_gradients_are_those_of_torch():
    scores = scores_of((1, 4, 3, 3, 3)).requires_grad_()
    weights = torch.arange(4.0).view(4, 1, 1, 1)
    (channel_softmax(scores) * weights).sum().backward()
    alone = scores.detach().clone().requires_grad_()
    (alone.softmax(1) * weights).sum().backward()
    torch.testing.assert_close(scores.grad, alone.grad)
