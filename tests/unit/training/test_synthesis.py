"""Synthesised images: seeded, within range, sides exchanged by flips, targets as the map says."""

import numpy as np
import pytest
import torch

from medsegmamba_bids.training.synthetic.label_maps import LabelMap, build_map
from medsegmamba_bids.training.synthetic.synthesizer import (
    SynthesisSettings,
    Synthesizer,
    _happens,
    _move_between_lines,
)
from medsegmamba_bids.training.synthetic.tissues import load_tissue_table

#: No random geometry and no degradation: the patch is the middle of the map.
PLAIN = {
    "patch_size": 32,
    "voxel_size": (1.0, 1.0),
    "rotation_sd": 0.0,
    "scale_sd": 0.0,
    "global_scale_sd": 0.0,
    "shear_sd": 0.0,
    "elastic_mm": (0.0, 0.0),
    "skull_stripped": 0.0,
    "defaced": 0.0,
    "centre_jitter_mm": 0.0,
}


def synthesizer(maps, tissues, **settings):
    return Synthesizer(maps, tissues, SynthesisSettings(**settings))


def test_a_sample_depends_on_its_seed_alone(label_map, tissues):
    one, other = (synthesizer([label_map()], tissues, patch_size=24) for _ in range(2))
    for seed in ((0, 1), (7, 3)):
        np.random.seed(seed[1])
        other.sample(9, 9)
        for mine, theirs in zip(one.sample(*seed), other.sample(*seed), strict=True):
            assert np.array_equal(mine, theirs)


def test_other_seeds_give_other_samples(label_map, tissues):
    one = synthesizer([label_map()], tissues, patch_size=24)
    samples = [one.sample(0, step) for step in range(6)]
    assert len({image.tobytes() for image, _, _ in samples}) == 6
    assert len({target.tobytes() for _, target, _ in samples}) > 3
    assert not np.array_equal(one.sample(0, 1)[0], one.sample(1, 1)[0])


def test_values_and_classes(label_map, tissues):
    one = synthesizer([label_map(plexus=True)], tissues, patch_size=24)
    for step in range(20):
        image, target, accepts = one.sample(5, step)
        assert image.dtype == np.float32
        assert target.dtype == np.uint8
        assert image.shape == target.shape == (24, 24, 24)
        assert 0 <= image.min() <= image.max() <= 1
        assert image.std() > 0.01
        found = set(tissues.table.labels[np.unique(target)].tolist())
        assert found <= {0, 2, 41, 4, 43, 17, 53, 31, 63}
        assert accepts.diagonal().all()


def test_targets_are_the_map_where_nothing_moves(label_map, tissues, head):
    """Without geometry a patch is the middle of the map, or its mirror image with sides exchanged; here both agree."""
    one = synthesizer([label_map()], tissues, **PLAIN)
    expected = tissues.table.to_indices(head()[8:40, 8:40, 8:40])
    flips = set()
    for step in range(12):
        image, target, _ = one.sample(0, step)
        assert np.array_equal(target, expected)
        flips.add(image.tobytes())
    assert len(flips) == 12


def test_flips_exchange_sides(label_map, tissues, head):
    """With a hippocampus missing on the right, either the left one is there or, mirrored, only a right one."""
    whole = label_map()
    position = tissues.rows["label"].tolist()
    tissue = np.where(whole.tissue == position.index(53), position.index(41), whole.tissue).astype(np.uint8)
    lopsided = LabelMap(**{**vars(whole), "tissue": tissue})
    one = synthesizer([lopsided], tissues, **PLAIN)
    left, right = tissues.table.to_indices(np.array([17, 53]))
    labels = head()
    labels[labels == 53] = 41
    plain = tissues.table.to_indices(labels[8:40, 8:40, 8:40])
    mirrored = tissues.table.mirror[plain[::-1]]
    seen = []
    for step in range(30):
        _, target, _ = one.sample(1, step)
        flipped = bool((target == right).any())
        assert (target == left).any() != flipped
        assert np.array_equal(target, mirrored if flipped else plain)
        seen.append(flipped)
    assert 5 < sum(seen) < 25


def test_both_sides_of_a_structure_look_alike(tissues):
    """Means of the two sides differ by noise of 0.01 only, those of different structures by more."""
    one = Synthesizer([], tissues, SynthesisSettings(t1_like=0.5))
    rng = np.random.default_rng(0)
    for _ in range(50):
        means = one._intensities(rng)
        assert np.abs(means - means[tissues.mirror]).max() < 0.06
        assert means.min() >= 0
        assert np.ptp(means) > 0.3


