"""Posteriors to labels, a class at a time, against all classes at once."""

import math
import weakref

import numpy as np
import pytest
import torch
from scipy.ndimage import label as components

from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.inference.merge import Guide, View, background_only, drop_islands, merge_posteriors
from medsegmamba_bids.inference.predict import Prediction
from medsegmamba_bids.inference.rescale import AlignedGrids
from medsegmamba_bids.inference.tissue_borders import follow_intensities

LABELS = [0, 4, 17, 53]
SHAPE = (26, 24, 30)
AFFINE = np.array([[-1.0, 0, 0, 12], [0, 0, 1, -9], [0, -1, 0, 30], [0, 0, 0, 1]])


def blobs(shape, seed=0):
    """Smooth probabilities (C, x, y, z) of as many classes as there are labels."""
    rng = np.random.default_rng(seed)
    points = np.moveaxis(np.indices(shape), 0, -1)
    scores = [np.full(shape, 1.5)]
    for _ in LABELS[1:]:
        centre = rng.uniform(0.25, 0.75, 3) * shape
        scores.append(6 * np.exp(-(((points - centre) / (0.25 * np.array(shape))) ** 2).sum(-1)))
    return torch.tensor(np.stack(scores), dtype=torch.float32).mul_(3).softmax(0)


def prediction_of(grids, box=None, seed=0, dtype=torch.float32):
    box = Box(box or Box.whole(grids.network_shape))
    probabilities = blobs(box.shape, seed)
    return Prediction(probabilities.to(dtype), box, torch.device("cpu"), patches=1)


def at_once(prediction, grids):
    """All posteriors on the conformed grid (C, X, Y, Z); outside the box all is background."""
    out = np.zeros((len(LABELS), *grids.conformed.shape), np.float32)
    out[0] = 1
    box = grids.to_conformed_box(prediction.box)
    for index, one in enumerate(prediction.probabilities):
        out[(index, *box)] = grids.to_conformed(one, prediction.box, box).numpy()
    return out


def clear(posteriors):
    """Where the winner is clear."""
    runner_up, best = np.sort(posteriors, 0)[-2:]
    return best - runner_up > 1e-3


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_everything_follows_from_the_posteriors(ratio, part, dtype):
    grids = AlignedGrids(Grid(AFFINE, SHAPE), ratio)
    box = (slice(2, 12), slice(1, 11), slice(3, 13)) if part else None
    prediction = prediction_of(grids, box, dtype=dtype)
    expected = at_once(prediction, grids)
    found = merge_posteriors([View(prediction, grids)], LABELS, notes=["a note"])
    sure = clear(expected)
    assert sure.mean() > 0.9
    winner = np.array(LABELS)[expected.argmax(0)]
    assert set(np.unique(winner)) == set(LABELS)
    assert found.labels.dtype == np.uint16
    np.testing.assert_array_equal(found.labels[sure], winner[sure])
    np.testing.assert_allclose(found.posterior[sure], expected.max(0)[sure], atol=1e-6)
    entropy = -(expected * np.log2(np.maximum(expected, 1e-30))).sum(0)
    np.testing.assert_allclose(found.entropy, entropy, atol=0.01)  # unlikely classes are left out
    for index, label in enumerate(LABELS[1:], 1):
        assert found.voxels[label] == (found.labels == label).sum() > 0
        assert found.soft_volumes[label] == pytest.approx(expected[index].sum(), rel=0.01)
        mean = found.posterior[found.labels == label].mean(dtype=float)
        assert found.mean_posterior[label] == pytest.approx(mean, rel=1e-5)
    assert found.device == "cpu"
    assert found.notes == ("a note",)
    assert found.brain_mask is None
    assert found.grid.affine is AFFINE


def test_volumes_are_in_mm3():
    both = [AlignedGrids(Grid(affine, SHAPE), 1.0) for affine in (AFFINE, np.diag([2, 1, 1, 1.0]))]
    one, two = (merge_posteriors([View(prediction_of(grids), grids)], LABELS) for grids in both)
    for label in LABELS[1:]:
        assert two.soft_volumes[label] == pytest.approx(2 * one.soft_volumes[label])
        assert two.voxels[label] == one.voxels[label]


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_posteriors_are_handed_over_class_by_class(ratio):
    grids = AlignedGrids(Grid(AFFINE, SHAPE), ratio)
    prediction = prediction_of(grids, (slice(2, 12), slice(1, 11), slice(3, 13)))
    expected = at_once(prediction, grids)
    given = []
    merge_posteriors([View(prediction, grids)], LABELS, on_posterior=lambda *what: given.append(what))
    assert [index for index, _, _ in given] == [0, 1, 2, 3]
    for index, box, values in given:
        whole = np.full(grids.conformed.shape, index == 0, np.float32)
        whole[box] = values
        assert values.dtype == np.float32
        np.testing.assert_allclose(whole, expected[index], atol=2e-4)


