"""What pictures show, by value: sides, positions, colours, surfaces."""

import numpy as np
import pytest

from medsegmamba_bids.report.derivatives import scans_of
from medsegmamba_bids.viz import slices, surfaces
from medsegmamba_bids.viz.encoding import colors_of

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
    mosaic = slices.Mosaic(2, (2, 5, 7), WHOLE, 2, 1.0)
    assert mosaic.shape == (2 * 8 + 2, 2 * 6 + 2)
    assert np.argwhere(mosaic.compose(marked(0, 7, 7))).tolist() == [[8 + 2, 0]]


def test_outlines_lie_around_their_label():
    labels = np.zeros((40, 40, 4), np.int32)
    labels[10:20, 15:30] = 10
    mosaic = slices.Mosaic(2, (1,), (slice(0, 40), slice(0, 40), slice(0, 4)), 1, 5.0)
    picture = slices.draw_outlines(mosaic, labels, {10: "#00760e"})
    assert picture.shape == (200, 200, 4)
    rows, columns = np.nonzero(picture[..., 3] > 128)
    # Row 0 is the voxel of index 39; outlines run along the outer faces of the voxels.
    assert (rows.min() / 5, rows.max() / 5) == pytest.approx((10, 25), abs=0.5)
    assert (columns.min() / 5, columns.max() / 5) == pytest.approx((10, 20), abs=0.5)
    assert picture[75, 50, :3] == pytest.approx([0, 118, 14], abs=12)
    assert not picture[88, 75, 3]  # within


def test_the_smallest_label_is_drawn():
    labels = marked(3, 3, 3).astype(np.int32) * 26
    mosaic = slices.Mosaic(2, (3,), WHOLE, 1, 8.0)
    assert slices.draw_outlines(mosaic, labels, {26: "#ffa500"})[..., 3].max() > 128


def test_entropy_is_clear_where_the_network_is_sure():
    entropy = marked(3, 3, 3) * 1.0
    picture = slices.draw_entropy(slices.Mosaic(2, (3,), WHOLE, 1, 5.0), entropy)
    assert picture[22, 17, 3] > 215
    assert picture[2, 2, 3] == 0


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
