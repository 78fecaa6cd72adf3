"""What all nodes share: a record of time, memory and warnings."""

from __future__ import annotations

import logging
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits

PACKAGE = "medsegmamba_bids"
_FOLDER = re.compile(r"(?:/[^/\s:]+)+/(?=[^/\s:]+: )")


class StepInputSpec(BaseInterfaceInputSpec):
    """Inputs of every node."""

    num_threads = traits.Range(low=1, value=1, usedefault=True, nohash=True, desc="threads it may use")


class StepOutputSpec(TraitedSpec):
    """Outputs of every node."""

    record = traits.Dict(desc="name of the node, its seconds, peak memory in GB and notes")


class _Notes(logging.Handler):
    """Keeps warnings, without the folders of files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        note = _FOLDER.sub("", record.getMessage())
        if note not in self.notes:
            self.notes.append(note)


class StepInterface(SimpleInterface):
    """A node whose output ``record`` says what it took and what it warned of.

    A subclass defines ``run_step``, which returns its outputs by name.
    """

    #: Whether it runs a network, and so belongs into the process that keeps networks.
    runs_network: ClassVar[bool] = False

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Do the work; files go into ``folder``. Entries ``notes`` and ``details`` go into the record."""
        raise NotImplementedError

    def _run_interface(self, runtime: Any) -> Any:
        handler = _Notes()
        logger = logging.getLogger(PACKAGE)
        logger.addHandler(handler)
        start = time.perf_counter()
        folder = Path(runtime.cwd)
        try:
            results = self.run_step(folder)
        finally:
            logger.removeHandler(handler)
        notes = list(dict.fromkeys([*handler.notes, *results.pop("notes", ())]))
        record = {
            "Name": folder.name,  # a node works in a folder of its own name
            "Seconds": round(time.perf_counter() - start, 2),
            "PeakMemoryGB": round(peak_memory_gb(), 3),
            "Notes": notes,
            **results.pop("details", {}),
        }
        self._results = {**results, "record": record}
        return runtime


def peak_memory_gb() -> float:
    """Return the most memory that this process has held so far, GB."""
    units = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units / 1e9
