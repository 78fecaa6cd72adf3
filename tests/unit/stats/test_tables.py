import json
import math

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids import __version__
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.stats.measures import Measure, structure_statistics
from medsegmamba_bids.stats.tables import (
    COLUMNS,
    read_measures,
    read_tsv,
    table_sidecar,
    to_aseg_stats,
    to_tsv,
)

VENTRICLE = {
    "SegId": 4,
    "StructName": "Left-Lateral-Ventricle",
    "NVoxels": 11076.0,
    "Volume_mm3": 3926.0625,
    "SoftVolume_mm3": 3900.5,
    "normMean": 36.16191,
    "normStdDev": 12.5,
    "normMin": 8.0,
    "normMax": 90.0,
    "normRange": 82.0,
    "MeanPosterior": 0.9375,
    "Flag": "",
}
NUMBERS = [name for name in COLUMNS if name not in ("SegId", "StructName", "Flag")]
ABSENT = {**VENTRICLE, **dict.fromkeys(NUMBERS, math.nan), "SegId": 26, "StructName": "Left-Accumbens-area"}
ABSENT |= {"NVoxels": 0.0, "Volume_mm3": 0.0, "SoftVolume_mm3": 0.25, "Flag": "not found"}
UNKNOWN = {**ABSENT, "SegId": 31, "StructName": "Left-choroid-plexus", "NVoxels": math.nan, "Volume_mm3": math.nan}
UNKNOWN |= {"SoftVolume_mm3": math.nan, "Flag": "unknown to the weights"}
CORTEX = {**VENTRICLE, "SegId": 3, "StructName": "Left-Cerebral-Cortex"}
ETIV = Measure("EstimatedTotalIntraCranialVol", "eTIV", "Estimated Total Intracranial Volume", 1574632.8)


@pytest.fixture
def rows():
    return pd.DataFrame([CORTEX, VENTRICLE, ABSENT, UNKNOWN])


# TSV and JSON


def test_text_of_a_table(rows):
    lines = to_tsv(rows).splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    numbers = ["11076", "3926.062", "3900.500", "36.1619", "12.5000", "8.0000", "90.0000", "82.0000", "0.93750"]
    assert lines[2].split("\t") == ["4", "Left-Lateral-Ventricle", *numbers, "n/a"]
    absent = ["26", "Left-Accumbens-area", "0", "0.000", "0.250", *["n/a"] * 6]
    assert lines[3].split("\t") == [*absent, "not found"]
    assert lines[4].split("\t") == ["31", "Left-choroid-plexus", *["n/a"] * 9, "unknown to the weights"]


def test_order_of_columns_does_not_matter(rows):
    assert to_tsv(rows[sorted(rows)]) == to_tsv(rows)


def test_a_table_comes_back(tmp_path, rows):
    path = tmp_path / "stats.tsv"
    path.write_text(to_tsv(rows))
    back = read_tsv(path)
    assert list(back) == list(COLUMNS)
    pd.testing.assert_frame_equal(back, rows[list(COLUMNS)], check_dtype=False, atol=5e-4)
    assert to_tsv(back) == to_tsv(rows)


def test_measured_rows_come_back(tmp_path):
    rng = np.random.default_rng(0)
    table = load_label_table("aseg_brain")
    labels, guide = rng.choice(table.labels[:-4], (12, 12, 12)), rng.uniform(0, 110, (12, 12, 12))
    rows = structure_statistics(labels, guide, table, soft_volumes=dict.fromkeys(map(int, table.labels[:-1]), 2.0))
    path = tmp_path / "stats.tsv"
    path.write_text(to_tsv(rows))
    pd.testing.assert_frame_equal(read_tsv(path), rows[list(COLUMNS)], check_dtype=False, atol=5e-4)


def test_a_structure_called_na_is_no_missing_value(tmp_path, rows):
    rows.loc[1, "StructName"] = "NA"
    (tmp_path / "stats.tsv").write_text(to_tsv(rows))
    assert read_tsv(tmp_path / "stats.tsv").loc[1, "StructName"] == "NA"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read as a table"),
        (b"", "cannot be read as a table"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
        (b"a\tb\n1\t2\t3\t4\n1\n1\t2\t3\t4\t5\n", "cannot be read as a table|not a volume table"),
        (b"SegId\tStructName\n4\tx\n", "not a volume table, it lacks the columns NVoxels, Volume_mm3, "),
    ],
)
def test_a_file_that_is_no_table(tmp_path, content, reason):
    path = tmp_path / "stats.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TableError, match=reason) as error:
        read_tsv(path)
    assert str(path) in str(error.value)


