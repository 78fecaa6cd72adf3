import re

import numpy as np
import pytest

from medsegmamba_bids.image.labels import TABLES, is_one_of, load_label_table, table_of_labels

# The 31 structures of the paper and the background.
ASEG = [0, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 31]
ASEG += [43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60, 63, 77]
SUBFIELDS = [203, 204, 205, 206, 208, 209, 210, 211, 212, 214, 215, 226]

# From FreeSurfer's FreeSurferColorLUT.txt: label, name, red, green, blue.
LOOKUP = """
0 Unknown 0 0 0
2 Left-Cerebral-White-Matter 245 245 245
3 Left-Cerebral-Cortex 205 62 78
4 Left-Lateral-Ventricle 120 18 134
5 Left-Inf-Lat-Vent 196 58 250
7 Left-Cerebellum-White-Matter 220 248 164
8 Left-Cerebellum-Cortex 230 148 34
10 Left-Thalamus 0 118 14
11 Left-Caudate 122 186 220
12 Left-Putamen 236 13 176
13 Left-Pallidum 12 48 255
14 3rd-Ventricle 204 182 142
15 4th-Ventricle 42 204 164
16 Brain-Stem 119 159 176
17 Left-Hippocampus 220 216 20
18 Left-Amygdala 103 255 255
24 CSF 60 60 60
26 Left-Accumbens-area 255 165 0
28 Left-VentralDC 165 42 42
31 Left-choroid-plexus 0 200 200
41 Right-Cerebral-White-Matter 245 245 245
42 Right-Cerebral-Cortex 205 62 78
43 Right-Lateral-Ventricle 120 18 134
44 Right-Inf-Lat-Vent 196 58 250
46 Right-Cerebellum-White-Matter 220 248 164
47 Right-Cerebellum-Cortex 230 148 34
49 Right-Thalamus 0 118 14
50 Right-Caudate 122 186 220
51 Right-Putamen 236 13 176
52 Right-Pallidum 13 48 255
53 Right-Hippocampus 220 216 20
54 Right-Amygdala 103 255 255
58 Right-Accumbens-area 255 165 0
60 Right-VentralDC 165 42 42
63 Right-choroid-plexus 0 200 221
77 WM-hypointensities 200 70 255
203 parasubiculum 175 175 75
204 presubiculum 64 0 64
205 subiculum 0 0 255
206 CA1 255 0 0
208 CA3 0 128 0
209 CA4 196 160 128
210 GC-DG 32 200 255
211 HATA 128 255 128
212 fimbria 204 153 204
214 molecular_layer_HP 128 0 0
215 hippocampal_fissure 128 32 255
226 HP_tail 170 170 255
257 CSF-ExtraCerebral 60 60 60
"""


def lookup_table():
    rows = (line.split() for line in LOOKUP.split("\n") if line)
    return {int(label): (name, "#{:02x}{:02x}{:02x}".format(*map(int, rgb))) for label, name, *rgb in rows}


@pytest.fixture(params=TABLES)
def table(request):
    return load_label_table(request.param)


def test_classes_are_those_of_the_networks():
    assert load_label_table("aseg").labels.tolist() == ASEG
    assert load_label_table("aseg_brain").labels.tolist() == sorted([*ASEG, 2, 3, 41, 42])
    assert load_label_table("aseg_head").labels.tolist() == [*sorted([*ASEG, 2, 3, 41, 42]), 257]
    both_sides = [side + label for side in (1000, 2000) for label in SUBFIELDS]
    assert load_label_table("hippoFS60").labels.tolist() == [0, *both_sides]


def test_names_and_colours_are_freesurfers(table):
    known = lookup_table()
    for row in table.table.itertuples():
        name, color = known[row.label % 1000]
        side = {1: "Left-", 2: "Right-"}.get(row.label // 1000, "")
        assert (row.name, row.color) == (side + name, color)


def test_columns(table):
    rows = table.table
    assert rows.columns.tolist() == ["index", "label", "name", "abbreviation", "color", "side"]
    assert rows["index"].tolist() == list(range(len(rows)))
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in rows["color"])
    assert rows["abbreviation"].is_unique
    for row in rows.itertuples():
        prefix = row.name.split("-")[0].lower()
        assert row.side == (prefix if prefix in ("left", "right") else "none")
        assert row.abbreviation[0] == row.side[0] or row.side == "none"


def test_mirror_exchanges_sides(table):
    mirror = table.mirror
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    sides = table.table["side"].to_numpy()
    exchanged = {"left": "right", "right": "left", "none": "none"}
    assert sides[mirror].tolist() == [exchanged[side] for side in sides]
    moved = mirror != np.arange(len(mirror))
    np.testing.assert_array_equal(moved, sides != "none")


def test_mirror_of_known_structures():
    table = load_label_table("aseg")
    other = dict(zip(table.labels.tolist(), table.labels[table.mirror].tolist(), strict=True))
    assert [other[n] for n in (17, 53, 16, 31, 4)] == [53, 17, 16, 63, 43]
    table = load_label_table("hippoFS60")
    other = table.labels[table.mirror]
    np.testing.assert_array_equal(other[1:13], table.labels[1:13] + 1000)


def test_labels_and_indices_are_inverse(table):
    indices = np.random.default_rng(0).integers(len(table.labels), size=(4, 5, 6))
    labels = table.labels[indices]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(table.to_indices(labels), indices)


def test_foreign_labels_become_background():
    indices = load_label_table("aseg").to_indices(np.array([-3, 2, 3, 77, 2035, 30000]))
    assert indices.tolist() == [0, 0, 0, 31, 0, 0]


def test_no_labels_give_no_indices(table):
    assert table.to_indices(np.zeros((0, 3), np.uint16)).shape == (0, 3)


def test_unknown_table():
    with pytest.raises(ValueError, match=r"'aparc' is unknown; there are .*aseg_brain"):
        load_label_table("aparc")


def test_table_is_found_by_its_labels(table):
    assert table_of_labels(table.labels).name == table.name
    with pytest.raises(ValueError, match="no label table"):
        table_of_labels(table.labels[::-1])


@pytest.mark.parametrize("order", ["C", "F"])
def test_is_one_of_is_isin_in_the_same_order_of_memory(order):
    labels = np.array(np.random.default_rng(0).integers(0, 60, (7, 8, 9)), np.uint16, order=order)
    found = is_one_of(labels, (2, 41, 70000))
    np.testing.assert_array_equal(found, np.isin(labels, (2, 41)))
    assert found.any()
    assert found.flags[f"{order}_CONTIGUOUS"]
