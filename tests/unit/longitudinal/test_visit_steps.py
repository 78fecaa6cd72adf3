"""Nodes of several visits on small files: from images to how much larger structures are, to the table of changes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.image.io import save_image, write_text
from medsegmamba_bids.interfaces.visit_steps import CompareVisits, DeformVisit
from medsegmamba_bids.report.provenance import version_of, weights_of
from medsegmamba_bids.segmentations import CORRECTED
from medsegmamba_bids.stats.tables import COLUMNS, to_tsv

SHAPE = (28, 30, 28)
AWAY = np.linalg.norm((np.indices(SHAPE).T - (14, 15, 14)).T, axis=0)


def head(radius):
    return np.where(AWAY < 12, 110 - 80 / (1 + np.exp(3 * (AWAY - radius))), 0).astype(np.float32)


@pytest.fixture
def larger(tmp_path):
    """Files of how much larger places are in two visits, the first of which has the template's image."""
    save_image(AWAY < 12, np.eye(4), tmp_path / "brain.nii", np.uint8)
    save_image(head(6), np.eye(4), tmp_path / "template.nii", np.float32)
    files = []
    for name, radius in (("same", 6), ("grown", 6.2)):
        save_image(head(radius), np.eye(4), tmp_path / f"{name}.nii", np.float32)
        paths = {key: str(tmp_path / f"{file}.nii") for key, file in
                 (("template_file", "template"), ("norm_file", name), ("brain_file", "brain"))}  # fmt: skip
        (tmp_path / name).mkdir()
        files.append(DeformVisit(**paths).run(cwd=str(tmp_path / name)).outputs.larger_file)
    return files


def volumes(path, volume):
    row = dict.fromkeys(COLUMNS, np.nan) | {"SegId": 17, "StructName": "Left-Hippocampus", "NVoxels": 900, "Flag": ""}
    write_text(path, to_tsv(pd.DataFrame([row | {"Volume_mm3": volume}])))
    return str(path)


def compared(tmp_path, larger, years):
    """Outputs of the comparison of two visits of 900 and 930 mm3."""
    save_image(np.where(AWAY < 6, 17, 0), np.eye(4), tmp_path / "labels.nii", np.int16)
    tables = [volumes(tmp_path / f"{number}.tsv", volume) for number, volume in enumerate((900.0, 930.0))]
    node = CompareVisits(
        scans=["sub-1_ses-a_T1w", "sub-1_ses-b_T1w"],
        sessions=["a", "b"],
        native_files=[str(tmp_path / f"{name}.nii") for name in ("same", "grown")],
        years=years,
        together_files=tables,
        alone_files=tables,
        template_file=str(tmp_path / "labels.nii"),
        larger_files=larger,
        volumes=CORRECTED,
        align_record={"Notes": ["seen"]},
    )
    (tmp_path / "compare").mkdir()
    return node.run(cwd=str(tmp_path / "compare")).outputs


def test_repeats_within_days_are_told(tmp_path, larger):
    outputs = compared(tmp_path, larger, [0.0, 3 / 365.25])
    assert json.loads(Path(outputs.sidecar_file).read_text())["Notes"][-1] == (
        "sub-1_ses-b_T1w was made less than 30 days after the first visit: there are no changes a year for it, as "
        "they would be noise made large"
    )


def test_the_json_says_what_made_the_visits(tmp_path, larger):
    weights, versions = {"Name": "n", "Checksum": "ab", "Origin": "here"}, {"medsegmamba_bids": "1.2.3", "numpy": "2"}
    for number in range(2):
        steps = [{"Name": "align"}, {"Name": f"aseg_{number}", "Weights": weights}]
        write_text(tmp_path / f"{number}.json", json.dumps({"Steps": steps, "Versions": versions}))
    made = json.loads(Path(compared(tmp_path, larger, [0.0, 1.0]).sidecar_file).read_text())
    assert (made["Weights"], made["Versions"]) == (weights, versions)
    assert weights_of(made, "aseg").label == "n (ab)"
    assert version_of(made) == "1.2.3"


def test_changes_of_shape_stand_beside_those_of_labels(tmp_path, larger):
    outputs = compared(tmp_path, larger, [0.0, 1.0])
    rows = pd.read_csv(outputs.table_file, sep="\t", na_values="n/a")
    assert rows["LabelVolume_mm3"].tolist() == [900, 930]
    before, after = rows["ShapeVolume_mm3"]
    both = 900**0.3 * before**0.7, 930**0.3 * after**0.7
    assert rows["Volume_mm3"].tolist() == pytest.approx(both, abs=2e-3)
    assert rows["Change_mm3"].tolist() == pytest.approx([0, both[1] - both[0]], abs=4e-3)
    larger_by = after / before  # demons in twelve voxels of brain: roughly
    assert larger_by - 1 == pytest.approx((6.2 / 6) ** 3 - 1, rel=0.35)
    # The first visit is the template exactly, and the level is what the labels of both say that it has.
    assert before == pytest.approx((900 + 930 / larger_by) / 2, abs=1e-2)
    assert json.loads(Path(outputs.sidecar_file).read_text())["Notes"][0] == "seen"
