"""Runs that are refused before any work: a sentence that names the file, once, and nothing left behind."""

import json

import pytest

from medsegmamba_bids.cli.main import main


@pytest.fixture
def folders(tmp_path):
    bids = tmp_path / "bids"
    (bids / "sub-01" / "anat").mkdir(parents=True)
    (bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"")
    description = {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    return [str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]


@pytest.mark.parametrize(
    "option",
    [
        "--quality-thresholds",
        "--bids-filter-file",
        "--use-plugin",
        "--config-file",
        "--aseg-weights",
        "--hippocampus-weights",
        "--brain-mask",
        "-d",
    ],
)
def test_a_file_that_is_not_there_is_named_once_and_no_log_is_left(folders, tmp_path, capsys, option):
    assert main([*folders, option, "/nope.json"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: /nope.json: ")
    assert told.count("/nope.json") == 1
    assert "Errno" not in told
    assert not (tmp_path / "out" / "logs").exists()


def test_logs_of_other_runs_stay(folders, tmp_path):
    other = tmp_path / "out" / "logs" / "earlier" / "config.json"
    other.parent.mkdir(parents=True)
    other.touch()
    assert main([*folders, "--aseg-weights", "/nope"]) == 1
    assert list((tmp_path / "out" / "logs").iterdir()) == [other.parent]


def test_more_memory_than_there_is_is_said(folders, capsys):
    assert main([*folders, "--aseg-weights", "/nope", "--mem", "16000"]) == 1
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith("WARNING: --mem 16000 GB is more than the ")
    assert told.endswith("GB that there are: memory may run out; --mem counts GB, --mem-mb 16000 MB")