def test_a_class_that_is_nowhere_has_no_volume():
    grids = AlignedGrids(Grid(AFFINE, (8, 8, 8)), 1.0)
    probabilities = torch.zeros(4, 8, 8, 8)
    probabilities[0], probabilities[1] = 1 - 1e-6, 1e-6
    prediction = Prediction(probabilities, Box.whole((8, 8, 8)), torch.device("cpu"), 1)
    found = merge_posteriors([View(prediction, grids)], LABELS)
    assert not found.labels.any()
    assert found.soft_volumes == {4: 0.0, 17: 0.0, 53: 0.0}
    assert found.voxels == {4: 0, 17: 0, 53: 0}
    assert all(math.isnan(value) for value in found.mean_posterior.values())


# Several views


def test_views_of_other_voxels_are_averaged():
    coarse, fine = (AlignedGrids(Grid(AFFINE, (24, 24, 24)), ratio) for ratio in (1.5, 1.2))
    views = [View(prediction_of(grids), grids) for grids in (coarse, fine)]
    singles = [{}, {}]
    for view, single in zip(views, singles, strict=True):
        merge_posteriors([view], LABELS, on_posterior=_on_whole(single))
    both = {}
    merge_posteriors(views, LABELS, on_posterior=_on_whole(both))
    for index in range(len(LABELS)):
        np.testing.assert_allclose(both[index], (singles[0][index] + singles[1][index]) / 2, atol=2e-4)


def test_a_class_that_one_view_alone_sees_has_half_its_probability():
    grids = AlignedGrids(Grid(AFFINE, (8, 8, 8)), 1.0)
    sees, does_not = torch.zeros(2, 4, 8, 8, 8)
    sees[1, 2:6, 2:6, 2:6] = 0.9
    sees[0] = 1 - sees[1]
    does_not[0] = 1
    views = [View(Prediction(p, Box.whole((8, 8, 8)), torch.device("cpu"), 1), grids) for p in (sees, does_not)]
    found = merge_posteriors(views, LABELS)
    assert found.soft_volumes == {4: pytest.approx(0.45 * 64, rel=1e-6), 17: 0.0, 53: 0.0}
    assert not found.labels.any()  # 0.55 for the background


def _on_whole(kept: dict[int, np.ndarray]):
    """Return a callback that keeps each class's probabilities on the whole conformed grid."""

    def keep(index, box, values):
        kept[index] = np.full((24, 24, 24), float(index == 0), np.float32)
        kept[index][box] = values

    return keep


# Islands


def two_parts():
    """Class 1 in a large part with class 2, and both again far away; a little everywhere of class 3."""
    probabilities = torch.zeros(4, 20, 10, 10)
    probabilities[0] = 0.9
    probabilities[3] = 0.1
    for index, box in ((1, (slice(2, 7), slice(2, 8), slice(2, 8))), (2, (slice(7, 9), slice(2, 8), slice(2, 8)))):
        probabilities[(slice(None), *box)] = 0.05
        probabilities[(index, *box)] = 0.85
    for index, x in ((1, 15), (2, 16)):
        probabilities[:, x, 4, 4] = 0.1
        probabilities[index, x, 4, 4] = 0.7
    return probabilities


def test_islands_go_to_the_background_and_from_the_volumes():
    probabilities = two_parts()
    before = probabilities.clone()
    drop_islands(probabilities, [1, 2])
    torch.testing.assert_close(probabilities.sum(0), before.sum(0))
    assert (probabilities[1:3, 12:] == 0).all()
    assert probabilities[0, 15, 4, 4] == pytest.approx(0.1 + 0.7 + 0.1)
    assert torch.equal(probabilities[3], before[3])
    assert torch.equal(probabilities[:, 2:9, 2:8, 2:8], before[:, 2:9, 2:8, 2:8])


