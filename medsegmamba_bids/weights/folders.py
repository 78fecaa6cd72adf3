"""Where weights files lie: in the package, in the user's folder, or where the user says."""

from __future__ import annotations

import os
from pathlib import Path

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import WeightsError
from medsegmamba_bids.weights.info import WeightsFile, read_weights_file

FOLDER_VARIABLE = "MEDSEGMAMBA_WEIGHTS"
SUFFIX = ".safetensors"
AUTHORS_REPOSITORY = "https://github.com/aaroncao06/MedSegMamba"
TABSURFER_REPOSITORY = "https://github.com/aaroncao06/TABSurfer"


def weights_folder() -> Path:
    """Return the user's folder of weights: $MEDSEGMAMBA_WEIGHTS, or within the user's cache."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("medsegmamba_bids") / "weights"


def embedded_weights() -> list[Path]:
    """Return the weights files that come with the package, sorted by name."""
    return _weights_in(data_path("weights"))


def user_weights() -> list[Path]:
    """Return the weights files in the user's folder, sorted by name."""
    return _weights_in(weights_folder())


def _weights_in(folder: Path) -> list[Path]:
    """Return weights files of a folder, without hidden ones, such as the ``._`` files of macOS."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def default_weights(task: str) -> Path | None:
    """Return the embedded weights file for a task, or None if none comes with the package."""
    default = default_weights_file(task)
    return default.path if default else None


def default_weights_file(task: str) -> WeightsFile | None:
    """Read the header of the embedded weights for a task; None if none comes with the package.

    Of several, the last by name: later versions are named so that they sort later.
    """
    files = map(read_weights_file, reversed(embedded_weights()))
    return next((file for file in files if file.info.task == task), None)


def find_weights(path_or_name: str | os.PathLike | None, task: str | None = None) -> Path:
    """Return the path of the file that a user means, as `resolve_weights` finds it."""
    return resolve_weights(path_or_name, task).path


def resolve_weights(path_or_name: str | os.PathLike | None, task: str | None = None) -> WeightsFile:
    """Find the file that a user means, and read its header.

    Parameters
    ----------
    path_or_name : path-like or None
        A file; or the name of embedded weights or of weights in the user's folder; or None for
        the default of the task.
    task : {"aseg", "hippocampus"} or None
        What the weights must be for; None accepts any.

    Raises
    ------
    WeightsError
        If there is no such file, no default, the file is for another task, or its header is damaged.
    """
    if path_or_name is None:
        return _require_default(task)
    file = read_weights_file(_locate(path_or_name))
    if task is not None and file.info.task != task:
        raise WeightsError(f"{file.path}: weights for the task {file.info.task}, not for {task}")
    return file


def _require_default(task: str | None) -> WeightsFile:
    if task is None:
        raise WeightsError("no weights were named")
    default = default_weights_file(task)
    if default is None:
        raise WeightsError(
            f"no {task} weights come with this version: name a weights file (--weights). The "
            f"authors' checkpoints are linked in the README of {AUTHORS_REPOSITORY}; convert one "
            f"with: medsegmamba-weights import FILE.pt --task {task}"
        )
    return default


def _locate(path_or_name: str | os.PathLike) -> Path:
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path.absolute()  # nodes of a workflow run in folders of their own
    known = {file.stem: file for file in [*user_weights(), *embedded_weights()]}
    if str(path_or_name) in known:
        return known[str(path_or_name)]
    names = f"the names {', '.join(known)}" if known else "no names"
    raise WeightsError(f"{path_or_name}: no such weights file; known are {names} (folder {weights_folder()})")
