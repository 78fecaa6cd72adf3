"""What a run uses of memory and processors, as a table beside its log."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

RESOURCES_FILE = "resources.tsv"
_COLUMNS = ("seconds", "memory_gb", "processors", "processes")


class ResourceMonitor:
    """Writes a row every so often: this process and those that it started.

    Parameters
    ----------
    path : Path
        Table to write. Memory is in GB (10^9 bytes), what processes share counted once where the system tells;
        processors are those kept busy since the row before.
    pause_s : float
    """

    def __init__(self, path: Path, pause_s: float = 1.0) -> None:
        import psutil

        self.path, self.pause_s = path, pause_s
        self.peak_gb = 0.0
        self._me = psutil.Process()
        self._gone = (psutil.NoSuchProcess, psutil.AccessDenied)
        self._busy_s: dict[int, float] = {}
        self._start = self._before = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resource monitor", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more, and tell the most memory that was in use."""
        self._end.set()
        self._thread.join()
        logger.info("at most %.2f GB of memory were in use at once (%s)", self.peak_gb, self.path)

    def _watch(self) -> None:
        with contextlib.suppress(OSError), self.path.open("w", encoding="utf-8") as table:  # a full disk ends no run
            table.write("\t".join(_COLUMNS) + "\n")
            while not self._end.wait(self.pause_s):
                self._write_row(table)

    def _write_row(self, table: TextIO) -> None:
        now = time.monotonic()
        memory, busy = 0, {}
        for process in [self._me, *self._me.children(recursive=True)]:
            with contextlib.suppress(*self._gone):
                used = process.memory_full_info()
                memory += getattr(used, "pss", used.rss)
                busy[process.pid] = sum(process.cpu_times()[:2])
        processors = sum(spent - self._busy_s.get(pid, 0.0) for pid, spent in busy.items()) / (now - self._before)
        self.peak_gb = max(self.peak_gb, memory / 1e9)
        self._busy_s, self._before = busy, now
        table.write(f"{now - self._start:.1f}\t{memory / 1e9:.3f}\t{processors:.2f}\t{len(busy)}\n")
        table.flush()


@contextmanager
def resource_monitor(folder: Path | None) -> Iterator[None]:
    """Watch what the block uses, into a table in a folder; nothing is watched for None."""
    if folder is None:
        yield
        return
    monitor = ResourceMonitor(folder / RESOURCES_FILE)
    monitor.start()
    try:
        yield
    finally:
        monitor.stop()
