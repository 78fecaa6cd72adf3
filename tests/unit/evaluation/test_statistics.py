"""Tables, tests and agreement of made-up long tables, against values by hand and from the literature."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medsegmamba_bids.evaluation.compare.significance import compare_methods, correct
from medsegmamba_bids.evaluation.compare.summary import by_structure, paper_cells, plus_minus, scan_means, summarise
from medsegmamba_bids.evaluation.compare.volume_agreement import agreement, bland_altman, repeatability, repeated


def long_table(*lines):
    """Lines of dataset, scan, method, label, found, reference, dice; the rest follows or is made up."""
    rows = pd.DataFrame(lines, columns=["dataset", "scan", "method", "label", "found_mm3", "reference_mm3", "dice"])
    rows["participant"] = rows["scan"].str.split("_").str[0]
    rows["session"] = "n/a"
    rows["structure"] = rows["label"].map({17: "Left-Hippocampus", 53: "Right-Hippocampus"})
    reference = rows["reference_mm3"].where(rows["reference_mm3"] > 0)
    rows["error_percent"] = 100 * (rows["found_mm3"] - reference) / reference
    rows["volume_similarity"] = rows["dice"]
    rows["assd_mm"] = rows["hd95_mm"] = (1 - rows["dice"]).where(rows["dice"] > 0)
    return rows


def dice_table(values, dataset="all"):
    """A long table from ``{scan: {method: (dice of 17, dice of 53)}}``."""
    lines = [
        (dataset, scan, method, label, 100, 100, dice)
        for scan, methods in values.items()
        for method, pair in methods.items()
        for label, dice in zip((17, 53), pair, strict=True)
    ]
    return long_table(*lines)


def test_means_are_over_structures_then_over_scans():
    rows = pd.concat(
        [
            dice_table({"s1": {"a": (0.8, 0.6)}, "s2": {"a": (0.9, 0.9)}}, "one"),
            dice_table({"s3": {"a": (0.5, 0.0)}}, "two"),
        ]
    )
    means = scan_means(rows).set_index("scan")
    assert means["dice"].round(9).tolist() == [0.7, 0.9, 0.25]
    assert means["undefined"].tolist() == [0, 0, 1]
    assert means["assd_mm"].round(9).tolist() == [0.3, 0.1, 0.5]  # the absent structure is left out
    summary = summarise(scan_means(rows)).set_index("dataset")
    assert list(summary.index) == ["one", "two", "Overall"]
    assert summary["scans"].tolist() == [2, 1, 3]
    assert summary.loc["one", ["dice_mean", "dice_sd"]].tolist() == pytest.approx([0.8, np.std([0.7, 0.9], ddof=1)])
    assert summary.loc["Overall", ["dice_mean", "dice_sd"]].tolist() == pytest.approx(
        [np.mean([0.7, 0.9, 0.25]), np.std([0.7, 0.9, 0.25], ddof=1)]
    )
    assert summary["undefined"].tolist() == [0, 1, 1]
    assert paper_cells(summary.reset_index())[0][:4] == ["one", "a", "2", "0.80000±0.141"]


def test_structures_that_both_lack_count_for_nothing():
    rows = long_table(("all", "s1", "a", 17, 10, 10, 1.0), ("all", "s1", "a", 53, 0, 0, math.nan))
    assert scan_means(rows)[["dice", "structures", "undefined"]].values.tolist() == [[1, 1, 0]]
    assert by_structure(rows)["scans"].tolist() == [1, 0]


def test_missed_and_extra_structures_are_counted():
    rows = long_table(
        ("all", "s1", "a", 17, 0, 10, 0.0), ("all", "s2", "a", 17, 10, 0, 0.0), ("all", "s3", "a", 17, 10, 10, 0.6)
    )
    line = by_structure(rows).iloc[0]
    assert line[["scans", "missed", "extra"]].tolist() == [3, 1, 1]
    assert line["dice_mean"] == pytest.approx(0.2)
    assert line["assd_mm_mean"] == pytest.approx(0.4)


def test_one_scan_has_no_deviation():
    assert plus_minus(0.5, summarise(scan_means(dice_table({"s": {"a": (1, 0.5)}})))["dice_sd"].item()) == "0.50000"


def many(gains):
    """Two methods, b worse by a gain in each participant."""
    return dice_table({f"s{i}": {"a": (0.9, 0.9), "b": (0.9 - gain, 0.9 - gain)} for i, gain in enumerate(gains)})


def test_wilcoxon_is_exact_for_few():
    """Five differences of one sign: 2 of 32 sign patterns are as extreme."""
    tests = compare_methods(many([0.01, 0.02, 0.03, 0.04, 0.05])).set_index("measure")
    line = tests.loc["dice"]
    assert line[["participants", "statistic"]].tolist() == [5, 0]
    assert line["p"] == pytest.approx(2 / 32)
    assert line["p_corrected"] == line["p"]
    assert line[["mean_a", "mean_b", "median_difference"]].tolist() == pytest.approx([0.9, 0.87, 0.03])
    assert tests.loc["abs_error_percent", "p"] != tests.loc["abs_error_percent", "p"]  # all equal: no p


def test_tests_agree_with_scipy_on_unequal_differences():
    gains = np.random.default_rng(0).normal(0.01, 0.03, 30).round(4)
    line = compare_methods(many(gains)).set_index("measure").loc["dice"]
    assert line["p"] == pytest.approx(stats.wilcoxon(gains).pvalue)


def test_a_participant_counts_once_and_absent_structures_are_left_out_for_both():
    rows = dice_table(
        {
            "s1_1": {"a": (0.8, 0.4), "b": (0.6, 0.0)},
            "s1_2": {"a": (0.6, 0.4), "b": (0.2, 0.0)},
            "s2": {"a": (0.9, 0.5), "b": (0.8, 0.6)},
        }
    )
    tests = compare_methods(rows).set_index("measure")
    assert tests.loc["dice", "participants"] == 2
    assert tests.loc["dice", "mean_a"] == pytest.approx(((0.6 + 0.5) / 2 + 0.7) / 2)
    # The right side has no distance by b in s1, so that the left side alone is compared there.
    assert tests.loc["assd_mm", "mean_a"] == pytest.approx(((0.2 + 0.4) / 2 + 0.3) / 2)
    assert tests.loc["assd_mm", "mean_b"] == pytest.approx(((0.4 + 0.8) / 2 + 0.3) / 2)


def test_every_pair_structure_and_dataset_is_tested():
    scan = {"a": (0.9, 0.8), "b": (0.7, 0.7), "c": (0.5, 0.4)}
    rows = pd.concat([dice_table({"s1": scan}, "one"), dice_table({"s2": scan}, "two")])
    tests = compare_methods(rows, each_structure=True)
    dice = tests[tests["measure"] == "dice"]
    assert len(dice) == 3 * 2 * 3  # datasets and overall, structures, pairs
    assert set(dice["structure"]) == {"Left-Hippocampus", "Right-Hippocampus"}
    assert set(zip(dice["method_a"], dice["method_b"], strict=True)) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert compare_methods(dice_table({"s1": {"a": (1, 1)}})).empty


def test_corrections_against_references():
    p = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert correct(p, "none") == p
    assert correct(p, "bonferroni") == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
    assert correct(p, "holm") == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])  # R: p.adjust(p, "holm")
    assert correct(p, "fdr") == pytest.approx([0.05] * 5)
    assert correct([0.9, 0.8], "bonferroni") == [1, 1]
    shuffled = np.random.default_rng(1).uniform(size=20)
    if hasattr(stats, "false_discovery_control"):
        assert correct(list(shuffled), "fdr") == pytest.approx(stats.false_discovery_control(shuffled))
    assert math.isnan(correct([math.nan, 0.5], "holm")[0])
    assert correct([math.nan, 0.5], "holm")[1] == 0.5
    with pytest.raises(ValueError, match="'sidak' is unknown; there are none, bonferroni, holm, fdr"):
        correct(p, "sidak")


def test_a_correction_counts_what_is_asked_together():
    plain = compare_methods(many([0.01, 0.02, 0.03, 0.04, 0.05]), "bonferroni", each_structure=True)
    dice = plain[plain["measure"] == "dice"]
    assert dice["p"].tolist() == pytest.approx([1 / 16, 1 / 16])
    assert dice["p_corrected"].tolist() == pytest.approx([1 / 8, 1 / 8])
    assert set(plain["correction"]) == {"bonferroni"}


def test_bland_altman_by_hand():
    result = bland_altman(np.array([12.0, 19.0, 32.0]), np.array([10.0, 20.0, 30.0]))
    assert result["bias_mm3"] == 1
    assert result["sd_mm3"] == pytest.approx(math.sqrt(3))
    assert [result["lower_mm3"], result["upper_mm3"]] == pytest.approx([1 - 1.96 * 3**0.5, 1 + 1.96 * 3**0.5])
    assert result["bias_percent"] == pytest.approx(5)
    assert result["pearson_r"] == pytest.approx(stats.pearsonr([12, 19, 32], [10, 20, 30]).statistic)
    covariance, mean = 200 / 3, (21.0, 20.0)
    expected = 2 * covariance / (np.var([12, 19, 32]) + np.var([10, 20, 30]) + (mean[0] - mean[1]) ** 2)
    assert result["concordance"] == pytest.approx(expected)


def test_too_few_or_constant_volumes_have_no_correlation():
    two = bland_altman(np.array([1.0, 2]), np.array([1.0, 3]))
    assert math.isnan(two["pearson_r"])
    assert math.isnan(two["concordance"])
    assert math.isnan(bland_altman(np.ones(1), np.ones(1))["sd_mm3"])
    assert math.isnan(bland_altman(np.ones(4), np.arange(4.0))["pearson_r"])


def test_agreement_is_by_structure_and_leaves_out_what_both_lack():
    rows = long_table(
        ("all", "s1", "a", 17, 12, 10, 0.9), ("all", "s2", "a", 17, 0, 10, 0.0), ("all", "s1", "a", 53, 0, 0, math.nan)
    )
    table = agreement(rows)
    assert table[["structure", "scans", "bias_mm3"]].values.tolist() == [["Left-Hippocampus", 2, -4]]


def test_repeatability_against_shrout_and_fleiss():
    """Their example (1979, table 2) has ICC(1,1) = 0.17 and a mean square within of 6.26."""
    judged = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    result = repeated([np.array(one, float) for one in judged])
    assert result["icc"] == pytest.approx(0.166, abs=5e-4)
    assert result["within_sd_mm3"] ** 2 == pytest.approx(6.264, abs=5e-4)
    assert result["repeatability_mm3"] == pytest.approx(1.96 * math.sqrt(2 * 6.2639), abs=1e-3)
    assert result["cv_percent"] == pytest.approx(100 * math.sqrt(6.2639) / np.mean(judged), abs=1e-3)
    assert (result["participants"], result["scans"]) == (6, 24)


def test_unequal_numbers_of_scans_weigh_by_degrees_of_freedom():
    result = repeated([np.array([1.0, 3]), np.array([4.0, 4, 7])])
    assert result["within_sd_mm3"] ** 2 == pytest.approx((2 + 6) / 3)
    assert math.isnan(repeated([np.array([1.0, 3])])["icc"])


def test_only_participants_with_several_scans_count_for_repeatability():
    volumes = {"a": {"s1_1": 10, "s1_2": 12, "s2_1": 99}, "b": {"s1_1": 10, "s1_2": 10, "s2_1": 9}}
    lines = [
        ("all", scan, method, 17, found, 20, 0.5) for method, own in volumes.items() for scan, found in own.items()
    ]
    table = repeatability(long_table(*lines)).set_index("method")
    assert list(table.index) == ["reference", "a", "b"]
    assert table["participants"].tolist() == [1, 1, 1]
    assert table["within_sd_mm3"].tolist() == pytest.approx([0, math.sqrt(2), 0])
    assert repeatability(long_table(*lines[2:3])).empty
