"""Calibration: counts, errors and temperatures of made-up posteriors, against values worked by hand."""

import math
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.evaluation.card import calibration, temperature
from medsegmamba_bids.evaluation.card.calibration_text import calibration_table, reliability_diagram
from medsegmamba_bids.evaluation.card.cases import Case
from medsegmamba_bids.evaluation.card.measure import Networks, measure_calibration
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import load_label_table


def posteriors(*groups):
    """Posterior and truth of groups of voxels: (posterior, voxels, of these the structure)."""
    values = np.concatenate([np.full(voxels, posterior) for posterior, voxels, _ in groups])
    truth = np.concatenate([np.arange(voxels) < right for _, voxels, right in groups])
    return values, truth


def counts_of(*groups):
    counts = calibration.count_bins(*posteriors(*groups))
    return counts.assign(labelled_voxels=np.where(counts["from"] >= 0.5, counts["voxels"], 0))


CALIBRATED = counts_of((0.25, 100, 25), (0.85, 40, 34))
OVERCONFIDENT = counts_of((0.0, 1000, 0), (0.05, 30, 3), (0.95, 10, 5))
TWICE_TOO_SURE = counts_of((0.9, 100, 75), (0.1, 100, 25))  # odds of 9 where the truth's are 3: temperature 2


def test_a_calibrated_posterior_has_no_error():
    assert calibration.expected_calibration_error(CALIBRATED) == pytest.approx(0, abs=1e-12)
    assert calibration.soft_volume_ratio(CALIBRATED) == pytest.approx(1)  # 25 + 34 of 25 + 34
    assert calibration.labelled_volume_ratio(CALIBRATED) == pytest.approx(40 / 59)


def test_an_overconfident_posterior_worked_by_hand():
    """30 voxels of 0.05 with a share of 0.1, 10 of 0.95 with 0.5; the thousand below 0.01 do not dilute it."""
    assert calibration.expected_calibration_error(OVERCONFIDENT) == pytest.approx((30 * 0.05 + 10 * 0.45) / 40)
    assert calibration.soft_volume_ratio(OVERCONFIDENT) == pytest.approx((1.5 + 9.5) / 8)


