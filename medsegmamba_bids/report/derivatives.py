"""What a run left behind: images, tables and their JSON, found by name and read leniently."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from medsegmamba_bids.data.names import output_folder, output_name, product, split_prefix
from medsegmamba_bids.errors import ImageError, TableError, reason
from medsegmamba_bids.image.io import load_as_is
from medsegmamba_bids.segmentations import ASEG, SEGMENTATIONS, of_name
from medsegmamba_bids.stats.tables import read_measures, read_tsv

logger = logging.getLogger(__name__)

# A T1w is known by any of these.
_TRACES = (*(kind.stats for kind in SEGMENTATIONS), "conformed", ASEG.conformed, ASEG.native)
_DERIVED = ("space-", "seg-", "desc-")  # entities that names of raw images do not have


@dataclass(frozen=True)
class Scan:
    """The results of one T1w.

    Attributes
    ----------
    root : Path
        The output folder.
    prefix : str
        The T1w's name without ``_T1w`` and extension.
    """

    root: Path
    prefix: str

    def path(self, name: str, extension: str | None = None) -> Path:
        """Return the path of a product, see ``data.names.product``."""
        return self.root / output_name(self.prefix, name, extension)

    @property
    def entities(self) -> dict[str, str]:
        """Entities of the T1w's name."""
        return split_prefix(self.prefix)

    def image(self, name: str) -> nib.spatialimages.SpatialImage | None:
        """Return a product's image in RAS+ order; None where there is no such file.

        Raises
        ------
        ImageError
            The file cannot be read.
        """
        path = self.path(name)
        return canonical_image(path) if path.exists() else None

    def table(self, segmentation: str) -> pd.DataFrame | None:
        """Return the volume table of ``aseg`` or ``hippoFS60``; None where there is no such file.

        Raises
        ------
        TableError
            The file cannot be read.
        """
        path = self.path(of_name(segmentation).stats)
        return read_tsv(path) if path.exists() else None

    def sidecar(self, segmentation: str) -> dict[str, Any]:
        """Return the JSON beside a volume table, empty where there is none.

        Raises
        ------
        TableError
            The file is no JSON object.
        """
        return read_json(self.path(of_name(segmentation).stats, ".json"))

    def measures(self, segmentation: str = ASEG.name) -> dict[str, float]:
        """Return measures of the whole brain by name."""
        path = self.path(of_name(segmentation).stats, ".json")
        try:
            return read_measures(self.sidecar(segmentation))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, TableError):
                raise
            raise TableError(f"{path}: its measures cannot be read ({error})") from error


def viewer_commands(scan: Scan, folder: Path) -> dict[str, str]:
    """Return commands that open the conformed T1w and the labels that there are, by program.

    Parameters
    ----------
    scan : Scan
    folder : Path
        Of the results, as the commands should name it.
    """
    products = ("conformed", *(kind.conformed for kind in SEGMENTATIONS))
    files = [scan.path(product) for product in products]
    try:
        there = [path for path in files if path.is_file()]
    except OSError:  # another user's folder
        return {}
    if len(there) < 2 or there[0] != files[0]:
        return {}
    t1w, *labels = (shlex.quote((folder / path.relative_to(scan.root)).as_posix()) for path in there)
    freeview = " ".join(f"{path}:colormap=lut:opacity=0.4" for path in labels)
    return {
        "FreeView": f"freeview -v {t1w} {freeview}",
        "ITK-SNAP": f"itksnap -g {t1w} -s {labels[0]}",
    }


def canonical_image(path: Path) -> nib.spatialimages.SpatialImage:
    """Return an image in RAS+ order, its voxels in memory.

    Raises
    ------
    ImageError
        The file cannot be read.
    """
    try:
        image = nib.as_closest_canonical(load_as_is(path))
        data = np.asarray(image.dataobj)
    except ImageError:
        raise
    except Exception as error:  # nibabel has many ways to fail on a damaged file
        raise ImageError(f"{path}: cannot be read ({error})") from error
    return type(image)(data, image.affine, image.header)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is no such file.

    Raises
    ------
    TableError
        The file is no JSON object.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as JSON ({reason(error)})") from error
    if not isinstance(entries, dict):
        raise TableError(f"{path}: not a JSON object")
    return entries


def scans_of(output_dir: Path, subject: str) -> list[Scan]:
    """Return the T1w images of a participant that have results, in order of their names."""
    return [Scan(output_dir, prefix) for folder, prefix in _traces(output_dir, subject) if _own(folder, prefix)]


def strangers_of(output_dir: Path, subject: str) -> list[str]:
    """Return names of T1w images whose results lie in a participant's folder, but belong into another: copies,
    mostly.
    """
    return [prefix for folder, prefix in _traces(output_dir, subject) if not _own(folder, prefix)]


def _own(folder: str, prefix: str) -> bool:
    return output_folder(prefix) == folder


def _traces(output_dir: Path, subject: str) -> list[tuple[str, str]]:
    """Return folders, relative to the output's, and the names of T1w images that files in them tell of, by these
    names.
    """
    folder = output_dir / f"sub-{subject}"
    traces = set()
    for anat in (folder / "anat", *folder.glob("ses-*/anat")):
        for path in anat.iterdir() if anat.is_dir() else ():
            traces.update((anat.relative_to(output_dir).as_posix(), prefix) for prefix in _prefixes(path.name))
    return sorted(traces, key=lambda trace: trace[1])


def _prefixes(name: str) -> Iterator[str]:
    """Yield the T1w's name, where a file name is one of the traces of a T1w."""
    if name.startswith("."):
        return
    for trace in _TRACES:
        entry = product(trace)
        tail = f"_{entry['suffix']}{entry['extension']}"
        if not name.endswith(tail):
            continue
        added = {f"{key}-{value}" for key, value in entry["entities"].items()}
        parts = name.removesuffix(tail).split("_")
        rest = [part for part in parts if part not in added]
        derived = any(part.startswith(_DERIVED) or "-" not in part for part in rest)
        if added <= set(parts) and rest[0].startswith("sub-") and not derived:
            yield "_".join(rest)
