"""What runs beside a network in other processes of the same run, and how the network makes way for it."""

from __future__ import annotations

from typing import Protocol


class Counter(Protocol):
    """A number that another process changes, such as `multiprocessing.sharedctypes.RawValue`."""

    value: int


_COUNTERS: list[Counter] = []  # the one of this process; none where nothing runs beside


def watch(beside: Counter) -> None:
    """Have the networks of this process look at how many steps run on processors that they have threads for."""
    _COUNTERS[:] = [beside]


def make_way(threads: int) -> None:
    """Compute with so many threads, less one for each step that takes a processor of theirs, but one at the least.

    The threads of a network divide each layer evenly and wait for the last of them: one that shares its processor with
    a step holds up all the others, which loses as much time again as the step takes.

    Parameters
    ----------
    threads : int
        Where nothing runs beside; 1 or more.
    """
    from medsegmamba_bids.inference.device import use_threads

    use_threads(max(1, threads - sum(counter.value for counter in _COUNTERS)))
