"""Conformed images through networks whose answer is known."""

import os

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from medsegmamba_bids.errors import SegmentationError, WeightsError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.inference.predict import predict_volume
from medsegmamba_bids.inference.segmenter import (
    InferenceSettings,
    Segmenter,
    class_groups,
    hippocampus_box,
    missing_hippocampi,
    segment_conformed,
    segment_hippocampus,
)
from medsegmamba_bids.inference.single import conform_and_segment
from medsegmamba_bids.weights.files import WeightsInfo, load_weights

LEVELS = {0: 0.0, 16: 0.3, 17: 0.55, 53: 0.8, 10: 1.0}
SUBFIELDS = {0: 0.0, 1203: 0.55, 2203: 0.8}
SIDE = 128
AFFINE = np.array([[-1.0, 0, 0, 64], [0, 0, 1, -64], [0, -1, 0, 64], [0, 0, 0, 1]])


def brain_labels(side=SIDE):
    """Blocks of labels, the hippocampi left and right in a brain stem."""
    labels = np.zeros((side,) * 3, np.uint8)
    labels[32:96, 32:88, 36:96] = 16
    labels[72:88, 48:64, 44:76] = 17
    labels[40:56, 48:64, 44:76] = 53
    return labels


def conformed(labels):
    lookup = np.zeros(256, np.uint8)
    for label, level in LEVELS.items():
        lookup[label] = round(255 * level)
    return nib.Nifti1Image(lookup[labels], AFFINE)


def inner(labels, size=9):
    return minimum_filter(labels, size) == maximum_filter(labels, size)


def check(found, labels):
    sure = inner(labels)
    assert np.count_nonzero(sure & (labels > 0)) > 5000
    np.testing.assert_array_equal(found.labels[sure], labels[sure])
    assert (found.labels == labels).mean() > 0.97


@pytest.fixture
def network(intensity_weights):
    return load_weights(intensity_weights("aseg", LEVELS, voxel_size=4.0))


@pytest.mark.parametrize("voxel_size", [2.0, 4.0])
def test_labels_where_the_network_sees_them(intensity_weights, voxel_size):
    found = segment_conformed(
        *load_weights(intensity_weights("aseg", LEVELS, voxel_size=voxel_size)), conformed(brain_labels())
    )
    check(found, brain_labels())
    assert found.notes == ()
    assert found.device == "cpu"
    assert found.voxels[10] == 0
    assert found.soft_volumes[17] == pytest.approx(16 * 16 * 32, rel=0.25)


@pytest.mark.parametrize(
    "settings",
    [
        {"step": 8, "gaussian": True},
        {"step": 5, "batch_size": 3},
        {"half_accumulator": True},
        {"low_memory": True},
        {"precision": "bfloat16"},
        {"largest_component": False},
    ],
)
def test_settings_do_not_change_what_is_clear(network, settings):
    check(segment_conformed(*network, conformed(brain_labels()), InferenceSettings(**settings)), brain_labels())


def with_island():
    labels = brain_labels()
    labels[108:120, 108:120, 108:120] = 10
    return labels


def test_islands_are_dropped_unless_told_otherwise(intensity_weights):
    """With classes that cover the cerebrum: what touches nothing of it is no part of the brain."""
    names = dict(zip(LEVELS, (0, 2, 3, 41, 42), strict=True))
    levels = {names[label]: level for label, level in LEVELS.items()}
    network = load_weights(intensity_weights("aseg", levels, voxel_size=4.0))
    kept = segment_conformed(*network, conformed(with_island()), InferenceSettings(largest_component=False))
    assert kept.labels[114, 114, 114] == names[10]
    found = segment_conformed(*network, conformed(with_island()))
    assert not found.labels[104:, 104:, 104:].any()
    assert found.soft_volumes[names[10]] < 0.01 * kept.soft_volumes[names[10]]


def test_structures_without_the_cerebrum_need_not_touch(network):
    assert segment_conformed(*network, conformed(with_island())).labels[114, 114, 114] == 10


def head_labels():
    """A brain in a head of more than 2.3 litres that the network takes for background."""
    side = 176
    head = np.zeros((side,) * 3, np.uint8)
    head[8:168, 8:168, 8:168] = 1
    brain = np.zeros_like(head)
    brain[40 : 40 + SIDE, 24 : 24 + SIDE, 30 : 30 + SIDE] = brain_labels()
    return head, brain


