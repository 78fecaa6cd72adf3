"""Flags by value: a clean scan has none, and each fault is named once with its number."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.errors import ThresholdError
from medsegmamba_bids.execution.outcomes import FLAGGED, Outcome, outcome_table
from medsegmamba_bids.report.quality import (
    COLUMNS,
    Flag,
    QualityInputs,
    border_area,
    checks_in_words,
    contrast,
    flag_messages,
    flags_path,
    flags_to_tsv,
    load_thresholds,
    quality_flags,
    read_flags,
    stray_shares,
    verdict,
    white_to_gray,
)
from medsegmamba_bids.stats.tables import COLUMNS as TABLE_COLUMNS

SCAN = "sub-01_run-2"
SUBFIELD = 206


def table(**volumes):
    """A volume table; names with ``_`` for ``-``, every voxel sure and of 1 mm3."""
    rows = []
    for number, (name, volume) in enumerate(volumes.items()):
        row = dict.fromkeys(TABLE_COLUMNS, math.nan) | {"SegId": 10 + number, "StructName": name.replace("_", "-")}
        row |= {"NVoxels": float(volume), "Volume_mm3": float(volume), "MeanPosterior": 0.9, "Flag": ""}
        rows.append(row)
    return pd.DataFrame(rows)


def flags_of(rows, **other):
    return quality_flags(QualityInputs(SCAN, {"aseg": rows}, **other))


def test_nothing_wrong():
    assert flags_of(table(Left_Caudate=3500, Right_Caudate=3400), zooms=(1, 1, 1), measures={"eTIV": 1.5e6}) == []


@pytest.mark.parametrize(
    ("volumes", "check", "structure", "value", "threshold"),
    [
        ({"Brain_Stem": 0}, "missing", "Brain-Stem", 0.0, ">= 1"),
        ({"Brain_Stem": 35001}, "volume", "Brain-Stem", 35001.0, "13000 to 35000"),
        ({"Left_Caudate": 4000, "Right_Caudate": 2000}, "asymmetry", "Caudate", 2 / 3, "<= 0.34"),
        ({"Left_Lateral_Ventricle": 40000, "Right_Lateral_Ventricle": 10000}, "asymmetry", "Lateral-Ventricle", 1.2,
         "<= 1.08"),
        ({"Left_Hippocampus": 1438, "Right_Hippocampus": 4812}, "asymmetry", "Hippocampus", 1.08, "<= 0.51"),
    ],
)  # fmt: skip
def test_structures(volumes, check, structure, value, threshold):
    (flag,) = flags_of(table(**volumes))
    assert (flag.scan, flag.segmentation, flag.check, flag.structure) == (SCAN, "aseg", check, structure)
    assert flag.value == pytest.approx(value, abs=1e-3)
    assert flag.threshold == threshold


def test_limits_themselves_are_allowed():
    assert flags_of(table(Brain_Stem=35000)) == []
    assert flags_of(table(Left_Lateral_Ventricle=37000, Right_Lateral_Ventricle=13000)) == []


def test_low_confidence():
    rows = table(Brain_Stem=20000, CSF=900)
    rows["MeanPosterior"] = [0.59, 0.41]  # CSF has a limit of its own
    (flag,) = flags_of(rows)
    assert flag.message == "Brain-Stem has a mean posterior of 0.59 (at least 0.6)"


def test_unknown_structures_are_not_judged():
    rows = table(Brain_Stem=0)
    rows["Flag"] = "unknown to the weights"
    assert flags_of(rows) == []


def test_pieces():
    labels = np.zeros((12, 6, 6), np.int16)
    labels[1:5, 1:4, 1:4] = 10
    labels[9, 4, 4] = 10
    assert stray_shares(labels) == {10: pytest.approx(1 / 37)}
    assert flags_of(table(Brain_Stem=20000), labels={"aseg": labels}) == []
    labels[8:11, 4, 4] = 10
    (flag,) = flags_of(table(Brain_Stem=20000), labels={"aseg": labels})
    assert (flag.check, flag.value) == ("pieces", pytest.approx(3 / 39))
    assert stray_shares(np.zeros((3, 3, 3), int)) == {}


def test_subfields_against_the_hippocampus():
    aseg, subfields = np.zeros((2, 20, 4, 4), np.int16)
    aseg[:10], aseg[10:] = 17, 53
    subfields[:10], subfields[10:13] = 1000 + SUBFIELD, 2000 + SUBFIELD
    (flag,) = quality_flags(QualityInputs(SCAN, labels={"aseg": aseg, "hippoFS60": subfields}))
    assert (flag.check, flag.structure) == ("hippocampus_overlap", "Right-Hippocampus")
    assert flag.value == pytest.approx(2 * 3 / 13)


def test_image():
    brain = np.zeros((10, 10, 10))
    brain[3:8, 2:8, 0:5] = 1
    assert border_area(brain, (1.0, 1.0, 2.0)) == 30
    inputs = QualityInputs(SCAN, {}, {}, {"eTIV": 2.2e6, "sbTIV": 1.1e6}, brain, (1.0, 1.0, 2.0))
    flags = {flag.check: (flag.value, flag.structure) for flag in quality_flags(inputs)}
    assert flags == {"voxel_size": (2.0, ""), "border": (30.0, ""), "etiv": (2.2e6, ""), "etiv_ratio": (2.0, "")}


def test_contrast():
    rows = pd.DataFrame({"SegId": [2, 41, 3, 42], "NVoxels": 50.0, "normMean": [110.0, 112, 70, 72],
                         "normStdDev": [10.0, 10, 10, 10]})  # fmt: skip
    assert contrast(rows) == pytest.approx(4)
    assert math.isnan(contrast(rows[:3]))


@pytest.mark.parametrize(("white", "flagged"), [(110.0, False), (76.0, True), (60.0, True)])
def test_images_that_are_not_t1_weighted_are_flagged(white, flagged):
    rows = table(Left_Caudate=3500, Right_Caudate=3500)
    tissues = pd.DataFrame({"SegId": [2, 41, 3, 42], "NVoxels": 50.0, "normMean": [white, white, 70, 72],
                            "StructName": list("abcd"), "normStdDev": [2.0] * 4})  # fmt: skip
    rows = pd.concat([rows.assign(normMean=80.0), tissues])
    flags = [flag for flag in quality_flags(QualityInputs(SCAN, {"aseg": rows})) if flag.check == "t1_weighting"]
    assert len(flags) == flagged
    if flagged:
        assert flags[0].value == pytest.approx(white / 71)
        assert flags[0].message.startswith("does not look T1-weighted: the intensity of white matter divided by that")
    assert math.isnan(white_to_gray(tissues[:3]))


def test_own_thresholds(tmp_path):
    path = tmp_path / "limits.json"
    own = {"checks": {"voxel_size": {"limit": 0.9}}, "volumes": {"ranges": {"Brain-Stem": [1, 2]}}}
    path.write_text(json.dumps(own))
    limits = load_thresholds(path)
    inputs = QualityInputs(SCAN, {"aseg": table(Brain_Stem=20000)}, zooms=(1.0, 1.0, 1.0))
    assert [flag.check for flag in quality_flags(inputs, limits)] == ["voxel_size", "volume"]
    assert limits["volumes"]["ranges"]["Caudate"] == load_thresholds()["volumes"]["ranges"]["Caudate"]
    assert quality_flags(inputs) == []  # the package's own are as they were


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"check": {"pieces": {"limit": 1}}}', "unknown keys check \\(checks is meant\\?\\)"),
        ('{"checks": {"etiv": {"limit": 1}}}', "unknown keys of etiv limit"),
        ('{"checks": {"pieces": {"limits": {"Left-Caudate": 1}}}}', "Left-Caudate \\(Caudate is meant\\?\\)"),
        ('{"checks": {"pieces": {"limit": "0.1"}}}', "the limit of pieces is '0.1'; it must be a number"),
        ('{"checks": {"pieces": {"sense": "within"}}}', "the sense of pieces .* cannot be changed from 'at most'"),
        ('{"checks": {"pieces": 0.1}}', "pieces is 0.1; it must be a table of keys"),
        ('{"outliers": {"limt": 3}}', "unknown keys of outliers limt \\(limit is meant\\?\\)"),
        ('{"volumes": {"ranges": {"Thalamus-Proper": [1, 2]}}}', "Thalamus-Proper \\(Thalamus is meant"),
        ('{"outliers": {}, "outliers": {}}', "the key 'outliers' is there twice"),
        ('{"checks": {"colour": {"limit": 1}}}', "unknown checks colour; known are missing, "),
        ('{"volumes": {"ranges": {"CSF": [3, 2]}}}', "the lower one first"),
    ],
)
def test_bad_thresholds(tmp_path, text, match):
    path = tmp_path / "limits.json"
    path.write_text(text)
    with pytest.raises(ThresholdError, match=match) as caught:
        load_thresholds(path)
    assert str(path) in str(caught.value)


def test_table_of_flags_there_and_back(tmp_path):
    flags = quality_flags(QualityInputs(SCAN, {"aseg": table(Brain_Stem=0)}, zooms=(2.0, 1.0, 1.0)))
    path = flags_path(tmp_path, "01")
    path.parent.mkdir()
    path.write_text(flags_to_tsv(flags))
    rows = read_flags(tmp_path, "01")
    assert rows["check"].tolist() == ["voxel_size", "missing"]
    assert rows["structure"].tolist() == ["", "Brain-Stem"]
    assert rows["value"].tolist() == [2.0, 0.0]
    path.write_text(flags_to_tsv([]))
    assert list(read_flags(tmp_path, "01")) == list(COLUMNS)
    assert read_flags(tmp_path, "02").empty
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(ThresholdError, match=r"desc-quality_stats\.tsv: cannot be read"):
        read_flags(tmp_path, "01")


#: The largest asymmetry of each structure in 20 label maps of adult heads (FreeSurfer) but one, in which a hippocampus
#: is a third of the other, and of subfields in 26 heads segmented by this package.
ORDINARY = {"Cerebral-White-Matter": 0.07, "Cerebral-Cortex": 0.13, "Lateral-Ventricle": 0.73, "Thalamus": 0.21,
            "Caudate": 0.15, "Putamen": 0.17, "Pallidum": 0.59, "Hippocampus": 0.33, "Amygdala": 0.42,
            "Accumbens-area": 0.44, "VentralDC": 0.12, "presubiculum": 0.17, "subiculum": 0.19, "CA1": 0.24,
            "CA3": 0.35, "CA4": 0.39, "GC-DG": 0.20, "fimbria": 0.24, "molecular_layer_HP": 0.19,
            "hippocampal_fissure": 0.30, "HP_tail": 0.13, "parasubiculum": 0.39, "HATA": 0.26}  # fmt: skip


@pytest.mark.parametrize(("structure", "asymmetry"), ORDINARY.items())
def test_ordinary_heads_are_not_flagged(structure, asymmetry):
    entry = load_thresholds()["checks"]["asymmetry"]
    assert structure in entry["except"] or asymmetry < entry["limits"].get(structure, entry["limit"])


def flag(check, number=0):
    return Flag("sub-01", "aseg", check, f"structure {number}", 0.0, ">= 1", "voxel", f"{check} {number}")


#: What was flagged of images made from sub-02's tissues (CT, six months old, T2w, proton density), of its inverse and
#: of a ball: by how many checks, of these how many structures missing; each had "t1_weighting".
ODD = {"CT": (78, 31), "infant": (20, 1), "T2w": (34, 3), "inverted": (83, 19), "phantom": (66, 45), "PDw": (34, 4)}


@pytest.mark.parametrize(("flags", "missing"), ODD.values(), ids=ODD)
def test_odd_images_get_a_verdict_of_three_lines_at_most(flags, missing):
    raised = [flag("missing", number) for number in range(missing)] + [flag("t1_weighting")]
    raised += [flag("confidence", number) for number in range(flags - len(raised))]
    plural = "" if missing == 1 else "s"
    assert verdict(raised) == (
        f"this does not look like a T1w of an adult brain: {missing} structure{plural} not found, "
        f"white matter is not brighter than gray matter, {flags} flags in all"
    )
    messages = (verdict(raised), *(one.message for one in raised))
    table = outcome_table([Outcome("sub-01_T1w", FLAGGED, messages)], 3).splitlines()
    assert table[0].startswith("sub-01_T1w")
    assert "more lines in the report and the log" in table[-2]
    assert len(table) <= 3 + 1  # and the counts of all images


def test_one_verdict_where_all_is_wrong(tmp_path):
    missing = [flag("missing", number) for number in range(18)]
    sentence = "this does not look like a T1w of an adult brain: 18 structures not found, 18 flags in all"
    assert verdict(missing) == sentence
    inverted = [*(flag("confidence", number) for number in range(9)), flag("t1_weighting")]
    assert "white matter is not brighter than gray matter" in verdict(inverted)
    assert verdict(missing[:4]) == verdict([flag("confidence", number) for number in range(20)]) == ""
    path = flags_path(tmp_path, "01")
    path.parent.mkdir()
    path.write_text(flags_to_tsv(missing))
    assert flag_messages(tmp_path, "01")["sub-01"][:2] == [sentence, "missing 0"]


def test_what_is_checked_is_told_with_limits_and_sources():
    words = {entry["text"]: entry for entry in checks_in_words(load_thresholds())}
    entry = words["Longest edge of the T1w's voxels"]
    assert entry["allowed"] == "at most 1.5 mm"
    assert "FreeSurfer asks for voxels of about 1 mm" in entry["source"]
    assert all(entry["source"] and entry["allowed"] for entry in words.values())
