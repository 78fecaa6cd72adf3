"""When a T1w is left alone as it is finished, and which intermediate results are trusted."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.execution import resume, run
from medsegmamba_bids.execution import work_folders as work
from medsegmamba_bids.execution.batches import Batch
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.execution.outcomes import NOT_THERE, Outcome, exit_code, finished_before, outcome_table
from medsegmamba_bids.execution.resume import record_report, report_is_current, why_unfinished
from medsegmamba_bids.execution.work_folders import prepare_work_dir
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.interfaces.record import WriteRecord, forget
from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.report.run_records import record_path
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.weights.info import InputSpec, WeightsFile, WeightsInfo
from medsegmamba_bids.workflows import ingredients
from medsegmamba_bids.workflows.ingredients import (
    files_now,
    made_from,
)
from medsegmamba_bids.workflows.longitudinal import LONGITUDINAL
from medsegmamba_bids.workflows.networks import Networks
from medsegmamba_bids.workflows.participants import ROOT, participant_wf_name, participant_work_dir

TEMPLATE = Template("head", Path("template.nii.gz"), 2_000_000.0, "")


def networks(checksum="abc", subfields=None, **spec):
    labels = tuple(load_label_table("aseg_brain").labels.tolist())

    def network(what):
        config = {"classes": len(labels)}
        info = WeightsInfo("w", "medsegmamba", config, "aseg", labels, InputSpec(**spec), checksum=what)
        return WeightsFile(Path(what), info)

    return Networks(network(checksum), network(subfields) if subfields else None)


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / "in", tmp_path / "out", work_dir=tmp_path / "work", device="cpu")


@pytest.fixture
def image(config):
    path = config.bids_dir / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"image")
    return T1wImage(path, "sub-01", "01", None, "sub-01/anat/sub-01_T1w.nii.gz")


@pytest.fixture
def done(config, image):
    """A T1w whose results are written and recorded."""
    finish(image, config)
    return image


def finish(image, config, in_files=None):
    paths = [config.output_dir / output_name(image.prefix, name) for name in ("aseg", "aseg_stats")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    node = WriteRecord(
        output_dir=str(config.output_dir),
        prefix=image.prefix,
        made_from=made_from(image, config, networks(), TEMPLATE),
        in_files=in_files or files_now(image),
        aseg_files=[str(path) for path in paths],
    )
    return node.run()


def why(image, config, **kind):
    return why_unfinished(image, made_from(image, config, networks(**kind), TEMPLATE), config)


def test_nothing_is_done_twice(done, config):
    assert why(done, config) == ""
    other_machine = replace(
        config, device="cuda", batch_size=3, low_memory=True, nprocs=8, omp_nthreads=4, mem_gb=3, verbose=2
    )
    assert why(done, replace(other_machine, work_dir=config.work_dir / "other", clean_workdir=True)) == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"force": True}, "asked for"),
        ({"precision": "bfloat16"}, "other options"),
        ({"step_size": 16}, "other options"),
        ({"save_posteriors": True}, "other options"),
        ({"fs_stats": False}, "other options"),
        ({"fs_subfields": True}, "other options"),
        ({"meshes": True}, "other options"),
        ({"output_spaces": ("MNI152NLin2009cAsym",)}, "other options"),
    ],
)
def test_options_that_matter(done, config, change, sentence):
    assert sentence in why(done, replace(config, **change))


def test_weights_and_version_matter(done, config, monkeypatch):
    assert why(done, config, checksum="abd") == "it was made with other weights"
    assert why(done, config, subfields="s") == "it was made with other weights"
    assert why(done, config, step=16) == "it was made with other weights"  # the same tensors
    monkeypatch.setattr(ingredients, "__version__", "99")
    assert why(done, config) == "it was made with another version"


def test_the_content_of_the_image_matters_and_its_time_does_not(done, config):
    os.utime(done.path, ns=(1, 1))
    assert why(done, config) == ""
    done.path.write_bytes(b"imagf")  # as long as before
    assert why(done, config) == "the T1w changed"
    done.path.write_bytes(b"longer image")
    assert why(done, config) == "the T1w changed"


def test_a_mask_matters(done, config, tmp_path):
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(b"mask")
    masked = replace(done, mask=mask)
    assert why(masked, config) == "it was made with another mask"
    finish(masked, config)
    assert why(masked, config) == ""
    mask.write_bytes(b"makk")
    assert why(masked, config) == "the mask changed"


def test_results_must_be_there_whole(done, config):
    path = config.output_dir / output_name("sub-01", "aseg")
    text = path.read_text()
    path.write_text(text[:-1])
    assert why(done, config) == f"1 of its results are gone or changed, such as {output_name('sub-01', 'aseg')}"
    path.write_text(text)
    assert why(done, config) == ""
    path.unlink()
    assert "gone or changed" in why(done, config)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"MadeFrom": 3}', '{"MadeFrom": {}, "Inputs": {}, "Outputs": []}'])
def test_a_damaged_record_counts_as_none(done, config, text):
    record_path(config.output_dir, "sub-01").write_text(text)
    assert why(done, config) == "it was not finished before"


def test_an_image_that_changes_during_the_run_is_not_recorded(image, config, caplog):
    before = files_now(image)
    image.path.write_bytes(b"another image")
    finish(image, config, before)
    assert why(image, config) == "it was not finished before"
    assert "the T1w changed during the run" in caplog.text


# What an earlier run wrote and this one does not


def record(config, prefix, *names, suffix="T1w"):
    """Write files below the output folder and the record that lists them."""
    for name in names:
        path = config.output_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    written = [str(config.output_dir / name) for name in names]
    node = WriteRecord(output_dir=str(config.output_dir), prefix=prefix, suffix=suffix, made_from={}, in_files={})
    node.inputs.trait_set(aseg_files=written[:1], more_files=written[1:])
    return node.run()


def there(config):
    paths = config.output_dir.rglob("*")
    return {path.relative_to(config.output_dir).as_posix() for path in paths if path.is_file()}


def test_what_a_new_run_does_not_make_goes(config, caplog):
    record(config, "sub-01", "sub-01/anat/a", "sub-01/meshes/b", "freesurfer/sub-01/mri/c", "sub-01/anat/d")
    (config.output_dir / "sub-01" / "anat" / "mine").write_text("of the user")
    (config.output_dir / "sub-01" / "anat" / "d").unlink()  # and is no failure
    with caplog.at_level("INFO"):
        record(config, "sub-01", "sub-01/anat/a")
    assert there(config) == {"sub-01/anat/a", "sub-01/anat/mine", "sub-01/log/sub-01_T1w.json"}
    assert "sub-01: removed 2 results of an earlier run, which this one does not make: " in caplog.text
    assert "sub-01/meshes/b" in caplog.text


def test_what_someone_has_changed_since_stays(config):
    record(config, "sub-01", "sub-01/anat/a", "sub-01/anat/corrected", "sub-01/anat/c")
    (config.output_dir / "sub-01" / "anat" / "corrected").write_text("by hand")
    record(config, "sub-01", "sub-01/anat/a")
    assert there(config) == {"sub-01/anat/a", "sub-01/anat/corrected", "sub-01/log/sub-01_T1w.json"}


def test_so_it_is_after_force(config, image):
    """Its record says no more that the image is done, but what there is of it."""
    record(config, "sub-01", "sub-01/anat/a", "sub-01/meshes/b")
    path = record_path(config.output_dir, "sub-01")
    forget(path)
    assert why(image, config) == "it was not finished before"
    record(config, "sub-01", "sub-01/anat/a")
    assert there(config) == {"sub-01/anat/a", "sub-01/log/sub-01_T1w.json"}
    path.write_text("damaged")
    forget(path)
    assert not path.exists()
    forget(path)


def test_so_it_is_with_visits(config):
    record(config, "sub-01", "sub-01/ses-a/anat/long", "sub-01/ses-b/anat/long", suffix="longitudinal")
    record(config, "sub-01_ses-b", "sub-01/ses-b/anat/alone")
    record(config, "sub-01", "sub-01/ses-a/anat/long", suffix="longitudinal")
    assert there(config) >= {"sub-01/ses-a/anat/long", "sub-01/ses-b/anat/alone"}
    assert "sub-01/ses-b/anat/long" not in there(config)


def test_what_others_have_too_stays(config, tmp_path):
    beyond = tmp_path / "beyond"
    beyond.write_text("of nobody here")
    (config.output_dir / "sub-01").mkdir(parents=True)
    (config.output_dir / "sub-01" / "way").symlink_to(tmp_path)
    record(config, "sub-01_run-1", "sub-01/anat/own", "sub-01/anat/shared", "README.md", "sub-02/anat/a")
    record(config, "sub-01_run-2", "sub-01/anat/shared")
    path = record_path(config.output_dir, "sub-01_run-1")
    entries = json.loads(path.read_text())
    entries["Outputs"] |= dict.fromkeys(["../beyond", str(beyond), "sub-01/way/beyond", "sub-01/anat", ""], 0)
    path.write_text(json.dumps(entries))
    record(config, "sub-01_run-1", "sub-01/anat/own")
    assert beyond.exists()
    assert there(config) >= {"sub-01/anat/own", "sub-01/anat/shared", "README.md", "sub-02/anat/a"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Outputs": ["sub-01/anat/b"]}', '{"Outputs": 3}'])
def test_a_damaged_record_removes_nothing(config, text):
    record(config, "sub-01", "sub-01/anat/a", "sub-01/anat/b")
    record_path(config.output_dir, "sub-01").write_text(text)
    record(config, "sub-01", "sub-01/anat/a")
    assert "sub-01/anat/b" in there(config)


def test_a_run_that_is_killed_while_it_removes_leaves_the_image_unfinished(done, config, monkeypatch):
    before = record_path(config.output_dir, "sub-01").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("medsegmamba_bids.interfaces.record.write_new", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record(config, "sub-01", "sub-01/anat/other")
    assert record_path(config.output_dir, "sub-01").read_text() == before
    assert "2 of its results are gone" in why(done, config)


def test_a_report_is_current_until_results_or_limits_change(done, config, tmp_path):
    page = config.output_dir / "sub-01.html"
    assert not report_is_current("01", config)
    page.write_text("page")
    record_report("01", config)
    assert report_is_current("01", config)
    limits = tmp_path / "limits.json"
    limits.write_text("{}")
    assert not report_is_current("01", replace(config, quality_thresholds=limits))
    second = replace(done, prefix="sub-01_run-2")
    finish(second, config)
    assert not report_is_current("01", config)
    record_report("01", config)
    page.unlink()
    assert not report_is_current("01", config)


def test_the_table_says_so_and_the_code_is_0(image):
    outcomes = [finished_before(image, by_another=False)]
    assert outcome_table(outcomes).splitlines() == [
        "sub-01_T1w  finished  skipped: finished already (--force redoes it)",
        "0 done, 0 flagged, 0 failed, 0 skipped, 1 finished already",
    ]
    assert exit_code(outcomes) == 0
    assert "by another run" in finished_before(image, by_another=True).reasons[0]


def intermediate(image, config):
    path = participant_work_dir("01", config) / image.node_name / "conform" / "result_conform.pklz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


def test_work_of_this_version_is_kept(image, config):
    prepare_work_dir("01", [image], config)
    path = intermediate(image, config)
    assert prepare_work_dir("01", [image], config) == ""
    assert path.exists()
    visits = participant_work_dir("01", config) / LONGITUDINAL / "align"
    visits.mkdir(parents=True)
    prepare_work_dir("01", [image], replace(config, force=True))
    assert not path.exists()
    assert not visits.exists()


@pytest.mark.parametrize(("stamp", "said"), [('{"Version": "0.0.1"}', "0.0.1"), ("{", "unknown"), (None, "unknown")])
def test_work_of_another_version_is_not_trusted(image, config, stamp, said):
    path = intermediate(image, config)
    folder = participant_work_dir("01", config)
    if stamp:
        (folder / "version.json").write_text(stamp)
    assert prepare_work_dir("01", [image], config) == said
    assert not path.exists()
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    assert prepare_work_dir("01", [image], config) == ""
    assert json.loads((folder / "version.json").read_text()).keys() == {"Version"}


def test_a_deletion_that_is_cut_short_leaves_nothing_to_trust(image, config, monkeypatch):
    path = intermediate(image, config)
    with monkeypatch.context() as patch:
        patch.setattr(work.shutil, "rmtree", lambda *args, **kwargs: None)  # killed before
        work.discard(participant_work_dir("01", config))
    assert not path.exists()
    prepare_work_dir("01", [image], config)
    assert [entry.name for entry in participant_work_dir("01", config).parent.iterdir()] == ["sub_01_wf"]


def test_half_written_files_of_another_user_are_in_nobodys_way(image, config, monkeypatch):
    path = config.output_dir / "sub-01" / ".a.0a1b2c3d.part.nii.gz"
    written(path)
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (_ for _ in ()).throw(PermissionError(13, "no", str(path))))
    assert prepare_work_dir("01", [image], config) == ""
    assert path.exists()


def test_a_participant_whose_work_folder_cannot_be_made_ready_fails_alone(config, image, done, monkeypatch):
    """02's; 01 is finished but for its page."""
    second = replace(image, prefix="sub-02", subject="02")
    ready = []

    def prepare(subject, images, config):
        if subject == "02":
            raise PermissionError(13, "Permission denied", "work/sub_02_wf")
        ready.append(subject)
        return ""

    monkeypatch.setattr(run, "prepare_work_dir", prepare)
    batch = Batch({"01": [done], "02": [second]})
    outcomes = {one.name: (one.status, one.reasons) for one in run.process(batch, means_of(config, FakeRunner()))}
    assert outcomes["sub-02"] == ("failed", ("work/sub_02_wf: cannot be written (Permission denied)",))
    assert outcomes["sub-01_T1w"][0] == "finished"
    assert ready == ["01"]


def test_half_written_files_of_a_killed_run_go(image, config):
    anat, mri = config.output_dir / "sub-01" / "anat", config.output_dir / "freesurfer"
    gone = [anat / ".sub-01_dseg.0a1b2c3d.part.nii.gz", config.output_dir / ".sub-01.0a1b2c3d.part.html"]
    gone += [mri / name / "mri" / ".lh.hippoAmygLabels.0a1b2c3d.part.mgz" for name in ("sub-01", "sub-01_run-2")]
    kept = [config.output_dir / ".sub-011.0a1b2c3d.part.html", anat / "sub-01_dseg.nii.gz"]
    kept.append(anat / ".~lock.participants.tsv#")
    kept.append(mri / "sub-011" / "mri" / ".lh.hippoAmygLabels.0a1b2c3d.part.mgz")
    written(*gone, *kept)
    prepare_work_dir("01", [image], config)
    assert [path.exists() for path in gone + kept] == [False] * len(gone) + [True] * len(kept)


def written(*paths, hours_ago=0):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        os.utime(path, (time.time() - 3600 * hours_ago,) * 2)


def test_half_written_files_of_nobody_go_when_they_are_old(config):
    """Other runs may be writing there."""
    root, logs = config.output_dir, config.output_dir / "logs"
    halves = [root / ".README.0a1b2c3d.part.md", logs / ".CITATION.0a1b2c3d.part.md"]
    halves += [logs / folder / ".options.0a1b2c3d.part.json" for folder in ("run", "slurm/run")]
    whole = [root / "README.md", logs / "run" / "config.json", logs / "slurm" / "run" / "options.json"]
    written(*halves, *whole)
    write_dataset_files(config)
    assert all(path.exists() for path in halves)
    written(*halves, *whole, hours_ago=25)
    write_dataset_files(config)
    assert not any(path.exists() for path in halves)
    assert all(path.exists() for path in whole)


