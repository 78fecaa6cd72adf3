"""How processes that run nodes are set up. Imported by them before anything else, so it imports nothing slow."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsegmamba_bids.inference.beside import Counter

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Loaded once, before processes are forked off; nothing that starts threads.
PRELOADED = ["nipype.pipeline.plugins.multiproc", "medsegmamba_bids.execution.preloaded"]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def start_forkserver(threads: int = 1, preloaded: Sequence[str] = PRELOADED) -> None:
    """Start the process that others are forked from, unless it runs already.

    It imports for a second or two, while the main process does so as well, and would end with a traceback on a
    terminal's Ctrl-C then: it and those that are forked from it do not hear it, and the main process, which ends them,
    hears it a moment later.

    Parameters
    ----------
    threads : int
        Of a step, at the most: libraries read it when they are imported.
    preloaded : sequence of str
        Modules that it imports.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        _start_forkserver(preloaded)
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def _start_forkserver(preloaded: Sequence[str]) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(preloaded))
    resource_tracker.ensure_running()  # else started with it, which would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(folder: str, threads: int, log_file: str | None) -> None:
    """Set up a process: threads, signals, logging into the run's file.

    Libraries read their number of threads when they are imported, which is later.
    """
    os.chdir(folder)
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    os.environ.update(NIPYPE_NO_ET="1", NO_ET="1")
    # Ctrl-C goes to all processes of a terminal: the main one decides. Asked to end, this one tidies up first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    _end_with_main_process()
    log_to_file(log_file)


def start_network_worker(folder: str, threads: int, log_file: str | None, visible: str | None, beside: Counter) -> None:
    """Set up a process that keeps networks, on the GPU that it is given; told how many steps run beside it."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    start_worker(folder, threads, log_file)
    from medsegmamba_bids.inference.beside import watch
    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory

    watch(beside)
    keep_freed_memory()


def import_networks() -> None:
    """Import what networks need, which takes a second or two: the first scan is conformed meanwhile."""
    import medsegmamba_bids.inference.segmenter  # noqa: F401


def rest() -> None:
    """Hand back memory that is not in use, when others need some: after a step, and after the last network."""
    from medsegmamba_bids.networks.kernels.memory import give_memory_back

    give_memory_back()


def run_step(*arguments: Any) -> Any:
    """Run a node that has no network, as Nipype does, and hand the memory back that it took: the next one's process may
    be another.
    """
    from nipype.pipeline.plugins.multiproc import run_node

    try:
        return run_node(*arguments)
    finally:
        rest()


def _end_with_main_process() -> None:
    """End at once when the main process is gone: the next run may be in the same folders already."""
    main = multiprocessing.parent_process()
    if main is None:
        return

    def wait() -> None:
        main.join()
        os._exit(1)

    threading.Thread(target=wait, name="main process", daemon=True).start()


def _end(number: int, frame: FrameType | None) -> None:
    """Leave, tidying up; what is interrupted may make another error of it, which nobody needs to read."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit(128 + number)


def log_to_file(log_file: str | None) -> logging.Handler:
    """Send the package's and Nipype's messages to a file, as plain lines; Nipype's to nowhere else.

    Returns the handler.
    """
    import nipype  # noqa: F401 (it sets up its own handlers on import)

    handler: logging.Handler = logging.FileHandler(log_file, encoding="utf-8") if log_file else logging.NullHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.raiseExceptions = False  # where the log cannot be written, the work goes on
    package = logging.getLogger("medsegmamba_bids")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    root = logging.getLogger("nipype")
    root.handlers.clear()
    root.addHandler(handler)
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils", "nipype.filemanip"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler
