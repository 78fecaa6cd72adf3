"""Tables of the group about visits that were processed together: long, wide, and a slope per participant."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.datasets.participants_table import Participants, read_table
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.longitudinal.change import COLUMNS, annual_slopes, of_visits
from medsegmamba_bids.report.gather import Gathered, fail
from medsegmamba_bids.segmentations import SegmentationKind
from medsegmamba_bids.stats.tables import MISSING

logger = logging.getLogger(__name__)

_DISCARDED = "it is rated to be discarded"
_KEY = ["participant_id", "session_id", "scan", "years"]


@dataclass(frozen=True, eq=False)
class VisitsOfGroup:
    """Tables of visits of all participants of one segmentation.

    Attributes
    ----------
    long : pandas.DataFrame
        A row per participant, visit and structure.
    wide : pandas.DataFrame
        A row per participant and visit, a column of volumes per structure.
    slopes : pandas.DataFrame
        A row per participant and structure.
    """

    long: pd.DataFrame
    wide: pd.DataFrame
    slopes: pd.DataFrame


def visits_of_group(
    output_dir: Path, bids_dir: Path, kind: SegmentationKind, results: Gathered
) -> VisitsOfGroup | None:
    """Gather tables of visits; None where no participant has one that can be used.

    Parameters
    ----------
    output_dir, bids_dir : Path
        The latter may be absent; ``sessions.tsv`` lies in it.
    kind : SegmentationKind
    results : Gathered
        Whose T1w images are looked for: others, such as discarded ones, are left out, and changes are between the
        rest. Tables that cannot be read join what failed.
    """
    read = _read_tables(output_dir, kind, results)
    gathered = {name: _of_gathered(name, table, kind, results) for name, table in read.items()}
    tables = {name: table for name, table in gathered.items() if table is not None}
    if not tables:
        return None
    long = pd.concat([table.assign(participant_id=f"sub-{name}") for name, table in tables.items()], ignore_index=True)
    known = {name: _known(bids_dir, name, results.participants, table) for name, table in tables.items()}
    about = pd.concat(known.values(), ignore_index=True)
    wide = long.pivot_table("Volume_mm3", _KEY[:3], "StructName", sort=False).reset_index()
    years = long.drop_duplicates("scan").set_index("scan")["years"]
    # The pivot puts sessions in the order in which any participant has them.
    wide = wide.sort_values("scan", key=years.index.get_indexer, ignore_index=True)
    wide.insert(3, "years", wide["scan"].map(years))
    slopes = pd.concat(
        [annual_slopes(table).assign(participant_id=f"sub-{name}") for name, table in tables.items()], ignore_index=True
    )
    long = long[["participant_id", *COLUMNS]]
    front = slopes[["participant_id", *slopes.columns.drop("participant_id")]]
    keys = ["participant_id", "session_id"]
    return VisitsOfGroup(long.merge(about, "left", keys), wide.merge(about, "left", keys), front)


def _read_tables(output_dir: Path, kind: SegmentationKind, results: Gathered) -> dict[str, pd.DataFrame]:
    """Return tables of visits by participant, without ``sub-``; what cannot be read is named and left out."""
    tables = {}
    for subject in dict.fromkeys(table.scan.entities["sub"] for table in results.tables[kind.name]):
        path = output_dir / output_name(f"sub-{subject}", kind.changes)
        if not path.is_file():
            continue
        try:
            tables[subject] = read_changes(path)
        except TableError as error:
            fail(results, path.name, error, output_dir)
    return tables


def _of_gathered(subject: str, table: pd.DataFrame, kind: SegmentationKind, results: Gathered) -> pd.DataFrame | None:
    """Return a participant's table of those visits that are gathered; None, with a reason, where no two are left."""
    there = {f"{one.scan.prefix}_T1w" for one in results.tables[kind.name]}
    if not (gone := [scan for scan in dict.fromkeys(table["scan"]) if scan not in there]):
        return table
    left_out = results.left_out[kind.name]
    for scan in gone:
        discarded = scan.removesuffix("_T1w") in results.discarded
        left_out[scan] = _DISCARDED if discarded else "its own table of volumes is not among those of the group"
    if table.loc[table["scan"].isin(there), "session_id"].nunique() < 2:
        left_out[f"sub-{subject}"] = "one session is left of its visits; two are needed"
        return None
    return of_visits(table, there)


def read_changes(path: Path) -> pd.DataFrame:
    """Read a participant's table of visits.

    Raises
    ------
    TableError
        The file cannot be read, lacks a column or has no rows.
    """
    rows = read_table(path)
    if absent := [name for name in COLUMNS if name not in rows]:
        raise TableError(f"{path}: not a table of visits, it lacks the columns {', '.join(absent)}")
    if rows.empty:
        raise TableError(f"{path}: it has no rows, and so no visits")
    texts = ("session_id", "scan", "StructName")
    for name in COLUMNS:
        if name not in texts:
            rows[name] = pd.to_numeric(rows[name].replace(MISSING, None), errors="coerce")
    return rows[list(COLUMNS)]


def _known(bids_dir: Path, subject: str, participants: Participants | None, table: pd.DataFrame) -> pd.DataFrame:
    """Return what ``participants.tsv`` and ``sessions.tsv`` say of a participant's sessions, a row for each."""
    sessions = list(dict.fromkeys(table["session_id"]))
    rows = pd.DataFrame({"participant_id": f"sub-{subject}", "session_id": sessions})
    taken = {*COLUMNS, *rows}
    if participants is not None:
        told = participants.of_scans((subject, session.removeprefix("ses-")) for session in sessions)
        rows = rows.join(told.rename(columns={name: f"participants_{name}" for name in told if name in taken}))
    path = bids_dir / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    if not path.is_file():
        return rows
    try:
        told = read_table(path)
    except TableError as error:
        logger.warning("%s; it is not joined", error)
        return rows
    if "session_id" not in told:
        return rows
    told["session_id"] = [f"ses-{name.removeprefix('ses-')}" for name in told["session_id"]]
    told = told.drop_duplicates("session_id").rename(
        columns={name: f"sessions_{name}" for name in told if name in {*taken, *rows} and name != "session_id"}
    )
    return rows.merge(told, "left", "session_id")
