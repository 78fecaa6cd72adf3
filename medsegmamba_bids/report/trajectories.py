"""Volumes over visits as small charts: lines of SVG, whose coordinates follow from a participant's table of visits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image.labels import side_of
from medsegmamba_bids.longitudinal.change import in_percent_of_first
from medsegmamba_bids.report.derivatives import read_json
from medsegmamba_bids.report.visit_tables import read_changes
from medsegmamba_bids.segmentations import SEGMENTATIONS, SegmentationKind
from medsegmamba_bids.viz.encoding import colors_of

logger = logging.getLogger(__name__)

#: Inner part of a chart in its own units: left, right, top, bottom.
FRAME = (40.0, 230.0, 8.0, 92.0)
_LEAST_RANGE = 2.0  # percent: a smaller one would make rounding look like a change
_ROOM = 1.15


def changes_between_visits(output_dir: Path, subject: str) -> list[dict[str, Any]]:
    """Return what a page shows of each segmentation of visits that were processed together; nothing where none was.

    Parameters
    ----------
    output_dir : Path
    subject : str
        Without ``sub-``.
    """
    places = {kind: output_dir / output_name(f"sub-{subject}", kind.changes) for kind in SEGMENTATIONS}
    return [_read(kind, path) for kind, path in places.items() if path.is_file()]


def _read(kind: SegmentationKind, path: Path) -> dict[str, Any]:
    shown = {"title": kind.title, "problems": [], "notes": [], "charts": [], "visits": [], "years": 0.0}
    try:
        table = read_changes(path)
        notes = read_json(path.with_suffix(".json")).get("Notes", [])
    except TableError as error:
        logger.warning("%s", error)
        return {**shown, "problems": [str(error).replace(f"{path.parent}/", "")]}
    visits = table.drop_duplicates("scan")
    years = float(np.ptp(visits["years"].to_numpy(float))) if visits["years"].notna().all() else 0.0
    sessions = visits["session_id"].tolist()
    return {**shown, "notes": notes, "charts": charts_of(table, kind), "visits": sessions, "years": years}


def charts_of(table: pd.DataFrame, kind: SegmentationKind) -> list[dict[str, Any]]:
    """Return a chart per structure: how its volume differs from that of the first visit.

    Parameters
    ----------
    table : pandas.DataFrame
        As ``longitudinal.change.COLUMNS``, visits in order of time.
    kind : SegmentationKind

    Returns
    -------
    list of dict
        ``name``, ``color``, ``ticks`` (height and text), ``lines`` (side, way, path, dots) and ``rows`` for a table.
        Structures that no visit has are left out.
    """
    places = _across(table)
    colors = colors_of(kind.widest)
    charts: dict[str, dict[str, Any]] = {}
    for (label, structure), part in table.groupby(["SegId", "StructName"], sort=False):
        side, name = side_of(structure)
        changes = {
            way: in_percent_of_first(part[column])
            for way, column in (("alone", "CrossSectionalVolume_mm3"), ("together", "Volume_mm3"))
        }
        if not np.isfinite(changes["together"]).any():
            continue
        chart = charts.setdefault(name, {"name": name, "color": colors.get(label, "#888888"), "sides": {}})
        chart["sides"][side or "middle"] = {"part": part, "changes": changes}
    return [_drawn(chart, places) for chart in charts.values()]


def _across(table: pd.DataFrame) -> pd.Series:
    """Return where each visit lies from left to right, by scan: in time if all times are known, else one by one."""
    visits = table.drop_duplicates("scan").set_index("scan")["years"]
    times = visits.to_numpy(float)
    if not (np.isfinite(times).all() and np.ptp(times) > 0):
        times = np.arange(len(visits), dtype=float)
    left, right, *_ = FRAME
    return pd.Series(left + (right - left) * (times - times.min()) / max(np.ptp(times), 1e-9), visits.index)


def _drawn(chart: dict[str, Any], places: pd.Series) -> dict[str, Any]:
    reach = np.nanmax(
        [_LEAST_RANGE, *(np.nanmax(np.abs(found)) for side in chart["sides"].values() for found in _known(side))]
    )
    step = _round_step(reach * _ROOM)
    *_, top, bottom = FRAME
    middle, scale = (top + bottom) / 2, (bottom - top) / 2 / (reach * _ROOM)
    lines, rows = [], []
    for side, entry in chart["sides"].items():
        across = places[entry["part"]["scan"]].to_numpy()
        for way, found in entry["changes"].items():
            points = [(x, middle - scale * y) for x, y in zip(across, found, strict=True) if np.isfinite(y)]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""
            lines.append({"side": side, "way": way, "path": path, "dots": points})
        rows.append(_row(side, entry["part"], entry["changes"]["together"]))
    ticks = [(middle - scale * value, f"{value:+g}" if value else "0") for value in (-step, 0, step)]
    return {"name": chart["name"], "color": chart["color"], "ticks": ticks, "lines": lines, "rows": rows}


def _known(side: dict[str, Any]) -> list[np.ndarray]:
    return [found for found in side["changes"].values() if np.isfinite(found).any()]


def _round_step(reach: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that lies within reach.

    Examples
    --------
    >>> _round_step(2.3), _round_step(7.0), _round_step(11.5)
    (2.0, 5.0, 10.0)
    """
    power = 10.0 ** np.floor(np.log10(reach))
    return float(max(factor * power for factor in (1, 2, 5) if factor * power <= reach))


def _row(side: str, part: pd.DataFrame, changes: np.ndarray) -> dict[str, Any]:
    """Return what the table says of a structure: first and last visit, and the change between them."""
    first, last = part.iloc[0], part.iloc[-1]
    return {
        "side": side,
        "first": float(first["Volume_mm3"]),
        "last": float(last["Volume_mm3"]),
        "change": float(last["Change_mm3"]),
        "percent": float(changes[-1]),
        "annual": float(last["AnnualSymmetrizedChange_percent"]),
        "confidence": float(part["MeanPosterior"].min()),
    }
