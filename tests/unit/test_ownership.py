"""Results of another tool, and files of the user, are never replaced."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medsegmamba_bids.cli.demo import make_dataset
from medsegmamba_bids.config import RunConfig, check_folders
from medsegmamba_bids.errors import ConfigError, GroupError, ReportError
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.ownership import check_output_folder
from medsegmamba_bids.report.group import write_group
from medsegmamba_bids.report.participant import write_report

FMRIPREP = {"Name": "fMRIPrep output", "BIDSVersion": "1.4.0", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24"}]}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "in").mkdir()
    return RunConfig(tmp_path / "in", tmp_path / "out", work_dir=tmp_path / "work")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        (
            json.dumps(FMRIPREP),
            "fMRIPrep, not results of medsegmamba_bids, see dataset_description.json",
        ),
        (json.dumps({"PipelineDescription": {"Name": "mriqc"}}), "holds results of mriqc, not results of"),
        (json.dumps({"Name": "raw", "DatasetType": "raw"}), "a dataset that does not say what made it (GeneratedBy)"),
        ("{", "dataset_description.json: cannot be read"),
        ("[]", "dataset_description.json: cannot be read"),
        (json.dumps({"GeneratedBy": ["fMRIPrep"]}), "dataset_description.json: cannot be read"),
    ],
)
@pytest.mark.parametrize("level", ["participant", "group"])
def test_a_folder_of_another_tool_is_refused(config, description, sentence, level):
    put(config.output_dir, "dataset_description.json", description)
    before = files(config.output_dir)
    with pytest.raises(ConfigError) as caught:
        check_folders(replace(config, level=level))
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("name another folder for the results")
    assert files(config.output_dir) == before


@pytest.mark.parametrize(
    "name", ["README.md", "logs/CITATION.md", "group.html", "sub-01.html", "sub-01/ses-a/anat/sub-01_T1w.nii.gz"]
)
def test_without_a_description_files_that_would_be_replaced_are_named(config, name):
    path = put(config.output_dir, name, "by fMRIPrep")
    clash = path.parent if path.parent.name == "anat" else path
    with pytest.raises(ConfigError, match=f"{clash}: is not of medsegmamba_bids and would be replaced"):
        check_folders(config)


def test_our_own_folder_is_taken_again_with_or_without_its_description(config):
    write_dataset_files(config)
    put(config.output_dir, "sub-01/anat/sub-01_seg-aseg_desc-medsegmamba_stats.tsv", "")
    check_folders(config)
    (config.output_dir / "dataset_description.json").unlink()
    check_folders(config)


def test_several_makers_are_fine_if_we_are_one(config):
    both = {"GeneratedBy": [{"Name": "curation"}, {"Name": "medsegmamba_bids"}]}
    put(config.output_dir, "dataset_description.json", json.dumps(both))
    check_folders(config)


def test_the_users_readme_and_lines_to_ignore_stay(config, caplog):
    readme = put(config.output_dir, "README.md", "Read this first.")
    ignored = put(config.output_dir, ".bidsignore", "notes\n*.html\n")
    write_dataset_files(config)
    assert readme.read_text() == "Read this first."
    assert f"{readme}: is not of this package and is left as it is" in caplog.text
    assert ignored.read_text().splitlines()[:3] == ["notes", "*.html", "*_xfm.*"]
    assert ignored.read_text().splitlines().count("*.html") == 1


@pytest.mark.parametrize(
    "text", ["Results of medsegmamba, cohort A", "# Derivatives of medsegmamba_bids\n\nsub-07 moved"]
)
def test_a_readme_of_the_user_that_names_this_package_stays(config, text):
    """Also one that was ours and that someone has gone on writing."""
    readme = put(config.output_dir, "README.md", text)
    write_dataset_files(config)
    assert readme.read_text() == text


def test_what_the_user_says_of_the_dataset_stays(config):
    """Who publishes results adds authors and a licence, and may have other makers beside this package."""
    write_dataset_files(config)
    path = config.output_dir / "dataset_description.json"
    ours = json.loads(path.read_text())
    other = {"Name": "curation"}
    sources = [{"DOI": "doi:10.18112/openneuro.ds000001.v1.0.0"}, {"DOI": "doi:10.18112/openneuro.ds000002.v1.0.0"}]
    sources += [{**source, "Version": "1.0.0"} for source in ours["SourceDatasets"]]
    own = {"Name": "Subfields of cohort A", "Authors": ["A. Person"], "License": "CC0"}
    told = {"Description": "with --longitudinal"}
    outdated = {**ours["GeneratedBy"][0], "Version": "0.0.1", **told}
    lists = {"GeneratedBy": [other, outdated], "SourceDatasets": sources}
    text = json.dumps(ours | own | lists | {"BIDSVersion": "1.4.0"})
    path.write_text(text, encoding="utf-8-sig")  # as some editors do
    check_output_folder(config.output_dir)
    write_dataset_files(config)
    now = json.loads(path.read_text())
    assert now == ours | own | lists | {"GeneratedBy": [other, ours["GeneratedBy"][0] | told]}
    path.write_text(json.dumps(ours | {"SourceDatasets": "none"}))  # as nobody should write it
    write_dataset_files(config)
    assert json.loads(path.read_text()) == ours


def test_lines_to_ignore_that_are_no_utf_8_are_refused(config):
    path = put(config.output_dir, ".bidsignore", "")
    path.write_bytes("mémoire".encode("latin-1"))
    with pytest.raises(ConfigError, match=f"{path}: cannot be read .*save it as UTF-8"):
        write_dataset_files(config)
    assert path.read_bytes() == "mémoire".encode("latin-1")


def test_pages_of_others_are_not_replaced(config):
    page = put(config.output_dir, "sub-01.html", "<html>fMRIPrep</html>")
    with pytest.raises(ReportError, match=f"{page}: is not a page of medsegmamba_bids"):
        write_report(config.output_dir, "01")
    group = put(config.output_dir, "group.html", "<html>MRIQC</html>")
    with pytest.raises(GroupError, match=f"{group}: is not a page of medsegmamba_bids"):
        write_group(config)
    assert [page.read_text(), group.read_text()] == ["<html>fMRIPrep</html>", "<html>MRIQC</html>"]


def test_the_demonstration_leaves_a_dataset_alone(tmp_path):
    mine = put(tmp_path, "dataset_description.json", json.dumps({"Name": "mine"}))
    with pytest.raises(ConfigError, match="is a dataset already"):
        make_dataset(tmp_path)
    assert json.loads(mine.read_text()) == {"Name": "mine"}
    assert list(tmp_path.iterdir()) == [Path(mine)]
