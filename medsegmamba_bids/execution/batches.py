"""Which participants a run takes up when: a few at a time, and none that another run is at."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import LockError
from medsegmamba_bids.execution.locks import FileLock, owner_of, try_lock
from medsegmamba_bids.workflows.participants import ROOT

logger = logging.getLogger(__name__)

Subjects = dict[str, list[T1wImage]]
_BATCH = 16  # participants whose workflow is built at once, and more where more can run at once
_PAUSE_S = 1.0


@dataclass
class Batch:
    """Some participants that this run alone is at; a context, at whose end others may have them.

    Attributes
    ----------
    subjects : dict
        Participant -> T1w images.
    locks : list of FileLock
    waited : bool
        Whether another run was at them before.
    refused : dict of str to str
        Participant that cannot be locked -> why.
    """

    subjects: Subjects = field(default_factory=dict)
    locks: list[FileLock] = field(default_factory=list)
    waited: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others have its participants."""
        while self.locks:
            self.locks.pop().release()


def locked_batches(subjects: Subjects, config: RunConfig) -> Iterator[Batch]:
    """Yield batches with all participants; those that another run is at come last, when it has done with them.

    Whoever takes a batch must release it before the next: two runs could else wait for each other.
    """
    later: Subjects = {}
    for part in batches(subjects, config):
        batch, busy = _take(part, config)
        later |= busy
        if batch.subjects or batch.refused:
            yield batch
    for name in later:
        logger.warning("sub-%s: %s is at it; waiting", name, owner_of(*lock_paths(name, config)))
    while later:
        batch, later = _take(later, config, limit=_size(config))
        if batch.subjects or batch.refused:
            batch.waited = True
            yield batch
        else:
            time.sleep(_PAUSE_S)


def batches(subjects: Subjects, config: RunConfig) -> Iterator[Subjects]:
    """Split participants into those whose workflows are built at once."""
    names, size = list(subjects), _size(config)
    for start in range(0, len(names), size):
        yield {name: subjects[name] for name in names[start : start + size]}


def _size(config: RunConfig) -> int:
    return max(_BATCH, 4 * config.nprocs)


def _take(subjects: Subjects, config: RunConfig, limit: int | None = None) -> tuple[Batch, Subjects]:
    """Lock what can be locked, at most some; return the rest as well."""
    batch, rest = Batch(), {}
    for name, images in subjects.items():
        try:
            locks = [] if limit is not None and len(batch.subjects) >= limit else lock_participant(name, config)
        except LockError as error:
            batch.refused[name] = str(error)
            continue
        if locks:
            batch.subjects[name] = images
            batch.locks += locks
        else:
            rest[name] = images
    return batch, rest


def lock_participant(subject: str, config: RunConfig) -> list[FileLock]:
    """Return both locks of a participant, or none.

    Raises
    ------
    LockError
        A lock file can neither be made nor opened.
    """
    work, output = lock_paths(subject, config)
    first = try_lock(work)
    if first is None:
        return []
    try:
        second = try_lock(output)
    except LockError:
        first.release()
        raise
    if second is None:
        first.release()
        return []
    return [first, second]


def lock_paths(subject: str, config: RunConfig) -> tuple[Path, Path]:
    """Lock files of a participant in the work folder and in the output folder."""
    name = f".sub-{subject}.lock"
    return config.work_dir / ROOT / name, config.output_dir / "logs" / name
