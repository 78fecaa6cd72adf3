"""TemplateFlow's templates, as they lie in its home folder; nothing is downloaded unless that is asked for.

The only module that knows templateflow, which fills its home on import where that is empty: it is imported once there
is something in it, or once a download is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_dir

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import read_image

_HOME = "TEMPLATEFLOW_HOME"


@dataclass(frozen=True)
class SpaceTemplate:
    """A template that labels are brought to.

    Attributes
    ----------
    name, cohort, resolution : str
        As TemplateFlow has them; the cohort may be empty.
    path : Path
        Its T1w.
    mask : Path
        Of its brain.
    version : str
        Of the template as its description says; empty where that says none.
    """

    name: str
    cohort: str
    resolution: str
    path: Path
    mask: Path
    version: str

    @property
    def space(self) -> str:
        """Value of ``space-`` (or ``to-``), with the cohort behind it."""
        return f"{self.name}+{self.cohort}" if self.cohort else self.name

    @property
    def reference(self) -> str:
        """Where the template is to be had."""
        return f"https://templateflow.s3.amazonaws.com/tpl-{self.name}/{self.path.name}"

    def brain(self) -> tuple[np.ndarray, Grid]:
        """Return intensities, 0 outside the brain, float32 (X, Y, Z), and their grid."""
        image, mask = read_image(self.path), np.asanyarray(read_image(self.mask).dataobj) > 0
        return np.where(mask, np.asanyarray(image.dataobj), 0).astype(np.float32), Grid.of(image)

    def facts(self) -> dict[str, Any]:
        """Return what the JSON beside labels says of it."""
        cohort = {"Cohort": self.cohort} if self.cohort else {}
        return {"Name": self.name, **cohort, "Version": self.version or "not said", "File": self.path.name}


def home() -> Path:
    """Return TemplateFlow's folder on this machine."""
    return Path(os.environ.get(_HOME) or user_cache_dir("templateflow")).absolute()


def find_templates(spaces: Sequence[str], fetch: bool = False) -> list[SpaceTemplate]:
    """Return templates by the names that ``--output-spaces`` takes.

    Parameters
    ----------
    spaces : sequence of str
        ``NAME[:cohort-LABEL][:res-N]``; the resolution is 1 where none is named.
    fetch : bool
        Download what is not there.

    Raises
    ------
    ConfigError
        A template is not there, or cannot be downloaded.
    """
    return [_find(space, fetch, home()) for space in spaces]


@lru_cache(maxsize=16)
def _find(space: str, fetch: bool, folder: Path) -> SpaceTemplate:
    name, *modifiers = space.split(":")
    chosen = dict(part.split("-", 1) for part in modifiers)
    resolution, cohort = chosen.get("res", "1").lstrip("0") or "0", chosen.get("cohort", "")
    query = {"resolution": int(resolution) if resolution.isdigit() else resolution, "extension": ".nii.gz"}
    query |= {"cohort": cohort} if cohort else {}
    files = {
        what: _file(name, {**query, **more}, fetch, folder)
        for what, more in {
            "T1w": {"suffix": "T1w", "desc": None},
            "brain mask": {"suffix": "mask", "desc": "brain", "label": None},
        }.items()
    }
    if absent := [what for what, path in files.items() if path is None]:
        raise ConfigError(_advice(space, name, query, absent, folder))
    return SpaceTemplate(
        name, cohort, resolution, files["T1w"], files["brain mask"], _version_of(folder / f"tpl-{name}")
    )


def _file(name: str, query: dict[str, Any], fetch: bool, folder: Path) -> Path | None:
    """Return one file of a template; None where it is not there, or is TemplateFlow's empty stub."""
    if not (fetch or (folder / f"tpl-{name}").is_dir()):
        return None
    client = _client(fetch, folder)
    try:
        paths = client.get(name, **query) if fetch else client.ls(name, **query)
    except Exception as error:  # requests' and templateflow's own, which have no common class
        raise ConfigError(f"template {name}: cannot be had in {folder} (--fetch-templates): {error}") from error
    found = [Path(path) for path in (paths if isinstance(paths, list) else [paths])]
    return next((path for path in found if path.is_file() and path.stat().st_size), None)


def _client(fetch: bool, folder: Path) -> Any:
    if not fetch:
        os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "off"
        os.environ["TEMPLATEFLOW_USE_DATALAD"] = "off"
    from templateflow.client import TemplateFlowClient

    return TemplateFlowClient(root=folder, autoupdate=fetch, use_datalad=False)


def _advice(space: str, name: str, query: dict[str, Any], absent: Sequence[str], folder: Path) -> str:
    cohort = f", cohort={query['cohort']!r}" if "cohort" in query else ""
    command = (
        f"python -c \"from templateflow.api import get; get('{name}', resolution={query['resolution']!r}{cohort}, "
        f"suffix=['T1w', 'mask'])\""
    )
    return (
        f"--output-spaces {space}: {' and '.join(absent)} of this template are not in {folder} ({_HOME}); "
        f"--fetch-templates downloads them, or: {command}"
    )


def _version_of(folder: Path) -> str:
    """Return the version in a template's description; empty where there is none."""
    try:
        entries = json.loads((folder / "template_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    known = (entries.get(key) for key in ("TemplateFlowVersion", "Version"))
    return next((str(version) for version in known if version), "")
