"""A Nipype plugin for networks: they stay loaded in one process, and a process that dies is a node that failed.

Nipype's MultiProc runs nodes in any of its processes, so that each loads the network, and waits for ever for a
process that was killed (nipype #2548).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from networkx import ancestors
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

from medsegmamba_bids.errors import WorkerDiedError, reason
from medsegmamba_bids.execution.workers import (
    import_networks,
    rest,
    run_step,
    start_forkserver,
    start_network_worker,
    start_worker,
)

logger = logging.getLogger(__name__)

# In the order of how much work follows until a participant is done. Other nodes fill the gaps.
_FIRST = ("conform", "mask", "normalize", "intracranial", "statistics_aseg", "native_aseg", "native_mask", "draw")
# As many images wait for networks at the most before other work goes on: the next is ready when it is its turn.
_AHEAD = 1
_PATIENCE_S = 5.0
_LOOK_S = 1.0  # at the latest it is looked for what has changed, though nothing told of it


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: a process that is half started could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda which, _: came.append(which))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class Worker:
    """A pool of processes that is made when it is first needed, and again when one of them has died."""

    def __init__(self, size: int, start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._make = partial(
            ProcessPoolExecutor,
            max_workers=size,
            mp_context=mp.get_context("forkserver"),
            initializer=start,
            initargs=arguments,
        )
        self._pool: ProcessPoolExecutor | None = None
        self._last: Future | None = None

    @property
    def busy(self) -> bool:
        """Whether the last task is not done."""
        return self._last is not None and not self._last.done()

    def submit(self, *task: Any) -> Future:
        """Run a task in one of the processes."""
        with interrupts_later():
            try:
                self._pool = self._pool or self._make()
                self._last = self._pool.submit(*task)
            except BrokenProcessPool:
                self.clear_away()
                self._pool = self._make()
                self._last = self._pool.submit(*task)
        return self._last

    def prepare(self, task: Callable[[], None]) -> None:
        """Start a process and what takes long in it, while there is nothing else for it to do."""
        if self._pool is None:
            self.submit(task)
            self._last = None

    def clear_away(self) -> None:
        """Wait until no process is left of a pool that broke: others are still tidying up when its tasks are given up.

        A task that is run again would share its folder with them.
        """
        if self._pool is not None and self._pool._broken:
            _await_end(list((self._pool._processes or {}).values()))
            self._pool = None

    def rest(self) -> None:
        """Have its process hand back memory, if there is one."""
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):
                self._pool.submit(rest)  # it stays free for the next task

    def close(self, kill: bool = False) -> None:
        """End the processes; with ``kill`` at once, though they may tidy up."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=not kill, cancel_futures=True)
        self._pool = None
        if kill:
            _end(processes)


def _end(processes: list[Any]) -> None:
    """Ask processes to end (they remove half-written files then), and kill those that do not."""
    for process in processes:
        process.terminate()
    _await_end(processes)


def _await_end(processes: list[Any]) -> None:
    """Wait for processes that were asked to end, and kill those that do not."""
    deadline = time.monotonic() + _PATIENCE_S
    for process in processes:
        with contextlib.suppress(ValueError, AssertionError):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(_PATIENCE_S)


