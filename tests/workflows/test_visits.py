"""Visits that are processed together: which, why again, and as which graph."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.datasets.visit_times import VisitTimes
from medsegmamba_bids.execution import run
from medsegmamba_bids.execution.batches import Batch
from medsegmamba_bids.execution.outcomes import DONE, FAILED, FINISHED, FLAGGED, NOT_THERE, Outcome
from medsegmamba_bids.execution.resume import record_report, report_is_current, why_visits_unfinished
from medsegmamba_bids.execution.run import Means, process_visits
from medsegmamba_bids.execution.visits import judge_visits, plan_of_visits
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.interfaces.record import WriteRecord
from medsegmamba_bids.report.run_records import fingerprint, record_path
from medsegmamba_bids.stats.intracranial import find_template
from medsegmamba_bids.weights.info import InputSpec, WeightsFile, WeightsInfo
from medsegmamba_bids.workflows.longitudinal import (
    LONGITUDINAL,
    RECORD,
    Visits,
    init_longitudinal_wf,
    visits_made_from,
    visits_read,
)
from medsegmamba_bids.workflows.networks import Networks
from medsegmamba_bids.workflows.participants import participant_work_dir


def network(table, task, **spec):
    labels = tuple(load_label_table(table).labels.tolist())
    info = WeightsInfo(table, "medsegmamba", {"classes": len(labels)}, task, labels, InputSpec(**spec), checksum="abc")
    return WeightsFile(table, info)


NETWORKS = Networks(network("aseg_brain", "aseg"), network("hippoFS60", "hippocampus"))


def image(session, bids):
    prefix = f"sub-1_ses-{session}"
    relative = f"sub-1/ses-{session}/anat/{prefix}_T1w.nii.gz"
    return T1wImage(bids / relative, prefix, "1", session, relative)


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / "bids", tmp_path / "out", work_dir=tmp_path / "work", longitudinal=True)


def together(config, *sessions):
    images = tuple(image(session, config.bids_dir) for session in sessions)
    return Visits("1", images, VisitTimes((None,) * len(images)))


def nodes_of(config, *sessions, networks=NETWORKS):
    for session in sessions:
        for name in ("conformed", "conformed_aseg", "conformed_mask", "aseg_stats", "hippocampus_stats"):
            path = config.output_dir / output_name(f"sub-1_ses-{session}", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        path = image(session, config.bids_dir).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    workflow = init_longitudinal_wf(together(config, *sessions), config, networks, find_template())
    graph = workflow._create_flat_graph()
    return {node.name: node for node in graph.nodes()}, graph


def sources(graph, node):
    return {(before.name, *pair) for before, _, edge in graph.in_edges(node, data=True) for pair in edge["connect"]}


def test_every_visit_and_the_template_inform_each_visit(config):
    nodes, graph = nodes_of(config, "a", "b", "c")
    everyone = {before for before, *_ in sources(graph, nodes["all_aseg"])}
    assert everyone == {"aseg_0", "aseg_1", "aseg_2", "aseg_template"}
    for number in range(3):
        given = sources(graph, nodes[f"fuse_aseg_{number}"])
        assert {("all_aseg", "out", "all_files"), (f"aseg_{number}", "posteriors_file", "own_file")} <= given
        # The same box for all visits, and one image each.
        assert ("aseg_template", "labels_file", "around_file") in sources(graph, nodes[f"aseg_{number}"])
        assert (f"midspace_{number}", "conformed_file", "in_file") in sources(graph, nodes[f"aseg_{number}"])
        shape = sources(graph, nodes[f"deform_{number}"])
        assert {("median", "norm_file", "template_file"), (f"midspace_{number}", "norm_file", "norm_file")} <= shape
        assert ("intracranial", "etiv", "etiv") in sources(graph, nodes[f"statistics_aseg_{number}"])


def test_subfields_are_sought_in_one_box_but_end_where_each_visit_s_own_hippocampus_does(config):
    """After the template's the outer borders of all visits would be one, and nothing would have changed."""
    nodes, graph = nodes_of(config, "a", "b")
    for number in range(2):
        given = sources(graph, nodes[f"hippocampus_{number}"])
        assert ("aseg_template", "labels_file", "aseg_file") in given
        assert (f"fuse_aseg_{number}", "labels_file", "border_file") in given
    assert "border_file" not in {field for *_, field in sources(graph, nodes["hippocampus_template"])}


