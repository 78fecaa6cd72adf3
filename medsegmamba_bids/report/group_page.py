"""``group.html``: what the page shows, as data for its own script."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsegmamba_bids import __version__
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.report.derivatives import Scan
from medsegmamba_bids.report.gather import Gathered
from medsegmamba_bids.report.group_tables import (
    identity,
    join_participants,
    measure_matrix,
    outliers_of,
    robust_z,
    volume_matrix,
)
from medsegmamba_bids.report.participant import thumbnail_path
from medsegmamba_bids.report.provenance import ATLAS_NOTE
from medsegmamba_bids.report.visit_tables import VisitsOfGroup
from medsegmamba_bids.segmentations import HIPPOCAMPUS, of_name
from medsegmamba_bids.viz.templates import render, to_script

_THUMBNAILS = 1000  # held in the page; more would make it slow to open
_MOST_LEVELS = 12  # of a column that colours; rarer values are shown together
_NUMERIC_SHARE = 0.95
#: Parts of names, and what stands for them where there is little room.
_NARROW = {
    "Left-": "L ",
    "Right-": "R ",
    "White-Matter": "WM",
    "WM-hypointensities": "WM hypointens.",
    "Cerebral": "Cerebr.",
    "Cerebellum": "Cerebell.",
    "Lateral-Ventricle": "Lat-Ventricle",
    "hippocampal": "hippoc.",
    "molecular": "molec.",
}


def group_page(
    results: Gathered, output_dir: Path, rule: dict[str, Any], visits: Mapping[str, VisitsOfGroup] | None = None
) -> str:
    """Return the text of the page.

    Parameters
    ----------
    results : Gathered
    output_dir : Path
    rule : dict
        ``limit`` and ``smallest_group`` of outliers.
    visits : mapping of str to VisitsOfGroup, optional
        By segmentation, where visits were processed together.
    """
    scans = results.scans
    segmentations = [_segmentation(results, name, rule, scans) for name, tables in results.tables.items() if tables]
    for segmentation in segmentations:
        if segmentation["name"] in (visits or {}):
            segmentation["visits"] = _trajectories(visits[segmentation["name"]].long, scans)
    outliers = {position for segmentation in segmentations for position in segmentation.pop("outlying")}
    flagged = {number for number, scan in enumerate(scans) if results.flags.get(scan.prefix)}
    data = {
        "scans": [_scan(scan, results, output_dir) for scan in scans],
        "columns": _columns(results, scans),
        "segmentations": segmentations,
        "thumbnails": _thumbnails(scans, sorted(outliers | flagged)),
        "limit": rule["limit"],
        "failed": results.failed,
    }
    weights = {
        (of_name(name).title, table.weights.label, table.weights.origin)
        for name, tables in results.tables.items()
        for table in tables
    }
    return render(
        "group.html.jinja",
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        data=to_script(data),
        scans=len(scans),
        participants=len({scan.entities["sub"] for scan in scans}),
        flagged=len(flagged),
        outliers=len(outliers),
        failed=results.failed,
        missing=results.missing,
        discarded=results.discarded,
        old=results.old,
        weights=sorted(weights),
        rule=rule,
        visits=bool(visits),
        columns=[column["name"] for column in data["columns"]],
        atlas_note=ATLAS_NOTE if any(table.weights.from_atlas for table in results.tables[HIPPOCAMPUS.name]) else "",
        linked=max(0, len(scans) - len(data["thumbnails"])),
    )


def _scan(scan: Scan, results: Gathered, output_dir: Path) -> dict[str, Any]:
    report = f"sub-{scan.entities['sub']}.html"
    return {
        "name": scan.prefix,
        "href": f"{report}#{scan.prefix}" if (output_dir / report).is_file() else "",
        "flags": [message for _, message in results.flags.get(scan.prefix, [])],
        **_rated(scan, results),
    }


def _rated(scan: Scan, results: Gathered) -> dict[str, Any]:
    """Return a T1w's rating; without --ratings the page asks the browser, in which the participants' pages keep it."""
    rating = results.ratings.get(scan.prefix)
    return {} if rating is None else {"rating": rating.rating, "note": rating.note, "rater": rating.rater}


def _segmentation(results: Gathered, name: str, rule: dict[str, Any], scans: list[Scan]) -> dict[str, Any]:
    """Return volumes by structure, aligned with the scans; a scan without this segmentation has null."""
    tables = results.tables[name]
    volumes = volume_matrix(tables)
    z = robust_z(volumes)
    outliers = outliers_of(z, rule)
    colors = load_label_table(of_name(name).widest).table.set_index("name")["color"]
    measures = measure_matrix(tables).select_dtypes("number")
    order = [scan.prefix for scan in scans]
    values = pd.concat([volumes, measures.loc[:, [name for name in ("eTIV", "sbTIV") if name in measures]]], axis=1)
    aligned, z = values.reindex(order), robust_z(values).reindex(order)
    position = {prefix: number for number, prefix in enumerate(order)}
    return {
        "name": name,
        "title": of_name(name).title,
        "structures": [
            {
                "name": structure,
                "narrow": narrow_name(structure),
                "told": _why_no_z(aligned[structure], z[structure]),
                "color": colors.get(structure, "#666666"),
                "values": _numbers(aligned[structure], 1),
                "z": _numbers(z[structure], 2),
                "outliers": [position[prefix] for prefix, listed in outliers.items() if structure in listed],
            }
            for structure in aligned
            if aligned[structure].notna().any()
        ],
        "outlying": [position[prefix] for prefix, listed in outliers.items() if listed],
    }


def narrow_name(structure: str) -> str:
    """Return a name of 18 letters at most for a structure of the label tables; no two get the same.

    Examples
    --------
    >>> narrow_name("Left-Cerebellum-White-Matter"), narrow_name("Right-choroid-plexus")
    ('L Cerebell.-WM', 'R choroid-plexus')
    """
    for part, short in _NARROW.items():
        structure = structure.replace(part, short)
    return structure


def _why_no_z(volumes: pd.Series, z: pd.Series) -> str:
    """Return why a structure has no robust z in any T1w; empty where it has one."""
    if z.notna().any():
        return ""
    if volumes.notna().sum() == 1:
        return "in one T1w only"
    return "no z: most volumes are alike"


def _trajectories(long: pd.DataFrame, scans: list[Scan]) -> dict[str, Any]:
    """Return volumes of visits that were processed together: a list per participant, its visits in order.

    ``scans`` are positions among the page's, ``years`` is null where a time is not known, and ``volumes`` has a list
    per structure.
    """
    position = {f"{scan.prefix}_T1w": number for number, scan in enumerate(scans)}
    rows = long[long["scan"].isin(position)]
    people = []
    for _, table in rows.groupby("participant_id", sort=False):
        volumes = table.pivot_table("Volume_mm3", "scan", "StructName", sort=False, dropna=False)
        years = table.drop_duplicates("scan")["years"]
        people.append(
            {
                "scans": [position[scan] for scan in volumes.index],
                "years": _numbers(years, 4) if years.notna().all() else None,
                "volumes": {name: _numbers(volumes[name], 1) for name in volumes},
            }
        )
    return {"people": people, "names": list(dict.fromkeys(rows["StructName"]))}


def _numbers(values: pd.Series, decimals: int) -> list[float | None]:
    return [None if math.isnan(value) else value for value in np.round(values.to_numpy(float), decimals).tolist()]


def _columns(results: Gathered, scans: list[Scan]) -> list[dict[str, Any]]:
    """Return columns of ``participants.tsv`` and of the names that can colour dots: numbers, or few levels."""
    tables = {table.scan.prefix: table for segmentation in results.tables.values() for table in segmentation}
    ids = identity([tables[scan.prefix] for scan in scans])
    people = join_participants(ids, results.participants, set(ids))
    both = pd.concat([people, ids.drop(columns=["participant_id", "scan"])], axis=1)
    return [column for name in both if (column := _column(str(name), both[name])) is not None]


def _column(name: str, values: pd.Series) -> dict[str, Any] | None:
    """Return a column as numbers or as levels; None where it says nothing."""
    known = values.dropna()
    if known.nunique() < 2:
        return None
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().sum() >= _NUMERIC_SHARE * len(known) and known.nunique() > 4:
        return {"name": name, "kind": "number", "values": _numbers(numbers.replace([np.inf, -np.inf], np.nan), 3)}
    levels = known.value_counts().index.tolist()
    if len(levels) > max(_MOST_LEVELS, len(known) // 3):
        return None  # nearly everyone has a value of one's own
    shown = sorted(levels[:_MOST_LEVELS]) + ["other"] * (len(levels) > _MOST_LEVELS)
    place = {level: shown.index(level) if level in shown else len(shown) - 1 for level in levels}
    return {"name": name, "kind": "level", "levels": shown, "values": [place.get(value) for value in values]}


def _thumbnails(scans: list[Scan], first: list[int]) -> dict[str, str]:
    """Return small pictures, base64, by position; of those that should be looked at first, as far as there is room."""
    order = [*first, *(set(range(len(scans))) - set(first))]
    pictures: dict[str, str] = {}
    for position in order:
        if len(pictures) == _THUMBNAILS:
            break
        path = thumbnail_path(scans[position])
        if path.is_file():
            pictures[str(position)] = base64.b64encode(path.read_bytes()).decode()
    return pictures