def test_t1_like_contrast(tissues):
    one = Synthesizer([], tissues, SynthesisSettings(t1_like=1.0))
    rng = np.random.default_rng(0)
    means = np.mean([one._intensities(rng) for _ in range(200)], 0)
    by_label = dict(zip(tissues.rows["label"], means, strict=True))
    assert by_label[2] > by_label[10] > by_label[11] > by_label[4]
    assert by_label[2] > by_label[3] > by_label[4]


def test_random_contrast_is_not_t1_like(tissues):
    one = Synthesizer([], tissues, SynthesisSettings(t1_like=0.0))
    rng, ventricle = np.random.default_rng(0), tissues.rows["label"].tolist().index(4)
    brighter = [means[ventricle] > means[1] for means in (one._intensities(rng) for _ in range(200))]
    assert 60 < sum(brighter) < 140  # ventricles over white matter


def test_skull_stripping_leaves_the_brain(label_map, tissues):
    settings = {**PLAIN, "patch_size": 48, "skull_stripped": 1.0}
    one = synthesizer([label_map()], tissues, **settings)
    image, target, _ = one.sample(0, 0)
    assert (image[target > 0] > 0).mean() > 0.9
    outside = np.ones((48, 48, 48), bool)
    outside[4:44, 4:44, 4:44] = False
    assert (image[outside] == 0).all()


def test_maps_are_drawn_by_weight(label_map, tissues):
    one = label_map()
    other = LabelMap(**{**vars(one), "weight": 3.0, "accepts": np.zeros_like(one.accepts)})
    drawn = [synthesizer([one, other], tissues, patch_size=8).sample(0, step)[2].any() for step in range(80)]
    assert 10 <= sum(drawn) <= 32  # a quarter


def test_real_images_are_used(label_map, tissues):
    picture = np.full(label_map().tissue.shape, 0.5, np.float32)
    real = LabelMap(**{**vars(label_map()), "image": picture, "stripped": True})
    plain = {**PLAIN, "real_image": 1.0, "noise_max": 0.0, "bias_max": 0.0, "blurred": 0.0, "thick_slices": 0.0}
    image, _, _ = synthesizer([real], tissues, **plain).sample(0, 0)
    assert np.ptp(image) < 1e-5  # a constant image stays one: nothing of the map shows


@pytest.mark.parametrize("name", ["aseg_brain", "aseg_head", "hippoFS60"])
def test_tissue_tables(name):
    table = load_tissue_table(name)
    rows = table.rows
    assert rows["label"].is_unique
    assert np.array_equal(table.mirror[table.mirror], np.arange(len(rows)))
    # What mirrors a tissue mirrors its class as well, and weights belong to classes.
    assert np.array_equal(table.targets[table.mirror], table.table.mirror[table.targets])
    assert (rows.groupby("target")["weight"].nunique() == 1).all()
    assert set(np.unique(table.targets)) == set(range(len(table.table.labels)))
    with pytest.raises(KeyError):
        table.index_of(np.array([12345]))


#: Nothing but what is asked for happens to the image, except that it is scaled as a whole.
CLEAN = {**PLAIN, "real_image": 1.0, "noise_max": 0.0, "bias_max": 0.0, "blurred": 0.0, "thick_slices": 0.0}


def real_head(label_map):
    """The made-up head with a real image of equal values everywhere."""
    picture = np.full(label_map().tissue.shape, 1.0, np.float32)
    return LabelMap(**{**vars(label_map()), "image": picture, "stripped": True})


def test_shifts_of_real_images_follow_the_spread_and_agree_on_both_sides(tissues):
    one = synthesizer([], tissues, real_shift=0.7)
    rng = np.random.default_rng(0)
    shifts = np.array([one._real_shifts(rng) for _ in range(6000)])
    assert np.array_equal(shifts, shifts[:, tissues.mirror])
    brain = tissues.in_brain
    assert (shifts[:, ~brain] == 0).all()
    # None, half and all of it with equal chance: the mean square is that of (0 + 1/4 + 1) / 3.
    expected = 0.7 * np.sqrt(1.25 / 3) * tissues.rows["spread"].to_numpy()[brain]
    assert np.allclose(shifts[:, brain].std(0), expected, rtol=0.1)
    assert 0.3 < (shifts[:, 1] == 0).mean() < 0.37
    assert not synthesizer([], tissues)._real_shifts(rng).any()


