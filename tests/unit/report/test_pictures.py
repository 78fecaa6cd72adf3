"""What pictures show, by value: sides, positions, colours, surfaces."""

import re

import nibabel as nib
import numpy as np
import pytest

import fake
from medsegmamba_bids.image.labels import load_label_table, side_of
from medsegmamba_bids.report.derivatives import scans_of
from medsegmamba_bids.report.pictures import draw_pictures
from medsegmamba_bids.viz import slices, surfaces
from medsegmamba_bids.viz.encoding import color_differences, colors_of, dashes_of, line_colors_of

WHOLE = (slice(0, 6), slice(0, 8), slice(0, 10))


def marked(*at):
    """An image in RAS+ order with one bright voxel."""
    data = np.zeros((6, 8, 10), np.uint8)
    data[at] = 1
    return data


@pytest.mark.parametrize(
    ("plane", "at", "row", "column"),
    [
        ("axial", (1, 6, 4), 1, 1),  # left and anterior: on the left, above
        ("coronal", (4, 3, 1), 8, 4),  # right and inferior: on the right, below
        ("sagittal", (2, 7, 9), 0, 0),  # anterior and superior: on the left, above
    ],
)
def test_left_is_left_and_up_is_up(plane, at, row, column):
    axis = slices.PLANES[plane]
    mosaic = slices.Mosaic(axis, (at[axis],), WHOLE, 1, 1.0)
    assert np.argwhere(mosaic.slice(marked(*at), 0)).tolist() == [[row, column]]


def test_slices_stand_in_rows():
    mosaic = slices.Mosaic(2, (2, 5, 7), WHOLE, 2, 3.0)
    picture = slices.draw_base(mosaic, marked(0, 7, 7), 1.0)
    assert picture.shape == (2 * 8 * 3, 2 * 6 * 3)
    rows, columns = np.nonzero(picture > 128)  # the third slice, its upper left voxel
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 26, 0, 2)
    assert mosaic.positions(np.diag([1.0, 1, 2, 1])) == [4, 10, 14]


def points_of(path):
    """Return the points of an SVG path's first line, voxels."""
    start, steps = re.match(r"M(-?\d+ -?\d+)l([-\d ]+)z", path).groups()
    numbers = np.array(f"{start} {steps}".split(), float).reshape(-1, 2)
    return numbers.cumsum(0) / 10


def test_outlines_lie_around_their_label():
    labels = np.zeros((40, 40, 4), np.int32)
    labels[10:20, 15:30] = 10
    paths = slices.outline_paths(slices.Mosaic(2, (1,), (slice(0, 40), slice(0, 40), slice(0, 4)), 1, 5.0), labels, 0)
    assert paths.keys() == {10}
    x, y = points_of(paths[10]).T
    # Row 0 is the voxel of index 39; outlines run along the outer faces of the voxels.
    assert (y.min(), y.max()) == pytest.approx((10, 25), abs=0.5)
    assert (x.min(), x.max()) == pytest.approx((10, 20), abs=0.5)


def test_the_smallest_label_is_drawn():
    labels = marked(3, 3, 3).astype(np.int32) * 26
    x, y = points_of(slices.outline_paths(slices.Mosaic(2, (3,), WHOLE, 1, 8.0), labels, 0)[26]).T
    assert (x.mean(), y.mean()) == pytest.approx((3.5, 4.5), abs=0.1)
    assert np.ptp(x) > 0.5


@pytest.mark.parametrize(("bits", "opacity"), [(0.0, 0), (1.0, 0), (1.25, 102), (2.0, 230), (4.0, 230)])
def test_entropy_is_clear_up_to_that_of_a_border(bits, opacity):
    picture = slices.draw_entropy(slices.Mosaic(2, (3,), WHOLE, 1, 5.0), marked(3, 3, 3) * bits)
    assert picture[4, 3, 3] == pytest.approx(opacity, abs=1)
    assert not picture[0, 0, 3]


@pytest.fixture(scope="module")
def head():
    """A brain of balls with subfields, RAS+ order."""
    labels, affine = fake.blob_labels(112)
    image = nib.as_closest_canonical(nib.Nifti1Image(labels, affine))
    parts = nib.as_closest_canonical(nib.Nifti1Image(fake.blob_subfields(labels), affine))
    return {"aseg": np.asarray(image.dataobj), "hippoFS60": np.asarray(parts.dataobj)}


