"""Progress of a run: a line that changes on a terminal, plain lines elsewhere and in the log.

No bar of tqdm: it counts towards a total, and how many steps there are is not known before the last batch; in a log
of a cluster it would leave its control characters.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Any, TextIO

logger = logging.getLogger(__name__)

_SAYINGS = {"end": "done", "exception": "FAILED"}


class Progress:
    """Says which step of which image is done; call it as Nipype's status callback.

    Parameters
    ----------
    stream : text file
        Standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
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
            self._show(f"{name} …", passing=True)
            return
        self.done += status == "end"
        self.failed += status == "exception"
        begun = self._started.pop(name, None)
        took = "as before" if begun is None else f"{time.monotonic() - begun:.1f} s"
        text = f"{name} {_SAYINGS.get(status, status)}, {took}"
        logger.info(text)
        self._show(text, passing=status == "end")

    def _show(self, text: str, passing: bool) -> None:
        """Show a line; one that passes is overwritten by the next on a terminal."""
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        line = f"[{minutes:02d}:{seconds:02d}] {text}"
        if self.changing:
            self._write(f"\r\x1b[K{line}" + ("" if passing else "\n"))
        elif not text.endswith("…"):
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        """Write; a terminal that is gone must not end the run."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


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
    return f"{where.removesuffix('_wf').removeprefix('T1w_')}: {step}"


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
