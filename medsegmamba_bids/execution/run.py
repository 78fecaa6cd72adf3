"""Run the workflow over participants: plan, run, judge, a batch after the other.

Batches keep start and memory from growing with the number of participants.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import Inputs, T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.space_templates import find_templates
from medsegmamba_bids.errors import reason
from medsegmamba_bids.execution.batches import Batch, Subjects, locked_batches
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.execution.outcomes import (
    FAILED,
    FINISHED,
    NOT_THERE,
    SKIPPED,
    Outcome,
    finished_before,
    judge_image,
    why_not_done,
    with_quality_flags,
)
from medsegmamba_bids.execution.pages import link_pages
from medsegmamba_bids.execution.resume import (
    record_report,
    report_is_current,
    why_unfinished,
    why_visits_unfinished,
)
from medsegmamba_bids.execution.runner import Runner, StatusCallback, open_runner
from medsegmamba_bids.execution.visits import judge_visits, plan_of_visits
from medsegmamba_bids.execution.work_folders import discard, prepare_work_dir
from medsegmamba_bids.interfaces.record import forget
from medsegmamba_bids.report.crashes import read_crashes
from medsegmamba_bids.report.neighbours import page_of
from medsegmamba_bids.report.run_records import record_path, size_and_time
from medsegmamba_bids.stats.intracranial import Template, find_template
from medsegmamba_bids.workflows.ingredients import files_read, made_from
from medsegmamba_bids.workflows.longitudinal import LONGITUDINAL, RECORD, Visits, visits_made_from, visits_read
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

STOPPED = "not processed: the run stopped at the first failure (--stop-on-first-crash)"


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
        Why it ended early or, where it went on without nodes that failed, what one of these failed with; empty if
        neither.
    unfinished : dict of str to str
        T1w or page, as outcomes name them -> why it is not there as this workflow was to leave it, where nothing of
        its own crashed.
    """

    crashes: dict[str, str]
    error: str = ""
    unfinished: dict[str, str] = field(default_factory=dict)

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
        return next(of_report, self.unfinished.get(f"sub-{subject}.html", ""))


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
                stopped = config.stop_on_first_crash and has_failed(outcomes)
                passed(batch.refused)
                outcomes += refused(batch)
                outcomes += not_begun(batch) if stopped else process(batch, means)
    link_pages(inputs.subjects(), config)
    return sorted(with_quality_flags(outcomes, config), key=lambda outcome: outcome.name)


def process(batch: Batch, means: Means) -> list[Outcome]:
    """Plan, run and judge a batch of participants."""
    config = means.config
    plan = plan_of(batch, means)
    unprepared = _prepare(plan, config)
    for subject in unprepared:
        del plan[subject], batch.subjects[subject]
    outcomes = [Outcome(f"sub-{subject}", FAILED, (why,)) for subject, why in unprepared.items()]
    means.passed(batch.subjects.keys() - plan.keys())
    result = run_plan(plan, means)
    by_subject = judge(batch, plan, result, config)
    if config.stop_on_first_crash and any(map(has_failed, (*by_subject.values(), outcomes))):
        early = [outcome for subject in by_subject for outcome in stopped_early(by_subject[subject], plan, means)]
        return outcomes + early
    reports = plan.keys() - {subject for subject, group in by_subject.items() if has_failed(group)}
    pages = judge_reports(sorted(reports), result, config)
    together = process_visits(batch.subjects, by_subject, means) if config.longitudinal else {}
    late = {subject: [] for subject in _late_pages(by_subject, together, plan)}
    pages += judge_reports(sorted(late), run_plan(late, means), config)
    outcomes += [outcome for groups in (by_subject, together) for group in groups.values() for outcome in group]
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


def refused(batch: Batch) -> list[Outcome]:
    """Say of participants that cannot be locked why they are left out."""
    return [Outcome(f"sub-{subject}", SKIPPED, (why,)) for subject, why in batch.refused.items()]