def test_the_record_knows_output_spaces_again(image, config):
    spaces = replace(config, output_spaces=("MNI152NLin2009cAsym",))
    finish(image, spaces)
    assert why(image, spaces) == ""


# What a workflow left behind


class FakeRunner:
    """Does something in place of a workflow, and says why it ended early."""

    def __init__(self, error="", work=lambda: None):
        self.error, self.work = error, work

    def run(self, workflow):
        self.work()
        return self.error


FAILED_ELSEWHERE = "OSError: of sub-02"


def means_of(config, runner=None):
    return run.Means(config, networks(), TEMPLATE, runner)


def outcomes_of(config, image, error="", work=lambda: None):
    """Outcomes of participant 01 and of 02, whose step crashes."""
    second = replace(image, prefix="sub-02", subject="02")
    plan = {"01": [image], "02": [second]}

    def crash():
        work()
        node = f"{ROOT}.{participant_wf_name('02')}.{second.node_name}.conform"
        config.log_dir.mkdir(parents=True, exist_ok=True)  # 02's own folder could not be written
        (config.log_dir / "crash-1.txt").write_text(f"Node: {node}\n\nValueError: of sub-02\n")

    result = run.run_plan(plan, means_of(config, FakeRunner(error, crash)))
    told = run.judge(Batch(plan), plan, result, config)
    assert [outcome.reasons for outcome in told["02"]] == [("conform: ValueError: of sub-02",)]
    (outcome,) = told["01"]
    return outcome.status, outcome.reasons, result.of_report("01")


