"""Masks of head and brain."""

import numpy as np

from medsegmamba_bids.inference.foreground import (
    head_mask,
    looks_whole,
    otsu_threshold,
)


def ball(shape, centre, radius):
    return np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1) <= radius


def test_the_threshold_is_the_one_of_least_variance_within():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(40, 9, 3000), rng.normal(120, 15, 1000)])
    found = otsu_threshold(values)
    candidates = np.linspace(values.min(), values.max(), 257)[1:-1]

    def within(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return low.var() * low.size + high.var() * high.size

    assert within(found) <= min(map(within, candidates)) * 1.001


def test_one_value_alone_gives_a_threshold_and_no_warning():
    assert np.isfinite(otsu_threshold(np.full(50, 7.0)))


def test_the_head_is_found_in_noise():
    shape, rng = (40, 42, 38), np.random.default_rng(0)
    head = ball(shape, (20, 21, 19), 14)
    data = np.where(head, 150, 0) + rng.integers(0, 12, shape)
    data[1:4, 1:4, 1:4] = 150  # something bright beside it
    np.testing.assert_array_equal(head_mask(data), head)


def test_the_head_of_nothing_is_nothing():
    assert not head_mask(np.zeros((5, 5, 5), np.uint8)).any()


def test_whole_heads_are_larger_than_brains():
    data = np.zeros((30, 30, 30), np.uint8)
    data[:20, :20, :20] = 1
    assert not looks_whole(data)
    assert not looks_whole(data, 287.0)
    assert looks_whole(data, 288.0)
