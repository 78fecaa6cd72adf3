"""Tables of visits, with numbers worked by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.longitudinal.change import (
    VisitTable,
    annual_slopes,
    annual_symmetrized_change,
    both_volumes,
    change_table,
    in_time,
    of_visits,
    to_tsv,
    too_soon,
)


def table(*volumes):
    names = ("Left-Hippocampus", "Left-Caudate")
    rows = {"SegId": [17, 11], "StructName": names, "Volume_mm3": volumes, "MeanPosterior": [0.9, 0.8]}
    return pd.DataFrame(rows)


def visit(session, years, *volumes):
    return VisitTable(session, f"sub-1_ses-{session}_T1w", years, table(*volumes), table(*(v + 1 for v in volumes)))


VISITS = [visit("b", 2.0, 3800.0, 4000.0), visit("a", 0.0, 4200.0, 4000.0), visit("c", 4.0, 3400.0, 4000.0)]


def test_changes_are_from_the_first_in_time():
    rows = change_table(VISITS)
    hippocampus = rows[rows["SegId"] == 17].set_index("session_id")
    assert list(hippocampus.index) == ["ses-a", "ses-b", "ses-c"]
    assert hippocampus["Change_mm3"].tolist() == [0.0, -400.0, -800.0]
    np.testing.assert_allclose(hippocampus["Change_percent"], [0, -400 / 42, -800 / 42])
    # 200 mm3 a year, of means of 4000 and 3800
    np.testing.assert_allclose(hippocampus["AnnualSymmetrizedChange_percent"][1:], [-5.0, -20000 / 3800])
    assert np.isnan(hippocampus["AnnualSymmetrizedChange_percent"].iloc[0])
    assert hippocampus["CrossSectionalVolume_mm3"].tolist() == [4201.0, 3801.0, 3401.0]
    assert (rows.loc[rows["SegId"] == 11, "Change_mm3"] == 0).all()


def test_the_order_of_visits_does_not_matter():
    pd.testing.assert_frame_equal(change_table(VISITS), change_table(VISITS[::-1]))


def shaped(session, relative, *volumes):
    return VisitTable(session, f"sub-1_ses-{session}_T1w", None, table(*volumes), table(*volumes), relative)


def test_volumes_by_shape_have_the_level_of_labels():
    visits = [shaped("a", {17: 1.02, 11: 1.0}, 4000.0, 3000.0), shaped("b", {17: 0.98, 11: 1.0}, 4100.0, 3100.0)]
    rows = change_table(visits)
    level = (4000 / 1.02 + 4100 / 0.98) / 2
    hippocampus, caudate = (rows[rows["SegId"] == label] for label in (17, 11))
    np.testing.assert_allclose(hippocampus["ShapeVolume_mm3"], [1.02 * level, 0.98 * level])
    assert caudate["ShapeVolume_mm3"].tolist() == [3050, 3050]
    assert rows["LabelVolume_mm3"].tolist() == [4000, 3000, 4100, 3100]
    expected = [4000**0.3 * (1.02 * level) ** 0.7, 4100**0.3 * (0.98 * level) ** 0.7]
    np.testing.assert_allclose(hippocampus["Volume_mm3"], expected)
    np.testing.assert_allclose(hippocampus["Change_mm3"], [0, expected[1] - expected[0]])


def test_structures_with_faint_borders_change_as_their_labels_do():
    visits = [shaped("a", {10: 1.1, 11: 1.1}, 6000.0, 3000.0), shaped("b", {10: 0.9, 11: 0.9}, 6100.0, 3100.0)]
    for one in visits:
        one.together["SegId"] = one.alone["SegId"] = [10, 11]
    rows = change_table(visits)
    assert rows.loc[rows["SegId"] == 10, "Volume_mm3"].tolist() == [6000, 6100]
    assert rows.loc[rows["SegId"] == 11, "Change_mm3"].iloc[1] < 0


def test_subfields_of_a_side_change_by_the_shape_of_their_sum():
    """600 and 400 mm3 by labels, 700 and 350 by shape on the left: all by 1050 / 1000; the right side by itself."""
    labels, shapes = np.array([600.0, 400.0, 500.0, 0.0]), np.array([700.0, 350.0, 490.0, 0.0])
    volumes = both_volumes(labels, shapes, np.array([1203, 1206, 2203, 2206]))
    np.testing.assert_allclose(volumes, [600 * 1.05**0.7, 400 * 1.05**0.7, 500 * 0.98**0.7, 0])


def test_visits_that_are_alike_differ_by_nothing():
    visits = [shaped(name, {17: 0.9998, 11: 1.0003}, 4123.4, 3071.7) for name in "abc"]
    assert change_table(visits)["Change_mm3"].tolist() == [0.0] * 6


def test_labels_count_where_the_template_or_a_visit_lacks_a_structure():
    visits = [shaped("a", {17: 1.0}, 4000.0, 0.0), shaped("b", {17: 1.0, 11: 1.0}, 4000.0, 50.0)]
    rows = change_table(visits)
    assert rows.loc[rows["SegId"] == 11, "ShapeVolume_mm3"].tolist() == [0, 50]


def test_a_table_of_fewer_visits_is_as_if_made_of_them():
    labels, relative = [(4200.0, 3000.0), (3800.0, 3020.0), (300.0, 0.0)], [{17: 1.02}, {17: 0.99}, {17: 0.97}]
    visits = [
        VisitTable(name, f"sub-1_ses-{name}_T1w", years, table(*volumes), table(*volumes), larger)
        for name, years, volumes, larger in zip("abc", (2.0, 3.5, 0.0), labels, relative, strict=True)
    ]
    left = of_visits(change_table(visits), {"sub-1_ses-a_T1w", "sub-1_ses-b_T1w"})
    expected = change_table([replace(visit, years=visit.years - 2) for visit in visits[:2]])
    pd.testing.assert_frame_equal(left, expected)


def test_a_table_of_fewer_visits_is_in_time_where_all_times_are_known():
    visits = [visit("a", 1.0, 90.0, 1.0), visit("b", 0.0, 100.0, 1.0), visit("c", None, 95.0, 1.0)]
    left = of_visits(change_table(visits), {one.scan for one in visits[:2]})
    assert left["session_id"].tolist() == ["ses-b"] * 2 + ["ses-a"] * 2
    assert left["Change_mm3"].tolist() == [0, 0, -10, 0]
    none = of_visits(change_table([visits[2], *visits[:2]]), {visits[2].scan})
    assert none["years"].isna().all()


def test_lesions_are_counted_by_their_labels():
    visits = [shaped("a", {17: 1.0, 11: 1.0}, 10.0, 100.0), shaped("b", {17: 1.0, 11: 1.0}, 30.0, 100.0)]
    for one in visits:
        one.together["SegId"] = one.alone["SegId"] = [77, 11]
        one.relative[77] = 1.0
    rows = change_table(visits)
    assert rows.loc[rows["SegId"] == 77, "ShapeVolume_mm3"].tolist() == [10, 30]


def test_without_all_times_names_tell_the_order_and_there_is_no_rate():
    visits = [visit("b", 1.0, 90.0, 1.0), visit("a", None, 100.0, 1.0)]
    assert [one.session for one in in_time(visits)] == ["a", "b"]
    rows = change_table(visits)
    assert rows["AnnualSymmetrizedChange_percent"].isna().all()
    assert rows["Change_mm3"].tolist() == [0, 0, -10, 0]


def test_without_times_numbers_in_names_are_in_order():
    sessions = ("10", "2", "baseline", "1", "m6", "m12")
    visits = [visit(session, None, 100.0, 1.0) for session in sessions]
    assert [one.session for one in in_time(visits)] == ["1", "2", "10", "baseline", "m6", "m12"]
    assert change_table(visits).loc[0, "session_id"] == "ses-1"


@pytest.mark.parametrize("years", [0.0, -1.0, float("nan")])
def test_no_interval_gives_no_rate(years):
    assert np.isnan(annual_symmetrized_change(np.array([1.0]), np.array([2.0]), years)).all()


def test_repeats_within_days_have_changes_but_none_a_year():
    visits = [visit("a", 0.0, 4000.0, 3000.0), visit("b", 29 / 365.25, 4020.0, 3000.0)]
    rows = change_table(visits)
    assert rows["AnnualSymmetrizedChange_percent"].isna().all()
    assert rows["Change_mm3"].tolist() == [0, 0, 20, 0]
    assert rows["Change_percent"].tolist() == [0, 0, 0.5, 0]
    assert annual_slopes(rows)[["Slope_mm3", "Slope_percent"]].isna().all(axis=None)
    later = change_table([*visits, visit("c", 30 / 365.25, 4010.0, 3000.0)])
    assert later["AnnualSymmetrizedChange_percent"].notna().tolist() == [False] * 4 + [True] * 2
    assert annual_slopes(later)["Slope_mm3"].notna().all()


def test_visits_too_soon_for_a_rate_are_named():
    visits = [visit("a", 0.0, 1.0, 1.0), visit("b", 0.01, 1.0, 1.0), visit("c", 1.0, 1.0, 1.0)]
    assert [one.scan for one in too_soon(visits)] == ["sub-1_ses-b_T1w"]
    assert too_soon([visit("a", None, 1.0, 1.0), visit("b", 0.0, 1.0, 1.0), visit("c", 0.01, 1.0, 1.0)]) == []


def test_swapping_visits_changes_the_sign_only():
    first, second = np.array([4000.0]), np.array([3700.0])
    forth, back = (annual_symmetrized_change(*pair, 1.5) for pair in ((first, second), (second, first)))
    assert forth[0] == -back[0] == pytest.approx(100 * -200 / 3850)


def test_of_nothing_there_is_no_percent():
    rows = change_table([visit("a", 0.0, 0.0, 1.0), visit("b", 1.0, 5.0, 1.0)])
    assert np.isnan(rows.loc[2, "Change_percent"])
    assert rows.loc[2, "AnnualSymmetrizedChange_percent"] == 200


def test_a_line_through_all_visits():
    slopes = annual_slopes(change_table(VISITS)).set_index("SegId")
    assert slopes.loc[17, "Slope_mm3"] == pytest.approx(-200)
    assert slopes.loc[17, "Slope_percent"] == pytest.approx(100 * -200 / 3800)
    assert slopes.loc[11, "Slope_mm3"] == pytest.approx(0, abs=1e-9)


def test_what_is_missing_is_said():
    text = to_tsv(change_table([visit("a", None, 1.0, 2.0), visit("b", None, 1.0, 2.0)]))
    assert text.splitlines()[1].split("\t") == [
        *("ses-a", "sub-1_ses-a_T1w", "n/a", "17", "Left-Hippocampus", "1.000", "1.000", "1.000", "2.000"),
        *("0.000", "0.0000", "n/a", "0.90000"),
    ]
