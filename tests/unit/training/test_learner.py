"""One optimiser step: accumulation, averaging, and what a checkpoint gives back."""

import pytest
import torch
from torch import nn

from medsegmamba_bids.training.learner import Learner


def network(dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv3d(4, 2, 1))


def learner(**settings):
    options = {"weight_decay": 1e-2, "clip": 1.0, "precision": "float32", "ema": 0.0, **settings}
    return Learner(network(options.pop("dropout", 0.0)).train(), torch.device("cpu"), **options)


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn((1, 1, 6, 6, 6), generator=generator), torch.randint(0, 2, (1, 6, 6, 6), generator=generator))
        for _ in range(count)
    ]


def loss(logits, target):
    return nn.functional.cross_entropy(logits, target)


def test_accumulation_equals_one_big_batch():
    parts = batches(4)
    whole = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    one, other = learner(), learner()
    for step in range(3):
        first = one.step(parts, loss, 1e-2, 0, step)
        second = other.step([whole], loss, 1e-2, 0, step)
        assert first == pytest.approx(second, rel=1e-5)
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped():
    free, clipped = learner(clip=1e9), learner(clip=1e-3)
    for one in (free, clipped):
        one.step(batches(1), lambda *pair: 100 * loss(*pair), 1e-3, 0, 0)
    norms = [sum(float(p.grad.square().sum()) for p in one.network.parameters()) ** 0.5 for one in (free, clipped)]
    assert norms[0] > 1
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_average_follows_the_network():
    one = learner(ema=0.75)
    one.step(batches(1), loss, 1e-2, 0, 0)  # the first step is copied
    start = one.network[0].weight.detach().clone()
    one.step(batches(1, 1), loss, 1e-2, 0, 1)
    expected = 0.75 * start + 0.25 * one.network[0].weight
    torch.testing.assert_close(one.result[0].weight, expected.detach())
    assert learner().result is not None


def test_dropout_depends_on_seed_and_step_alone():
    losses = []
    for noise in (1, 2):
        one = learner(dropout=0.5)
        torch.manual_seed(noise)
        torch.rand(noise)
        losses.append([one.step(batches(1), loss, 1e-3, 5, step) for step in (7, 8)])
    assert losses[0] == losses[1]
    other = learner(dropout=0.5)
    assert other.step(batches(1), loss, 1e-3, 6, 7) != losses[0][0]


def test_restoring_goes_on_to_the_same_result():
    through, first = learner(ema=0.9, dropout=0.3), learner(ema=0.9, dropout=0.3)
    for step in range(6):
        through.step(batches(1, step), loss, 1e-2, 0, step)
    for step in range(3):
        first.step(batches(1, step), loss, 1e-2, 0, step)
    second = learner(ema=0.9, dropout=0.3)
    second.restore(first.state(), 3)
    for step in range(3, 6):
        second.step(batches(1, step), loss, 1e-2, 0, step)
    for one, other in ((through.network, second.network), (through.result, second.result)):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
