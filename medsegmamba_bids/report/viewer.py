"""The viewer of a T1w: a page of its own with three planes, in which the volumes lie as compressed bytes."""

from __future__ import annotations

import base64
import time
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from medsegmamba_bids import __version__
from medsegmamba_bids.data.names import split_prefix
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.report.derivatives import Scan
from medsegmamba_bids.segmentations import of_name
from medsegmamba_bids.viz import slices
from medsegmamba_bids.viz.templates import render, to_script

#: Steps of entropy that the viewer tells apart, and what the last one stands for, bit.
_ENTROPY_STEPS, _ENTROPY_MOST = 32, 3.2
_MARGIN = 8  # voxels around the brain
_GRAY_STEP = 2  # of 256: half the grey levels compress by a fifth better, and are not told apart


def viewer_path(scan: Scan) -> Path:
    """Return where the viewer of a T1w lies."""
    return scan.root / f"sub-{scan.entities['sub']}" / "figures" / f"{scan.prefix}_desc-viewer_T1w.html"


def viewer_page(
    prefix: str,
    t1w: np.ndarray,
    affine: np.ndarray,
    labels: dict[str, np.ndarray],
    entropies: dict[str, np.ndarray],
    brain: np.ndarray | None = None,
) -> str:
    """Return the page; it needs no other file and no network.

    Parameters
    ----------
    prefix : str
        The T1w's name without ``_T1w`` and extension.
    t1w : (X, Y, Z)
        In RAS+ order, as all arrays.
    affine : (4, 4)
        Of their grid.
    labels, entropies : dict of str to (X, Y, Z)
        By segmentation.
    brain : (X, Y, Z), optional
        Non-zero in the brain.
    """
    inside = brain > 0 if brain is not None and brain.any() else next(iter(labels.values()), t1w) > 0
    box = slices.box_of(inside).grow(_MARGIN, t1w.shape)
    top = slices.bright(t1w[box], inside[box])
    gray = np.clip(t1w[box].astype(np.float32) * (255 / top), 0, 255).astype(np.uint8) // _GRAY_STEP * _GRAY_STEP
    layers = [_labels_layer(name, data[box]) for name, data in labels.items()]
    volumes = {"t1w": gray, **{layer["name"]: layer.pop("data") for layer in layers}}
    if entropies:
        most = reduce(np.maximum, [entropy[box] for entropy in entropies.values()])
        steps = np.clip(most.astype(np.float32, copy=False) / _ENTROPY_MOST, 0, 1) * (_ENTROPY_STEPS - 1)
        volumes["entropy"] = np.rint(steps).astype(np.uint8)
    start = [side.start for side in box]
    shades = {"unit": _ENTROPY_MOST / (_ENTROPY_STEPS - 1), "range": slices.ENTROPY_RANGE}
    data = {
        "shape": volumes["t1w"].shape,
        "zooms": [float(affine[axis, axis]) for axis in range(3)],
        "origin": [float(value) for value in (affine @ [*start, 1.0])[:3]],
        "gray": top / 255,
        "layers": layers,
        "entropy": {**shades, "colors": slices.entropy_colors(16)},
    }
    return render(
        "viewer.html.jinja",
        scan=prefix,
        report=f"../../sub-{split_prefix(prefix)['sub']}.html#{prefix}",
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        data=to_script(data),
        volumes={name: _packed(volume) for name, volume in volumes.items()},
    )


def _labels_layer(name: str, labels: np.ndarray) -> dict[str, Any]:
    """Return a segmentation as numbers of its structures, uint8, with their names, colours and middles in voxels."""
    table = load_label_table(of_name(name).widest)
    whole = np.maximum(labels, 0).astype(np.uint16)
    indices = table.to_indices(np.arange(int(whole.max()) + 1)).astype(np.uint8)[whole]
    structures = []
    for index, box in Box.around_each(indices).items():
        at = np.argwhere(indices[box] == index) + [side.start for side in box]
        middle = at[np.abs(at - at.mean(0)).sum(1).argmin()]  # in the structure, though it may be curved
        row = table.table.iloc[index]
        structures.append({"index": index, "name": row["name"], "color": row["color"], "middle": middle.tolist()})
    return {"name": name, "title": of_name(name).title, "structures": structures, "data": indices}


def _packed(volume: np.ndarray) -> str:
    """Return a volume as text: the last axis slowest, each voxel less the one before it, gzip, base64."""
    flat = volume.ravel(order="F")
    return base64.b64encode(igzip.compress(np.diff(flat, prepend=flat.dtype.type(0)).tobytes(), 1, mtime=0)).decode()
