"""Rows of volumes for people: left and right beside each other, and their plot."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from medsegmamba_bids.image.labels import side_of
from medsegmamba_bids.report.quality import Flag, asymmetry
from medsegmamba_bids.segmentations import of_name
from medsegmamba_bids.stats.structures import UNKNOWN
from medsegmamba_bids.viz.encoding import colors_of

_CLOSE = 1.2  # percent of the axis, nearer dots would hide each other
_DECADES = (1, 6)  # mm3, the axis of the plot runs from 10 to a million


def paired_rows(table: pd.DataFrame, segmentation: str, flags: list[Flag]) -> list[dict[str, Any]]:
    """Return a row per structure with both sides.

    Parameters
    ----------
    table : pandas.DataFrame
        From ``stats.tables.read_tsv``.
    segmentation : str
    flags : list of Flag
        Of this T1w.

    Returns
    -------
    list of dict
        ``name``, ``color``, ``sides`` (``left``, ``right`` or ``middle`` -> the table's row), ``asymmetry`` (NaN
        where there is one side), ``flags`` (messages).
    """
    colors = colors_of(of_name(segmentation).widest)
    rows: dict[str, dict[str, Any]] = {}
    for entry in table.to_dict("records"):
        side, name = side_of(entry["StructName"])
        row = rows.setdefault(name, {"name": name, "color": colors.get(entry["SegId"], "#888888"), "sides": {}})
        row["sides"][side or "middle"] = {**entry, "known": entry["Flag"] != UNKNOWN}
    for name, row in rows.items():
        sides = row["sides"]
        volumes = [sides[side]["Volume_mm3"] for side in ("left", "right") if side in sides]
        row["asymmetry"] = asymmetry(*volumes) if len(volumes) == 2 else math.nan
        own = {name, *(entry["StructName"] for entry in sides.values())}
        row["flags"] = [flag.message for flag in flags if flag.segmentation == segmentation and flag.structure in own]
    return list(rows.values())


def plot_rows(rows: list[dict[str, Any]], ranges: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return where the plot's dots and bars lie, in percent of its width.

    Parameters
    ----------
    rows : list of dict
        From :func:`paired_rows`.
    ranges : dict
        Structure -> lowest and highest plausible volume, mm3.
    """
    plotted = []
    for row in rows:
        dots = {
            side: {"at": log_position(entry["Volume_mm3"]), "volume": entry["Volume_mm3"]}
            for side, entry in row["sides"].items()
            if entry["known"] and entry["Volume_mm3"] > 0
        }
        if not dots:
            continue
        bar = [log_position(limit) for limit in ranges[row["name"]]] if row["name"] in ranges else None
        places = [dot["at"] for dot in dots.values()]
        plotted.append({**row, "dots": dots, "bar": bar, "close": max(places) - min(places) < _CLOSE < len(places)})
    return plotted


def log_position(volume: float) -> float:
    """Return the position on the axis from 10 to a million mm3, percent.

    Examples
    --------
    >>> log_position(10), log_position(1000), log_position(1)
    (0.0, 40.0, 0.0)
    """
    low, high = _DECADES
    exponent = math.log10(volume) if volume > 0 else low
    return round(100 * (min(max(exponent, low), high) - low) / (high - low), 2)