def test_shifts_of_real_images_blur_at_borders(label_map, tissues):
    """White matter of value 1 and hippocampus get their own shift, and a voxel at their border one in between."""
    one = synthesizer([real_head(label_map)], tissues, **CLEAN, real_shift=0.7)
    values = None
    for step in range(40):
        image, target, _ = one.sample(0, step)
        inside = [image[target == tissues.table.labels.tolist().index(label)] for label in (2, 17)]
        levels = [np.median(part) for part in inside]
        if abs(levels[0] - levels[1]) > 0.02:
            values = np.concatenate(inside)
            assert (np.abs(inside[0] - levels[0]) < 1e-5).mean() > 0.8
            assert min(levels) - 1e-5 <= values.min()
            assert values.max() <= max(image.max(), *levels) + 1e-5
    assert values is not None


def slabs(tissues):
    """Fluid outside, cortex, white matter and a ventricle, as slabs of a block that ends where patches do."""
    labels = np.zeros((32, 32, 32), np.int32)
    labels[0:4], labels[4:8], labels[8:24], labels[24:32] = 224, 3, 2, 4
    return LabelMap(**{**vars(build_map("slabs", labels, tissues)), "brain_box": np.array([[0.0, 31]] * 3)})


def thicknesses(tissues, **settings):
    """Voxels of cortex, white matter and ventricle along the block, one row a sample."""
    one = synthesizer([slabs(tissues)], tissues, **PLAIN, **settings)
    labels = tissues.table.labels.tolist()
    left, right = [labels.index(label) for label in (3, 2, 4)], [labels.index(label) for label in (42, 41, 43)]
    lines = [one.sample(0, step)[1][:, 16, 16] for step in range(40)]
    return np.array([[np.isin(line, pair).sum() for pair in zip(left, right, strict=True)] for line in lines])


def test_atrophy_widens_ventricles_and_thins_the_cortex(tissues):
    assert (thicknesses(tissues) == [4, 16, 8]).all()
    found = thicknesses(tissues, atrophy=1.0, ventricle_growth_mm=5.0, cortex_loss_mm=2.5)
    assert set(found[:, 2]) <= {8, 9, 10, 11, 12}
    assert found[:, 2].max() == 12
    assert (found[:, 1] == 24 - found[:, 2]).all()
    assert set(found[:, 0]) == {2, 3, 4}


def test_narrow_ventricles_give_way_to_white_matter(tissues):
    found = thicknesses(tissues, narrow_ventricles=1.0, ventricle_loss_mm=3.5)
    assert set(found[:, 2]) == {5, 6, 7, 8}
    assert (found[:, 1] == 24 - found[:, 2]).all()
    assert (found[:, 0] == 4).all()


def test_real_images_do_not_shrink(label_map, tissues, head):
    """Their labels follow the image."""
    settings = {**CLEAN, "atrophy": 1.0, "lesions": 1.0}
    one = synthesizer([real_head(label_map)], tissues, **settings)
    expected = tissues.table.to_indices(head()[8:40, 8:40, 8:40])
    assert all(np.array_equal(one.sample(0, step)[1], expected) for step in range(10))


def test_lesions_lie_in_white_matter_and_dark_ones_have_their_class(tissues):
    one = synthesizer([], tissues, patch_size=32)
    labels = tissues.rows["label"].tolist()
    tissue = np.full((32, 32, 32), labels.index(2), np.uint8)
    tissue[:8], tissue[24:] = labels.index(3), labels.index(4)
    image, rng, seen = torch.ones(32, 32, 32), np.random.default_rng(0), set()
    for _ in range(60):
        changed, found = one._lesions(image, tissue, rng)
        assert (changed[:8] == 1).all()
        assert (changed[24:] == 1).all()
        lesion = found == labels.index(77)
        assert np.array_equal(found[~lesion], tissue[~lesion])
        if lesion.any():
            assert changed.numpy()[lesion].max() < 0.93
        seen.add((bool(lesion.any()), bool((changed > 1).any())))
    assert {(True, False), (False, True)} <= seen  # dark ones with their class, bright ones without


def test_motion_keeps_the_contrast_and_leaves_an_even_image_alone():
    rng = np.random.default_rng(0)
    even = torch.full((24, 24, 24), 0.7)
    assert torch.allclose(_move_between_lines(even, 1, rng), even, atol=1e-5)
    image = torch.from_numpy(np.random.default_rng(1).random((24, 24, 24), np.float32))
    moved = _move_between_lines(image, 2, rng)
    assert moved.shape == image.shape
    assert torch.allclose(moved.mean(), image.mean(), atol=1e-5)
    assert not torch.allclose(moved, image, atol=1e-2)
    assert moved.norm() == pytest.approx(float(image.norm()), rel=1e-2)  # phases alone are changed


def test_what_does_not_happen_draws_no_number():
    """So that older configurations give the samples that they gave."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert not _happens(one, 0.0)
    assert one.random() == other.random()
    assert _happens(one, 1.0)
