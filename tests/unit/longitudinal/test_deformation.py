"""Deformations from the template to a visit, and what they do to volumes."""

import numpy as np
import pytest
from scipy import ndimage

from medsegmamba_bids.longitudinal.deformation import displacement, expansion, relative_volumes

SHAPE, MIDDLE = (40, 44, 40), (20, 22, 20)
BRAIN = np.linalg.norm((np.indices(SHAPE).T - MIDDLE).T / np.array([17, 19, 17])[:, None, None, None], axis=0) < 1


def ball(radius, seed=None):
    """A dark ball of a radius in a bright brain, its border a voxel wide; with noise where a seed is given."""
    away = np.linalg.norm((np.indices(SHAPE).T - MIDDLE).T, axis=0)
    data = np.where(BRAIN, 110 - 80 / (1 + np.exp(4 * (away - radius))), 0)
    noise = 0 if seed is None else np.random.default_rng(seed).normal(0, 2, SHAPE)
    return ndimage.gaussian_filter(data, 0.5).astype(np.float32) + np.float32(noise), away < 8


def larger_in(visit, template, ball_mask):
    field, box = displacement(template, visit, BRAIN)
    return relative_volumes(ball_mask[box].astype(int), expansion(field))[1]


def test_equal_images_are_equally_large_exactly():
    template, mask = ball(8, 0)
    assert larger_in(template, template, mask) == 1


@pytest.mark.parametrize("radius", [7.8, 8.2])
def test_a_ball_that_grew_is_found_as_much_larger(radius):
    found = larger_in(ball(radius)[0], *ball(8))
    true = (radius / 8) ** 3
    assert found - 1 == pytest.approx(true - 1, rel=0.2)


def test_a_bias_field_moves_nothing():
    template, mask = ball(8, 0)
    slope = np.linspace(0.975, 1.025, SHAPE[0], dtype=np.float32)[:, None, None]
    assert larger_in(ball(8, 1)[0] * slope, template, mask) == pytest.approx(1, abs=0.01)


def test_expansion_is_the_determinant_of_any_linear_map():
    matrix = np.array([[0.1, 0.05, -0.02], [0.03, -0.08, 0.04], [0.01, 0.02, 0.06]])
    places = np.moveaxis(np.indices((5, 6, 7)), 0, -1)
    found = expansion((places @ matrix.T).astype(np.float32))
    np.testing.assert_allclose(found, np.linalg.det(np.eye(3) + matrix), rtol=1e-5)


def test_structures_are_as_large_as_their_places_on_average():
    labels = np.array([[[0, 17, 17, 53]]])
    assert relative_volumes(labels, np.array([[[9.0, 1.0, 1.2, 0.5]]])) == pytest.approx({17: 1.1, 53: 0.5})
