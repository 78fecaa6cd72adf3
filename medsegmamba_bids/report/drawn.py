"""Pictures of a T1w drawn ahead of its report, and kept in a file until then."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from medsegmamba_bids.image.io import write_text
from medsegmamba_bids.report.derivatives import Scan, canonical_image
from medsegmamba_bids.report.pictures import Pictures, detail_of, draw_pictures
from medsegmamba_bids.report.viewer import viewer_page, viewer_path

_THUMBNAIL = "thumbnail"  # the one entry that is bytes


def draw_from_files(
    prefix: str,
    t1w: Path,
    labels: dict[str, Path],
    entropies: dict[str, Path],
    brain: Path,
    scans: int,
    folder: Path,
) -> tuple[Path, Path]:
    """Write the pictures of a T1w and its viewer into a folder, from files on its conformed grid, each read once.

    Parameters
    ----------
    prefix : str
        The T1w's name without ``_T1w`` and extension.
    t1w, brain : Path
    labels, entropies : dict of str to Path
        By name of the segmentation.
    scans : int
        T1w images on the page.
    folder : Path

    Returns
    -------
    tuple of Path
        The pictures as JSON and the viewer as HTML.
    """
    image, volumes = canonical_image(t1w), (_arrays(labels), _arrays(entropies), _array(brain))
    pictures = draw_pictures(image, *volumes, detail_of(scans))
    page = viewer_page(prefix, np.asarray(image.dataobj), image.affine, *volumes)
    return (
        save_pictures(pictures, prefix, scans, folder / "pictures.json"),
        write_text(folder / viewer_path(Scan(folder, prefix)).name, page),
    )


def _arrays(files: dict[str, Path]) -> dict[str, np.ndarray]:
    return {name: _array(path) for name, path in files.items()}


def _array(path: Path) -> np.ndarray:
    return np.asarray(canonical_image(path).dataobj)


def save_pictures(pictures: Pictures, prefix: str, scans: int, path: Path) -> Path:
    """Write pictures, whose T1w's they are and on how full a page they are to be, as JSON."""
    entries = asdict(pictures)
    entries[_THUMBNAIL] = base64.b64encode(pictures.thumbnail).decode()
    write_text(path, json.dumps({"prefix": prefix, "scans": scans, "pictures": entries}))
    return path


def load_pictures(paths: Sequence[Path], scans: int) -> dict[str, Pictures]:
    """Return pictures of `save_pictures` by prefix; those for a page of another number of T1w images are left out.

    Parameters
    ----------
    paths : sequence of Path
    scans : int
        T1w images on the page.
    """
    found = {}
    for path in paths:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries["scans"] == scans:
            pictures = entries["pictures"]
            pictures[_THUMBNAIL] = base64.b64decode(pictures[_THUMBNAIL])
            found[entries["prefix"]] = Pictures(**pictures)
    return found