def test_the_json_explains_each_column_with_its_unit(rows):
    sidecar = json.loads(json.dumps(table_sidecar([ETIV], {"Notes": ["one"]})))
    assert set(to_tsv(rows).splitlines()[0].split("\t")) <= set(sidecar)
    assert all(sidecar[name]["Description"] for name in COLUMNS)
    assert {name: sidecar[name].get("Units") for name in ("NVoxels", "Volume_mm3", "SoftVolume_mm3", "normMean")} == {
        "NVoxels": "voxel",
        "Volume_mm3": "mm3",
        "SoftVolume_mm3": "mm3",
        "normMean": "arbitrary",
    }
    assert set(sidecar["Flag"]["Levels"]) == {"not found", "unknown to the weights"}
    assert sidecar["Measures"]["eTIV"] == {"Description": ETIV.description, "Value": 1574632.8, "Units": "mm3"}
    assert sidecar["Notes"] == ["one"]


def test_measures_come_back():
    assert read_measures(table_sidecar([ETIV])) == {"eTIV": 1574632.8}
    assert table_sidecar([]) == COLUMNS
    assert read_measures({}) == {}


# aseg.stats

FILES = {"SegVolFile": "aseg.nii.gz", "InVolFile": "norm.nii.gz", "PVVolFile": "norm.nii.gz"}


def read_as_asegstats2table(text):
    """Structures and measures by the rules of FreeSurfer's script."""
    rows, measures = {}, {}
    for line in text.splitlines():
        if not line:
            break  # it stops here, whatever follows
        if line.startswith("# Measure "):
            fields = line[len("# Measure ") :].split(", ")
            measures[fields[1]] = float(fields[3])
        elif not line.startswith("#"):
            columns = line.split()
            rows[columns[4]] = {
                "id": int(columns[1]),
                "voxels": int(columns[2]),
                "volume": float(columns[3]),
                "mean": float(columns[5]),
                "std": float(columns[6]),
            }
            assert len(columns) == 10
    return rows, measures


@pytest.fixture
def text(rows):
    return to_aseg_stats(rows, [ETIV], "sub-01", FILES, command="medsegmamba in out participant")


def test_text_of_aseg_stats(text):
    """Byte by byte, but for what names the machine."""
    assert text.endswith("\n")
    lines = [line for line in text.split("\n") if not line.startswith(("# sysname", "# machine"))]
    assert lines[:14] == [
        "# Title Segmentation Statistics",
        "#",
        "# generating_program medsegmamba",
        f"# cvs_version {__version__}",
        "# cmdline medsegmamba in out participant",
        "# hostname unknown",
        "# user     unknown",
        "# anatomy_type volume",
        "#",
        "# SUBJECTS_DIR .",
        "# subjectname sub-01",
        "# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, 1574632.800000, mm^3",
        "# SegVolFile aseg.nii.gz",
        "# InVolFile norm.nii.gz",
    ]
    assert lines[14:17] == [
        "# PVVolFile norm.nii.gz",
        "# ExcludeSegId 0 2 3 41 42",
        "# VoxelVolume_mm3 1",
    ]
    assert lines[17:20] == [
        "# TableCol  1 ColHeader Index",
        "# TableCol  1 FieldName Index",
        "# TableCol  1 Units     NA",
    ]
    assert lines[-6:] == [
        "# NRows 2",
        "# NTableCols 10",
        "# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange",
        "  1   4     11076     3926.1  Left-Lateral-Ventricle            "
        "36.1619    12.5000     8.0000    90.0000    82.0000",
        "  2  26         0        0.0  Left-Accumbens-area                "
        "0.0000     0.0000     0.0000     0.0000     0.0000",
        "",
    ]


def test_asegstats2table_reads_it(text):
    found, measures = read_as_asegstats2table(text)
    assert found == {
        "Left-Lateral-Ventricle": {"id": 4, "voxels": 11076, "volume": 3926.1, "mean": 36.1619, "std": 12.5},
        "Left-Accumbens-area": {"id": 26, "voxels": 0, "volume": 0.0, "mean": 0.0, "std": 0.0},
    }
    assert measures == {"eTIV": 1574632.8}
    assert "\n\n" not in text
    assert "\t" not in text


def test_all_structures_of_a_real_table_are_read():
    table = load_label_table("aseg_brain")
    labels = np.resize(table.labels, (8, 8, 8)).astype(np.int16)
    rows = structure_statistics(labels, np.full((8, 8, 8), 50.0), table)
    found, _ = read_as_asegstats2table(to_aseg_stats(rows, [], "x", FILES))
    kept = [name for name, label in zip(table.names, table.labels, strict=True) if label not in (0, 2, 3, 41, 42)]
    assert list(found) == kept
    assert sum(row["voxels"] for row in found.values()) == np.isin(labels, (0, 2, 3, 41, 42), invert=True).sum()


def test_commas_and_big_labels_do_not_shift_columns():
    odd = Measure("A", "B", "one, two", 3.0)
    rows = pd.DataFrame([{**VENTRICLE, "SegId": 1203, "NVoxels": 123456789.0, "Volume_mm3": 1234567890.12}])
    found, measures = read_as_asegstats2table(to_aseg_stats(rows, [odd], "x", FILES, voxel_mm3=0.5))
    assert measures == {"B": 3.0}
    assert found["Left-Lateral-Ventricle"]["voxels"] == 123456789
    assert found["Left-Lateral-Ventricle"]["volume"] == 1234567890.1