def test_each_group_keeps_its_largest_component():
    grids = AlignedGrids(Grid(AFFINE, (20, 10, 10)), 1.0)

    def merged(groups):
        prediction = Prediction(two_parts(), Box.whole((20, 10, 10)), torch.device("cpu"), 1)
        return merge_posteriors([View(prediction, grids)], LABELS, groups)

    kept = merged([])
    assert kept.labels[15, 4, 4] == 4
    assert kept.labels[16, 4, 4] == 17
    together = merged([[1, 2]])
    assert components(together.labels > 0)[1] == 1
    assert together.voxels == {4: 5 * 36, 17: 2 * 36, 53: 0}
    assert together.posterior[15, 4, 4] == pytest.approx(0.9)
    assert together.soft_volumes[4] < kept.soft_volumes[4]
    apart = merged([[1], [2]])
    np.testing.assert_array_equal(apart.labels, together.labels)


def test_a_group_that_is_nowhere_changes_nothing():
    probabilities = two_parts()
    before = probabilities.clone()
    drop_islands(probabilities, [3])
    assert torch.equal(probabilities, before)


def test_the_brain_mask_is_filled():
    labels = [0, 2, 3, 41, 42]
    probabilities = torch.zeros(5, 12, 12, 12)
    probabilities[0] = 1
    probabilities[:, 2:10, 2:10, 2:10] = torch.tensor([0, 0.1, 0.6, 0.2, 0.1])[:, None, None, None]
    probabilities[:, 5, 5, 5] = torch.tensor([1.0, 0, 0, 0, 0])
    prediction = Prediction(probabilities, Box.whole((12, 12, 12)), torch.device("cpu"), 1)
    found = merge_posteriors([View(prediction, AlignedGrids(Grid(AFFINE, (12, 12, 12)), 1.0))], labels)
    expected = np.zeros((12, 12, 12), bool)
    expected[2:10, 2:10, 2:10] = True
    assert found.labels[5, 5, 5] == 0
    np.testing.assert_array_equal(found.brain_mask, expected)


@pytest.mark.parametrize("labels", [LABELS, [0, 2, 3, 41, 42]])
def test_nothing_found(labels):
    grids = AlignedGrids(Grid(AFFINE, (6, 5, 4)), 1.0)
    background = torch.zeros(len(labels), 6, 5, 4)
    background[0] = 1
    nothing = Prediction(background, Box.whole((6, 5, 4)), torch.device("cpu"), patches=0)
    found = merge_posteriors([View(nothing, grids)], labels, notes=["so"])
    assert found.labels.shape == (6, 5, 4)
    assert not found.labels.any()
    assert (found.posterior == 1).all()
    assert (found.entropy == 0).all()
    assert found.voxels == dict.fromkeys(labels[1:], 0)
    assert found.notes == ("so",)
    assert (found.brain_mask is not None) == (2 in labels)
    same = background_only(grids.conformed, labels, [])
    np.testing.assert_array_equal(same.labels, found.labels)


def test_fluid_outside_the_brain_is_not_in_the_brain_mask():
    """It has a label, voxels and a soft volume, but is not in the brain mask."""
    labels = [0, 2, 3, 41, 42, 257]
    probabilities = torch.zeros(6, 12, 12, 12)
    probabilities[5, 1:11, 1:11, 1:11] = 1
    probabilities[:, 3:9, 3:9, 3:9] = 0
    probabilities[1, 3:9, 3:9, 3:9] = 1
    probabilities[0] = 1 - probabilities.sum(0)
    prediction = Prediction(probabilities, Box.whole((12, 12, 12)), torch.device("cpu"), 1)
    found = merge_posteriors([View(prediction, AlignedGrids(Grid(AFFINE, (12, 12, 12)), 1.0))], labels)
    brain = np.zeros((12, 12, 12), bool)
    brain[3:9, 3:9, 3:9] = True
    np.testing.assert_array_equal(found.labels == 2, brain)
    assert (found.labels == 257).sum() == 784
    np.testing.assert_array_equal(found.brain_mask, brain)
    assert found.voxels == {2: 216, 3: 0, 41: 0, 42: 0, 257: 784}
    assert found.soft_volumes[257] == pytest.approx(784)


def test_views_that_are_made_one_after_the_other_are_never_in_memory_together():
    grids = [AlignedGrids(Grid(AFFINE, SHAPE), ratio) for ratio in (1.5, 2.0)]
    kept = []

    def one_by_one():
        for own in grids:
            assert all(reference() is None for reference in kept)
            prediction = prediction_of(own)
            kept.append(weakref.ref(prediction.probabilities))
            view = View(prediction, own)
            del prediction
            yield view
            del view

    found = merge_posteriors(one_by_one(), LABELS, [[1, 2, 3]])
    expected = merge_posteriors([View(prediction_of(own), own) for own in grids], LABELS, [[1, 2, 3]])
    assert len(kept) == 2
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.posterior, expected.posterior)
    assert found.soft_volumes == expected.soft_volumes


