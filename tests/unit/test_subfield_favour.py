"""How subfields are favoured until they are as large as painted: the benchmark script, on made probabilities."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "subfield_favour.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("SimpleITK")
    spec = importlib.util.spec_from_file_location("subfield_favour", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def head(script, painted, blurred):
    """A head whose every painted class holds the voxels given; where two are blurred, the first has ``p`` of it."""
    classes = np.repeat(list(painted), list(painted.values()))
    probabilities = np.full((len(script.NAMES), classes.size), 1e-6)
    probabilities[classes, np.arange(classes.size)] = 1
    for at, (first, second, p) in enumerate(blurred):
        probabilities[:, at] = 1e-6
        probabilities[[first, second], at] = p, 1 - p
    return script.Head(np.log(probabilities).reshape(-1, classes.size, 1, 1), classes.reshape(-1, 1, 1))


def test_a_thin_layer_is_favoured_until_it_is_as_large_as_painted(script):
    """Of 100 voxels of CA1 and CA4 each, 40 of CA4's are unsure: their chances of being CA4 are 0.31 to 0.7. Those
    below 0.5 are lost; with log((1 - 0.31) / 0.31) = 0.80 more between both none is.
    """
    ca1, ca4 = script.NAMES.index("CA1"), script.NAMES.index("CA4")
    everything = {index: 50 for index in range(1, len(script.NAMES)) if index not in (ca1, ca4)}
    unsure = [(ca4, ca1, 0.31 + 0.01 * index) for index in range(40)]
    made = head(script, {ca4: 100, ca1: 100, **everything}, unsure)
    before = script.judge([made], {})
    # both sides count together: 150 voxels of each are painted
    assert before["found_by_painted"]["CA4"] == pytest.approx((150 - 20) / 150, abs=0.01)
    assert before["found_by_painted"]["CA1"] == pytest.approx((150 + 20) / 150, abs=0.01)
    favour = script.meet_volumes([made])
    assert favour["CA4"] - favour["CA1"] == pytest.approx(math.log(0.69 / 0.31), abs=0.1)
    assert all(abs(shift) < 0.01 for name, shift in favour.items() if name not in ("CA1", "CA4"))
    after = script.judge([made], favour)
    assert after["off_by"] == pytest.approx(1, abs=0.002)
    assert after["agreement"] > before["agreement"]
    assert after["dice"] > before["dice"]


def test_a_subfield_that_is_nowhere_found_has_a_finite_favour(script):
    ca4, ca1 = script.NAMES.index("CA4"), script.NAMES.index("CA1")
    sides = {index: 10 for index in range(1, len(script.NAMES)) if script.NAMES[index] != "CA4"}
    made = head(script, {ca4: 4, **sides}, [(ca4, ca1, 1e-5)] * 4)
    favour = script.meet_volumes([made])
    assert favour["CA4"] > 1
    assert all(map(math.isfinite, favour.values()))