@pytest.mark.parametrize("name", ["aseg", "hippoFS60"])
@pytest.mark.parametrize("plane", slices.PLANES)
def test_every_structure_is_in_two_slices_of_each_plane(head, name, plane):
    axis = slices.PLANES[plane]
    chosen = list(slices.covering(head[name], axis, 8, 16))
    assert 8 <= len(chosen) <= 16
    for label in np.unique(head[name])[1:]:
        own = np.moveaxis(head[name] == label, axis, 0).any((1, 2))
        assert own[chosen].sum() >= min(2, own.sum()), label


@pytest.mark.parametrize("first_mm", [-56.0, 0.0, 60.0, -200.0])
@pytest.mark.parametrize("names", [("aseg",), ("aseg", "hippoFS60")])
def test_each_hippocampus_is_drawn_wherever_the_head_lies(head, names, first_mm):
    """Where x is 0 says nothing: an affine may begin at the first voxel."""
    affine = np.eye(4)
    affine[0, 3] = first_mm  # the head's middle lies 56 mm further to the right
    labels = {name: head[name] for name in names}
    t1w = nib.Nifti1Image(fake.blob_t1w(head["aseg"]), affine)
    pictures = draw_pictures(t1w, labels, {}, head["aseg"] > 0, 0.3).close_up
    assert [picture["title"] for picture in pictures] == [
        f"{side} hippocampus, {plane}" for side in ("left", "right") for plane in ("coronal", "sagittal")
    ]
    drawn = [{label for tile in picture["tiles"] for label in tile["outlines"]} for picture in pictures]
    left, right = ({17}, {53}) if names == ("aseg",) else sides_of(head["hippoFS60"])
    assert [drawn[0] | drawn[1], drawn[2] | drawn[3]] == [left, right]
    assert all(drawn)
    alone = {name: np.where(is_right(array), 0, array) for name, array in labels.items()}
    assert [picture["title"][:4] for picture in draw_pictures(t1w, alone, {}, detail=0.3).close_up] == ["left", "left"]


def is_right(labels):
    return (labels == 53) | (labels >= 2000)


def sides_of(subfields):
    present = set(np.unique(subfields).tolist()) - {0}
    return {label for label in present if label < 2000}, {label for label in present if label >= 2000}


def test_no_labels_need_no_slices():
    assert slices.covering(np.zeros((3, 3, 3), int), 0, 4, 8) == ()


def test_similar_colours_have_different_dashes():
    dashes, colors = dashes_of("aseg_brain"), line_colors_of("aseg_brain")
    assert dashes[5] != dashes[77]  # Inf-Lat-Vent and WM-hypointensities
    assert dashes[26] != dashes[8]  # Accumbens-area and Cerebellum-Cortex
    assert dashes[17] == dashes[53]  # both hippocampi
    apart = color_differences(list(colors.values()))
    names = dict(zip(load_label_table("aseg_brain").labels, load_label_table("aseg_brain").names, strict=True))
    labels = list(colors)
    pairs = [(labels[i], labels[j]) for i, j in np.argwhere(apart < 12)]
    alike = [pair for pair in pairs if len({side_of(names[label])[1] for label in pair}) == 2]
    assert len(alike) > 4
    assert all(dashes[one] != dashes[other] for one, other in alike)


@pytest.mark.parametrize("table", ["aseg_brain", "hippoFS60"])
def test_outlines_are_seen_on_black(table):
    """WCAG asks 3:1 of lines. CSF was at 1.9, the presubiculum at 1.4."""
    from matplotlib.colors import to_rgb
    from skimage.color import rgb2hsv, rgb2xyz

    before, after = (np.array([[to_rgb(c) for c in of(table).values()]]) for of in (colors_of, line_colors_of))
    contrast = (rgb2xyz(after)[0, :, 1] + 0.05) / 0.05
    assert contrast.min() > 3
    bright = (rgb2xyz(before)[0, :, 1] + 0.05) / 0.05 > 3.45
    np.testing.assert_array_equal(after[0, bright], before[0, bright])
    assert 0 < np.count_nonzero(~bright) < len(bright) / 2
    colored = rgb2hsv(before)[0, :, 1] > 0.1
    turned = np.abs(rgb2hsv(after)[0, colored, 0] - rgb2hsv(before)[0, colored, 0])
    assert np.minimum(turned, 1 - turned).max() < 0.02


