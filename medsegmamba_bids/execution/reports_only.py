"""Write the reports of results that are there (``--reports-only``)."""

from __future__ import annotations

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.errors import ReportError
from medsegmamba_bids.execution.batches import Subjects, locked_batches
from medsegmamba_bids.execution.outcomes import DONE, FAILED, SKIPPED, Outcome
from medsegmamba_bids.execution.pages import link_pages
from medsegmamba_bids.execution.run import STOPPED, has_failed, refused, run_workflow
from medsegmamba_bids.execution.runner import Runner, StatusCallback, open_runner
from medsegmamba_bids.workflows.participants import init_medsegmamba_wf


def write_reports(config: RunConfig, status: StatusCallback | None = None) -> list[Outcome]:
    """Write the reports of participants that are in the output folder; segment nothing.

    Raises
    ------
    ReportError
        There is nobody to write a report of: the folder is another one, maybe.
    """
    there = BIDSFolder(config.output_dir).participants
    chosen = sorted({*(config.participant_label or there)} - {*config.exclude_participant_label})
    if not chosen:
        raise ReportError(
            f"{config.output_dir}: there are no results to report, of those participants that were asked for"
        )
    outcomes = [
        Outcome(f"sub-{subject}", SKIPPED, ("it has no results",)) for subject in chosen if subject not in there
    ]
    present = [subject for subject in chosen if subject in there]
    with open_runner(config, status) as runner:
        for batch in locked_batches({subject: [] for subject in present}, config):
            with batch:
                stopped = config.stop_on_first_crash and has_failed(outcomes)
                outcomes += refused(batch)
                outcomes += _reports_of(batch.subjects, runner, config) if not stopped else _none_of(batch.subjects)
    link_pages(present, config)
    return sorted(outcomes, key=lambda outcome: outcome.name)


def _reports_of(subjects: Subjects, runner: Runner, config: RunConfig) -> list[Outcome]:
    """Write the reports of participants; say what became of each."""
    if not subjects:
        return []
    result = run_workflow(init_medsegmamba_wf(subjects, config), subjects, runner, config)
    reasons = {f"sub-{subject}.html": result.of_report(subject) for subject in subjects}
    return [Outcome(name, _status_of_report(why), (why,) if why else ()) for name, why in reasons.items()]


def _status_of_report(why: str) -> str:
    return SKIPPED if why == STOPPED else FAILED if why else DONE


def _none_of(subjects: Subjects) -> list[Outcome]:
    """Say of reports that the run ended before them."""
    return [Outcome(f"sub-{subject}.html", SKIPPED, (STOPPED,)) for subject in subjects]
