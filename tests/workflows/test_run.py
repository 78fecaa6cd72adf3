"""What surrounds the workflow: batches, plugins, crash files, outcomes, files at the root."""

import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.cli.progress import Progress
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.execution.batches import batches
from medsegmamba_bids.execution.dataset_files import dataset_description, write_dataset_files
from medsegmamba_bids.execution.outcomes import judge_image
from medsegmamba_bids.execution.runner import Runner, read_plugin
from medsegmamba_bids.report.crashes import read_crashes
from medsegmamba_bids.weights.info import InputSpec, WeightsFile, WeightsInfo
from medsegmamba_bids.workflows.outputs import product_metadata
from medsegmamba_bids.workflows.participants import participant_wf_name

NETWORK = WeightsFile(Path("w"), WeightsInfo("w", "medsegmamba", {"classes": 2}, "aseg", (0, 10), InputSpec()))

CRASH = """\
Node: medsegmamba_wf.sub_01_wf.T1w_sub_01_wf.conform
Working directory: /work

Traceback (most recent call last):
  File "x.py", line 1, in run
nipype.pipeline.engine.nodes.NodeExecutionError: Exception raised while executing Node conform.

\tmedsegmamba_bids.errors.ImageError: a.nii.gz: the file is empty

"""


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / "in", tmp_path / "out", work_dir=tmp_path / "work")


@pytest.fixture
def image(config):
    return T1wImage(config.bids_dir / "x.nii.gz", "sub-01", "01", None, "sub-01/anat/sub-01_T1w.nii.gz")


def test_crash_files_are_read(tmp_path):
    (tmp_path / "crash-1.txt").write_text(CRASH)
    (tmp_path / "crash-2.txt").write_text("cut off")
    assert read_crashes(tmp_path) == {"medsegmamba_wf.sub_01_wf.T1w_sub_01_wf.conform": "a.nii.gz: the file is empty"}


def test_a_crash_tells_more_than_that_something_is_not_there(config, image):
    assert judge_image(image, {"aseg": "no memory"}, "", config).reasons == ("aseg: no memory",)
    assert judge_image(image, {"aseg": "no memory"}, "not there", config).reasons == ("aseg: no memory",)
    unfinished = judge_image(image, {}, "not there", config)
    assert (unfinished.status, unfinished.reasons) == ("failed", ("not there",))


def test_notes_are_told_and_make_no_flag(config, image):
    table = config.output_dir / output_name("sub-01", "aseg_stats", ".json")
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({"Notes": ["not found: Left-Thalamus"]}))
    outcome = judge_image(image, {}, "", config)
    assert (outcome.status, outcome.reasons) == ("done", ("not found: Left-Thalamus",))


def test_batches_hold_every_participant_once(config):
    subjects = {f"{number:03d}": [] for number in range(40)}
    found = list(batches(subjects, config))
    assert [len(batch) for batch in found] == [16, 16, 8]
    assert [name for batch in found for name in batch] == list(subjects)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"plugin": "Nonsense"}', "no plugin 'Nonsense'; there are"),
        ('{"plugin_args": {}}', "it must hold 'plugin'"),
        ('{"plugin": "MultiProc", "plugin_arg": {}}', "unknown keys plugin_arg (plugin_args is meant?)"),
        ("{", "cannot be used as --use-plugin"),
    ],
)
def test_plugins_that_cannot_be_used(tmp_path, text, sentence):
    path = tmp_path / "plugin.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        read_plugin(path)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ImportError("no module x"), "ImportError: no module x"),
        (RuntimeError(f"Traceback\n\n{CRASH}"), "a.nii.gz: the file is empty"),
        (RuntimeError("2 raised. Re-raising first."), "a.nii.gz: the file is empty"),
    ],
)
def test_why_a_workflow_ended_is_told_in_a_sentence(error, sentence):
    """Others than the participant whose node it was read it, too."""
    if "raised" in str(error):
        error.__cause__ = RuntimeError(CRASH)

    def run(**how):
        raise error

    runner = Runner.__new__(Runner)
    runner.plugin, runner.arguments = "MultiProc", {}
    assert runner.run(SimpleNamespace(run=run)) == sentence


def test_a_plugin_is_read(tmp_path):
    path = tmp_path / "plugin.json"
    path.write_text('{"plugin": "MultiProc", "plugin_args": {"n_procs": 3}}')
    assert read_plugin(path) == ("MultiProc", {"n_procs": 3})


def test_files_at_the_root_are_written_once(config):
    write_dataset_files(config)
    root = config.output_dir
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    write_dataset_files(config)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    header, row, *_ = (root / "seg-hippoFS60_dseg.tsv").read_text().splitlines()
    assert header == "index\tname\tabbreviation\tcolor"
    assert row.split("\t")[0] == "0"
    assert "figures" in (root / ".bidsignore").read_text().split()


def test_links_are_relative(tmp_path):
    inside = RunConfig(tmp_path, tmp_path / "derivatives" / "medsegmamba")
    assert dataset_description(inside)["DatasetLinks"] == {"raw": "../.."}
    prep = tmp_path / "p" / "fmri prep"
    masks = str(tmp_path / "masks" / "{subject}" / "mask.nii.gz")
    outside = RunConfig(tmp_path / "a", tmp_path / "b" / "out", derivatives=(prep,), brain_mask=masks)
    links = dataset_description(outside)["DatasetLinks"]
    assert links == {"raw": "../../a", "derivatives1": "../../p/fmri%20prep", "masks": "../../masks"}
    (tmp_path / "b").symlink_to(tmp_path)  # the output lies one folder higher than its name says
    assert dataset_description(outside)["DatasetLinks"]["raw"] == "../a"


