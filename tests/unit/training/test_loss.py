"""The loss: by hand, the fused kernel against the reference, and classes that a map does not tell apart."""

import math

import pytest
import torch

from medsegmamba_bids.training.loss import SMOOTH, merged_probabilities, reference_loss, segmentation_loss

CLASSES = 5


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, CLASSES, 6, 7, 5), generator=generator) * 2
    target = torch.randint(0, CLASSES - 1, (1, 6, 7, 5), generator=generator).byte()  # the last class is absent
    accepts = torch.eye(CLASSES, dtype=torch.bool)
    accepts[1, 4] = accepts[2, 4] = True
    return logits, target, accepts, torch.tensor([0.5, 1.0, 4.0, 2.0, 6.0])


@pytest.mark.parametrize(("dice", "cross_entropy"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("merged", [False, True])
def test_fused_kernel_is_the_reference(example, dice, cross_entropy, merged):
    logits, target, accepts, weights = example
    accepts = accepts if merged else torch.eye(CLASSES, dtype=torch.bool)
    values, gradients = [], []
    for loss in (reference_loss, segmentation_loss):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, target, accepts, weights, dice, cross_entropy)
        (3 * value).backward()
        values.append(float(value.detach()))
        gradients.append(leaf.grad)
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert float(gradients[0].abs().max()) > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=2e-6)


def test_gradient_against_finite_differences(example):
    logits, target, accepts, weights = example
    leaf = logits.double()[:, :, :2, :2, :2].clone().requires_grad_()
    small, weights = target[:, :2, :2, :2].long(), weights.double()

    def loss(x):
        # reference_loss computes in float32; in double the same arithmetic, for the comparison
        flat = x.movedim(1, -1).reshape(-1, CLASSES).softmax(1)
        merged = merged_probabilities(flat, small.reshape(-1), accepts)
        own = merged.gather(1, small.reshape(-1, 1))[:, 0]
        weight = weights[small.reshape(-1)]
        size = torch.bincount(small.reshape(-1), minlength=CLASSES)
        overlap = torch.zeros_like(weights).index_add(0, small.reshape(-1), own)
        score = (2 * overlap + SMOOTH) / (merged.sum(0) + size + SMOOTH)
        return -(weight * own.log()).sum() / weight.sum() + 1 - score[size > 0].mean()

    assert torch.autograd.gradcheck(loss, (leaf,))
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    single = leaf.detach().float().requires_grad_()
    segmentation_loss(single, small.byte(), accepts, weights.float()).backward()
    torch.testing.assert_close(single.grad.double(), expected, rtol=1e-3, atol=1e-6)


def test_by_hand():
    """Two voxels, two classes, probabilities 3/4 and 1/4 each: all terms can be written down."""
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]]).T.reshape(1, 2, 2, 1, 1)
    target = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 2, 1, 1)
    weights = torch.tensor([1.0, 3.0])
    entropy = -(math.log(0.75) + 3 * math.log(0.25)) / 4
    scores = [(2 * 0.75 + 1) / (1.5 + 1 + 1), (2 * 0.25 + 1) / (0.5 + 1 + 1)]
    value = segmentation_loss(logits, target, torch.eye(2, dtype=torch.bool), weights, 1.0, 1.0)
    assert float(value) == pytest.approx(entropy + 1 - sum(scores) / 2, rel=1e-6)


def test_an_accepted_class_is_not_wrong():
    """A network that finds class 2 within class 1, where the map has only class 1, has nothing to learn there."""
    target = torch.ones((1, 2, 2, 2), dtype=torch.uint8)
    logits = torch.full((1, 3, 2, 2, 2), -30.0)
    logits[:, 1, 0], logits[:, 2, 1] = 30.0, 30.0
    strict = torch.eye(3, dtype=torch.bool)
    merged = strict.clone()
    merged[1, 2] = True
    weights = torch.ones(3)
    assert float(segmentation_loss(logits, target, merged, weights)) == pytest.approx(0, abs=1e-6)
    assert float(segmentation_loss(logits, target, strict, weights)) > 1
    # The other way round it is wrong: where the map says 2, class 1 is not accepted.
    assert float(segmentation_loss(logits, torch.full_like(target, 2), merged, weights)) > 1


def test_merged_probabilities_add_up():
    rows = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    accepts = torch.eye(3, dtype=torch.bool)
    accepts[1, 2] = True
    merged = merged_probabilities(rows, torch.tensor([1, 0]), accepts)
    torch.testing.assert_close(merged, torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.25, 0.25]]))


def test_half_precision_scores_keep_their_type(example):
    logits, target, accepts, weights = example
    leaf = logits.bfloat16().requires_grad_()
    segmentation_loss(leaf, target, accepts, weights).backward()
    assert leaf.grad.dtype == torch.bfloat16
