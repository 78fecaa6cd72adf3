import numpy as np
import pytest
from scipy import ndimage

from medsegmamba_bids.stats.partial_volume import corrected_counts


def slow_counts(classes, guide, n_classes):
    """The rule of ``mri_segstats --pv``, a voxel at a time, in double precision."""
    counts = np.zeros(n_classes)
    shape = classes.shape

    def around(place, reach):
        return tuple(slice(max(0, p - reach), min(n, p + reach + 1)) for p, n in zip(place, shape, strict=True))

    for place in np.ndindex(shape):
        own, intensity = classes[place], float(guide[place])
        faces = [
            classes[tuple(np.add(place, step))]
            for axis in range(3)
            for step in (np.eye(3, dtype=int)[axis], -np.eye(3, dtype=int)[axis])
            if 0 <= place[axis] + step[axis] < shape[axis]
        ]
        if all(face == own for face in faces):
            counts[own] += 1
            continue
        window = around(place, 7)
        labels, values = classes[window], guide[window].astype(np.float64)
        mean = {label: values[labels == label].mean() for label in np.unique(labels)}
        candidates = [  # of equally frequent ones the lowest wins
            label
            for label in np.unique(classes[around(place, 1)]).tolist()
            if label != own and (mean[label] - intensity) * (mean[own] - intensity) < 0
        ]
        if not candidates:
            counts[own] += 1
            continue
        other = max(candidates, key=lambda label: np.count_nonzero(labels == label))
        share = float(np.clip((intensity - mean[other]) / (mean[own] - mean[other]), 0, 1))
        counts[own] += share
        if other in faces:
            counts[other] += 1 - share
    return counts


def random_case(seed, shape):
    """Blobs of four classes, each with an intensity of its own, blurred so that borders are mixed."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    classes = np.digitize(smooth, np.quantile(smooth, [0.4, 0.6, 0.8]))
    clean = np.array([10.0, 45.0, 110.0, 75.0])[classes]
    return classes, (ndimage.gaussian_filter(clean, 0.7) + rng.normal(0, 4, shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("seed", "shape"), [(0, (11, 12, 13)), (1, (22, 9, 10)), (2, (8, 25, 7)), (3, (7, 8, 24)), (4, (1, 16, 18))]
)
def test_counts_are_those_of_the_rule(seed, shape):
    classes, guide = random_case(seed, shape)
    counts = corrected_counts(classes, guide, 5)
    expected = slow_counts(classes, guide, 5)
    np.testing.assert_allclose(counts, expected, atol=1e-3)
    assert np.abs(counts - np.bincount(classes.ravel(), minlength=5)).max() > 3  # the correction does something
    assert counts[4] == 0
    assert classes.size - 50 < counts.sum() < classes.size  # what only an edge or a corner touches is lost


def test_a_label_gets_nothing_of_a_voxel_that_it_touches_by_an_edge_alone():
    """FreeSurfer's ``mri_segstats --pv`` gives class 2 its 16 voxels; the voxel of 60 touches it by an edge."""
    classes, guide = np.ones((9, 9, 9), int), np.full((9, 9, 9), 100.0)
    classes[5:, 5:, 4], guide[5:, 5:, 4] = 2, 0
    classes[4, 4, 5:] = 3
    guide[4, 4, 4] = 60
    assert corrected_counts(classes, guide, 4)[2] == 16
    classes[4, 5, 4] = 2  # now by a face as well
    np.testing.assert_allclose(corrected_counts(classes, guide, 4), slow_counts(classes, guide, 4), atol=1e-6)
    assert corrected_counts(classes, guide, 4)[2] > 17.3


@pytest.mark.parametrize(("first", "second", "share"), [(2, 3, 60 / 80), (3, 2, 40 / 60)])
def test_of_equally_frequent_labels_the_lowest_is_the_other(first, second, share):
    guide = np.full((3, 3, 1), 100.0)
    classes = np.zeros((3, 3, 1), int)
    classes[1:, 1] = 1
    guide[1, 1], guide[1, 0], guide[0, 1] = 60, 0, 20
    classes[1, 0], classes[0, 1] = first, second
    # The mean of class 1 is 80; only its voxel of 60 lies between two means.
    assert corrected_counts(classes, guide, 4) == pytest.approx([5, 1 + share, 2 - share, 1])


def test_the_rule_holds_for_noise_too():
    rng = np.random.default_rng(7)
    classes, guide = rng.integers(0, 4, (9, 10, 11)), rng.uniform(0, 100, (9, 10, 11)).astype(np.float32)
    np.testing.assert_allclose(corrected_counts(classes, guide, 4), slow_counts(classes, guide, 4), atol=1e-3)


def test_half_filled_border_gives_half_a_voxel():
    """A slab whose border voxels are half bright: 4.5 planes of it, where labels say 5."""
    guide = np.zeros((12, 6, 6), np.float32)
    guide[3:8] = 100
    classes = (guide > 0).astype(int)
    guide[3] = 40
    # Mean of the bright class in the window: (4 * 100 + 40) / 5 = 88.
    share = 40 / 88
    # The dark side has intensity 0, equal to its class's mean, so that nothing lies between: it counts whole.
    # The other bright border has 100, above both means.
    assert corrected_counts(classes, guide, 2) == pytest.approx([36 * (7 + 1 - share), 36 * (4 + share)])


def test_brain_in_a_large_empty_volume():
    classes, guide = random_case(5, (10, 11, 12))
    classes[[0, -1]] = classes[:, [0, -1]] = classes[:, :, [0, -1]] = 0
    guide[classes == 0] = 0
    padded = corrected_counts(np.pad(classes, 30), np.pad(guide, 30), 4)
    snug = corrected_counts(np.pad(classes, 8), np.pad(guide, 8), 4)
    np.testing.assert_allclose(padded[1:], snug[1:])
    assert padded[0] - snug[0] == pytest.approx(70 * 71 * 72 - 26 * 27 * 28)


def test_nothing_but_background():
    assert corrected_counts(np.zeros((3, 4, 5), int), np.ones((3, 4, 5)), 3).tolist() == [60, 0, 0]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"classes of shape \(2, 2, 2\) and intensities of shape \(2, 2, 3\)"):
        corrected_counts(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3)), 1)
