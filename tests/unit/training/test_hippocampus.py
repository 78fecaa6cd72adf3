"""Subfields painted into hippocampi by shape, and by what an image shows."""

import json

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.image.geometry import turn_to_lia
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.training.synthetic.label_maps import read_lia
from medsegmamba_bids.training.synthetic.subfield_tissues import ALVEUS, FIMBRIA, FISSURE
from medsegmamba_bids.training.synthetic.subfields import (
    SUBFIELDS,
    SubfieldAtlas,
    load_atlas,
    of_a_person,
    paint_subfields,
    with_published_volumes,
    with_volumes,
)
from medsegmamba_bids.training.synthetic.tissues import load_tissue_table

SUBFIELD_NUMBERS = sorted(SUBFIELDS.values())


def ellipsoid(shape, centre, radii):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


@pytest.fixture(scope="module")
def atlas():
    """A left "hippocampus" in twelve slabs from front to back."""
    mask = ellipsoid((42, 40, 64), (20, 19, 31), (7, 6, 19))
    slabs = np.array(SUBFIELD_NUMBERS)[np.clip((np.arange(64) - 13) // 3, 0, 11)]
    return SubfieldAtlas(np.where(mask, slabs, 0).astype(np.int32))


@pytest.fixture(scope="module")
def painted(atlas):
    """A head with two mirror-image hippocampi, somewhat larger than the atlas', before and after."""
    labels = np.zeros((101, 60, 80), np.uint16)
    labels[ellipsoid(labels.shape, (70, 30, 40), (8, 7, 22))] = 17
    labels[ellipsoid(labels.shape, (30, 30, 40), (8, 7, 22))] = 53
    labels[5:10, 5:10, 5:10] = 2
    return labels, paint_subfields(labels, atlas)


def test_all_twelve_on_both_sides(painted):
    labels, found = painted
    assert sorted(set(found[labels == 17].tolist())) == [1000 + n for n in SUBFIELD_NUMBERS]
    assert sorted(set(found[labels == 53].tolist())) == [2000 + n for n in SUBFIELD_NUMBERS]


def test_only_hippocampi_change(painted):
    labels, found = painted
    outside = ~np.isin(labels, (17, 53))
    assert np.array_equal(found[outside], labels[outside])
    assert found.dtype == np.int32
    assert (labels == 17).sum() > 1000  # the input is not written to


def test_sides_mirror_each_other(painted):
    _, found = painted
    swapped = np.where(found > 2000, found - 1000, np.where(found > 1000, found + 1000, found))[::-1]
    both = (found > 1000) & (swapped > 1000)
    assert both.sum() > 1000
    assert (found == swapped)[both].mean() > 0.98


def test_order_is_kept(painted):
    """The slabs follow each other as in the atlas."""
    _, found = painted
    middles = [np.argwhere(found == 1000 + n)[:, 2].mean() for n in SUBFIELD_NUMBERS]
    assert middles == sorted(middles)


def test_a_missing_side_is_left_out(atlas):
    labels = np.zeros((60, 50, 70), np.uint16)
    labels[ellipsoid(labels.shape, (30, 25, 35), (7, 6, 19))] = 17
    found = paint_subfields(labels, atlas)
    assert 1000 < found[labels == 17].min() <= found.max() < 2000


def blocks():
    """Three slabs of 4 voxels across a block, and their volumes."""
    labels = np.zeros((20, 14, 14), np.int32)
    labels[4:8, 2:12, 2:12], labels[8:12, 2:12, 2:12], labels[12:16, 2:12, 2:12] = 204, 205, 206
    return labels


def test_borders_move_to_the_wanted_proportions():
    """Volumes within 3 % of the block; the outer border and the order of the slabs stay."""
    labels = blocks()
    for wanted in ({204: 1.0, 205: 1.0, 206: 1.0}, {204: 3.0, 205: 4.0, 206: 5.0}, {204: 30.0, 205: 20.0, 206: 10.0}):
        moved = with_volumes(labels, wanted)
        assert np.array_equal(moved > 0, labels > 0)
        shares = np.array([(moved == label).sum() for label in wanted]) / (labels > 0).sum()
        assert np.abs(shares - np.array([*wanted.values()]) / sum(wanted.values())).max() < 0.03
        middles = [np.argwhere(moved == label)[:, 0].mean() for label in wanted]
        assert middles == sorted(middles)


def test_own_proportions_change_nothing():
    assert np.array_equal(with_volumes(blocks(), {204: 400, 205: 400, 206: 400}), blocks())


def test_published_volumes_are_those_of_the_papers():
    """Chen et al. 2018, table 3, as it stands there; every subfield has one."""
    volumes = with_published_volumes(SubfieldAtlas(blocks())).volumes
    assert (volumes[206], volumes[226], volumes[203]) == (638.4, 560.9, 64.8)
    assert sorted(volumes) == SUBFIELD_NUMBERS


def test_people_differ_by_the_spread():
    labels = blocks()
    found = [of_a_person(SubfieldAtlas(labels), f"head_{n}", 0.1).volumes for n in range(400)]
    factors = np.log([[volumes[label] / 400 for label in (204, 205, 206)] for volumes in found])
    assert np.allclose(factors.std(0), 0.1, rtol=0.15)
    assert np.abs(factors.mean(0)).max() < 0.02
    assert of_a_person(SubfieldAtlas(labels), "head_3", 0.1).volumes == found[3]
    assert of_a_person(SubfieldAtlas(labels), "head_3", 0.0).volumes is None


def test_hippocampi_are_painted_with_the_proportions_of_the_atlas(atlas):
    """On both sides, although the head's hippocampi are larger than the atlas'."""
    labels = np.zeros((101, 60, 80), np.uint16)
    labels[ellipsoid(labels.shape, (70, 30, 40), (8, 7, 22))] = 17
    labels[ellipsoid(labels.shape, (30, 30, 40), (8, 7, 22))] = 53
    wanted = {n: 1.0 + (n == 206) for n in SUBFIELD_NUMBERS}
    found = paint_subfields(labels, SubfieldAtlas(atlas.labels, wanted))
    for side, offset in ((17, 1000), (53, 2000)):
        shares = [(found == offset + n).sum() / (labels == side).sum() for n in SUBFIELD_NUMBERS]
        assert np.allclose(shares, [wanted[n] / 13 for n in SUBFIELD_NUMBERS], atol=0.02)


def test_the_table_has_these_labels():
    expected = [1000 + n for n in SUBFIELD_NUMBERS] + [2000 + n for n in SUBFIELD_NUMBERS]
    assert sorted(load_label_table("hippoFS60").labels[1:].tolist()) == expected


def test_atlases_are_read_by_name(tmp_path):
    """Head and body of a subfield are one; amygdala nuclei are left out; the array is LIA with a margin."""
    indices = np.zeros((10, 12, 14), np.uint8)
    indices[4, 5, 6], indices[5, 5, 6], indices[6, 5, 6] = 1, 2, 3
    nib.save(nib.Nifti1Image(indices, np.eye(4)), tmp_path / "atlas.nii.gz")
    names = {"labels": ["background", "CA1-head", "CA1-body", "Lateral-nucleus"]}
    (tmp_path / "names.json").write_text(json.dumps(names))
    labels = load_atlas(tmp_path / "atlas.nii.gz", tmp_path / "names.json").labels
    assert labels.shape == (26, 25, 25)
    assert (labels == 206).sum() == 2
    assert sorted(set(labels.ravel().tolist())) == [0, 206]


@pytest.mark.slow
def test_a_real_head(shared):
    """All 24 labels in a real label map, each side's volumes in a plausible order."""
    folder = shared / "data" / "hippocampus"
    atlas = load_atlas(folder / "mni_left_hippoamyg.nii.gz", folder / "mni_left_hippoamyg_labels.json")
    labels, _ = read_lia(shared / "data" / "synthesis_labels" / "head_01.nii.gz")
    found = paint_subfields(labels.astype(np.int32), atlas)
    for side, offset in ((17, 1000), (53, 2000)):
        numbers, counts = np.unique(found[labels == side], return_counts=True)
        assert numbers.tolist() == [offset + n for n in SUBFIELD_NUMBERS]
        volumes = dict(zip((numbers - offset).tolist(), counts, strict=True))
        assert volumes[206] > 3 * volumes[203]  # CA1 and parasubiculum
        assert max(volumes.values()) < 0.4 * counts.sum()


#: Intensity minus that of the whole hippocampus (white matter: 1): the atlas painted into ten hippocampi of real heads
#: as their images have it.
SEEN = {203: -0.019, 204: 0.032, 205: 0.012, 206: -0.018, 208: 0.015, 209: -0.021}
SEEN |= {210: -0.018, 211: -0.027, 212: 0.173, 214: -0.013, 215: -0.124, 226: 0.018}


def test_subfields_differ_as_much_as_real_heads_show():
    """Once to twice as much, since what is thin shares its voxels: a bright fimbria, a dark fissure, the rest alike."""
    rows = load_tissue_table("hippoFS60").rows.set_index("label")
    for offset in (1000, 2000):
        means = rows["mean"].loc[[offset + n for n in SEEN]].to_numpy()
        seen = np.array([*SEEN.values()])
        slope, hippocampus = np.polyfit(seen, means, 1)
        assert 1 < slope < 2
        assert np.abs(means - (hippocampus + slope * seen)).max() < 0.04
        assert hippocampus - rows["mean"].loc[3] == pytest.approx(0.04, abs=0.01)  # and it is brighter than cortex


@pytest.fixture(scope="module")
def layered():
    """An atlas with a fissure in its middle and a fimbria on top, beside the slabs; alveus below."""
    atlas = ellipsoid((42, 40, 64), (20, 19, 31), (7, 6, 19))
    labels = np.where(atlas, np.array([205, 206, 226])[np.clip((np.arange(64) - 13) // 13, 0, 2)], 0)
    x, y, z = np.indices(labels.shape)
    labels[atlas & (y <= 14)] = FIMBRIA
    labels[atlas & (y >= 24)] = ALVEUS
    labels[(abs(x - 20) < 3) & (abs(y - 19) < 2) & (abs(z - 31) < 8)] = FISSURE
    return SubfieldAtlas(labels.astype(np.int32), share=0.9)


@pytest.fixture(scope="module")
def shown():
    """A left hippocampus and how it looks: a dark fissure 2 mm beside the middle, a bright rim above that is no part of
    it.
    """
    labels = np.zeros((60, 60, 80), np.int32)
    labels[:, :16] = 2
    labels[:4, 6:10] = 4
    hippocampus = ellipsoid(labels.shape, (30, 30, 40), (7, 6, 19))
    labels[hippocampus] = 17
    x, y, z = np.indices(labels.shape)
    image = np.full(labels.shape, 0.6)
    image[labels == 2], image[labels == 4] = 1.0, 0.1
    dark = (abs(x - 32) < 3) & (abs(y - 30) < 2) & (abs(z - 40) < 8)
    rim = ellipsoid(labels.shape, (30, 30, 40), (8, 8, 20)) & ~hippocampus & (y <= 24)
    image[dark], image[rim] = 0.3, 0.9
    return labels, image, dark, rim


def test_fissure_and_fimbria_are_where_the_image_has_them(layered, shown):
    labels, image, dark, rim = shown
    found = paint_subfields(labels, layered, image)
    fissure, fimbria = found == 1000 + FISSURE, found == 1000 + FIMBRIA
    assert (fissure & dark).sum() / fissure.sum() > 0.9
    assert image[fimbria].mean() > 0.85
    assert (fimbria & rim).sum() / fimbria.sum() > 0.8  # beyond aseg's hippocampus


def test_without_contrast_they_are_where_the_atlas_has_them(layered, shown):
    labels, image, _, _ = shown
    flat = np.where(np.isin(labels, (2, 4)), image, 0.6)
    fissure = paint_subfields(labels, layered, flat) == 1000 + FISSURE
    assert abs(np.argwhere(fissure).mean(0)[0] - 30) < 0.6


def test_the_share_is_subfields_and_the_rest_stays_hippocampus(layered, shown):
    labels, image, _, _ = shown
    found = paint_subfields(labels, layered, image)
    whole = (labels == 17).sum()
    assert (found > 1000).sum() == pytest.approx(0.9 * whole, rel=0.03)
    assert (found == 17).any()
    assert set(np.unique(found[found > 1000])) <= {1000 + n for n in (205, 206, 226, FIMBRIA, FISSURE)}
    assert (labels == 17).sum() == whole  # the input is not written to


def test_a_brighter_scan_gives_the_same(layered, shown):
    """Intensities count relative to white matter and fluid of the same image."""
    labels, image, _, _ = shown
    assert np.array_equal(paint_subfields(labels, layered, image), paint_subfields(labels, layered, 1.1 * image))


def test_tissues_of_a_map_are_as_bright_as_the_table_says():
    labels = np.array([[0, 2, 3], [17, 1212, 999]])
    rows = load_tissue_table("hippoFS60").rows.set_index("label")["mean"]
    expected = [[rows[0], rows[2], rows[3]], [rows[17], rows[1212], 0]]
    assert np.allclose(load_tissue_table("hippoFS60").means_of(labels), expected)


def test_real_subfields_of_freesurfers_proportions(shared):
    """A real head with its image: both sides take up their share and stay near aseg's hippocampi."""
    folder = shared / "data"
    names = (f"hippocampus/mni_left_hippoamyg{end}" for end in (".nii.gz", "_labels.json"))
    atlas = with_published_volumes(load_atlas(*(folder / name for name in names), share=0.88))
    labels, turned = read_lia(folder / "reference" / "brain_a_aseg.nii.gz")
    image = turn_to_lia(nib.load(folder / "reference" / "brain_a_T1w.nii.gz")).get_fdata()
    found = paint_subfields(labels, atlas, image / np.median(image[np.isin(labels, (2, 41))]))
    for side, offset in ((17, 1000), (53, 2000)):
        subfields = (found > offset) & (found < offset + 300)
        assert subfields.sum() == pytest.approx(0.88 * (labels == side).sum(), rel=0.03)
        assert (subfields & (labels == side)).sum() > 0.9 * subfields.sum()
        wanted = {label: volume / sum(atlas.volumes.values()) for label, volume in atlas.volumes.items()}
        for label, share in wanted.items():
            assert (found == offset + label).sum() / subfields.sum() == pytest.approx(share, abs=0.015)
    assert turned.shape == image.shape