@pytest.mark.parametrize("task", ["aseg", "hippocampus"])
def test_changes_are_those_of_shape_in_the_templates_structures(config, task):
    nodes, graph = nodes_of(config, "a", "b")
    given = sources(graph, nodes[f"compare_{task}"])
    assert {("all_larger", "out", "larger_files"), (f"{task}_template", "labels_file", "template_file")} <= given
    assert {before for before, *_ in sources(graph, nodes["all_larger"])} == {"deform_0", "deform_1"}


def test_weights_for_stripped_brains_get_the_common_mask(config):
    authors = Networks(network("aseg", "aseg", skull_stripped=True, intensity="freesurfer"))
    nodes, graph = nodes_of(config, "a", "b", networks=authors)
    given = sources(graph, nodes["aseg_1"])
    assert {("align", "brain_file", "mask_file"), ("midspace_1", "norm_file", "in_file")} <= given
    assert not any("hippocampus" in name for name in nodes)


def plan(config, outcomes, *sessions):
    images = [image(session, config.bids_dir) for session in sessions]
    return plan_of_visits({"1": images}, {"1": outcomes}, config, NETWORKS, find_template())


def test_one_session_is_left_to_itself(config):
    assert plan(config, [], "a") == ([], {})


def test_a_visit_that_failed_is_left_out_and_the_others_stand(config):
    failed = [Outcome("sub-1_ses-b_T1w", FAILED)]
    (visits,), told = plan(config, failed, "a", "b", "c")
    assert [image.session for image in visits.images] == ["a", "c"]
    assert not told


def test_one_visit_that_is_left_is_a_failure_with_its_reason(config):
    planned, told = plan(config, [Outcome("sub-1_ses-b_T1w", FAILED)], "a", "b")
    assert not planned
    assert told["1"] == [
        Outcome(
            "sub-1_longitudinal",
            FAILED,
            ("one session is left, as sub-1_ses-b_T1w failed; two and more are needed",),
        )
    ]


def test_a_visit_that_is_added_is_named(config, caplog):
    made = visits_made_from(together(config, "a", "b"), config, NETWORKS, find_template())
    path = record_path(config.output_dir, "sub-1", RECORD)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"MadeFrom": made, "Inputs": {}, "Outputs": {}}))
    now = together(config, "a", "b", "c")
    why = why_visits_unfinished(now, visits_made_from(now, config, NETWORKS, find_template()), config)
    assert why == "the visits changed: new is sub-1/ses-c/anat/sub-1_ses-c_T1w.nii.gz"
    plan(config, [], "a", "b", "c")
    assert "sub-1: its visits are processed together: the visits changed" in caplog.text


