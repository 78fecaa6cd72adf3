"""Borders between tissues by intensity: against the formulas in plain numpy, and what must not change."""

import numba
import numpy as np
import pytest
from scipy import ndimage

from medsegmamba_bids.inference.tissue_borders import follow_intensities

SHAPE = (21, 18, 26)  # no multiples of a cell


@pytest.fixture
def unsure():
    """Posteriors of three tissues, which leave a tenth or more to other classes, and a noisy image of them."""
    rng = np.random.default_rng(0)
    scores = ndimage.gaussian_filter(rng.normal(size=(3, *SHAPE)), (0, 3, 3, 3)) * 60
    posteriors = np.exp(scores)
    posteriors *= rng.uniform(0.3, 0.9, SHAPE) / posteriors.sum(0)
    image = np.array([20.0, 60, 90])[posteriors.argmax(0)] + rng.normal(0, 6, SHAPE)
    return posteriors.astype(np.float32), image.astype(np.float32)


def followed(posteriors, image, weight=0.4):
    out = posteriors.copy()
    follow_intensities(out, image, weight)
    return out


def by_the_formulas(posteriors, image, weight):
    """The obvious way, a tissue after the other on the whole grid."""
    cells = tuple(-(-side // 4) for side in SHAPE)
    of_cell = np.ravel_multi_index(np.indices(SHAPE) // 4, cells).ravel()
    middles = (np.indices(SHAPE) + 0.5) / 4 - 0.5

    def window(values):
        sums = np.bincount(of_cell, values.ravel(), np.prod(cells)).reshape(cells)
        return ndimage.gaussian_filter(sums, 2.0, mode="constant") * (2 * np.pi) ** 1.5 * 8

    def on_grid(values):
        return ndimage.map_coordinates(values, middles, order=1, mode="nearest")

    shares = posteriors.astype(float) ** 2
    usual = [[share.sum(), (share * image).sum(), (share * image**2).sum()] for share in shares]
    usual = [np.array(sums) / sums[0] for sums in usual]
    least = 0.04 * max(mean for _, mean, _ in usual)
    scores = []
    for posterior, share, (_, mean, square) in zip(posteriors, shares, usual, strict=True):
        count = window(share) + 30
        means = (window(share * image) + 30 * mean) / count
        variances = np.maximum((window(share * image**2) + 30 * square) / count - means**2, least**2)
        likelihood = np.exp(-((image - on_grid(means)) ** 2) / on_grid(variances) / 2) / np.sqrt(on_grid(variances))
        scores.append(np.maximum(posterior, 1e-6) * likelihood**weight)
    total = posteriors.sum(0)
    changed = np.array(scores) / sum(scores) * total
    return np.where((total >= 0.05) & (posteriors.max(0) <= 0.995 * total), changed, posteriors)


def test_as_the_formulas_say(unsure):
    posteriors, image = unsure
    expected = by_the_formulas(posteriors, image, 0.4)
    assert np.abs(expected - posteriors).max() > 0.2
    np.testing.assert_allclose(followed(posteriors, image), expected, atol=2e-5)


def test_what_all_tissues_have_together_stays(unsure):
    posteriors, image = unsure
    np.testing.assert_allclose(followed(posteriors, image).sum(0), posteriors.sum(0), rtol=1e-5)


def test_a_voxel_that_is_sure_stays(unsure):
    posteriors, image = unsure
    posteriors[:, :8] = [[[[0.0]]], [[[0.996]]], [[[0.004]]]]
    posteriors[:, 8:12] *= 0.05  # other classes have more than 95 %
    image[:12] = 20
    np.testing.assert_array_equal(followed(posteriors, image)[:, :12], posteriors[:, :12])


@pytest.mark.parametrize("change", [lambda image: 3 * image, lambda image: 110 - image])
def test_neither_unit_nor_contrast_is_presumed(unsure, change):
    posteriors, image = unsure
    # the least variance depends on the brightest tissue, but the noise here is above it
    np.testing.assert_allclose(followed(posteriors, change(image)), followed(posteriors, image), atol=1e-3)


def test_a_border_is_found_under_a_bias_field_and_noise():
    """The network sees it two voxels off and blurred; brightness falls to 0.6 along another axis."""
    rng = np.random.default_rng(1)
    x = np.arange(40)
    truth = np.broadcast_to((x >= 20)[:, None, None], (40, 40, 40))
    bias = np.linspace(1, 0.6, 40)[None, None, :]
    image = np.where(truth, 100, 70) * bias + rng.normal(0, 4, truth.shape)
    bright = (1 / (1 + np.exp(-(x - 17.5) / 1.5)))[:, None, None] * np.ones(truth.shape)
    posteriors = np.stack([1 - bright, bright]).astype(np.float32)
    wrong_before = ((bright > 0.5) != truth).mean()
    wrong_after = ((followed(posteriors, image)[1] > 0.5) != truth).mean()
    assert wrong_before == pytest.approx(2 / 40)
    assert wrong_after < 0.4 * wrong_before


def test_a_tissue_of_a_few_voxels_decides_nothing(unsure):
    """Nothing is known of its intensity, and it keeps what it has."""
    posteriors, image = unsure
    rare = np.zeros((1, *SHAPE), np.float32)
    rare[0, 5, 5, :10] = posteriors[0, 5, 5, :10]
    posteriors[0, 5, 5, :10] = 0
    together = followed(np.concatenate([posteriors, rare]), image)
    np.testing.assert_array_equal(together[3], rare[0])
    np.testing.assert_array_equal(together[:3], followed(posteriors, image))


def test_one_tissue_alone_stays(unsure):
    posteriors, image = unsure
    np.testing.assert_array_equal(followed(posteriors[:1], image), posteriors[:1])


def test_an_image_without_any_contrast_changes_nothing(unsure):
    posteriors, image = unsure
    for flat in (np.zeros_like(image), np.full_like(image, 80)):
        np.testing.assert_allclose(followed(posteriors, flat), posteriors, atol=1e-4)


def test_threads_make_no_difference(unsure):
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        alone = followed(*unsure)
        numba.set_num_threads(min(2, before))
        np.testing.assert_array_equal(followed(*unsure), alone)
    finally:
        numba.set_num_threads(before)