class NetworkProcessPlugin(MultiProcPlugin):
    """MultiProc with one lasting process per device for nodes that run a network.

    It may run several workflows, one after the other; ``close`` ends its processes.

    Parameters
    ----------
    plugin_args : dict
        As MultiProc's, and ``device`` (as the command takes it), ``threads`` (of a step) and ``log_file``.
    """

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__({"n_gpu_procs": 0, **plugin_args})
        self.pool.shutdown()  # it has not started a process
        threads, log_file = self.plugin_args.get("threads", 1), self.plugin_args.get("log_file")
        start_forkserver(threads)
        self._arguments = (self._cwd, threads, log_file)
        self._common = Worker(self.processors, start_worker, self._arguments)
        self._beside = mp.get_context("forkserver").RawValue("i", 0)  # steps that take a processor of the networks'
        self._running = self._room = 0  # steps without a network; processors that no network has a thread for
        self._counting = threading.Lock()
        self._networks = [
            Worker(1, start_network_worker, (*self._arguments, mask, self._beside))
            for mask in visible_devices(self.plugin_args.get("device", "auto"))
        ]
        self._feeding: set[Node] = set()
        self._alone: dict[int, Worker] = {}
        self._to_repeat: set[int] = set()
        self._tasks: dict[int, tuple[Any, ...]] = {}
        self._seen: tuple[Any, ...] | None = None
        self._changed = threading.Event()  # a task has ended

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run a workflow; processes are ended if that is interrupted."""
        self._taskresult.clear()
        self.pending_tasks, self._seen = [], None
        gc.freeze()  # Nipype collects garbage before each step, and would look at all that was imported (0.1 s)
        try:
            self._run_to_end(graph, config, updatehash)
        except KeyboardInterrupt:
            self.close(kill=True)
            raise
        finally:
            gc.unfreeze()

    def _run_to_end(self, graph: Any, config: Any, updatehash: bool) -> None:
        """Run a workflow; where that ends early, wait for what runs: participants are given free after it."""
        try:
            super().run(graph, config, updatehash)
        except Exception:
            self._await_tasks()
            raise

    def _await_tasks(self) -> None:
        """Wait until no task runs, and forget all; those that no process has taken are given up."""
        for future in self._task_obj.values():
            future.cancel()
        wait(self._task_obj.values())
        for worker in (self._common, *self._networks):
            worker.clear_away()
        for worker in self._alone.values():
            worker.close()
        for kept in (self._task_obj, self._tasks, self._alone, self._to_repeat):
            kept.clear()

    def close(self, kill: bool = False) -> None:
        """End all processes."""
        for worker in (self._common, *self._networks, *self._alone.values()):
            worker.close(kill)
        self._alone.clear()

    def _prerun_check(self, graph: Any) -> None:
        """Share the processors among the processes of networks, so that none of them waits for another's.

        Part of a network's processors, one at the least where there are several, is given to other nodes as well:
        what is left to do of one participant is done while the network is at the next, which takes fewer threads then.
        """
        share = self.processors // len(self._networks)
        if not share:
            logger.warning(
                "%d GPUs, but %d processors (--nprocs): as many GPUs are used at once",
                *(len(self._networks), self.processors),
            )
        networks = [node for node in graph.nodes() if _runs_network(node)]
        for node in networks:
            threads = min(node.n_procs, max(1, share))
            node.n_procs = min(threads, max(1, share - max(1, share // 4)))
            node.inputs.num_threads = threads  # Nipype takes the places for the threads
            self._room = self.processors - threads * len(self._networks)
        self._feeding = {node for network in networks for node in ancestors(graph, network)}
        for worker in self._networks[: len(networks)]:
            worker.prepare(import_networks)
        super()._prerun_check(graph)

    def _postrun_check(self) -> None:
        """Keep the processes for the next workflow."""

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        """Look for nodes to start only where something has changed, and wait else until a task has ended.

        Nipype does so many times a second and collects garbage each time, which kept a processor busy.
        """
        ready = ~self.proc_done & (self.depidx.sum(axis=0) == 0).__array__()
        state = (frozenset(self.pending_tasks), ready.tobytes())
        if state != self._seen:
            self._seen = state
            super()._send_procs_to_workers(updatehash, graph)
        elif self.pending_tasks:
            self._changed.wait(_LOOK_S)
            self._changed.clear()

    def _sort_jobs(self, jobids: Any, scheduler: str | None = None) -> list[int]:
        """Put nodes that run networks first; while one can run, processors are not given to others.

        Else small nodes would always take what becomes free, and networks wait until there are no more of them. Of the
        others come first those that networks need, unless enough is ready for these; then a participant after the
        other, so that results do not wait until all have been through the network.
        """
        free = sum(not process.busy for process in self._networks)
        networks = [job for job in jobids if _runs_network(self.procs[job])]
        if networks and free:
            return sorted(networks, key=lambda job: _participant(self.procs[job]))[:free]
        others = [job for job in jobids if not _runs_network(self.procs[job])]
        needed = len(networks) < _AHEAD
        return sorted(others, key=lambda job: self._rank(self.procs[job], needed))

    def _rank(self, node: Node, needed: bool) -> tuple[int, str, int]:
        """Return where a node stands among those that wait: the lower, the earlier."""
        feeds = (0 if needed else 2) if node in self._feeding else 1
        return feeds, _participant(node), _urgency(node.name)

    def _submit_job(self, node: Node, updatehash: bool = False) -> int | None:
        run, worker, repeatable = run_step, self._common, True
        if _runs_network(node):
            free = [process for process in self._networks if not process.busy]
            if not free:
                return None  # it is asked again
            run, worker, repeatable = run_node, free[0], False
        self._taskid += 1
        self._tasks[self._taskid] = (run, node, updatehash, self._taskid)
        self._start(self._taskid, worker, repeatable)
        return self._taskid

    def _start(self, taskid: int, worker: Worker, repeatable: bool) -> None:
        future = worker.submit(*self._tasks[taskid])
        self._task_obj[taskid] = future
        if not _runs_network(self._tasks[taskid][1]):
            self._count(1)
            future.add_done_callback(lambda _: self._count(-1))
        future.add_done_callback(partial(self._finished, taskid, repeatable))

    def _count(self, change: int) -> None:
        """Tell networks how many steps run beside them on their processors, when one has begun or ended."""
        with self._counting:
            self._running += change
            self._beside.value = -(-max(0, self._running - self._room) // len(self._networks))  # each gives its part

    def _finished(self, taskid: int, repeatable: bool, future: Future) -> None:
        """Keep the result, or what stands for it where the process died."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._taskresult[taskid] = future.result()
        elif isinstance(error, BrokenProcessPool) and repeatable:
            # Whose fault it was cannot be told: each node that ran there gets a process of its own.
            self._to_repeat.add(taskid)
        else:
            cause = WorkerDiedError() if isinstance(error, BrokenProcessPool) else error
            text = f"{type(cause).__name__}: {cause}\n"
            self._taskresult[taskid] = {"result": None, "traceback": [text], "taskid": taskid}
        self._changed.set()

    def _report_crash(self, node: Node, result: dict[str, Any] | None = None) -> str:
        """Write a crash file; where the node's folder cannot be written, into the workflow's, else none.

        Nipype would end the workflow there, with all its other participants.
        """
        places = node.config["execution"]
        for folder in (places["crashdump_dir"], self._config["execution"]["crashdump_dir"]):
            places["crashdump_dir"] = folder
            try:
                return super()._report_crash(node, result)
            except OSError as error:
                logger.warning("%s: no crash file can be written (%s)", folder, reason(error))
        return ""

    def _networks_to_run(self) -> bool:
        """Return whether there are nodes with networks that have not ended."""
        ended = self.proc_done & ~self.proc_pending
        return any(_runs_network(node) and not ended[job] for job, node in enumerate(self.procs))

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        if taskid in self._to_repeat:
            self._to_repeat.remove(taskid)
            logger.warning("a process died; %s is run again by itself", self._tasks[taskid][1].fullname)
            self._common.clear_away()
            self._alone[taskid] = Worker(1, start_worker, self._arguments)
            self._start(taskid, self._alone[taskid], repeatable=False)
        return self._taskresult.get(taskid)

    def _clear_task(self, taskid: int) -> None:
        if _runs_network(self._tasks[taskid][1]) and not self._networks_to_run():
            for process in self._networks:
                process.rest()
        del self._task_obj[taskid], self._tasks[taskid], self._taskresult[taskid]
        if taskid in self._alone:
            self._alone.pop(taskid).close()


def _participant(node: Node) -> str:
    """Return the name of the participant's workflow that a node is in, empty where there is none."""
    return next(iter(node.fullname.split(".")[1:-1]), "")


def _urgency(name: str) -> int:
    """Return where a node stands among those of a participant that wait: the lower, the earlier."""
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _runs_network(node: Node) -> bool:
    return getattr(node.interface, "runs_network", False)


def visible_devices(device: str) -> list[str | None]:
    """Return a value of CUDA_VISIBLE_DEVICES for each process that runs networks; None leaves it as it is.

    One process per GPU where the device is "auto" or "cuda"; the scheduler's own mask is respected. CUDA is not
    touched: children could not use it then.

    Examples
    --------
    >>> visible_devices("cpu")
    [None]
    """
    if device not in ("auto", "cuda"):
        return [None]
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        from nipype.utils.gpu_count import gpu_count

        names = [str(number) for number in range(gpu_count())]
    else:
        names = [name.strip() for name in mask.split(",") if name.strip()]
    return names or [None]
