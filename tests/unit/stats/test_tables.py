import json
import math

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids import __version__
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.stats.measures import Measure, brain_measures, intracranial_measures
from medsegmamba_bids.stats.structures import structure_statistics
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


# What FreeSurfer 7's asegstats2table knows, by its source: the start of a line of the header -> column of its table.
READ = {
    "lhCortex, lhCortexVol,": "lhCortexVol",
    "rhCortex, rhCortexVol,": "rhCortexVol",
    "Cortex, CortexVol,": "CortexVol",
    "lhCerebralWhiteMatter, lhCerebralWhiteMatterVol,": "lhCerebralWhiteMatterVol",
    "rhCerebralWhiteMatter, rhCerebralWhiteMatterVol,": "rhCerebralWhiteMatterVol",
    "CerebralWhiteMatter, CerebralWhiteMatterVol,": "CerebralWhiteMatterVol",
    "SubCortGray, SubCortGrayVol,": "SubCortGrayVol",
    "TotalGray, TotalGrayVol,": "TotalGrayVol",
    "SupraTentorial, SupraTentorialVol,": "SupraTentorialVol",
    "SupraTentorialNotVent, SupraTentorialVolNotVent,": "SupraTentorialVolNotVent",
    "EstimatedTotalIntraCranialVol, eTIV,": "EstimatedTotalIntraCranialVol",
    "SegmentedTotalIntraCranialVol, sTIV,": "SegmentedTotalIntracranialVol",
    "Mask, MaskVol,": "MaskVol",
    "BrainSegVol-to-eTIV, BrainSegVol-to-eTIV,": "BrainSegVol-to-eTIV",
    "MaskVol-to-eTIV, MaskVol-to-eTIV,": "MaskVol-to-eTIV",
    "lhSurfaceHoles, lhSurfaceHoles,": "lhSurfaceHoles",
    "rhSurfaceHoles, rhSurfaceHoles,": "rhSurfaceHoles",
    "SurfaceHoles, SurfaceHoles,": "SurfaceHoles",
    "BrainSeg, BrainSegVol,": "BrainSegVol",
    "BrainSegNotVent, BrainSegVolNotVent,": "BrainSegVolNotVent",
}
# Structures of FreeSurfer 7's aseg.stats, in its order.
FREESURFER_ROWS = (4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 30, 31, 43, 44, 46, 47, 49, 50, 51, 52)
FREESURFER_ROWS += (53, 54, 58, 60, 62, 63, 72, 77, 78, 79, 80, 81, 82, 85, 251, 252, 253, 254, 255)


def read_as_asegstats2table(text, column=3):
    """Columns of the table that FreeSurfer's script makes of a file, by the rules of its source."""
    found = {}
    for line in text.splitlines():
        if "#" not in line:
            fields = line.split()  # a blank line ends in an IndexError, as there
            found[fields[4]] = float(fields[column])
            assert int(fields[1]) >= 0
            assert len(fields) == 10
        for start, name in READ.items():
            if line.startswith(f"# Measure {start}"):
                found[name] = float(line.split(",")[3])
    return found


def merged(*texts):
    """All columns of several files, 0 where a file lacks one: ``asegstats2table --all-segs``."""
    tables = [read_as_asegstats2table(text) for text in texts]
    return pd.DataFrame([{name: table.get(name, 0.0) for one in tables for name in one} for table in tables])


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
        "# Measure BrainSeg, BrainSegVol, not measured, nan, mm^3",
        "# Measure BrainSegNotVent, BrainSegVolNotVent, not measured, nan, mm^3",
        "# Measure VentricleChoroidVol, VentricleChoroidVol, not measured, nan, mm^3",
    ]
    start = lines.index(
        "# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, 1574632.800000, mm^3"
    )
    assert lines[start + 1 : start + 9] == [
        "# SegVolFile aseg.nii.gz",
        "# InVolFile norm.nii.gz",
        "# PVVolFile norm.nii.gz",
        "# ExcludeSegId 0 2 3 41 42",
        "# VoxelVolume_mm3 1",
        "# TableCol  1 ColHeader Index",
        "# TableCol  1 FieldName Index",
        "# TableCol  1 Units     NA",
    ]
    head = lines.index("# NRows 17")
    assert lines[head + 1 : head + 6] == [
        "# NTableCols 10",
        "# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange",
        "  1   4     11076     3926.1  Left-Lateral-Ventricle            "
        "36.1619    12.5000     8.0000    90.0000    82.0000",
        "  2  26         0        0.0  Left-Accumbens-area                "
        "0.0000     0.0000     0.0000     0.0000     0.0000",
        "  3  30       nan        nan  Left-vessel                    " + " ".join(["       nan"] * 5),
    ]


