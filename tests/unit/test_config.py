import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from medsegmamba_bids import __version__
from medsegmamba_bids.config import RunConfig, check_folders, new_run_id, options_from_json
from medsegmamba_bids.errors import ConfigError


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "bids").mkdir()
    return {"bids_dir": tmp_path / "bids", "output_dir": tmp_path / "out", "work_dir": tmp_path / "work"}


# The record


def test_own_spaces_are_no_templates():
    spaces = ["T1w", "MNI152NLin2009cAsym", "conform", "MNIInfant:cohort-2:res-1", "MNI152NLin2009cAsym"]
    assert RunConfig("in", "out", output_spaces=spaces).output_spaces == (
        "MNI152NLin2009cAsym",
        "MNIInfant:cohort-2:res-1",
    )
    with pytest.raises(ConfigError, match="'MNI152:r1' is no space; allowed are names of TemplateFlow's templates"):
        RunConfig("in", "out", output_spaces=["MNI152:r1"])


def test_the_record_is_frozen(folders):
    config = RunConfig(**folders)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.nprocs = 2


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = RunConfig("in", "out", derivatives=["d", "~/e"], use_plugin="p.yml")
    assert config.bids_dir == tmp_path / "in"
    assert config.work_dir == tmp_path / "work"
    assert config.derivatives == (tmp_path / "d", tmp_path / "home" / "e")
    assert config.use_plugin == tmp_path / "p.yml"
    assert config.bids_filter_file is None


def test_folders_of_logs(tmp_path):
    config = RunConfig("in", tmp_path / "out", run_id="r1")
    assert config.log_dir == tmp_path / "out" / "logs" / "r1"
    assert config.participant_log_dir("07") == tmp_path / "out" / "sub-07" / "log" / "r1"


def test_run_ids_differ():
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"\d{8}-\d{6}_[0-9a-f]{8}", one) for one in ids)
    assert RunConfig("in", "out").run_id


def test_json_gives_the_record_back(tmp_path):
    config = RunConfig(
        tmp_path,
        tmp_path / "out",
        participant_label=("01", "02"),
        derivatives=(tmp_path / "d",),
        mem_gb=3.5,
        step_size=8,
        brain_mask="{subject}.nii.gz",
        fs_stats=False,
    )
    text = config.to_json()
    assert RunConfig.from_json(text) == config
    entries = json.loads(text)
    assert entries["version"] == __version__
    assert entries["participant_label"] == ["01", "02"]
    assert entries["hippocampus_weights"] is None
    assert set(entries) == {"version", *(entry.name for entry in dataclasses.fields(RunConfig))}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object of options"),
        (
            '{"step": 3, "bids_dir": "x"}',
            "unknown options step \\(step_size is meant\\?\\); known are bids_dir, output_dir, ",
        ),
    ],
)
def test_text_that_is_no_record(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        options_from_json(text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": "session"}, "level is 'session'; allowed are participant, group"),
        ({"precision": "int8"}, "--precision is 'int8'; allowed are float32, bfloat16, float16"),
        ({"nprocs": 0}, "--nprocs is 0; it must be 1 or more"),
        ({"omp_nthreads": -1}, "--omp-nthreads is -1; it must be 1 or more"),
        ({"batch_size": 0}, "--batch-size is 0; it must be 1 or more"),
        ({"step_size": 0}, "--step-size is 0; it must be 1 or more"),
        ({"mem_gb": 0}, "--mem is 0 GB; it must be positive"),
        ({"nprocs": 2, "omp_nthreads": 3}, "--omp-nthreads 3 is more than --nprocs 2"),
    ],
)
def test_values_out_of_range(options, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        RunConfig("in", "out", **options)


# Folders


def test_good_folders_are_made(folders):
    check_folders(RunConfig(**folders))
    assert folders["output_dir"].is_dir()
    assert folders["work_dir"].is_dir()
    assert not list(folders["output_dir"].iterdir())


def test_results_may_lie_in_the_dataset(folders):
    folders["output_dir"] = folders["bids_dir"] / "derivatives" / "medsegmamba"
    check_folders(RunConfig(**folders))


def test_group_level_needs_neither_dataset_nor_work_folder(folders, tmp_path):
    folders["bids_dir"] = tmp_path / "nowhere"
    check_folders(RunConfig(**folders, level="group"))
    assert not folders["work_dir"].exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bids_dir": "nowhere"}, "nowhere: no such folder; BIDS_DIR is the folder of a BIDS dataset"),
        ({"output_dir": "bids"}, "the output folder is the input folder; use another, such as .*derivatives/medseg"),
        ({"output_dir": "bids/../bids"}, "the output folder is the input folder"),
        ({"work_dir": "bids"}, "the work folder lies in the BIDS dataset; name another with -w"),
        ({"work_dir": "bids/derivatives/work"}, "the work folder lies in the BIDS dataset"),
        ({"work_dir": "out"}, "the work folder is the output folder; name another with -w"),
        ({"derivatives": ("fmriprep",)}, r"fmriprep: no such folder \(--derivatives\)"),
        ({"output_dir": "file/out"}, r"file/out: the output folder cannot be written \(Not a directory\)"),
        ({"work_dir": "file"}, r"file: the work folder cannot be written \(File exists\)"),
    ],
)
def test_folders_that_would_do_harm(folders, tmp_path, monkeypatch, change, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ConfigError, match=sentence):
        check_folders(RunConfig(**{**folders, **change}))


def test_a_link_does_not_hide_the_dataset(folders, tmp_path):
    (tmp_path / "link").symlink_to(folders["bids_dir"])
    with pytest.raises(ConfigError, match="the output folder is the input folder"):
        check_folders(RunConfig(**{**folders, "output_dir": tmp_path / "link"}))
    with pytest.raises(ConfigError, match="the work folder lies in the BIDS dataset"):
        check_folders(RunConfig(**{**folders, "work_dir": tmp_path / "link" / "work"}))


@pytest.mark.parametrize("which", ["output_dir", "work_dir"])
def test_folders_whose_names_are_no_text(folders, tmp_path, which):
    """Each step of Nipype, which writes such names down, would fail."""
    folders[which] = tmp_path / os.fsdecode("mémoire".encode("latin-1"))
    with pytest.raises(ConfigError, match="its name holds bytes that are no UTF-8"):
        check_folders(RunConfig(**folders))
    assert not folders[which].exists()
    check_folders(RunConfig(**folders, level="group"))


def test_a_link_gives_an_output_folder_another_name(folders, tmp_path):
    """Not a work folder, in which steps find themselves under its true name."""
    folder = tmp_path / os.fsdecode(b"m\xe9moire")
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    check_folders(RunConfig(**{**folders, "output_dir": tmp_path / "link"}))
    with pytest.raises(ConfigError, match="no UTF-8; name another with -w"):
        check_folders(RunConfig(**{**folders, "work_dir": tmp_path / "link"}))


@pytest.mark.parametrize("which", ["output_dir", "work_dir"])
def test_a_read_only_folder(folders, monkeypatch, which):
    """Root may write anywhere, so that the system's refusal is made up."""
    touch = Path.touch

    def refuse(path, *args, **options):
        if path.parent == folders[which]:
            raise PermissionError(13, "Permission denied", str(path))
        return touch(path, *args, **options)

    monkeypatch.setattr(Path, "touch", refuse)
    what = which.removesuffix("_dir")
    name = "output" if what == "output" else "work"
    with pytest.raises(ConfigError, match=rf"the {name} folder cannot be written \(Permission denied\)"):
        check_folders(RunConfig(**folders))
