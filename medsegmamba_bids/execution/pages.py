"""Links between the pages of participants, now that all are there."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from markupsafe import Markup

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import LockError, reason
from medsegmamba_bids.execution.batches import lock_participant
from medsegmamba_bids.execution.resume import record_report, report_is_current
from medsegmamba_bids.ownership import is_ours
from medsegmamba_bids.report.neighbours import (
    beside,
    has_links,
    neighbour_links,
    page_of,
    set_links,
    subjects_with_pages,
)

logger = logging.getLogger(__name__)


def link_pages(subjects: Iterable[str], config: RunConfig) -> None:
    """Let the pages of participants, and those next to them, lead to each other, now that all are there.

    A page that another run is at is left to that run's end. One that cannot be read or written stays as it is, with a
    warning: the work is done, and what became of it must be told.
    """
    there = subjects_with_pages(config.output_dir)
    for subject in beside(subjects, there):
        try:
            _link_page(subject, neighbour_links(subject, there), config)
        except (LockError, OSError) as error:
            page = page_of(config.output_dir, subject)
            logger.warning("%s: has no new links to the pages beside it (%s)", page, reason(error))


def _link_page(subject: str, links: Markup, config: RunConfig) -> None:
    if has_links(config.output_dir, subject, links):
        return
    locks = lock_participant(subject, config)
    try:
        if locks and is_ours(page_of(config.output_dir, subject)):
            current = report_is_current(subject, config)
            set_links(config.output_dir, subject, links)
            if current:
                record_report(subject, config)
    finally:
        for lock in locks:
            lock.release()