def write_tables(image, config):
    path = config.output_dir / output_name(image.prefix, "aseg_stats")
    path.parent.mkdir(parents=True)
    path.write_text("of a run before")


def test_a_failure_elsewhere_does_not_touch_who_is_finished(config, image):
    def work():
        finish(image, config)
        (config.output_dir / "sub-01.html").write_text("page")

    assert outcomes_of(config, image, FAILED_ELSEWHERE, work) == ("done", (), "")


def test_tables_of_a_run_before_are_no_success(config, image):
    write_tables(image, config)
    (config.output_dir / "sub-01.html").write_text("of a run before")
    told = outcomes_of(config, image, FAILED_ELSEWHERE)
    assert told == ("failed", (FAILED_ELSEWHERE,), FAILED_ELSEWHERE)
    assert outcomes_of(config, image) == ("failed", (NOT_THERE,), "")
    stopping = replace(config, stop_on_first_crash=True)  # what was stopped has nothing to do with 02's failure
    status, reasons, report = outcomes_of(stopping, image, FAILED_ELSEWHERE)
    assert (status, reasons) == ("failed", (report,))
    assert "the run stopped at the first failure" in report
    (told,) = run.stopped_early([Outcome("sub-01_T1w", status, reasons)], {"01": [image]}, means_of(stopping))
    assert told == Outcome("sub-01_T1w", "skipped", (report,))


