"""Read as the programs document their formats, not with code of the package."""

import re
import shlex

import numpy as np
import pytest

from medsegmamba_bids.image.color_tables import COLOR_TABLES, to_freesurfer, to_itksnap, to_slicer
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.segmentations import SEGMENTATIONS

TABLES = [load_label_table(kind.widest) for kind in SEGMENTATIONS]


def lines_of(text):
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def expected(table):
    rows = table.table.sort_values("label")
    colors = [tuple(int(color[place : place + 2], 16) for place in (1, 3, 5)) for color in rows["color"]]
    return list(zip(rows["label"].tolist(), rows["name"].tolist(), colors, strict=True))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_freesurfer_reads_number_name_and_colour(table):
    found = []
    for line in lines_of(to_freesurfer(table)):
        number, name, red, green, blue, transparency = line.split()
        assert transparency == "0"
        found.append((int(number), name, (int(red), int(green), int(blue))))
    assert found == expected(table)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_itksnap_reads_labels_that_are_shown(table):
    clear, *found = [shlex.split(line) for line in lines_of(to_itksnap(table))]
    assert clear == ["0", "0", "0", "0", "0", "0", "0", "Clear Label"]
    assert all(row[4:7] == ["1", "1", "1"] for row in found)  # opacity, visible, with a mesh
    rows = [(int(row[0]), row[7], tuple(map(int, row[1:4]))) for row in found]
    assert rows == expected(table)[1:]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_slicer_reads_opaque_labels(table):
    text = to_slicer(table)
    assert text.startswith("# Color table file")  # by which Slicer tells it from a continuous scale
    assert re.search(rf"^# {len(table.names)} values$", text, re.MULTILINE)
    found = [line.split(" ") for line in lines_of(text)]
    assert [int(row[5]) for row in found] == [0] + [255] * (len(found) - 1)
    assert [(int(row[0]), row[1], tuple(map(int, row[2:5]))) for row in found] == expected(table)


def test_numpy_reads_freesurfers_form_and_endings_differ():
    columns = np.genfromtxt(to_freesurfer(TABLES[1]).splitlines(), dtype=None, encoding=None)
    assert columns.dtype.names == ("f0", "f1", "f2", "f3", "f4", "f5")
    assert set(COLOR_TABLES) == {"_LUT.txt", ".label", ".ctbl"}