def not_begun(batch: Batch) -> list[Outcome]:
    """Say of all images of a batch that the run ended before them."""
    return [Outcome(f"{image.prefix}_T1w", SKIPPED, (STOPPED,)) for group in batch.subjects.values() for image in group]


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
    planned = {f"{image.prefix}_T1w": image for images in plan.values() for image in images}
    out = []
    for outcome in outcomes:
        image = planned.get(outcome.name)
        ended = image is None or _is_finished(image, means)
        crashed = outcome.status == FAILED and outcome.reasons not in ((NOT_THERE,), (STOPPED,))
        out.append(outcome if ended or crashed else Outcome(outcome.name, SKIPPED, (STOPPED,)))
    return out


def process_visits(subjects: Subjects, outcomes: dict[str, list[Outcome]], means: Means) -> dict[str, list[Outcome]]:
    """Process visits together that were processed one by one; return by participant what became of it."""
    config = means.config
    plan, told = plan_of_visits(subjects, outcomes, config, means.networks, means.template)
    if not plan:
        return told
    unprepared = _prepare({visits.subject: [] for visits in plan}, config)  # of some, all images were finished before
    told |= {subject: [Outcome(f"sub-{subject}_{RECORD}", FAILED, (why,))] for subject, why in unprepared.items()}
    plan = [visits for visits in plan if visits.subject not in unprepared]
    if not plan:
        return told
    _forget([record_path(config.output_dir, visits.prefix, RECORD) for visits in plan], config)
    before = {visits.subject: _states(visits_read(visits, config)) for visits in plan}
    workflow = init_visits_wf(plan, config, means.networks, means.template)
    result = run_workflow(workflow, [visits.subject for visits in plan], means.runner, config)
    for visits in plan:
        unfinished = ""
        if not _are_finished(visits, means):
            unfinished = why_not_done(_changed(before[visits.subject], visits_read(visits, config)), result.error)
        told[visits.subject] = [judge_visits(visits, result.of_visits(visits.subject), unfinished, config)]
    return told


def plan_of(batch: Batch, means: Means) -> Subjects:
    """Return participants that need work, each with the images to process: none where only the report is missing."""
    config = means.config
    left = {subject: _left(images, means) for subject, images in batch.subjects.items()}
    return {subject: images for subject, images in left.items() if images or not report_is_current(subject, config)}


def _left(images: list[T1wImage], means: Means) -> list[T1wImage]:
    """Return images that are not finished."""
    left = []
    for image in images:
        made = made_from(image, means.config, means.networks, means.template)
        if why := why_unfinished(image, made, means.config):
            logger.info("%s_T1w is processed: %s", image.prefix, why)
            left.append(image)
    return left


def _prepare(subjects: Subjects, config: RunConfig) -> dict[str, str]:
    """Make work folders ready; return participants of whom that cannot be done -> why."""
    made_by, failed = {}, {}
    for subject, images in subjects.items():
        try:
            made_by[subject] = prepare_work_dir(subject, images, config)
        except OSError as error:
            failed[subject] = f"{error.filename or config.work_dir}: cannot be written ({reason(error)})"
    for other in sorted(set(made_by.values()) - {""}):
        logger.warning(
            "%s: intermediate results of %d participants were made by version %s, not %s; they are not used",
            *(config.work_dir, list(made_by.values()).count(other), other, __version__),
        )
    return failed


def run_plan(plan: Subjects, means: Means) -> Result:
    """Run the workflow of some participants; nothing for none."""
    if not plan:
        return Result({})
    config, images = means.config, [image for group in plan.values() for image in group]
    _forget([record_path(config.output_dir, image.prefix) for image in images], config)
    before = {image.prefix: _states(files_read(image)) for image in images}
    workflow = init_medsegmamba_wf(plan, config, means.networks, means.template)
    if config.write_graph and any(plan.values()):
        _write_graph(workflow, config)
    result = run_workflow(workflow, plan, means.runner, config)
    for image in images:
        if not _is_finished(image, means):
            changed = [f"the {name}" for name in _changed(before[image.prefix], files_read(image))]
            result.unfinished[f"{image.prefix}_T1w"] = why_not_done(changed, result.error)
    return result


