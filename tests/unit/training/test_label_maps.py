"""Label maps made ready for synthesis: what is renamed, merged, limited and refused."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medsegmamba_bids.training.synthetic.label_maps import (
    LANDMARKS,
    OUTER_CSF,
    LabelMap,
    TemplateAtlas,
    build_map,
    prepare_map,
)
from medsegmamba_bids.training.synthetic.tissues import load_tissue_table


def write(labels, affine, folder, name="map.nii.gz"):
    path = folder / name
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def labels_of(label_map, tissues):
    """A prepared map's labels; the array is cropped to the head."""
    return tissues.rows["label"].to_numpy()[label_map.tissue]


def test_labels_outside_the_table_are_refused_with_the_file(tmp_path, head, lia, tissues):
    labels = head()
    labels[10, 10, 10], labels[10, 10, 11] = 700, 99
    path = write(labels, lia, tmp_path)
    with pytest.raises(ValueError, match=r"labels \[99, 700\] are not in the tissue table") as error:
        prepare_map(path, tissues)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: np.where(a == 502, a, 0).astype(np.int16), r"none of its labels \[0, 502\] is a class"),
        (lambda a: np.where(a == 2, 2.5, a).astype(np.float32), "its values are not whole numbers"),
    ],
)
def test_what_is_no_label_map(tmp_path, head, lia, tissues, change, message):
    path = write(change(head()), lia, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        prepare_map(path, tissues)
    assert str(path) in str(error.value)


def test_other_voxel_sizes_are_refused(tmp_path, head, tissues):
    path = write(head(), np.diag([-2.0, 2, 2, 1]), tmp_path)
    with pytest.raises(ValueError, match=r"label maps must have 1 mm voxels"):
        prepare_map(path, tissues)


def test_any_orientation_gives_the_same_map(tmp_path, head, lia, tissues):
    image = nib.Nifti1Image(head(), lia)
    ras = nib.as_closest_canonical(image)
    nib.save(ras, tmp_path / "ras.nii.gz")
    expected = prepare_map(write(head(), lia, tmp_path), tissues)
    found = prepare_map(tmp_path / "ras.nii.gz", tissues)
    assert np.array_equal(found.tissue, expected.tissue)
    assert np.array_equal(found.centres, expected.centres)


def test_synonyms_parcels_and_callosum(tmp_path, head, lia, tissues):
    labels = head()
    labels[10, 20, 20], labels[11, 20, 20], labels[30, 20, 20] = 163, 2035, 1001
    labels[30, 21, 20] = 251  # callosum within white matter of the left
    found = labels_of(prepare_map(write(labels, lia, tmp_path), tissues), tissues)
    corner = 4  # the crop starts at the skull
    assert found[10 - corner, 16, 16] == 63
    assert found[11 - corner, 16, 16] == 42
    assert found[30 - corner, 16, 16] == 3
    assert found[30 - corner, 17, 16] == 2


def test_merged_classes_are_accepted_where_the_map_lacks_them(label_map, tissues):
    index = {int(label): i for i, label in enumerate(tissues.table.labels)}
    without, with_plexus = label_map().accepts, label_map(plexus=True).accepts
    expected = np.eye(len(index), dtype=bool)
    for host, merged in ((2, 77), (41, 77)):
        expected[index[host], index[merged]] = True
    assert np.array_equal(with_plexus, expected)
    expected[index[4], index[31]] = expected[index[43], index[63]] = True
    assert np.array_equal(without, expected)


def test_measures_of_a_map(label_map, tissues):
    found = label_map()
    index = tissues.table.labels.tolist().index(17)
    assert found.counts[index] == 8 * 8 * 20
    assert found.centres[index].tolist() == [25.5, 27.5, 19.5]  # the crop starts at 4
    assert found.brain_box.tolist() == [[4, 35], [4, 35], [4, 35]]
    assert found.counts[0] == 0


def test_maps_are_stored_and_read(tmp_path, label_map):
    one = label_map()
    one.save(tmp_path / "map.npz")
    again = LabelMap.load(tmp_path / "map.npz")
    assert (again.name, again.stripped, again.weight, again.image) == ("head", False, 1.0, None)
    for name in ("tissue", "counts", "centres", "brain_box", "accepts"):
        assert np.array_equal(getattr(again, name), getattr(one, name))


def atlas_and_map():
    """Cubes of 3 voxels for landmarks of an atlas, and the same 10 voxels further along each axis in a head."""
    rng = np.random.default_rng(0)
    atlas = np.zeros((80, 80, 80), np.int32)
    labels = np.zeros((100, 100, 100), np.int32)
    labels[2:98, 2:98, 2:98] = 502
    for label, place in zip(LANDMARKS, rng.integers(10, 70, (len(LANDMARKS), 3)), strict=True):
        atlas[tuple(slice(p - 1, p + 2) for p in place)] = label
        labels[tuple(slice(p + 9, p + 12) for p in place)] = label
    return atlas, labels


def test_csf_stays_only_where_the_atlas_has_it(tmp_path, lia, tissues):
    """A map whose label 24 is all fluid: only the part near the atlas' 24, through an affine, keeps it."""
    atlas, labels = atlas_and_map()
    atlas[40:44, 40:44, 40:44] = 24
    labels[50:54, 50:54, 50:54] = 24  # belongs there
    labels[60:64, 50:54, 50:54] = 24  # 6 voxels off
    path = write(labels.astype(np.int16), lia, tmp_path)
    found = labels_of(prepare_map(path, tissues, atlas=TemplateAtlas(atlas)), tissues)
    assert (found[48:52, 48:52, 48:52] == 24).mean() > 0.9
    assert (found[58:62, 48:52, 48:52] != 24).all()
    assert (found[58:62, 48:52, 48:52] == OUTER_CSF).mean() > 0.9
    everywhere = labels_of(prepare_map(path, tissues), tissues)
    assert (everywhere[58:62, 48:52, 48:52] == 24).mean() > 0.9


def test_the_pallidum_reaches_into_white_matter_as_in_the_atlas(tmp_path, lia, tissues):
    """Not beyond the atlas', not into other tissues, not far from the map's own."""
    atlas, labels = atlas_and_map()
    middle = np.argwhere(atlas == 13).mean(0).round().astype(int)

    def around(reach, shift):
        return tuple(slice(m + shift - reach, m + shift + reach + 1) for m in middle)

    atlas[around(2, 0)] = 13  # as wide as that
    labels[around(5, 10)] = 2
    labels[around(1, 10)] = 13
    labels[middle[0] + 12, middle[1] + 10, middle[2] + 10] = 12  # putamen stays
    path = write(labels.astype(np.int16), lia, tmp_path)
    found = labels_of(prepare_map(path, tissues, atlas=TemplateAtlas(atlas)), tissues)
    expected = np.full((11, 11, 11), 2)
    grown = ndimage.binary_dilation(labels[around(5, 10)] != 2, iterations=2)  # by faces
    expected[3:8, 3:8, 3:8][grown[3:8, 3:8, 3:8]] = 13
    expected[7, 5, 5] = 12
    assert np.array_equal(found[around(5, 8)], expected)  # cropped by 2 voxels
    kept = labels_of(prepare_map(path, tissues), tissues)
    assert (kept == 13).sum() == 27


def test_a_brain_alone_gets_fluid_around(tmp_path, head, lia, tissues):
    labels = head()
    labels[labels == 502] = 0
    found = labels_of(prepare_map(write(labels, lia, tmp_path), tissues), tissues)
    # The brain is 32 voxels wide; the shell adds 3 on each side.
    assert found.shape == (38, 38, 38)
    assert found[0, 19, 19] == found[2, 19, 19] == OUTER_CSF
    assert found[3, 19, 19] == 41


def test_images_are_brought_to_the_map(tmp_path, head, lia, tissues):
    """White matter lies at 1, whatever the image's scale and grid."""
    labels = head()
    picture = np.where(np.isin(labels, (2, 41)), 800, np.where(labels > 0, 400, 0)).astype(np.float32)
    image = nib.as_closest_canonical(nib.Nifti1Image(picture, lia))
    found = prepare_map(write(labels, lia, tmp_path), tissues, image=image, stripped=True)
    assert found.stripped
    here = labels_of(found, tissues)
    assert np.allclose(found.image[here == 2], 1)
    assert np.allclose(found.image[here == 17], 0.5)


def test_names_are_kept(head, tissues):
    with pytest.raises(ValueError, match=r"maps/a\.nii: labels \[999\]"):
        build_map("a", np.where(head() == 17, 999, head()), tissues, source="maps/a.nii")


def test_maps_of_freesurfer_keep_csf_and_pallidum(tmp_path, lia, tissues):
    """They name nothing outside the brain; an atlas changes only the maps that do."""
    atlas, labels = atlas_and_map()
    middle = np.argwhere(atlas == 13).mean(0).round().astype(int)
    around = tuple(slice(m + 7, m + 14) for m in middle)
    atlas[tuple(slice(m - 3, m + 4) for m in middle)] = 13
    labels[around] = np.where(labels[around] == 13, 13, 2)
    labels[60:64, 50:54, 50:54] = 24
    labels[labels == 502] = 0
    path = write(labels.astype(np.int16), lia, tmp_path)
    found = labels_of(prepare_map(path, tissues, atlas=TemplateAtlas(atlas)), tissues)
    assert [(found == label).sum() for label in (13, 24)] == [(labels == label).sum() for label in (13, 24)]


def test_fluid_around_a_brain_alone_may_be_background(tmp_path, head, lia):
    """Nobody drew that border; a map that names what lies outside has drawn it."""
    tissues = load_tissue_table("aseg_head")
    fluid = tissues.table.labels.tolist().index(257)
    labels = head()
    drawn = prepare_map(write(labels, lia, tmp_path), tissues)
    assert not drawn.accepts[0, fluid]
    assert not drawn.accepts[fluid, 0]
    labels[labels == 502] = 0
    alone = prepare_map(write(labels, lia, tmp_path, "brain.nii.gz"), tissues)
    assert alone.accepts[0, fluid]
    assert alone.accepts[fluid, 0]
    assert alone.counts[fluid] == 38**3 - 32**3 - corners_of_a_shell()
    assert alone.brain_box.tolist() == [[3, 34]] * 3  # without the fluid


def corners_of_a_shell():
    """Voxels of a cube 3 voxels wider than a solid one that are more than 3 steps by faces away from it."""
    cube = np.zeros((38, 38, 38), bool)
    cube[3:-3, 3:-3, 3:-3] = True
    return int((~ndimage.binary_dilation(cube, iterations=3)).sum())


def test_a_whole_head_is_not_cut_to_its_brain(tmp_path, head, lia, tissues):
    """FreeSurfer's map of a head ends with the brain; the head in the image goes on."""
    labels = head()
    picture = np.where(np.isin(labels, (2, 41)), 800, np.where(labels > 0, 400, 0)).astype(np.float32)
    labels[labels == 502] = 0
    image = nib.Nifti1Image(picture, lia)
    path = write(labels, lia, tmp_path)
    assert prepare_map(path, tissues, image=image).tissue.shape == (40, 40, 40)
    assert prepare_map(path, tissues, image=image, stripped=True).tissue.shape == (38, 38, 38)


def test_what_grows_beside_what(tissues):
    """White matter turns into the ventricle beside it, cortex into the fluid outside, a ventricle into white matter."""
    labels = np.zeros((40, 20, 20), np.int32)
    labels[0:4] = OUTER_CSF
    labels[4:8] = 3
    labels[8:28] = 2
    labels[28:34] = 4
    found = build_map("slabs", labels, tissues)
    to = tissues.rows["label"].to_numpy()[found.neighbour]
    column = found.neighbour_distance[:, 10, 10]
    assert to[4, 10, 10] == OUTER_CSF
    assert column[4:8].tolist() == [10, 20, 30, 40]
    assert to[27, 10, 10] == 4
    assert column[20:28].tolist() == [80, 70, 60, 50, 40, 30, 20, 10]
    assert (column[8:20] == 255).all()  # near the cortex, and too far from the ventricle
    assert to[28, 10, 10] == 2
    assert column[28:34].tolist() == [10, 20, 30, 40, 50, 60]
    assert (column[:4] == 255).all()


def test_white_matter_near_cortex_is_kept(tissues):
    labels = np.zeros((20, 12, 12), np.int32)
    labels[2:6], labels[6:9], labels[9:12] = 3, 2, 4
    distance = build_map("thin", labels, tissues).neighbour_distance[:, 6, 6]  # the crop starts at 2
    assert distance[4:7].tolist() == [255, 255, 10]
