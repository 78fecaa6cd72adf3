"""Participants with several sessions: what is processed together, and what became of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.execution.outcomes import DONE, FAILED, FINISHED, FLAGGED, Outcome, crashed
from medsegmamba_bids.execution.resume import visits_of, why_visits_unfinished
from medsegmamba_bids.segmentations import ASEG
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.workflows.longitudinal import RECORD, Visits, visits_made_from
from medsegmamba_bids.workflows.networks import Networks

logger = logging.getLogger(__name__)


def plan_of_visits(
    by_subject: Mapping[str, Sequence[T1wImage]],
    outcomes: Mapping[str, Sequence[Outcome]],
    config: RunConfig,
    networks: Networks,
    template: Template,
) -> tuple[list[Visits], dict[str, list[Outcome]]]:
    """Return what is left to process together, and by participant what became of the rest.

    Parameters
    ----------
    by_subject : mapping
        Participant -> T1w images.
    outcomes : mapping
        Participant -> what became of each of its images: those that failed are left out.
    config, networks, template
    """
    plan, told = [], {}
    for subject, images in by_subject.items():
        failed = {outcome.name for outcome in outcomes[subject] if outcome.status == FAILED}
        good = [image for image in images if f"{image.prefix}_T1w" not in failed]
        if not several_sessions(images):
            logger.info("sub-%s: has one session only; its images are processed one by one", subject)
            continue
        if not several_sessions(good):
            reason = f"one session is left, as {', '.join(sorted(failed))} failed; two and more are needed"
            told[subject] = [Outcome(_name(subject), FAILED, (reason,))]
            continue
        visits = visits_of(subject, good, config)
        if why := why_visits_unfinished(visits, visits_made_from(visits, config, networks, template), config):
            logger.log(_loudness(why), "sub-%s: its visits are processed together: %s", subject, why)
            plan.append(visits)
        else:
            reason = "skipped: its visits were processed together already (--force redoes it)"
            told[subject] = [Outcome(_name(subject), FINISHED, (reason,))]
    return plan, told


def several_sessions(images: Sequence[T1wImage]) -> bool:
    """Return whether images are of two sessions or more."""
    return len({image.session for image in images if image.session}) > 1


def _loudness(why: str) -> int:
    """Return the level of a message: that results are replaced is a warning, that they are made is none."""
    return logging.INFO if why.startswith("it was not finished") else logging.WARNING


def _name(subject: str) -> str:
    return f"sub-{subject}_{RECORD}"


def judge_visits(visits: Visits, crashes: Mapping[str, str], unfinished: str, config: RunConfig) -> Outcome:
    """Say what became of visits that were to be processed together.

    Parameters
    ----------
    visits : Visits
    crashes : mapping
        Step -> what it failed with.
    unfinished : str
        Why their record does not say that they are finished; empty if it does.
    config : RunConfig
    """
    name = _name(visits.subject)
    if crashes:
        return crashed(name, crashes)
    if unfinished:
        return Outcome(name, FAILED, (unfinished,))
    path = config.output_dir / output_name(visits.prefix, ASEG.changes, extension=".json")
    notes = tuple(json.loads(path.read_text(encoding="utf-8"))["Notes"])
    return Outcome(name, FLAGGED if notes else DONE, notes)