@pytest.mark.parametrize(("notes", "status"), [([], DONE), (["another scanner"], FLAGGED)])
def test_what_is_said_of_visits_flags_them(config, notes, status):
    path = config.output_dir / output_name("sub-1", "aseg_changes", extension=".json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"Notes": notes}))
    assert judge_visits(together(config, "a", "b"), {}, "", config) == Outcome(
        "sub-1_longitudinal", status, tuple(notes)
    )
    crashed = judge_visits(together(config, "a", "b"), {"align": "not the same head"}, "", config)
    assert crashed.reasons == ("align: not the same head",)


class Played:
    """Stands for the runner: writes tables, and a page that tells for how many visits it showed changes."""

    def __init__(self, config, crash=""):
        self.config, self.crash, self.ran = config, crash, []

    def run(self, workflow):
        names = [node.fullname for node in workflow._get_all_nodes()]
        finish = [node for node in workflow._get_all_nodes() if node.name == "finish"]
        self.ran.append("report" if any(name.endswith(".report") for name in names) else "visits")
        for node in finish:
            self.record(node.interface)
        if self.ran[-1] == "report":
            (self.config.output_dir / "sub-1.html").write_text(f"medsegmamba: {self.changes()}")
        return self.crash if self.ran[-1] == "visits" else ""

    def record(self, interface):
        visits = interface.inputs.suffix == RECORD
        if visits and self.crash:
            return
        files = ("aseg_changes",) if visits else ("aseg_stats", "conformed", "conformed_aseg", "conformed_mask")
        paths = [self.config.output_dir / output_name(interface.inputs.prefix, name) for name in files]
        if not visits:
            paths.append(self.config.output_dir / output_name(interface.inputs.prefix, "hippocampus_stats"))
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            path.with_suffix(".json").write_text('{"Notes": []}')
        inputs = {name: getattr(interface.inputs, name) for name in ("output_dir", "prefix", "suffix", "in_files")}
        files = [str(path) for path in paths]
        WriteRecord(**inputs, made_from=interface.inputs.made_from, aseg_files=files).run()

    def changes(self):
        path = record_path(self.config.output_dir, "sub-1", RECORD)
        return len(json.loads(path.read_text())["MadeFrom"]["Visits"]) if path.is_file() else 0


def process(config, *sessions, crash=""):
    """Process a participant; return which workflows ran, and what became of it."""
    images = [image(session, config.bids_dir) for session in sessions]
    for one in images:
        one.path.parent.mkdir(parents=True, exist_ok=True)
        one.path.write_bytes(b"image")
    played = Played(config, crash)
    outcomes = run.process(Batch({"1": images}), run.Means(config, NETWORKS, find_template(), played))
    told = {outcome.name: outcome.status for outcome in outcomes}
    assert len(told) == len(outcomes)  # each is told once
    return played.ran, told


def page(config):
    return (config.output_dir / "sub-1.html").read_text()


def test_the_page_is_written_once_more_after_the_visits(config):
    assert process(config, "a", "b")[0] == ["report", "visits", "report"]
    assert page(config) == "medsegmamba: 2"
    assert report_is_current("1", config)
    process(config, "a", "b", "c")
    assert page(config) == "medsegmamba: 3"
    assert process(config, "a", "b", "c")[0] == []


def test_a_page_that_does_not_show_the_visits_is_written_anew(config):
    process(config, "a", "b")
    path = config.output_dir / "sub-1.html"
    path.write_text("killed before the page")
    record_report("1", config)
    record = record_path(config.output_dir, "sub-1", RECORD)
    record.write_text(record.read_text() + " ")  # other visits since
    assert process(config, "a", "b")[0] == ["report"]
    assert page(config) == "medsegmamba: 2"


def test_a_page_follows_visits_that_failed_too(config):
    """Some of their results may have been written."""
    ran, told = process(config, "a", "b", crash="no memory")
    assert ran == ["report", "visits", "report"]
    assert told == {"sub-1_ses-a_T1w": "done", "sub-1_ses-b_T1w": "done", "sub-1_longitudinal": "failed"}


def test_a_page_that_fails_before_and_after_the_visits_is_told_once(config, monkeypatch):
    monkeypatch.setattr(run.Result, "of_report", lambda result, subject: "a page of another tool")
    _, told = process(config, "a", "b")
    assert told["sub-1.html"] == "failed"


def test_the_work_folder_is_looked_at_before_visits_too(config):
    """All images are finished, so that nothing else looks at it."""
    process(config, "a", "b")
    folder = participant_work_dir("1", config)
    old = folder / LONGITUDINAL / "align"
    old.mkdir(parents=True)
    (folder / "version.json").write_text('{"Version": "0.0.1"}')
    half = config.output_dir / "sub-1" / "anat" / ".sub-1_T1w.0a1b2c3d.part.nii.gz"
    half.touch()
    record_path(config.output_dir, "sub-1", RECORD).unlink()
    record_report("1", config)
    assert process(config, "a", "b")[0] == ["visits", "report"]
    assert not old.exists()
    assert not half.exists()


def test_so_it_is_before_a_page_alone(config):
    process(config, "a", "b")
    (config.output_dir / "sub-1.html").unlink()
    half = config.output_dir / ".sub-1.0a1b2c3d.part.html"
    half.touch()
    assert process(config, "a", "b")[0] == ["report"]
    assert not half.exists()


CHANGED = "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz changed during the run; run it again"


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [(False, "", NOT_THERE), (False, "OSError: of sub-2", "OSError: of sub-2"), (True, "OSError: of sub-2", CHANGED)],
)
def test_what_is_there_of_a_run_before_is_no_success(config, change, error, reason):
    """Neither its table nor, where all is asked for anew, its record."""
    nodes_of(config, "a", "b")  # with the files that are read
    images = [image(session, config.bids_dir) for session in "ab"]
    table = config.output_dir / output_name("sub-1", "aseg_changes", extension=".json")
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({"Notes": []}))
    visits = together(config, "a", "b")
    made, read = visits_made_from(visits, config, NETWORKS, find_template()), visits_read(visits, config)
    path = record_path(config.output_dir, "sub-1", RECORD)
    path.parent.mkdir(parents=True)
    before = {"MadeFrom": made, "Inputs": {name: fingerprint(path) for name, path in read.items()}, "Outputs": {}}
    path.write_text(json.dumps(before))
    assert plan(config, [], "a", "b")[1]["1"][0].status == FINISHED

    def work(workflow):
        if change:
            images[1].path.write_text("another image")
        return error

    forced = replace(config, force=True)
    means = Means(forced, NETWORKS, find_template(), SimpleNamespace(run=work))
    told = process_visits({"1": images}, {"1": []}, means)
    assert told == {"1": [Outcome("sub-1_longitudinal", FAILED, (reason,))]}
