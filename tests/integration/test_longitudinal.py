"""The app over a participant with several sessions, whole."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.cli.main import main
from medsegmamba_bids.data.names import output_name

from .conftest import AFFINE, make_brain

SESSIONS = ("a", "b")


def wide(seed):
    """A brain with air around, in which heads may lie elsewhere."""
    return np.pad(make_brain(seed), 4)


def app(bids, out, *options):
    return main([str(bids), str(out), "participant", *map(str, options)])


@pytest.fixture(scope="module")
def study(tmp_path_factory, weights):
    """A participant with two sessions, which have the same image."""
    from medsegmamba_bids.image.io import save_image

    root = tmp_path_factory.mktemp("visits")
    bids = root / "bids"
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "made up", "BIDSVersion": "1.10.0"}))
    for session in SESSIONS:
        folder = bids / "sub-01" / f"ses-{session}" / "anat"
        save_image(wide(1), AFFINE, folder / f"sub-01_ses-{session}_T1w.nii.gz")
    dates = "session_id\tacq_time\nses-a\t2020-01-01T00:00:00\nses-b\t2021-01-01T00:00:00\n"
    (bids / "sub-01" / "sub-01_sessions.tsv").write_text(dates)
    plugin = root / "linear.json"
    plugin.write_text('{"plugin": "Linear"}')
    options = ["-w", root / "work", "--aseg-weights", weights["aseg"], "--hippocampus-weights", weights["hippocampus"]]
    options += ["--use-plugin", plugin, "--nprocs", "1", "--device", "cpu", "--longitudinal"]
    code = app(bids, root / "out", *options)
    return SimpleNamespace(bids=bids, out=root / "out", options=options, code=code)


def changes(study, name="aseg_changes"):
    return pd.read_csv(study.out / output_name("sub-01", name), sep="\t", na_values="n/a")


def test_it_ends_well(study):
    assert study.code == 0


def test_the_table_has_a_row_per_visit_and_structure(study):
    table = changes(study)
    assert table["session_id"].unique().tolist() == ["ses-a", "ses-b"]
    assert len(table) == 2 * table["SegId"].nunique()
    assert table["years"].unique() == pytest.approx([0, 366 / 365.25], abs=1e-4)
    alone = pd.read_csv(study.out / output_name("sub-01_ses-b", "aseg_stats"), sep="\t", na_values="n/a")
    assert table.loc[table["session_id"] == "ses-b", "CrossSectionalVolume_mm3"].tolist() == pytest.approx(
        alone["Volume_mm3"].tolist(), abs=1e-3, nan_ok=True
    )


@pytest.mark.parametrize("name", ["aseg_changes", "hippocampus_changes"])
def test_equal_visits_have_not_changed_at_all(study, name):
    table = changes(study, name)
    again = table[(table["session_id"] == "ses-b") & (table["Volume_mm3"] > 0)]
    assert len(again)
    assert (again["Change_mm3"] == 0).all()


def test_labels_return_to_the_grid_of_each_visit(study):
    for session in SESSIONS:
        prefix = f"sub-01_ses-{session}"
        raw = nib.load(study.bids / "sub-01" / f"ses-{session}" / "anat" / f"{prefix}_T1w.nii.gz")
        labels = nib.load(study.out / output_name(prefix, "visit_aseg"))
        assert labels.shape == raw.shape
        np.testing.assert_allclose(labels.affine, raw.affine, atol=1e-4)
        assert np.asarray(labels.dataobj).any()


def test_a_second_run_has_nothing_to_do(study, capsys):
    assert app(study.bids, study.out, *study.options) == 0
    assert "its visits were processed together already" in " ".join(capsys.readouterr().out.split())


def test_the_group_has_tables_of_visits(study):
    assert main([str(study.bids), str(study.out), "group"]) == 0
    long, wide_table, slopes = (
        pd.read_csv(study.out / f"group_seg-aseg_desc-{name}_stats.tsv", sep="\t", na_values="n/a")
        for name in ("longitudinal", "visits", "slopes")
    )
    assert len(wide_table) == 2
    assert set(long["participant_id"]) == {"sub-01"}
    assert long["acq_time"].str.startswith("20").all()
    one = long[(long["SegId"] == 17) & (long["session_id"] == "ses-b")].iloc[0]
    assert wide_table.loc[wide_table["session_id"] == "ses-b", one["StructName"]].item() == one["Volume_mm3"]
    assert len(slopes) == long["SegId"].nunique()
