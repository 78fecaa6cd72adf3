"""Run the workflow over participants: plan, run, judge, a batch after the other.

Batches keep start and memory from growing with the number of participants.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from nipype.pipeline.engine import Workflow

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import Inputs, T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.datasets.space_templates import find_templates
from medsegmamba_bids.execution.batches import Batch, Subjects, lock_participant, locked_batches
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.execution.outcomes import (
    DONE,
    FAILED,
    FINISHED,
    NOT_THERE,
    SKIPPED,
    Outcome,
    finished_before,
    judge_image,
    with_quality_flags,
)
from medsegmamba_bids.execution.resume import record_report, report_is_current, why_unfinished
from medsegmamba_bids.execution.runner import Runner, StatusCallback, open_runner
from medsegmamba_bids.execution.visits import judge_visits, plan_of_visits
from medsegmamba_bids.execution.work_folders import discard, prepare_work_dir
from medsegmamba_bids.ownership import is_ours
from medsegmamba_bids.report.crashes import read_crashes
from medsegmamba_bids.report.neighbours import (
    beside,
    has_links,
    neighbour_links,
    page_of,
    set_links,
    subjects_with_pages,
)
from medsegmamba_bids.stats.intracranial import Template, find_template
from medsegmamba_bids.workflows.ingredients import made_from
from medsegmamba_bids.workflows.longitudinal import LONGITUDINAL
from medsegmamba_bids.workflows.networks import Networks, choose_networks
from medsegmamba_bids.workflows.participants import (
    REPORT,
    ROOT,
    init_medsegmamba_wf,
    init_visits_wf,
    participant_wf_name,
    participant_work_dir,
)
from medsegmamba_bids.workflows.t1w import DRAW

logger = logging.getLogger(__name__)

_STOPPED = "not processed: the run stopped at the first failure (--stop-on-first-crash)"


#: Called with the participants, without ``sub-``, for whom nothing is left to do.
Passed = Callable[[Iterable[str]], None]
_BySubject = dict[str, list[Outcome]]


def _tell_nobody(participants: Iterable[str]) -> None:
    """Stand for a callback where there is none."""


@dataclass(frozen=True)
class Means:
    """What participants are processed with, resolved once for a run."""

    config: RunConfig
    networks: Networks
    template: Template
    runner: Runner
    passed: Passed = _tell_nobody


@dataclass(frozen=True)
class Result:
    """What came of a workflow.

    Attributes
    ----------
    crashes : dict of str to str
        Full name of a node -> what it failed with.
    error : str
        Why nothing at all was run; empty if that is not so.
    """

    crashes: dict[str, str]
    error: str = ""

    def of_image(self, image: T1wImage) -> dict[str, str]:
        """Return step -> what it failed with."""
        steps = self._steps(image.subject, image.node_name)
        return {step: text for step, text in steps.items() if step != DRAW}

    def of_visits(self, subject: str) -> dict[str, str]:
        """Return step -> what it failed with, of the visits that were processed together."""
        return self._steps(subject, LONGITUDINAL)

    def _steps(self, subject: str, workflow: str) -> dict[str, str]:
        start = f"{ROOT}.{participant_wf_name(subject)}.{workflow}."
        return {name.rsplit(".", 1)[-1]: text for name, text in self.crashes.items() if name.startswith(start)}

    def of_report(self, subject: str) -> str:
        """Return why a participant's report was not written, or not drawn; empty if it was, or was not tried."""
        start = f"{ROOT}.{participant_wf_name(subject)}."
        of_report = (
            text
            for name, text in self.crashes.items()
            if _is_of_report(name.removeprefix(start)) and name.startswith(start)
        )
        return next(of_report, self.error)


def _is_of_report(step: str) -> bool:
    """Return whether a step, by its name within a participant's workflow, is the report's."""
    return step == REPORT or step.rsplit(".", 1)[-1] == DRAW


def run_participants(
    inputs: Inputs, config: RunConfig, status: StatusCallback | None = None, passed: Passed = _tell_nobody
) -> list[Outcome]:
    """Process T1w images that are not finished, and write reports; return what became of each.

    Raises
    ------
    WeightsError, ConfigError
        Weights or the plugin cannot be used.
    """
    networks, template = choose_networks(config), find_template()
    find_templates(config.output_spaces, config.fetch_templates)  # what is not there is said before any work
    write_dataset_files(config)
    outcomes = [Outcome(name, SKIPPED, (reason,)) for name, reason in inputs.skipped.items()]
    with open_runner(config, status) as runner:
        means = Means(config, networks, template, runner, passed)
        for batch in locked_batches(inputs.subjects(), config):
            with batch:
                stopped = config.stop_on_first_crash and any(outcome.status == FAILED for outcome in outcomes)
                outcomes += not_begun(batch) if stopped else process(batch, means)
    link_pages(inputs.subjects(), config)
    return sorted(with_quality_flags(outcomes, config), key=lambda outcome: outcome.name)


