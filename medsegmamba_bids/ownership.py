"""Whose files lie in an output folder: those of another tool, or of the user, are never replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from medsegmamba_bids.errors import ConfigError

TOOL = "medsegmamba_bids"
URL = "https://pypi.org/project/medsegmamba-bids/"
_MARK = b"medsegmamba"
_BEGINNING = 4096  # bytes in which our pages and texts name this package
_ADVICE = "name another folder for the results"


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that holds results of another tool, or files that ours would replace.

    Raises
    ------
    ConfigError
        Its ``dataset_description.json`` is not ours; or there is none, but files of names that we write.
    """
    description = folder / "dataset_description.json"
    if description.exists():
        _check_description(description)
    elif foreign := next((path for path in _clashing(folder) if not is_ours(path)), None):
        raise ConfigError(f"{foreign}: is not of {TOOL} and would be replaced or mixed with its results; {_ADVICE}")


def _check_description(path: Path) -> None:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        makers = [str(entry["Name"]) for entry in entries.get("GeneratedBy") or []]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}), so it is not known whose results these are; {_ADVICE}"
        ) from error
    if TOOL in makers:
        return
    old = entries.get("PipelineDescription")
    if not makers and isinstance(old, dict) and old.get("Name"):  # until BIDS 1.4
        makers = [str(old["Name"])]
    what = f"results of {', '.join(makers)}" if makers else "a dataset that does not say what made it (GeneratedBy)"
    raise ConfigError(f"{path.parent}: holds {what}, not results of {TOOL}, see {path.name}; {_ADVICE}")


def _clashing(folder: Path) -> Iterator[Path]:
    """Yield what is there under names that we write, and folders of images."""
    patterns = ("README.md", "logs/CITATION.md", "group.html", "sub-*.html", "sub-*/anat", "sub-*/ses-*/anat")
    for pattern in patterns:
        yield from sorted(folder.glob(pattern))


def is_ours(path: Path) -> bool:
    """Return whether a text or page names this package at its beginning, or a folder holds a file that does by its
    name.

    What is not there is ours to write.
    """
    if not path.exists():
        return True
    if path.is_dir():
        return any(f"desc-{_MARK.decode()}" in file.name for file in path.iterdir())
    with path.open("rb") as file:
        return _MARK in file.read(_BEGINNING).lower()