def test_the_brain_is_found_in_a_whole_head(network):
    head, brain = head_labels()
    image = conformed(brain)
    data = np.asarray(image.dataobj)
    data[(head > 0) & (brain == 0)] = 36  # 0.14, nearest to the background
    passes = []
    settings = InferenceSettings(step=8, progress=lambda *p: passes.append(p))
    found = segment_conformed(*network, nib.Nifti1Image(data, AFFINE), settings)
    check(found, brain)
    assert found.notes == ()
    quick, thorough = [total for done, total in passes if done == 0]
    assert quick == 27  # 40 voxels of 4 mm: patches of 16 side by side
    # The brain has 64 x 56 x 60 mm, and 8 mm more on each side: about 21 voxels, 2 to 3 patches at step 8 a side.
    assert thorough < 4 * 4 * 4
    assert passes[-1] == (thorough, thorough)


def test_weights_for_brains_warn_of_a_whole_head(intensity_weights, caplog):
    head, brain = head_labels()
    data = np.asarray(conformed(brain).dataobj)
    data[(head > 0) & (brain == 0)] = 36  # 0.14, nearest to the background
    weights = intensity_weights("aseg", LEVELS, voxel_size=4.0, skull_stripped=True, intensity="freesurfer")
    found = segment_conformed(*load_weights(weights), nib.Nifti1Image(data, AFFINE))
    (note,) = found.notes
    assert note.startswith("the weights known-aseg expect a skull-stripped, intensity-normalised brain, but this")
    assert "4.1 litres above zero" in note
    assert note in caplog.messages


def test_no_mirror_image_without_a_table_of_sides(intensity_weights, caplog):
    found = segment_conformed(
        *load_weights(intensity_weights("aseg", LEVELS, voxel_size=4.0, mirror=True)), conformed(brain_labels())
    )
    check(found, brain_labels())
    assert found.notes == ("no averaging with the mirror image: no label table has the classes [0, 16, 17, 53, 10]",)


def test_the_mirror_image_exchanges_the_sides(intensity_weights):
    """A network that takes each side for what its intensity says cannot tell left from right by place."""
    table = load_label_table("aseg")
    levels = dict.fromkeys(map(int, table.labels), -1.0) | LEVELS
    image = conformed(brain_labels())
    plain = segment_conformed(*load_weights(intensity_weights("aseg", levels, voxel_size=4.0)), image)
    weights = intensity_weights("aseg", levels, voxel_size=4.0, mirror=True)
    mirrored = segment_conformed(*load_weights(weights), image)
    check(plain, brain_labels())
    left = inner(brain_labels()) & (brain_labels() == 17)
    assert (plain.labels[left] == 17).all()
    # Half of the votes says 17, the other, from the mirror image, its counterpart 53.
    np.testing.assert_allclose(mirrored.posterior[left], 0.5, atol=0.02)
    assert mirrored.soft_volumes[17] == pytest.approx(mirrored.soft_volumes[53], rel=0.02)


def test_the_mirror_image_may_be_seen_in_smaller_voxels(intensity_weights):
    """A network that looks at each voxel alone says of the mirror image what it says of the image, sides exchanged."""
    table = load_label_table("aseg")
    levels = dict.fromkeys(map(int, table.labels), -1.0) | LEVELS
    image = conformed(brain_labels())

    def posteriors(**options):
        kept = np.zeros((len(table.labels), *image.shape), np.float32)

        def keep(index, box, values):
            kept[index] = index == 0
            kept[(index, *box)] = values

        segment_conformed(*load_weights(intensity_weights("aseg", levels, **options)), image, on_posterior=keep)
        return kept

    coarse, fine = posteriors(voxel_size=4.0), posteriors(voxel_size=3.0)
    both = posteriors(voxel_size=4.0, mirror=True, mirror_voxel_size=3.0)
    inside = inner(brain_labels())
    assert np.abs(coarse - fine)[:, inside].max() > 0.01
    np.testing.assert_allclose(both[:, inside], ((coarse + fine[table.mirror]) / 2)[:, inside], atol=0.002)
    three = posteriors(voxel_size=4.0, mirror=True, mirror_voxel_size=3.0, deep_voxel_size=1.0, deep_patch_size=32)
    exact = np.stack(
        [posterior[56:72, 48:64, 52:68] for posterior in posteriors(voxel_size=1.0)]
    )  # all views whole there
    last = (exact + exact[table.mirror]) / 2
    np.testing.assert_allclose(three[:, 56:72, 48:64, 52:68], (2 * both[:, 56:72, 48:64, 52:68] + last) / 3, atol=0.002)


