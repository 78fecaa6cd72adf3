"""How subfields are favoured until they are as large as painted: the benchmark script, on made probabilities."""

import numpy as np
import pytest

pytest.importorskip("SimpleITK")
import subfield_favour as script


def head(odds):
    """A head with 50 voxels of every subfield, all sure; and voxels between CA1 and CA4 (left) with these log odds of
    being CA4, painted with what is likelier.
    """
    ca1, ca4 = script.NAMES.index("CA1"), script.NAMES.index("CA4")
    classes = np.repeat(range(1, len(script.NAMES)), 50)
    logarithms = np.full((len(script.NAMES), classes.size + odds.size), -20.0)
    logarithms[classes, np.arange(classes.size)] = 0
    logarithms[ca1, classes.size :], logarithms[ca4, classes.size :] = 0, odds
    painted = np.concatenate([classes, np.where(odds > 0, ca4, ca1)])
    return script.Head(logarithms, painted)


def shifted(made, by):
    """The same head as a network sees it that holds CA4 for less likely."""
    logarithms = made.logarithms.copy()
    logarithms[script.NAMES.index("CA4")] -= by
    return script.Head(logarithms, made.painted)


ODDS = np.linspace(-2, 2, 200)  # alike on both sides of 0, so that each has 100 in the mean


def test_what_a_network_holds_for_too_unlikely_is_favoured_by_that_much():
    ideal = head(ODDS)
    assert script.judge([ideal], {})["off_by"] == 1
    assert script.judge([ideal], {})["dice"] == 1
    made = shifted(ideal, 0.8)
    before = script.judge([made], {})
    lost = 100 - (1 / (1 + np.exp(0.8 - ODDS))).sum()  # by hand: the sum of the logistic function
    assert before["found_by_painted"]["CA4"] == round((200 - lost) / 200, 2) == 0.85
    assert before["found_by_painted"]["CA1"] == round((200 + lost) / 200, 2)
    favour = script.meet_volumes([made])
    assert favour["CA4"] - favour["CA1"] == pytest.approx(0.8, abs=0.02)
    assert all(abs(shift) < 0.01 for name, shift in favour.items() if name not in ("CA1", "CA4"))
    after = script.judge([made], favour)
    assert (after["off_by"], after["agreement"]) == (1, 1)
    assert after["dice"] > before["dice"]


def test_heads_count_together():
    """Too little in one head and too much in another are no reason to favour anything."""
    ideal = head(ODDS)
    favour = script.meet_volumes([shifted(ideal, 0.5), shifted(ideal, -0.5)])
    assert set(favour.values()) == {0}
