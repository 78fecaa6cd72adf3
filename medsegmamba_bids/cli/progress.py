"""Progress of a run: a line that changes on a terminal; elsewhere a line a participant; the run's log has all steps.

No bar of tqdm: it counts towards a total, and how many steps there are is not known before the last batch; in a log
of a cluster it would leave its control characters.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from medsegmamba_bids.data.names import with_signs

logger = logging.getLogger(__name__)

_SAYINGS = {"end": "done", "exception": "FAILED"}


class Progress:
    """Says which step of which image is done; call it as Nipype's status callback.

    Parameters
    ----------
    stream : text file
        Standard error by default.

    Attributes
    ----------
    total : int
        Participants of the run; 0 as long as that is not known.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.total = 0
        self._ended: set[str] = set()
        self._passed: set[str] = set()
        self.stream = stream or sys.stderr
        self.changing = self.stream.isatty()
        self.start = time.monotonic()
        self.done = self.failed = 0
        self._started: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.changing:
            self._write("\r\x1b[K")

    def __call__(self, node: Any, status: str) -> None:
        """Tell what became of a node."""
        name = describe(node)
        if status == "start":
            self._started[name] = time.monotonic()
            self._show_passing(f"{name} …")
            return
        self.done += status == "end"
        self.failed += status == "exception"
        begun = self._started.pop(name, None)
        took = "as before" if begun is None else f"{time.monotonic() - begun:.1f} s"
        text = f"{name} {_SAYINGS.get(status, status)}, {took}"
        logger.info(text)
        if status == "exception":
            self._show(text)
        else:
            self._show_passing(text)
        participant = _participant(node)
        if participant and participant not in self._ended and (status == "exception" or _is_last(node)):
            self._ended.add(participant)
            self._show(f"{participant} {_SAYINGS.get(status, status)}{self._standing(', ')}")

    def passed(self, participants: Iterable[str]) -> None:
        """Count participants, without ``sub-``, for whom nothing is left to do."""
        self._passed |= {f"sub-{participant}" for participant in participants}

    def _standing(self, before: str = "") -> str:
        """Return how many participants are done, and how long the others will take by what those took."""
        if not self.total:
            return ""
        ended = len(self._ended | self._passed)
        left = self.total - ended
        text = f"{before}{ended} of {self.total} participants"
        if left > 0 and self._ended:
            each = (time.monotonic() - self.start) / len(self._ended)
            text += f", about {duration(left * each)} left"
        return text

    def _show(self, text: str) -> None:
        """Show a line that stays."""
        self._write(("\r\x1b[K" if self.changing else "") + f"{self._clock()} {text}\n")

    def _show_passing(self, text: str) -> None:
        """Show a line that the next one overwrites, on a terminal alone."""
        if self.changing:
            line = " ".join(filter(None, [self._clock(), self._standing(), text]))
            self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        return f"[{minutes:02d}:{seconds:02d}]"

    def _write(self, text: str) -> None:
        """Write; a terminal that is gone must not end the run."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def _participant(node: Any) -> str:
    """Return ``sub-X`` of a node's full name; empty where it has none."""
    part = next((part for part in node.fullname.split(".") if part.startswith("sub_") and part.endswith("_wf")), "")
    return with_signs(part.removesuffix("_wf")).replace("_", "-", 1)


def _is_last(node: Any) -> bool:
    """Return whether a node is the last of its participant's: the report."""
    return node.fullname.rsplit(".", 1)[-1] == "report"


def describe(node: Any) -> str:
    """Return image (or report) and step of a node, from its full name.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> describe(SimpleNamespace(fullname="root.sub_01_wf.T1w_sub_01_wf.aseg_results_wf.native_aseg"))
    'sub_01: native_aseg'
    """
    *outer, step = node.fullname.split(".")
    where = next((part for part in outer if part.startswith("T1w_")), outer[-1])
    return f"{with_signs(where.removesuffix('_wf').removeprefix('T1w_'))}: {step}"


def duration(seconds: float) -> str:
    """Return a time for people.

    Examples
    --------
    >>> duration(42.4), duration(150), duration(4 * 3600 + 61)
    ('42 s', '2.5 min', '4 h 1 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