@pytest.mark.parametrize("value", [0, 5])
def test_an_image_without_a_brain_is_background(network, value):
    data = np.zeros((SIDE,) * 3, np.uint8)
    data[40:80, 40:80, 40:80] = value
    found = segment_conformed(*network, nib.Nifti1Image(data, AFFINE))
    assert not found.labels.any()
    assert sum(found.voxels.values()) == 0
    if value == 0:
        assert found.notes == ("nothing was found to segment: all of it is background",)


def test_a_head_without_a_brain_is_background(network):
    data = np.where(head_labels()[0], 25, 0).astype(np.uint8)
    found = segment_conformed(*network, nib.Nifti1Image(data, AFFINE))
    assert not found.labels.any()
    assert found.notes == ("nothing was found to segment: all of it is background",)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), "RAS, with voxels of .* is not conformed"),
        (nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), AFFINE * 2), r"voxels of \[2.0, 2.0, 2.0\] mm"),
        (nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.uint8), AFFINE), "three axes"),
        (nib.Nifti1Image(np.zeros((8, 8, 8), np.complex64), AFFINE), "complex64 is not conformed; numbers"),
    ],
)
def test_only_conformed_images_are_segmented(network, image, sentence):
    with pytest.raises(SegmentationError, match=sentence):
        segment_conformed(*network, image)


# Hippocampus


def labels_with(left=None, right=None, side=128):
    labels = np.zeros((side,) * 3, np.uint16)
    for label, box in ((17, left), (53, right)):
        if box:
            labels[box] = label
    return labels


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((slice(80, 90), slice(50, 60), slice(40, 60)), (slice(40, 50), slice(52, 64), slice(40, 62)), (17, 9, 3)),
        ((slice(0, 10), slice(118, 128), slice(40, 60)), (slice(20, 30), slice(118, 126), slice(40, 60)), (0, 32, 2)),
        ((slice(60, 70), slice(60, 70), slice(60, 70)), None, (17, 17, 17)),
    ],
)
def test_the_box_around_the_hippocampi(left, right, expected, caplog):
    box = hippocampus_box(labels_with(left, right))
    assert [s.stop - s.start for s in box] == [96, 96, 96]
    assert tuple(s.start for s in box) == expected
    assert caplog.messages == ([] if right else ["no right hippocampus was found; the box lies around the other"])


def test_the_box_holds_hippocampi_that_are_further_apart_than_its_side():
    labels = labels_with((slice(120, 126),) * 3, (slice(2, 8),) * 3)
    assert hippocampus_box(labels) == (slice(2, 126),) * 3


def test_a_small_volume_limits_the_box():
    assert hippocampus_box(labels_with((slice(3, 5),) * 3, (slice(7, 9),) * 3, side=40)) == (slice(0, 40),) * 3


def test_without_hippocampi_there_is_no_box():
    assert missing_hippocampi(labels_with()) == ["left", "right"]
    with pytest.raises(SegmentationError, match="no hippocampus was found \\(labels 17 and 53\\)"):
        hippocampus_box(labels_with())


@pytest.fixture
def subfields(intensity_weights):
    return load_weights(intensity_weights("hippocampus", SUBFIELDS, voxel_size=2.0, patch_size=48, step=48))


def test_subfields_in_the_box(subfields):
    aseg = brain_labels()
    found = segment_hippocampus(*subfields, conformed(aseg), aseg)
    box, sure = hippocampus_box(aseg), inner(aseg)
    assert [s.stop - s.start for s in box] == [96, 96, 96]
    inside = np.zeros(aseg.shape, bool)
    inside[box] = True
    assert not found.labels[~maximum_filter(inside, 5)].any()
    for label, subfield in ((17, 1203), (53, 2203)):
        there = sure & (aseg == label)
        assert there.any()
        assert (found.labels[there] == subfield).all()
    assert found.notes == ()