def process(batch: Batch, means: Means) -> list[Outcome]:
    """Plan, run and judge a batch of participants."""
    config = means.config
    plan = plan_of(batch, means)
    means.passed(batch.subjects.keys() - plan.keys())
    result = run_plan(plan, means)
    by_subject = judge(batch, plan, result, config)
    if config.stop_on_first_crash and any(map(_has_failed, by_subject.values())):
        return [outcome for subject in by_subject for outcome in stopped_early(by_subject[subject], plan, means)]
    reports = plan.keys() - {subject for subject, group in by_subject.items() if _has_failed(group)}
    pages = judge_reports(sorted(reports), result, config)
    together = process_visits(batch.subjects, by_subject, means) if config.longitudinal else {}
    late = {subject: [] for subject in _late_pages(by_subject, together, plan)}
    pages += judge_reports(sorted(late), run_plan(late, means), config)
    outcomes = [outcome for groups in (by_subject, together) for group in groups.values() for outcome in group]
    outcomes += {page.name: page for page in pages}.values()
    _clean({subject: [*group, *together.get(subject, [])] for subject, group in by_subject.items()}, config)
    return outcomes


def _late_pages(by_subject: _BySubject, together: _BySubject, plan: Subjects) -> list[str]:
    """Return participants whose report did not wait for all that it shows.

    Where an image failed, that is the participant's others; and the visits, which are processed after all images.
    """
    mixed = [subject for subject, images in plan.items() if images and _is_mixed(by_subject[subject])]
    tried = [subject for subject, group in together.items() if any(o.status != FINISHED for o in group)]
    # Of one whose images all failed there is nothing to show.
    visited = [subject for subject in tried if any(o.status != FAILED for o in by_subject[subject])]
    return list(dict.fromkeys([*mixed, *visited]))


def not_begun(batch: Batch) -> list[Outcome]:
    """Say of all images of a batch that the run ended before them."""
    return [
        Outcome(f"{image.prefix}_T1w", SKIPPED, (_STOPPED,)) for group in batch.subjects.values() for image in group
    ]


def stopped_early(outcomes: list[Outcome], plan: Subjects, means: Means) -> list[Outcome]:
    """Return outcomes of a participant in a run that was stopped: what did not fail may not be finished either.

    Parameters
    ----------
    outcomes : list of Outcome
        Of the images.
    plan : dict
        Participant -> images that were to be processed.
    means : Means
    """
    config = replace(means.config, force=False)
    planned = {f"{image.prefix}_T1w": image for images in plan.values() for image in images}
    out = []
    for outcome in outcomes:
        image = planned.get(outcome.name)
        ended = image is None or not why_unfinished(
            image, made_from(image, config, means.networks, means.template), config
        )
        crashed = outcome.status == FAILED and outcome.reasons != (NOT_THERE,)
        out.append(outcome if ended or crashed else Outcome(outcome.name, SKIPPED, (_STOPPED,)))
    return out


def process_visits(subjects: Subjects, outcomes: dict[str, list[Outcome]], means: Means) -> dict[str, list[Outcome]]:
    """Process visits together that were processed one by one; return by participant what became of it."""
    config = means.config
    plan, told = plan_of_visits(subjects, outcomes, config, means.networks, means.template)
    if not plan:
        return told
    _prepare({visits.subject: [] for visits in plan}, config)  # of some, all images were finished before
    workflow = init_visits_wf(plan, config, means.networks, means.template)
    result = _result(means.runner.run(workflow), [visits.subject for visits in plan], config)
    return told | {v.subject: [judge_visits(v, result.of_visits(v.subject), result.error, config)] for v in plan}


def plan_of(batch: Batch, means: Means) -> Subjects:
    """Return participants that need work, each with the images to process: none where only the report is missing."""
    config = means.config
    left = {subject: _left(images, means) for subject, images in batch.subjects.items()}
    plan = {subject: images for subject, images in left.items() if images or not report_is_current(subject, config)}
    _prepare(plan, config)
    return plan


def _left(images: list[T1wImage], means: Means) -> list[T1wImage]:
    """Return images that are not finished."""
    left = []
    for image in images:
        made = made_from(image, means.config, means.networks, means.template)
        if why := why_unfinished(image, made, means.config):
            logger.info("%s_T1w is processed: %s", image.prefix, why)
            left.append(image)
    return left