def test_asegstats2table_reads_it(text):
    found = read_as_asegstats2table(text)
    assert found["Left-Lateral-Ventricle"] == 3926.1
    assert found["Left-Accumbens-area"] == 0
    assert found["EstimatedTotalIntraCranialVol"] == 1574632.8
    assert read_as_asegstats2table(text, column=5)["Left-Lateral-Ventricle"] == 36.1619
    assert read_as_asegstats2table(text, column=6)["Left-Lateral-Ventricle"] == 12.5
    assert "\n\n" not in text
    assert "\t" not in text


@pytest.fixture
def measured():
    """A table of all structures of the brain, with the measures that the app takes."""
    table = load_label_table("aseg_brain")
    labels = np.resize(table.labels, (8, 8, 8)).astype(np.int16)
    rows = structure_statistics(labels, np.full((8, 8, 8), 50.0), table)
    measures = brain_measures(rows, hypointensities=(3, 4))
    return rows, measures + intracranial_measures(labels > 0, 1.5e6, 400.0, "x")


def test_every_row_and_measure_of_freesurfer_is_there_in_its_order(measured):
    text = to_aseg_stats(*measured, "x", FILES)
    assert [int(line.split()[1]) for line in text.splitlines() if "#" not in line] == list(FREESURFER_ROWS)
    assert set(READ.values()) < set(read_as_asegstats2table(text))


def test_beside_freesurfers_file_nothing_unknown_is_0(measured):
    """All columns of both: FreeSurfer's has no sTIV, ours knows no vessels, callosum, chiasm and surfaces."""
    theirs = "".join(f"# Measure {start} text, 7.0, mm^3\n" for start, name in READ.items() if "sTIV" not in start)
    theirs += "".join(f"{n:3d} {label:3d} 9 9.5 name-{label} 1 1 1 1 1\n" for n, label in enumerate(FREESURFER_ROWS, 1))
    ours = to_aseg_stats(*measured, "x", FILES)
    names = {int(line.split()[1]): line.split()[4] for line in ours.splitlines() if "#" not in line}
    for label, name in names.items():
        theirs = theirs.replace(f"name-{label} ", f"{name} ")
    table = merged(theirs, ours)
    unknown = {names[label] for label in (30, 62, 72, 78, 79, 80, 81, 82, 85, 251, 252, 253, 254, 255)}
    unknown |= {"MaskVol", "MaskVol-to-eTIV", "lhSurfaceHoles", "rhSurfaceHoles", "SurfaceHoles"}
    assert set(table.columns[table.loc[1].isna()]) == unknown
    assert (table.loc[1].dropna() != 0).all()
    assert list(table.columns[table.loc[0] == 0]) == ["SegmentedTotalIntracranialVol"]


def test_a_structure_that_the_weights_do_not_know_is_no_0(text):
    assert math.isnan(read_as_asegstats2table(text)["Left-choroid-plexus"])


def test_freesurfers_own_labels_keep_their_numbers():
    """Vessels and callosum of a FreeSurfer segmentation have voxels, so they have numbers."""
    labels = np.zeros((6, 6, 6), np.uint16)
    labels[1:3], labels[4] = 251, 30
    rows = structure_statistics(labels, np.full((6, 6, 6), 50.0), load_label_table("aseg_brain"))
    found = read_as_asegstats2table(to_aseg_stats(rows, [], "x", FILES), column=2)
    assert (found["CC_Posterior"], found["Left-vessel"]) == (72, 36)
    assert math.isnan(found["CC_Anterior"])


def test_commas_and_big_labels_do_not_shift_columns():
    odd = Measure("EstimatedTotalIntraCranialVol", "eTIV", "one, two", 3.0)
    rows = pd.DataFrame([{**VENTRICLE, "SegId": 1203, "NVoxels": 123456789.0, "Volume_mm3": 1234567890.12}])
    text = to_aseg_stats(rows, [odd], "x", FILES, voxel_mm3=0.5)
    assert read_as_asegstats2table(text)["EstimatedTotalIntraCranialVol"] == 3
    assert read_as_asegstats2table(text)["Left-Lateral-Ventricle"] == 1234567890.1
    assert read_as_asegstats2table(text, column=2)["Left-Lateral-Ventricle"] == 123456789
