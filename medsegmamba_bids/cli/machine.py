"""What a command may use of the machine: processors and memory, by its control groups, limits and Slurm job."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

DEFAULT_MEMORY_GB = 8.0
_PROC = Path("/proc/self")
_UNITS = {"": 1.0, "k": 1e-6, "m": 1e-3, "g": 1.0, "t": 1e3}
_AMOUNT = re.compile(r"([0-9.]+(?:e[+-]?\d+)?|nan|-[0-9.]+)\s*([kmgt]?)i?b?", re.IGNORECASE)


def processors(proc: Path = _PROC) -> int:
    """Return processors that this process may use; within a job of Slurm, those that it was given."""
    try:
        there = len(os.sched_getaffinity(0))
    except AttributeError:
        there = os.cpu_count() or 1
    given = _from_slurm("SLURM_CPUS_PER_TASK") or _from_slurm("SLURM_CPUS_ON_NODE")
    shares = [max(1, int(share)) for share in _processor_shares(proc)]
    return min([there, *shares, *([given] if given else [])])


def _processor_shares(proc: Path) -> Iterator[float]:
    """Yield how many processors' time each control group allows."""
    for folder in group_folders("", proc):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    for folder in group_folders("cpu", proc):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)


def memory_gb(proc: Path = _PROC) -> float | None:
    """Return memory that this process may use, GB: of the machine, its control groups or its Slurm job; None if
    unknown.
    """
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits += _memory_limits(proc)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    per_processor = _from_slurm("SLURM_MEM_PER_CPU") * (_from_slurm("SLURM_CPUS_ON_NODE") or 1)
    if given := _from_slurm("SLURM_MEM_PER_NODE") or per_processor:
        limits.append(given * 2**20)
    return min(limits) / 1e9 if limits else None


def _memory_limits(proc: Path) -> Iterator[int]:
    """Yield bytes that each control group allows; those of version 1 tell a huge number where they do not."""
    names = [("", "memory.max"), ("", "memory.high"), ("memory", "memory.limit_in_bytes")]
    for controller, name in names:
        for folder in group_folders(controller, proc):
            if (limit := _read(folder / name)).isdecimal() and int(limit):
                yield int(limit)


def group_folders(controller: str, proc: Path = _PROC) -> list[Path]:
    """Return folders of this process's control group and of those around it, as far as they can be seen.

    Parameters
    ----------
    controller : str
        Such as ``memory``, of version 1; empty for version 2.
    proc : Path
        Folder of the process's ``cgroup`` and ``mountinfo``.
    """
    own = _own_group(controller, proc)
    mounted = _mount(controller, proc)
    if own is None or mounted is None:
        return []
    root, place = mounted
    # Within a container the group may lie outside of what is mounted: its top is all that there is to see then.
    inside = Path(os.path.relpath(own, root)) if own == root or own.startswith(f"{root.rstrip('/')}/") else Path()
    folder = place / inside
    return [folder, *(parent for parent in folder.parents if parent == place or place in parent.parents)]


def _own_group(controller: str, proc: Path) -> str | None:
    for line in _read(proc / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (controller in controllers.split(",")) if controller else (number == "0" and not controllers):
            return path
    return None


def _mount(controller: str, proc: Path) -> tuple[str, Path] | None:
    """Return which group is mounted where."""
    for line in _read(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        version_1 = kinds[0] == "cgroup" and controller in kinds[2].split(",")
        if version_1 if controller else kinds[0] == "cgroup2":
            return _plain(fields[3]), Path(_plain(fields[4]))
    return None


def _plain(text: str) -> str:
    r"""Return a path of mountinfo, where blanks are written ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def _from_slurm(name: str) -> int:
    """Return a number that Slurm tells its jobs; 0 where it tells none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def amount_gb(text: str) -> float:
    """Return the GB of a text with or without a unit; raises ``ValueError``.

    Examples
    --------
    >>> amount_gb("8"), amount_gb("7.5G"), amount_gb("8000MB")
    (8.0, 7.5, 8.0)
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _UNITS[match[2].lower()]


amount_gb.__name__ = "amount of memory, such as 8, 8G or 8000MB"


def amount_of_mb(text: str) -> float:
    """Return the GB of a number of MB; a unit wins. Raises ``ValueError``."""
    return amount_gb(text if text.strip()[-1:].isalpha() else f"{text}M")


amount_of_mb.__name__ = "amount of memory in MB"