def test_weights_may_ask_that_subfields_end_where_aseg_s_hippocampus_does(intensity_weights, monkeypatch):
    """What that does is tested in test_borders.py; here all of it is given to the background."""
    given = []

    def nothing_left(views, labels, aseg_labels, slope):
        given.append((labels, aseg_labels, slope))
        for view in views:
            view.prediction.probabilities[1:] = 0
            view.prediction.probabilities[0] = 1

    monkeypatch.setattr("medsegmamba_bids.inference.segmenter.follow_hippocampi", nothing_left)
    aseg, found = brain_labels(), {}
    for follow in (0.0, 4.0):
        weights = intensity_weights(
            "hippocampus", SUBFIELDS, voxel_size=2.0, patch_size=48, step=48, follow_aseg=follow
        )
        network, info = load_weights(weights)
        found[follow] = segment_hippocampus(network, info, conformed(aseg), aseg).labels
    assert found[0.0].any()
    assert not found[4.0].any()
    [(labels, aseg_labels, slope)] = given
    assert (labels, slope) == (info.labels, 4.0)
    assert aseg_labels is aseg
    own = np.where(aseg == 53, 0, aseg)
    segment_hippocampus(network, info, conformed(aseg), aseg, border_labels=own)
    assert given[-1][1] is own


def test_weights_may_ask_that_tissues_end_where_intensities_do(intensity_weights, monkeypatch):
    """What that does is tested in test_tissue_borders.py."""
    given = []

    def note(posteriors, image, weight):
        given.append((posteriors.shape[1:], image, weight))

    monkeypatch.setattr("medsegmamba_bids.inference.tissue_borders.follow_intensities", note)
    image = conformed(brain_labels())
    for weight in (0.0, 0.4):
        weights = intensity_weights("aseg", LEVELS, voxel_size=4.0, follow_intensities=weight)
        segment_conformed(*load_weights(weights), image)
    [(shape, seen, weight)] = given
    assert weight == 0.4
    assert seen.shape == shape
    assert np.isin(seen, np.asanyarray(image.dataobj)).all()


def test_weights_may_ask_to_see_the_deep_structures_once_more(intensity_weights, monkeypatch):
    """Last of all, in a patch of 32 voxels of 1 mm around the middle of both hippocampi, which lie in x 40..88."""
    boxes = []

    def noting(network, volume, n_classes, patching, resources, box):
        boxes.append((box, patching))
        return predict_volume(network, volume, n_classes, patching, resources, box)

    monkeypatch.setattr("medsegmamba_bids.inference.segmenter.predict_volume", noting)
    found = {}
    for deep in (None, 1.0):
        weights = intensity_weights("aseg", LEVELS, voxel_size=4.0, deep_voxel_size=deep, deep_patch_size=32)
        found[deep] = segment_conformed(*load_weights(weights), conformed(brain_labels()))
    box, patching = boxes[-1]
    assert box == (slice(48, 80), slice(40, 72), slice(44, 76))
    assert patching.patch_size == 32
    assert len(boxes) == 1 + 2
    exact = [np.count_nonzero(found[deep].labels[box] != brain_labels()[box]) for deep in (None, 1.0)]
    # borders between voxels of 4 mm are blurred, and half of what counts is of these
    assert exact[1] < 0.6 * exact[0]
    outside = np.ones((SIDE,) * 3, bool)
    outside[box] = False
    np.testing.assert_array_equal(found[1.0].labels[outside], found[None].labels[outside])


def test_a_voxel_elsewhere_does_not_move_what_is_seen_once_more(intensity_weights, monkeypatch):
    boxes = []

    def noting(network, volume, n_classes, patching, resources, box):
        boxes.append(box)
        return predict_volume(network, volume, n_classes, patching, resources, box)

    monkeypatch.setattr("medsegmamba_bids.inference.segmenter.predict_volume", noting)
    weights = intensity_weights("aseg", LEVELS, voxel_size=4.0, deep_voxel_size=1.0, deep_patch_size=32)
    labels = brain_labels()
    labels[32:36, 84:88, 92:96] = 17  # a voxel of the network
    segment_conformed(*load_weights(weights), conformed(labels))
    assert boxes[-1] == (slice(48, 80), slice(40, 72), slice(44, 76))


def test_nothing_deep_is_seen_once_more_where_none_was_found(intensity_weights):
    weights = intensity_weights("aseg", LEVELS, voxel_size=4.0, deep_voxel_size=1.0)
    labels = np.where(brain_labels() > 0, 16, 0).astype(np.uint8)
    assert set(np.unique(segment_conformed(*load_weights(weights), conformed(labels)).labels)) == {0, 16}


