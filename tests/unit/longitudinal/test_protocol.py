"""What changed at the scanner."""

import pandas as pd
import pytest

from medsegmamba_bids.longitudinal.protocol import Protocol, contrast_of, differences

BEFORE = Protocol("a", (0.9, 1.0, 1.0), {"MagneticFieldStrength": 1.5, "EchoTime": 0.003, "Manufacturer": "X"}, 0.70)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Protocol("b", (1.0, 1.0, 1.0), BEFORE.sidecar, 0.70), "voxels 1 x 1 x 1 mm, not 0.9 x 1 x 1"),
        (Protocol("b", BEFORE.zooms, {"MagneticFieldStrength": "3"}, 0.70), "MagneticFieldStrength 3, not 1.5"),
        (Protocol("b", BEFORE.zooms, {"Manufacturer": "Y"}, 0.70), "Manufacturer Y, not X"),
        (Protocol("b", BEFORE.zooms, {}, 0.78), "cortex has 0.78 of white matter's brightness, not 0.70"),
    ],
)
def test_a_change_is_said(other, said):
    (sentence,) = differences([BEFORE, other])
    assert sentence == f"b was scanned in another way than a: {said}"


def test_rounding_and_what_is_not_known_are_no_change():
    same = Protocol("b", (0.91, 1.0, 1.0), {"MagneticFieldStrength": 1.494, "FlipAngle": 9}, float("nan"))
    assert differences([BEFORE, same]) == []


def test_contrast_is_of_all_cortex_and_white_matter():
    rows = pd.DataFrame({"SegId": [2, 41, 3, 42], "normMean": [100.0, 110, 60, 80], "NVoxels": [1, 1, 3, 1]})
    assert contrast_of(rows) == pytest.approx(65 / 105)
    assert pd.isna(contrast_of(rows[rows["SegId"] == 2]))