@pytest.mark.parametrize("part", [False, True])
def test_intensities_decide_between_tissues_alone(part):
    """The background, cortex (3) and white matter (2) are tissues; a hippocampus (17) is none."""
    labels = [0, 3, 17, 2]
    grids = AlignedGrids(Grid(AFFINE, SHAPE), 1.5)
    prediction = prediction_of(grids, (slice(2, 12), slice(1, 11), slice(3, 13)) if part else None)
    box = grids.to_conformed_box(prediction.box)
    before = at_once(prediction, grids)
    image = 60.0 * before.argmax(0) + np.random.default_rng(0).normal(0, 20, SHAPE)
    kept = np.zeros_like(before)
    kept[0] = 1
    merged = merge_posteriors(
        [View(prediction, grids)],
        labels,
        on_posterior=lambda index, box, values: kept[index].__setitem__(box, values),
        guide=Guide(image, 0.4),
    )
    expected = before[(slice(None), *box)]
    tissues = np.ascontiguousarray(expected[[0, 1, 3]])
    follow_intensities(tissues, image[box], 0.4)
    after = before.copy()
    after[(slice(None), *box)] = np.stack([tissues[0], tissues[1], expected[2], tissues[2]])
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(kept, after, atol=2e-4)
    sure = clear(after)
    np.testing.assert_array_equal(merged.labels[sure], np.array(labels)[after.argmax(0)][sure])
    for index, label in enumerate(labels[1:], 1):
        assert merged.soft_volumes[label] == pytest.approx(after[index].sum(), rel=2e-3)
    np.testing.assert_allclose(merged.posterior[sure], after.max(0)[sure], atol=2e-4)


@pytest.mark.parametrize("ratio", [1.0, 1.25])
def test_a_view_of_a_part_counts_less_and_less_towards_its_faces(ratio):
    """Two views that are sure, and disagree: the part counts by its distance from the faces, up to 6 voxels."""
    grid = Grid(AFFINE, SHAPE)
    whole, part = AlignedGrids(grid, 1.0), AlignedGrids(grid, ratio)
    around = part.to_network_box(Box([slice(4, 22), slice(2, 22), slice(5, 27)]))

    def sure(index, shape):
        probabilities = torch.zeros(len(LABELS), *shape)
        probabilities[index] = 1
        return probabilities

    all_of_it = Prediction(sure(1, SHAPE), Box.whole(SHAPE), torch.device("cpu"), patches=1)
    some = Prediction(sure(2, around.shape), around, torch.device("cpu"), patches=1)
    kept = np.zeros((len(LABELS), *SHAPE), np.float32)
    merge_posteriors(
        [View(all_of_it, whole), View(some, part, fades=True)],
        LABELS,
        on_posterior=lambda index, box, values: kept[index].__setitem__(box, values),
    )
    places = np.indices(SHAPE)
    share = np.ones(SHAPE)
    for place, side in zip(places, part.to_conformed_box(around), strict=True):
        to_face = np.minimum(place - side.start, side.stop - 1 - place) + 0.5
        share *= np.clip(to_face / 6, 0, 1)
    np.testing.assert_allclose(kept[1], 1 / (1 + share), atol=1e-6)
    np.testing.assert_allclose(kept[2], share / (1 + share), atol=1e-6)
    assert share.max() > 0.8
    assert (share == 0).any()


def test_what_the_faces_of_a_part_cut_off_is_no_island():
    grid = Grid(AFFINE, SHAPE)
    probabilities = torch.zeros(len(LABELS), *SHAPE)
    probabilities[1, :, :, :10] = probabilities[1, :, :, 20:] = probabilities[0, :, :, 10:20] = 1  # they meet beyond
    whole = torch.zeros_like(probabilities)
    whole[1] = 1
    views = [
        View(Prediction(values, Box.whole(SHAPE), torch.device("cpu"), patches=1), AlignedGrids(grid, 1.0), fades=fades)
        for values, fades in ((whole, False), (probabilities, True))
    ]
    merged = merge_posteriors(views, LABELS, groups=[[1, 2, 3]])
    assert merged.posterior[12, 12, :9].min() == 1
    assert merged.posterior[12, 12, 21:].min() == 1
