"""Pictures of one scan side by side, and which scan and image they show."""

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.datasets.places import LabelFiles
from medsegmamba_bids.datasets.scan_names import parse_name
from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.evaluation.compare import charts
from medsegmamba_bids.evaluation.compare import comparison_page as page
from medsegmamba_bids.evaluation.compare import side_by_side as pictures
from medsegmamba_bids.evaluation.compare.comparison_tables import Results
from medsegmamba_bids.evaluation.compare.scans import Settings, compare_scan
from medsegmamba_bids.evaluation.compare.study import Dataset, Item, match_dataset
from medsegmamba_bids.image.io import save_image

LIA = np.array([[-1.0, 0, 0, 12], [0, 0, 1, -12], [0, -1, 0, 12], [0, 0, 0, 1]])
YELLOW, RED = np.array([0xDC, 0xD8, 0x14]), np.array([0xFF, 0x2D, 0x20])  # hippocampus, differences


def cube(*corners, label=17):
    data = np.zeros((24, 24, 24), np.int32)
    for low, high in corners:
        data[low:high, low:high, low:high] = label
    return data


@pytest.fixture
def item(tmp_path):
    """A hippocampus by three methods: right, half of it, and none."""
    right, half = cube((6, 16)), cube((6, 16))
    half[:, 11:] = 0
    files = {"reference": right, "Right": right, "Half": half, "None": np.zeros_like(right)}
    made = {}
    for name, data in files.items():
        save_image(data, LIA, tmp_path / f"{name}.nii.gz")
        made[name] = LabelFiles(parse_name("sub-01"), (((tmp_path / f"{name}.nii.gz", 0),),))
    return Item("all", parse_name("sub-01"), made.pop("reference"), made)


def near(picture, colour):
    return (np.abs(picture.astype(int) - colour).max(-1) <= 1).sum()


def test_labels_lie_on_one_upright_grid(item):
    sides = pictures.load_side_by_side(item, Settings())
    assert list(sides.labels) == ["reference", "Right", "Half", "None"]
    assert [int((one == 17).sum()) for one in sides.labels.values()] == [1000, 1000, 500, 0]
    assert np.array_equal(sides.affine[:3, :3], np.eye(3))
    low = [side.start for side in sides.box]
    # In mm: x = 12 - i for i up to 15, y = -12 + k, z = 12 - j.
    assert (sides.affine[:3, 3] + low).tolist() == [-3, -6, -3]


def test_slices_show_everyones_labels(item):
    sides = pictures.load_side_by_side(item, Settings())
    picture = pictures.draw_slices(sides)
    column = picture.shape[1] // 4
    areas = [near(picture[:, number * column : (number + 1) * column], YELLOW) for number in range(4)]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)
    assert 0 < areas[2] < 0.95 * areas[0]
    assert areas[3] == 0


def test_differences_are_red(item):
    sides = pictures.load_side_by_side(item, Settings())
    picture = pictures.draw_differences(sides)
    column = picture.shape[1] // 3
    areas = [near(picture[:, number * column : (number + 1) * column], RED) for number in range(3)]
    assert areas[0] == 0
    assert 0 < areas[1] < areas[2]
    assert areas[2] == pytest.approx(near(pictures.draw_slices(sides)[:, : picture.shape[1] // 3], YELLOW), rel=0.1)


def test_an_image_lies_below(item, tmp_path):
    save_image(np.full((24, 24, 24), 50, np.int16) + cube((6, 16), label=50), LIA, tmp_path / "T1w.nii.gz")
    sides = pictures.load_side_by_side(item, Settings(), tmp_path / "T1w.nii.gz")
    inside = sides.image[sides.labels["Right"] == 17]
    assert inside.min() == inside.max() > 0.8
    assert sides.image[tuple(side.start - 3 for side in sides.box)] == pytest.approx(inside[0] / 2, rel=1e-3)
    assert near(pictures.draw_slices(sides), YELLOW) == 0  # painted over, not alone


def test_views_have_a_column_each_also_without_structures(item):
    picture = pictures.draw_views(pictures.load_side_by_side(item, Settings()))
    column = picture.shape[1] // 4
    dark = [(picture[40:, number * column + 40 : (number + 1) * column].min(-1) < 128).sum() for number in range(4)]
    assert dark[0] == pytest.approx(dark[1], rel=0.05)
    assert dark[1] > 1.2 * dark[2] > dark[3] == 0


def results(items):
    return Results(Settings(), pd.concat([compare_scan(item, Settings()).rows for item in items]))


@pytest.fixture
def three(tmp_path):
    """Scans with Dice 1, about 0.8 and 0.5, with images in some places."""
    for number, end in enumerate((16, 13, 10)):
        save_image(cube((6, 16)), LIA, tmp_path / f"fs/sub-0{number}/mri/aseg.mgz")
        mine = cube((6, 16))
        mine[:, end:] = 0
        save_image(mine, LIA, tmp_path / f"mine/sub-0{number}_aseg.nii.gz")
    dataset = Dataset("all", str(tmp_path / "fs"), {"Mine": str(tmp_path / "mine")})
    return match_dataset(dataset, "aseg")[0]


def test_the_scan_in_the_middle_is_drawn_unless_one_is_named(three):
    found = results(three)
    assert str(page.choose_scan(found, three).name) == "sub-01"
    assert str(page.choose_scan(found, three, "sub-02").name) == "sub-02"
    assert str(page.choose_scan(found, three, "00").name) == "sub-00"
    with pytest.raises(EvaluationError, match="--show sub-9: no such scan; there are sub-00, sub-01, sub-02"):
        page.check_shown(three, "sub-9")
    some = results(three[:1])
    assert str(page.choose_scan(some, three, "sub-02").name) == "sub-00"  # the named one could not be compared


def test_images_are_looked_for_beside_labels_or_where_the_user_says(three, tmp_path):
    first, second, _ = three
    assert page.image_of(first) is None
    (tmp_path / "fs/sub-00/mri/T1.mgz").touch()
    (tmp_path / "mine/sub-01_T1w.nii.gz").touch()
    assert page.image_of(first) == tmp_path / "fs/sub-00/mri/T1.mgz"
    assert page.image_of(second) == tmp_path / "mine/sub-01_T1w.nii.gz"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/sub-00_ses-1_T1w.nii.gz").touch()
    named = Item(*(getattr(first, key) for key in ("dataset", "name", "reference", "methods")), Dataset(
        "all", first.source.reference, first.source.methods, str(tmp_path / "raw")
    ))  # fmt: skip
    assert page.image_of(named) == tmp_path / "raw/sub-00_ses-1_T1w.nii.gz"


def test_charts_are_the_same_for_the_same_numbers(three):
    found = results(three)
    once, again = (charts.scan_boxes(found.means) for _ in range(2))
    assert once == again
    assert charts.scan_boxes(found.means.assign(dice=found.means["dice"] / 2)) != once


def test_a_measure_without_values_is_drawn_empty(three):
    rows = results(three).rows.assign(assd_mm=np.nan)
    assert charts.structure_boxes(rows, "assd_mm").rstrip().endswith("</svg>")