def _prepare(subjects: Subjects, config: RunConfig) -> None:
    """Remove intermediate results of other versions, and half-written files, of participants that are processed."""
    made_by = {subject: prepare_work_dir(subject, images, config) for subject, images in subjects.items()}
    for other in sorted(set(made_by.values()) - {""}):
        logger.warning(
            "%s: intermediate results of %d participants were made by version %s, not %s; they are not used",
            *(config.work_dir, list(made_by.values()).count(other), other, __version__),
        )


def run_plan(plan: Subjects, means: Means) -> Result:
    """Run the workflow of some participants; nothing for none."""
    if not plan:
        return Result({})
    config = means.config
    workflow = init_medsegmamba_wf(plan, config, means.networks, means.template)
    if config.write_graph and any(plan.values()):
        _write_graph(workflow, config)
    return _result(means.runner.run(workflow), plan, config)


def _result(error: str, subjects: Iterable[str], config: RunConfig) -> Result:
    crashes: dict[str, str] = {}
    for subject in subjects:
        crashes |= read_crashes(config.participant_log_dir(subject))
    # Where nodes failed, the error only repeats one of theirs.
    return Result(crashes, "" if crashes else error)


def judge(batch: Batch, plan: Subjects, result: Result, config: RunConfig) -> dict[str, list[Outcome]]:
    """Say what became of each T1w, by participant."""
    return {
        subject: [
            judge_image(image, result.of_image(image), result.error, config)
            if image in plan.get(subject, ())
            else finished_before(image, batch.waited)
            for image in images
        ]
        for subject, images in batch.subjects.items()
    }


def judge_reports(subjects: Iterable[str], result: Result, config: RunConfig) -> list[Outcome]:
    """Record the reports that were written; return the failures."""
    failed = []
    for subject in subjects:
        if reason := result.of_report(subject):
            failed.append(Outcome(f"sub-{subject}.html", FAILED, (reason,)))
        else:
            record_report(subject, config)
    return failed


def _has_failed(outcomes: list[Outcome]) -> bool:
    return any(outcome.status == FAILED for outcome in outcomes)


def _is_mixed(outcomes: list[Outcome]) -> bool:
    return len({outcome.status == FAILED for outcome in outcomes}) == 2


def write_reports(config: RunConfig, status: StatusCallback | None = None) -> list[Outcome]:
    """Write the reports of participants that are in the output folder; segment nothing."""
    there = BIDSFolder(config.output_dir).participants
    chosen = sorted({*(config.participant_label or there)} - {*config.exclude_participant_label})
    outcomes = [
        Outcome(f"sub-{subject}", SKIPPED, ("it has no results",)) for subject in chosen if subject not in there
    ]
    present = [subject for subject in chosen if subject in there]
    result = Result({})
    if present:
        with open_runner(config, status) as runner:
            error = runner.run(init_medsegmamba_wf({subject: [] for subject in present}, config))
            result = _result(error, present, config)
    for subject in present:
        reason = result.of_report(subject)
        outcomes.append(Outcome(f"sub-{subject}.html", FAILED if reason else DONE, (reason,) if reason else ()))
    link_pages(present, config)
    return outcomes


def link_pages(subjects: Iterable[str], config: RunConfig) -> None:
    """Let the pages of participants, and those next to them, lead to each other, now that all are there.

    A page that another run is at is left to that run's end.
    """
    there = subjects_with_pages(config.output_dir)
    for subject in beside(subjects, there):
        links = neighbour_links(subject, there)
        if has_links(config.output_dir, subject, links):
            continue
        locks = lock_participant(subject, config)
        if locks and is_ours(page_of(config.output_dir, subject)):
            current = report_is_current(subject, config)
            set_links(config.output_dir, subject, links)
            if current:
                record_report(subject, config)
        for lock in locks:
            lock.release()


def _clean(by_subject: dict[str, list[Outcome]], config: RunConfig) -> None:
    """Delete the work folders of participants that are done, if that was asked for."""
    if not config.clean_workdir:
        return
    for subject, outcomes in by_subject.items():
        if not _has_failed(outcomes):
            discard(participant_work_dir(subject, config))


def _write_graph(workflow: Workflow, config: RunConfig) -> None:
    """Write the workflow as a graph; as a picture where Graphviz is installed."""
    path = config.log_dir / "graph.dot"
    workflow.write_hierarchical_dotfile(dotfilename=str(path), colored=True, simple_form=True)
    # Nipype draws an arrow for each file that is handed on; strict graphs have one between two nodes.
    path.write_text(path.read_text(encoding="utf-8").replace("digraph", "strict digraph", 1), encoding="utf-8")
    if dot := shutil.which("dot"):
        subprocess.run([dot, "-Tsvg", str(path), "-o", str(path.with_suffix(".svg"))], check=False)