def test_specks_are_not_drawn():
    labels = np.zeros((30, 30, 30), np.int32)
    labels[4:14, 4:14, 4:14] = 7
    alone = surfaces.label_surfaces(labels, np.eye(4), {7: "#ff0000"})[0].points
    labels[22:25, 22:25, 22:25] = 7  # 27 of 1027 voxels
    assert surfaces.label_surfaces(labels, np.eye(4), {7: "#ff0000"})[0].points.max() == alone.max()
    labels[20:25, 20:25, 20:25] = 7  # 125 of 1125
    assert surfaces.label_surfaces(labels, np.eye(4), {7: "#ff0000"})[0].points.max() > 24


def test_painted_labels():
    base, labels = np.full((1, 2), 0.5), np.array([[0, 10]])
    assert slices.fill_labels(base, labels, {10: "#ff0000"}, 0.5).tolist() == [[[128, 128, 128], [191, 64, 64]]]


def test_positions_and_normals_of_a_ball():
    ball = np.linalg.norm(np.indices((21, 21, 21)) - 10, axis=0) < 7.5
    found = surfaces.find_surface(ball, (1.0, 0.0, 0.0), np.array([100.0, 0.0, 0.0]))
    outwards = found.points - np.array([110.0, 10.0, 10.0])
    radii = np.linalg.norm(outwards, axis=-1)
    assert radii.mean() == pytest.approx(7.4, abs=0.15)
    assert radii.std() < 0.15
    cosines = (found.normals * outwards).sum(-1) / radii
    assert cosines.min() > 0.9
    assert surfaces.find_surface(np.zeros((4, 4, 4), bool), (1, 0, 0), np.zeros(3)) is None


def test_what_is_nearer_hides_what_is_behind():
    labels = np.zeros((24, 40, 24), np.int32)
    labels[6:18, 4:12, 6:18], labels[6:18, 26:34, 6:18] = 1, 2  # 2 lies in front
    colors = {1: (1.0, 0.0, 0.0), 2: (0.0, 0.0, 1.0)}
    solids = surfaces.label_surfaces(labels, np.eye(4), colors)
    front = surfaces.draw(solids, surfaces.view_matrix(0, 0), 4)
    back = surfaces.draw(solids, surfaces.view_matrix(180, 0), 4)
    middle = tuple(n // 2 for n in front.shape[:2])
    assert front[middle][2] > 100 > front[middle][0]
    assert back[middle][0] > 100 > back[middle][2]
    assert front[0, 0, 3] == 0
    # 12 voxels of 1 mm at 4 pixels each, and a margin of 8.
    assert front.shape[:2] == pytest.approx((12 * 4 + 16,) * 2, abs=6)


def test_every_label_has_a_colour_of_its_table():
    assert colors_of("aseg")[10] == "#00760e"
    assert colors_of("hippoFS60", (1203,)).keys() == set(colors_of("hippoFS60")) - {1203}


@pytest.mark.parametrize("prefix", ["sub-01", "sub-01_ses-a_acq-mprage_run-2", "sub-01_rec-norm"])
def test_scans_are_found_by_their_names(tmp_path, prefix):
    folder = tmp_path / "sub-01" / ("ses-a/anat" if "ses-" in prefix else "anat")
    folder.mkdir(parents=True)
    for tail in ("space-conform_desc-preproc_T1w.nii.gz", "space-conform_seg-aseg_desc-medsegmamba_dseg.nii.gz",
                 "seg-aseg_desc-medsegmamba_dseg.nii.gz", "seg-aseg_desc-medsegmamba_stats.tsv"):  # fmt: skip
        (folder / f"{prefix}_{tail}").touch()
    (folder / f".{prefix}_seg-aseg_desc-medsegmamba_stats.0a.part.tsv").touch()
    (folder / "sub-01_T1w.nii.gz").touch()
    assert [scan.prefix for scan in scans_of(tmp_path, "01")] == [prefix]
