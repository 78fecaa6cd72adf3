"""Files that come with the package, found through one function."""

from __future__ import annotations

from pathlib import Path


def data_path(name: str) -> Path:
    """Return the path of a file of the package, such as ``labels/aseg.tsv``."""
    return Path(__file__).parent / name