def test_a_link_to_a_name_of_any_bytes(tmp_path):
    odd, link = tmp_path / os.fsdecode(b"d\xff"), tmp_path / "link"
    link.symlink_to(odd)
    assert dataset_description(RunConfig(link, tmp_path / "out"))["DatasetLinks"] == {"raw": "../d%FF"}


def links_of(config, **options):
    """Return the links after a run."""
    write_dataset_files(replace(config, **options))
    return json.loads((config.output_dir / "dataset_description.json").read_text())["DatasetLinks"]


def test_a_name_of_a_dataset_keeps_its_meaning(config, tmp_path):
    """Results of earlier runs go on naming it."""
    first, second, masks = (tmp_path / name for name in ("a", "b", "c"))
    links_of(config, derivatives=(first,))
    assert links_of(config, derivatives=(second,), brain_mask=f"{masks}/{{subject}}.nii") == {
        "raw": "../in",
        "derivatives1": "../a",
        "derivatives2": "../b",
        "masks": "../c",
    }
    kept = links_of(config, derivatives=(second, first), brain_mask=f"{first}/{{subject}}.nii")
    assert links_of(config) == kept == {**kept, "derivatives1": "../a", "derivatives2": "../b", "masks": "../c"}
    other = links_of(config, bids_dir=tmp_path / "in2", brain_mask=f"{tmp_path}/d/{{subject}}.nii")
    assert other == {**kept, "raw2": "../in2", "masks2": "../d"}
    assert links_of(config) == other


def test_a_link_that_the_user_mended_stays(config):
    description = config.output_dir / "dataset_description.json"
    links_of(config)
    entries = json.loads(description.read_text())
    description.write_text(json.dumps({**entries, "DatasetLinks": {"raw": "https://x.org/ds", "study": "../in"}}))
    assert links_of(config) == {"raw": "https://x.org/ds", "study": "../in"}
    description.write_text(json.dumps({**entries, "DatasetLinks": []}))
    assert links_of(config) == {"raw": "../in"}


def test_sources_are_called_as_the_description_does(config, image, tmp_path):
    """Also by runs that name their datasets in another order."""
    first, second = tmp_path / "a", tmp_path / "b"
    links_of(config, derivatives=(first,))
    now = replace(config, derivatives=(second, first), bids_dir=tmp_path / "in2")
    links_of(now)
    for folder, name in ((first, "derivatives1"), (second, "derivatives2")):
        masked = replace(image, mask=folder / "sub-01" / "m.nii.gz")
        assert mask_sources(masked, now) == [f"bids:{name}:sub-01/m.nii.gz"]
    raw = product_metadata("aseg", image, now, NETWORK)["SpatialReference"]
    assert raw == "bids:raw2:sub-01/anat/sub-01_T1w.nii.gz"


def mask_sources(image, config):
    return product_metadata("conformed_mask", image, config, NETWORK)["Sources"]


def test_the_code_is_this_software(tmp_path):
    (made_by,) = dataset_description(RunConfig(tmp_path / "a", tmp_path / "b"))["GeneratedBy"]
    assert made_by["Name"] == "medsegmamba_bids"
    assert "medsegmamba-bids" in made_by["CodeURL"]


def test_progress_names_image_and_step():
    stream = StringIO()
    node = SimpleNamespace(fullname="medsegmamba_wf.sub_01_wf.T1w_sub_01_ses_a_wf.aseg")
    with Progress(stream) as progress:
        progress(node, "start")
        progress(node, "end")
        progress(node, "exception")
    # Elsewhere than on a terminal: what failed, and a line a participant.
    assert stream.getvalue().splitlines() == [
        "[00:00] sub_01_ses_a: aseg FAILED, as before",
        "[00:00] sub-01 FAILED",
    ]
    assert (progress.done, progress.failed) == (1, 1)


def test_progress_names_participants_as_their_folders_are_named():
    stream = StringIO()
    with Progress(stream) as progress:
        progress.passed(["A+1"])
        part = participant_wf_name("A+1")
        progress(SimpleNamespace(fullname=f"medsegmamba_wf.{part}.T1w_{part}.aseg"), "exception")
        assert progress._ended == progress._passed
    assert [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "sub_A+1: aseg FAILED, as before",
        "sub-A+1 FAILED",
    ]


def test_progress_counts_participants_and_tells_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("medsegmamba_bids.cli.progress.time.monotonic", lambda: now[0])

    def node(name):
        return SimpleNamespace(fullname=f"medsegmamba_wf.{name}")

    for terminal in (False, True):
        stream, now[0] = StringIO(), 0.0
        stream.isatty = lambda terminal=terminal: terminal
        progress = Progress(stream)
        progress.total = 4
        progress.passed(["04"])
        progress(node("sub_01_wf.T1w_sub_01_wf.aseg"), "start")
        now[0] = 120.0
        progress(node("sub_01_wf.T1w_sub_01_wf.aseg"), "end")
        progress(node("sub_01_wf.report"), "end")
        progress(node("sub_02_wf.report"), "start")
        lines = stream.getvalue().replace("\r\x1b[K", "\n" if terminal else "").split("\n")
        done = "[02:00] sub-01 done, 2 of 4 participants, about 4 min left"
        if terminal:
            assert lines[1:4] == [
                "[00:00] 1 of 4 participants sub_01: aseg …",
                "[02:00] 1 of 4 participants sub_01: aseg done, 120.0 s",
                "[02:00] 1 of 4 participants sub_01: report done, as before",
            ]
            assert done in lines
            assert lines[-1] == "[02:00] 2 of 4 participants, about 4 min left sub_02: report …"
        else:
            assert lines == [done, ""]
