"""Folders of intermediate results: which may be trusted, and how they are deleted."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.report.run_records import read_record, size_and_time
from medsegmamba_bids.workflows.longitudinal import LONGITUDINAL
from medsegmamba_bids.workflows.participants import participant_work_dir

_STAMP = "version.json"
_MARK = "." + 8 * "[0-9a-f]" + ".part*"  # as `atomic_path` names what is half-written
_HALVES = f".*{_MARK}"
_OLD_S = 24 * 3600.0  # a file that is being written is not left alone as long as that


def prepare_work_dir(subject: str, images: Iterable[T1wImage], config: RunConfig) -> str:
    """Delete intermediate results that cannot be trusted, and what a killed run left half-written.

    Another version of this package may have made them in another way, which Nipype does not see; ``--force`` asks
    for new ones. Options, weights and images that differ are noticed by Nipype, step by step.

    Returns
    -------
    str
        The other version that made what was deleted; empty where nothing was.
    """
    folder = participant_work_dir(subject, config)
    _remove(path for path in folder.parent.glob(f".{folder.name}.*.gone"))
    _remove(folder.glob(".*.gone"))
    made_by = read_record(folder / _STAMP).get("Version") if folder.is_dir() else __version__
    other = "" if made_by == __version__ else str(made_by or "unknown")
    if other:
        discard(folder)
    if config.force:
        for name in (LONGITUDINAL, *(image.node_name for image in images)):
            discard(folder / name)
    write_new(json.dumps({"Version": __version__}) + "\n", folder / _STAMP)
    _remove_halves(subject, config)
    return other


def discard(folder: Path) -> None:
    """Delete a folder; whenever that is interrupted, nothing is left that could be taken for the whole."""
    if folder.is_dir():
        doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
        folder.rename(doomed)
        _remove([doomed])


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_halves(subject: str, config: RunConfig) -> None:
    """Delete half-written files of a participant in the output folder."""
    root, name = config.output_dir, f"sub-{subject}"
    folders = [root / name, root / "freesurfer" / name, *(root / "freesurfer").glob(f"{name}_*")]
    halves = [path for folder in folders for path in folder.rglob(_HALVES)]
    _unlink([*halves, *root.glob(f".{name}{_MARK}")])


def remove_old_halves(config: RunConfig) -> None:
    """Delete half-written files that are no participant's, at the root of the output and in the logs.

    Whose they are is not known, and other runs may be writing: only those that nobody can be at any more go.
    """
    halves = [*config.output_dir.glob(_HALVES), *(config.output_dir / "logs").rglob(_HALVES)]
    _unlink(path for path in halves if 0 < _time_of(path) < time.time() - _OLD_S)


def _unlink(paths: Iterable[Path]) -> None:
    """Delete files; those of other users stay, as they are in nobody's way."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                path.unlink(missing_ok=True)


def _time_of(path: Path) -> float:
    """Return the time of change in seconds; 0 where the file is gone."""
    return size_and_time(path).get("Modified", 0) / 1e9
