"""What became of each T1w, and the table and exit code that follow."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name, split_prefix
from medsegmamba_bids.report.quality import flag_messages
from medsegmamba_bids.segmentations import SEGMENTATIONS

DONE, FLAGGED, FAILED, SKIPPED = "done", "flagged", "failed", "skipped"
FINISHED = "finished"  # before this run
NOT_THERE = "its results are not there; the log file may say why"
_WIDTH = 110


@dataclass(frozen=True)
class Outcome:
    """What became of a T1w, a participant or a report.

    Attributes
    ----------
    name : str
    status : {"done", "flagged", "failed", "skipped", "finished"}
    reasons : tuple of str
        A sentence each.
    """

    name: str
    status: str
    reasons: tuple[str, ...] = ()


def crashed(name: str, crashes: Mapping[str, str]) -> Outcome:
    """Return the outcome of what failed, with step -> what it failed with."""
    return Outcome(name, FAILED, tuple(f"{step}: {reason}" for step, reason in crashes.items()))


def why_not_done(changed: Sequence[str], error: str) -> str:
    """Return why something is not recorded as finished, of which no step crashed.

    Parameters
    ----------
    changed : sequence of str
        What of the files that are read is another than at the beginning.
    error : str
        Why the workflow ended early; empty if it did not.

    Examples
    --------
    >>> why_not_done(["the T1w"], "")
    'the T1w changed during the run; run it again'
    """
    return f"{', '.join(changed)} changed during the run; run it again" if changed else error or NOT_THERE


def judge_image(image: T1wImage, crashes: dict[str, str], unfinished: str, config: RunConfig) -> Outcome:
    """Say what became of a T1w.

    Parameters
    ----------
    image : T1wImage
    crashes : dict
        Step -> what it failed with.
    unfinished : str
        Why its record does not say that it is finished; empty if it does. Tables may be those of a run before.
    config : RunConfig
    """
    name = f"{image.prefix}_T1w"
    if crashes:
        return crashed(name, crashes)
    if unfinished:
        return Outcome(name, FAILED, (unfinished,))
    notes = [note for kind in SEGMENTATIONS for note in notes_of(image.prefix, kind.stats, config)]
    return Outcome(name, DONE, tuple(dict.fromkeys(notes)))


def finished_before(image: T1wImage, by_another: bool) -> Outcome:
    """Say that a T1w was left alone, as its results are there.

    Parameters
    ----------
    image : T1wImage
    by_another : bool
        Whether another run was at it while this one waited.
    """
    what = "finished by another run meanwhile" if by_another else "finished already"
    return Outcome(f"{image.prefix}_T1w", FINISHED, (f"skipped: {what} (--force redoes it)",))


def with_quality_flags(outcomes: Iterable[Outcome], config: RunConfig) -> list[Outcome]:
    """Add the quality flags that the reports found to T1w images that are done; notes of a run are no flags."""
    messages: dict[str, dict[str, list[str]]] = {}
    out = []
    for outcome in outcomes:
        prefix = outcome.name.removesuffix("_T1w")
        if outcome.status not in (DONE, FLAGGED) or prefix == outcome.name:
            out.append(outcome)
            continue
        subject = split_prefix(prefix)["sub"]
        if subject not in messages:
            messages[subject] = flag_messages(config.output_dir, subject)
        flags = messages[subject].get(prefix, [])
        reasons = tuple(dict.fromkeys([*flags, *outcome.reasons]))
        out.append(Outcome(outcome.name, FLAGGED if flags else DONE, reasons))
    return out


def notes_of(prefix: str, product: str, config: RunConfig) -> list[str]:
    """Return notes in the JSON beside a table of volumes; none where there is no such table."""
    path: Path = config.output_dir / output_name(prefix, product, extension=".json")
    try:
        sidecar: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(sidecar.get("Notes", []))


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """Return 0 if everything is done (or flagged), now or before, else 1.

    Examples
    --------
    >>> exit_code([Outcome("a", "done"), Outcome("b", "flagged")]), exit_code([Outcome("c", "skipped")])
    (0, 1)
    """
    return int(any(outcome.status in (FAILED, SKIPPED) for outcome in outcomes))


def outcome_table(outcomes: Sequence[Outcome], most: int | None = None) -> str:
    """Return a table for people: a row per outcome, with its reasons below each other, and the sums.

    Parameters
    ----------
    outcomes : sequence of Outcome
    most : int, optional
        Lines of reasons of each; the last one says how many are not shown. Failures are shown whole.

    Examples
    --------
    >>> print(outcome_table([Outcome("sub-01_T1w", "done"), Outcome("sub-02", "skipped", ("it has no T1w image",))]))
    sub-01_T1w  done
    sub-02      skipped  it has no T1w image
    1 done, 0 flagged, 0 failed, 1 skipped
    """
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    states = max((len(outcome.status) for outcome in outcomes), default=0)
    lines = []
    for outcome in outcomes:
        head = f"{outcome.name:<{width}}  {outcome.status:<{states}}  "
        texts = [part for reason in outcome.reasons for part in textwrap.wrap(reason, _WIDTH, subsequent_indent="  ")]
        if most and len(texts) > most and outcome.status not in (FAILED, SKIPPED):
            texts = [*texts[: most - 1], f"and {len(texts) - most + 1} more lines in the report and the log"]
        lines += [(head if number == 0 else " " * len(head)) + text for number, text in enumerate(texts or [""])]
    counts = Counter(outcome.status for outcome in outcomes)
    sums = [f"{counts[status]} {status}" for status in (DONE, FLAGGED, FAILED, SKIPPED)]
    sums += [f"{counts[FINISHED]} finished already"] * (counts[FINISHED] > 0)
    lines.append(", ".join(sums))
    return "\n".join(line.rstrip() for line in lines)