def run_workflow(workflow: Workflow, subjects: Collection[str], runner: Runner, config: RunConfig) -> Result:
    """Run a workflow over participants; tell of their pages, too, whether it wrote them."""
    pages = {f"sub-{subject}.html": page_of(config.output_dir, subject) for subject in subjects}
    before = _states(pages)
    error = runner.run(workflow)
    crashes = _crashes(subjects, config)
    if crashes and config.stop_on_first_crash:
        error = STOPPED  # else it repeats what crashed first, which says nothing of the others
    same = pages.keys() - _changed(before, pages) if error else ()
    return Result(crashes, error, dict.fromkeys(same, error))


def _crashes(subjects: Iterable[str], config: RunConfig) -> dict[str, str]:
    """Return full name of a node -> what it failed with, from participants' folders and, where these cannot be
    written, from the run's.
    """
    crashes = read_crashes(config.log_dir)
    for subject in subjects:
        with contextlib.suppress(OSError):  # then they are in the run's
            crashes |= read_crashes(config.participant_log_dir(subject))
    return crashes


def _forget(records: Iterable[Path], config: RunConfig) -> None:
    """Take back what records say of what ``--force`` does anew: they tell of a run before, and look like this one's."""
    for path in records if config.force else ():
        with contextlib.suppress(OSError):  # what is beside it cannot be written either, and crashes
            forget(path)


def _is_finished(image: T1wImage, means: Means) -> bool:
    """Return whether a T1w's results are there as its record says, and as they were asked for."""
    made = made_from(image, means.config, means.networks, means.template)
    return not why_unfinished(image, made, replace(means.config, force=False))


def _are_finished(visits: Visits, means: Means) -> bool:
    """Return the same of visits that are processed together."""
    made = visits_made_from(visits, means.config, means.networks, means.template)
    return not why_visits_unfinished(visits, made, replace(means.config, force=False))


def _states(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return size and time of files, to tell later whether they changed."""
    return {name: size_and_time(path) for name, path in files.items()}


def _changed(before: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    return [name for name, state in _states(files).items() if state != before[name]]


def judge(batch: Batch, plan: Subjects, result: Result, config: RunConfig) -> dict[str, list[Outcome]]:
    """Say what became of each T1w, by participant."""
    return {
        subject: [
            judge_image(image, result.of_image(image), result.unfinished.get(f"{image.prefix}_T1w", ""), config)
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
        if why := result.of_report(subject) or _why_not_recorded(subject, config):
            failed.append(Outcome(f"sub-{subject}.html", FAILED, (why,)))
    return failed


def _why_not_recorded(subject: str, config: RunConfig) -> str:
    """Record a participant's report; return why that cannot be done, empty if it is."""
    try:
        record_report(subject, config)
    except OSError as error:
        return f"{error.filename or config.output_dir}: cannot be written ({reason(error)})"
    return ""


def has_failed(outcomes: list[Outcome]) -> bool:
    """Return whether anything of these failed."""
    return any(outcome.status == FAILED for outcome in outcomes)


def _is_mixed(outcomes: list[Outcome]) -> bool:
    return len({outcome.status == FAILED for outcome in outcomes}) == 2


def _clean(by_subject: dict[str, list[Outcome]], config: RunConfig) -> None:
    """Delete the work folders of participants that are done, if that was asked for."""
    if not config.clean_workdir:
        return
    for subject, outcomes in by_subject.items():
        folder = participant_work_dir(subject, config)
        if has_failed(outcomes):
            continue
        try:
            discard(folder)
        except OSError as error:
            logger.warning("%s: cannot be deleted (%s)", folder, reason(error))


def _write_graph(workflow: Workflow, config: RunConfig) -> None:
    """Write the workflow as a graph; as a picture where Graphviz is installed."""
    path = config.log_dir / "graph.dot"
    workflow.write_hierarchical_dotfile(dotfilename=str(path), colored=True, simple_form=True)
    # Nipype draws an arrow for each file that is handed on; strict graphs have one between two nodes.
    path.write_text(path.read_text(encoding="utf-8").replace("digraph", "strict digraph", 1), encoding="utf-8")
    if dot := shutil.which("dot"):
        subprocess.run([dot, "-Tsvg", str(path), "-o", str(path.with_suffix(".svg"))], check=False)