def test_the_reliability_table():
    table = calibration.reliability(OVERCONFIDENT)
    assert table["from"].tolist() == [0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert table["voxels"].tolist() == [30, *[0] * 8, 10]
    assert table["mean_posterior"].iloc[[0, 9]].tolist() == pytest.approx([0.05, 0.95])
    assert table["share"].iloc[[0, 9]].tolist() == pytest.approx([0.1, 0.5])
    assert table[["mean_posterior", "share"]].iloc[1:9].isna().all(axis=None)


def test_counts_of_several_cases_are_added():
    """Means by hand: (40 + 30) voxels in two cases' first bins and so on; error as of one larger case."""
    both = pd.concat([OVERCONFIDENT, counts_of((0.05, 10, 9))], ignore_index=True)
    gaps = 40 * abs(0.05 - 12 / 40) + 10 * 0.45
    assert calibration.expected_calibration_error(both) == pytest.approx(gaps / 50)


def test_an_absent_structure_has_no_ratio_and_without_posteriors_no_error():
    nothing = counts_of((0.0, 10, 0))
    assert math.isnan(calibration.expected_calibration_error(nothing))
    assert math.isnan(calibration.soft_volume_ratio(nothing))
    assert temperature.fit(counts_of((0.6, 10, 0))) == temperature.Scaling(1, 0)


def test_narrow_bins_hold_what_lies_between_their_borders():
    random = np.random.default_rng(0)
    posterior = random.random((20, 30, 40), np.float32) ** 3
    truth = random.random(posterior.shape) < posterior
    counts = calibration.count_bins(posterior, truth)
    for line in counts.itertuples(index=False):
        low, high = line[0], line[1]
        inside = (posterior >= low) & (posterior < high)
        assert line.voxels == inside.sum()
        assert line.reference_voxels == truth[inside].sum()
        assert line.posterior_sum == pytest.approx(posterior[inside].sum(dtype=np.float64))
    assert counts["voxels"].sum() == posterior.size


def test_the_counter_knows_what_lies_outside_the_box():
    """A hippocampus of 8 voxels of which the box holds 6; air and the fluid outside the brain are passed."""
    table = load_label_table("aseg_head")
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[0:2, 0:2, 0:2] = 17
    reference[0, 0, 0], reference[3, 3, 3] = 0, 17
    counter = calibration.BinCounter(reference, table)
    box = Box((slice(0, 2), slice(0, 2), slice(0, 2)))
    whole = Box.whole(reference.shape)
    counter(0, whole, np.zeros(reference.shape, np.float32))
    counter(table.labels.tolist().index(257), whole, np.ones(reference.shape, np.float32))
    counter(table.labels.tolist().index(17), box, np.full((2, 2, 2), 0.75, np.float32))
    labels = np.zeros_like(reference)
    labels[0, 0, :2] = 17
    rows = counter.rows(labels, np.full(reference.shape, 0.75, np.float32))
    assert set(rows["structure"]) == {"Left-Hippocampus"}
    filled = rows[rows["voxels"] > 0]
    assert filled["from"].tolist() == [0, 0.7]
    assert filled["voxels"].tolist() == [64 - 8, 8]
    assert filled["reference_voxels"].tolist() == [1, 7]
    assert filled["posterior_sum"].tolist() == [0, 6]
    assert filled["labelled_voxels"].tolist() == [0, 2]


def test_a_temperature_is_found():
    found = temperature.fit(TWICE_TOO_SURE)
    assert found.temperature == pytest.approx(2, rel=1e-3)
    assert found.bias == 0
    scaled = temperature.scale(TWICE_TOO_SURE, found)
    assert calibration.expected_calibration_error(TWICE_TOO_SURE) == pytest.approx(0.15)
    assert calibration.expected_calibration_error(scaled) == pytest.approx(0, abs=1e-3)


def test_a_bias_is_found_as_well():
    """Temperature 2 and twice the odds: 9 -> 3 * 2, 60 of 70; 1/9 -> 1/3 * 2, 20 of 50."""
    found = temperature.fit(counts_of((0.9, 70, 60), (0.1, 50, 20)), with_bias=True)
    assert found.temperature == pytest.approx(2, rel=1e-3)
    assert found.bias == pytest.approx(math.log(2), abs=1e-3)


def test_scaling_leaves_the_outside_alone():
    scaled = temperature.scale(counts_of((0.0005, 1000, 2), (0.9, 10, 6)), temperature.Scaling(2))
    assert scaled["posterior_sum"].sum() == pytest.approx(0.5 + 7.5)
    assert scaled.loc[scaled["voxels"] > 0, "from"].tolist() == [0, 0.7]


def cases(**counts):
    parts = [part.assign(case=case, structure="Left-Hippocampus", label=17) for case, part in counts.items()]
    return pd.concat(parts, ignore_index=True)[list(calibration.COLUMNS)]


def test_a_case_is_judged_by_what_the_others_say():
    """Two cases are twice too sure; the third is right, and their temperature makes 0.75 of its 0.9."""
    right = counts_of((0.9, 100, 90), (0.1, 300, 30))
    rows = cases(a=TWICE_TOO_SURE, b=TWICE_TOO_SURE, c=right)
    judged = temperature.leave_one_out(rows).set_index("case")
    assert judged.loc["c", "ece"] == pytest.approx(0.15, abs=1e-3)
    assert judged.loc["c", "soft_percent"] == pytest.approx(100 * ((75 + 75) / 120 - 1), abs=0.1)
    assert 0 < judged.loc["a", "ece"] < 0.15
    plain = temperature.unscaled(rows).set_index("case")
    assert plain["ece"].tolist() == pytest.approx([0.15, 0.15, 0], abs=1e-9)
    assert plain["labelled_percent"].tolist() == pytest.approx([0, 0, 100 * (100 / 120 - 1)])


def test_the_cards_table_holds_means_of_the_cases():
    """Sizes of errors: the soft volumes are 11 of 8 and 59 of 59, the labels' 10 of 8 and 40 of 59."""
    text = calibration_table(cases(a=OVERCONFIDENT, b=CALIBRATED))
    header, _, line, mean = (row.strip("|").split(" | ") for row in text.splitlines()[:4])
    values = {name.strip(): value.strip() for name, value in zip(header, line, strict=True)}
    assert values["structure"] == "Left-Hippocampus"
    assert values["ECE, as it is"] == "0.075"
    assert values["labels, %"] == f"{(25 + 100 * 19 / 59) / 2:.1f}"
    assert values["soft, % (as it is)"] == f"{37.5 / 2:.1f}"
    assert mean[1] == "0.075"
    assert float(values["ECE, temperature"]) > 0.075
    assert text.splitlines()[5].startswith("Better than as it is, temperature: ECE of 0, soft volume of ")
    assert "temperature" not in calibration_table(cases(a=OVERCONFIDENT))


def test_the_diagram_has_a_panel_for_both_sides():
    rows = cases(a=TWICE_TOO_SURE)
    right = rows.assign(structure="Right-Hippocampus", label=53)
    stem = rows.assign(structure="Brain-Stem", label=16)
    svg = reliability_diagram(pd.concat([rows, right, stem], ignore_index=True))
    ElementTree.fromstring(svg)
    assert svg.count("<!-- Hippocampus -->") == 1
    assert svg.count("<!-- Brain-Stem -->") == 1
    assert "Left" not in svg
    assert svg == reliability_diagram(pd.concat([rows, right, stem], ignore_index=True))


def test_a_case_is_counted_on_the_conformed_grid(tmp_path):
    """Turned and widened to 256 voxels a side: 120 voxels of the reference, 96 of them bright, at 0.75."""
    affine = np.eye(4)
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[6:12, 8:12, 5:10] = 17
    image = (labels > 0) * np.uint8(200)
    image[6:12, 8:12, 9:10] = 50
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "reference.nii.gz")
    case = Case("one", tmp_path / "image.nii.gz", tmp_path / "reference.nii.gz")
    table = load_label_table("aseg")

    class Halves:
        """Says 0.75 for the hippocampus where the image is bright."""

        def load(self, weights, task):
            return None, SimpleNamespace(labels=tuple(table.labels.tolist()))

        def segment(self, conformed, weights, on_posterior):
            bright = np.asarray(conformed.dataobj) > 127
            posterior = bright * np.float32(0.75)
            on_posterior(table.labels.tolist().index(17), Box.whole(bright.shape), posterior)
            return SimpleNamespace(labels=bright * np.uint16(17), posterior=posterior)

    rows = measure_calibration(case, Networks(Halves()))
    assert list(rows) == list(calibration.COLUMNS)
    filled = rows[rows["voxels"] > 0]
    assert filled["from"].tolist() == [0, 0.7]
    assert filled["voxels"].tolist() == [256**3 - 96, 96]
    assert filled["reference_voxels"].tolist() == [24, 96]
    assert filled["labelled_voxels"].tolist() == [0, 96]
    assert filled["posterior_sum"].tolist() == [0, 72]
