"""The benchmark that sets the limits of quality flags: what it promises of heads to come, odd heads, its file."""

import json
import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import flag_limits
from medsegmamba_bids.report.thresholds import load_thresholds

NAMES = [("volume", f"structure {number}") for number in range(12)]
NAMES += [("asymmetry", f"structure {number}") for number in range(8)]


def heads(rng, number):
    """Quantities of ordinary heads, without relation to each other, of several centres and scales."""
    centres, scales = np.linspace(-2, 9, len(NAMES)), np.linspace(0.05, 0.6, len(NAMES))
    return pd.DataFrame(rng.normal(centres, scales, (number, len(NAMES))), columns=pd.MultiIndex.from_tuples(NAMES))


def test_a_share_of_heads_to_come_is_flagged():
    rng = np.random.default_rng(1)
    flagged = []
    for _ in range(30):
        limits, _ = flag_limits.limits_of(heads(rng, 20), 0.05)
        flagged.append(len(flag_limits.odd_heads(heads(rng, 400), limits)) / 400)
    assert 0.01 < np.mean(flagged) < 0.06


def test_an_odd_head_moves_no_limit():
    ordinary = heads(np.random.default_rng(2), 20)
    odd = ordinary.iloc[:1].rename(index=lambda _: "odd")
    odd[NAMES[-1]] += 10
    limits, degrees, left_out = flag_limits.robust_limits(pd.concat([ordinary, odd]), 0.05)
    assert left_out == ["odd"]
    assert (limits, degrees) == flag_limits.limits_of(ordinary, 0.05)


def test_limits_are_rounded_to_what_flags_less():
    limits = {
        ("volume", "Left-Caudate"): (math.log(2345.6), math.log(4321)),
        ("volume", "Right-Caudate"): (math.log(2500), math.log(4567)),
        ("asymmetry", "Caudate"): (math.log(1 / 3), math.log(2)),
    }
    changes = flag_limits.as_thresholds(limits)
    assert changes["volumes"]["ranges"] == {"Caudate": [2300, 4600]}
    assert changes["checks"]["asymmetry"]["limits"]["Caudate"] == pytest.approx(1.0, abs=0.011)


def test_command(tmp_path, capsys):
    rng = np.random.default_rng(3)
    for number in range(10):
        labels = np.zeros((40, 12, 12), np.int16)
        left, right = (10, 10) if number else (15, 2)  # the first one's right side is a seventh of the left
        labels[: left + rng.integers(3), 1:9, 1:9], labels[20 : 20 + right + rng.integers(2), 1:9, 1:9] = 17, 53
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"head_{number}.nii.gz")
    written = tmp_path / "limits.json"
    flag_limits.main([*map(str, sorted(tmp_path.glob("head_*"))), "--write", str(written)])
    limits = load_thresholds(written)
    assert json.loads(written.read_text())["volumes"]["ranges"].keys() == {"Hippocampus"}
    assert limits["volumes"]["ranges"]["Hippocampus"][1] < 2000
    assert 0.2 < limits["checks"]["asymmetry"]["limits"]["Hippocampus"] < 1.4
    text = capsys.readouterr().out
    assert "set without ['head_0']" in text
    assert "1 of 10 flagged: 10%, 95 % interval 0% to 45%" in text