def test_an_image_that_changes_while_it_is_processed_has_failed(config, image):
    write_tables(image, config)
    told = outcomes_of(config, image, FAILED_ELSEWHERE, lambda: image.path.write_bytes(b"another image"))
    assert told[:2] == ("failed", ("the T1w changed during the run; run it again",))


def test_the_record_of_a_run_before_is_not_taken_for_that_of_a_forced_one(config, done):
    forced = replace(config, force=True)
    assert outcomes_of(forced, done, FAILED_ELSEWHERE)[:2] == ("failed", (FAILED_ELSEWHERE,))
    assert outcomes_of(forced, done, work=lambda: finish(done, config))[:2] == ("done", ())


def test_a_report_that_cannot_be_recorded_has_failed_and_the_next_is_recorded(config, image, monkeypatch):
    def refuse(text, path):
        if "sub-01" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return write_new(text, path)

    monkeypatch.setattr(resume, "write_new", refuse)
    (outcome,) = run.judge_reports(["01", "02"], run.Result({}), config)
    path = config.output_dir / "sub-01" / "log" / "report.json"
    assert outcome == Outcome("sub-01.html", "failed", (f"{path}: cannot be written (Permission denied)",))
    assert (config.output_dir / "sub-02" / "log" / "report.json").is_file()


def test_a_work_folder_that_cannot_be_deleted_is_told(config, monkeypatch, caplog):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(run, "discard", refuse)
    run._clean({"01": [Outcome("sub-01_T1w", "done")]}, replace(config, clean_workdir=True))
    assert f"{participant_work_dir('01', config)}: cannot be deleted (Permission denied)" in caplog.text


# A run that stops at the first failure


def test_a_stopped_run_tells_finished_images_from_others(config, image, done):
    stopping = replace(config, force=True, stop_on_first_crash=True)
    means = run.Means(stopping, networks(), TEMPLATE, None)
    other = replace(image, prefix="sub-01_run-2", path=image.path.with_name("sub-01_run-2_T1w.nii.gz"))
    plan = {"01": [image, other]}
    crashed = Outcome("sub-01_run-3_T1w", "failed", ("conform: empty",))
    absent = Outcome("sub-01_run-2_T1w", "failed", (NOT_THERE,))
    begun = Outcome("sub-01_run-2_T1w", "done")
    ended = Outcome("sub-01_T1w", "done")
    told = run.stopped_early([ended, absent, crashed, begun], plan, means)
    assert [outcome.status for outcome in told] == ["done", "skipped", "failed", "skipped"]
    assert told[1].reasons == ("not processed: the run stopped at the first failure (--stop-on-first-crash)",)
    assert [outcome.name for outcome in run.not_begun(Batch(plan))] == ["sub-01_T1w", "sub-01_run-2_T1w"]