def test_one_hippocampus_is_enough_and_noted(subfields):
    aseg = np.where(brain_labels() == 53, 16, brain_labels())
    found = segment_hippocampus(*subfields, conformed(aseg), aseg)
    assert found.notes == ("no right hippocampus was found",)
    assert found.voxels[1203] > 0


def test_subfields_need_labels_that_fit(subfields):
    aseg = brain_labels()
    with pytest.raises(SegmentationError, match="no hippocampus was found"):
        segment_hippocampus(*subfields, conformed(aseg), np.zeros_like(aseg))
    with pytest.raises(SegmentationError, match=r"labels of shape \(4, 4, 4\) for an image of shape \(128, 128, 128\)"):
        segment_hippocampus(*subfields, conformed(aseg), aseg[:4, :4, :4])


def test_groups_of_classes_that_hang_together():
    config = {"classes": 5}
    aseg = WeightsInfo("a", "medsegmamba", config, "aseg", (0, 4, 17, 43, 53))
    assert class_groups(aseg) == []
    whole = WeightsInfo("a", "medsegmamba", config, "aseg", (0, 2, 3, 41, 42))
    assert class_groups(whole) == [[1, 2, 3, 4]]
    fluid = WeightsInfo("a", "medsegmamba", {"classes": 6}, "aseg", (0, 2, 3, 41, 42, 257))
    assert class_groups(fluid) == [[1, 2, 3, 4], [1, 2, 3, 4, 5]]
    both = WeightsInfo("b", "medsegmamba", config, "hippocampus", (0, 1203, 1204, 2203, 2204))
    assert class_groups(both) == [[1, 2], [3, 4]]
    left = WeightsInfo("c", "medsegmamba", {"classes": 2}, "hippocampus", (0, 1203))
    assert class_groups(left) == [[1]]


# The keeper of networks


def test_networks_are_loaded_once_and_again_when_the_file_changed(intensity_weights, tmp_path):
    weights = intensity_weights("aseg", LEVELS, voxel_size=4.0)
    segmenter = Segmenter(InferenceSettings(device="cpu"))
    network, info = segmenter.load(weights, "aseg")
    assert segmenter.load(str(weights), "aseg")[0] is network
    assert info.name == "known-aseg"
    intensity_weights("aseg", LEVELS | {10: 0.9}, voxel_size=4.0)
    os.utime(weights, ns=(1, 1))
    assert segmenter.load(weights, "aseg")[0] is not network


def test_the_keeper_refuses_early(intensity_weights):
    weights = intensity_weights("aseg", LEVELS)
    with pytest.raises(WeightsError, match="weights for the task aseg, not for hippocampus"):
        Segmenter().load(weights, "hippocampus")
    for step in (0, 17):
        with pytest.raises(
            SegmentationError, match=rf"step {step}: must lie in 1\.\.16, the patch size of .* known-aseg"
        ):
            Segmenter(InferenceSettings(step=step)).load(weights, "aseg")
    with pytest.raises(ValueError, match="device 'abacus' is unknown"):
        Segmenter(InferenceSettings(device="abacus"))
    with pytest.raises(ValueError, match="precision 'int8' is unknown"):
        Segmenter(InferenceSettings(device="cpu", precision="int8"))


def test_an_image_is_segmented_on_its_own_grid(intensity_weights):
    labels = brain_labels()
    native = nib.as_closest_canonical(conformed(labels)).slicer[::2, ::2, ::2]
    expected = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels, AFFINE)).dataobj)[::2, ::2, ::2]
    image = nib.Nifti1Image(np.asarray(native.dataobj), native.affine)
    found = conform_and_segment(
        Segmenter(),
        image,
        intensity_weights("aseg", LEVELS, voxel_size=4.0),
        hippocampus=True,
        hippocampus_weights=intensity_weights("hippocampus", SUBFIELDS, voxel_size=2.0, patch_size=48, step=48),
    ).on_grid_of(image)
    sure = inner(expected, 5)
    np.testing.assert_array_equal(found.aseg[sure], expected[sure])
    for label, subfield in ((17, 1203), (53, 2203)):
        there = sure & (expected == label)
        assert (found.hippocampus[there] == subfield).mean() > 0.95
    assert found.notes == ()
