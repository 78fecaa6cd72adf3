"""Synthesised images: seeded, within range, sides exchanged by flips, targets as the map says."""

import numpy as np
import pytest

from medsegmamba_bids.training.synthetic.label_maps import LabelMap
from medsegmamba_bids.training.synthetic.synthesizer import SynthesisSettings, Synthesizer, load_tissue_table

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


@pytest.mark.parametrize("name", ["aseg_brain", "hippoFS60"])
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
