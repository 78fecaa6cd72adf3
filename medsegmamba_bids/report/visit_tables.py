"""Tables of the group about visits that were processed together: long, wide, and a slope per participant."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.datasets.participants_table import Participants, read_table
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.longitudinal.change import COLUMNS, annual_slopes, of_visits
from medsegmamba_bids.report.derivatives import read_json
from medsegmamba_bids.report.gather import Gathered, ScanTable, different_names, fail
from medsegmamba_bids.report.provenance import Weights, version_of, weights_of
from medsegmamba_bids.segmentations import SegmentationKind
from medsegmamba_bids.stats.tables import MISSING

logger = logging.getLogger(__name__)

_DISCARDED = "it is rated to be discarded"
_NOT_GATHERED = "its own table of volumes is not among those of the group"
_ANEW = "run the participant level with --longitudinal again"
_KEY = ["participant_id", "session_id", "scan", "years"]


@dataclass(frozen=True, eq=False)
class VisitsTable:
    """The table of one participant's visits.

    Attributes
    ----------
    subject : str
        Without ``sub-``.
    rows : pandas.DataFrame
        As :func:`read_changes` returns them.
    weights : Weights
    version : str
        Of this package, when the table was made.
    """

    subject: str
    rows: pd.DataFrame
    weights: Weights
    version: str


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
    tables : list of VisitsTable
        What they were made from.
    """

    long: pd.DataFrame
    wide: pd.DataFrame
    slopes: pd.DataFrame
    tables: list[VisitsTable]


def visits_of_group(config: RunConfig, kind: SegmentationKind, results: Gathered) -> VisitsOfGroup | None:
    """Gather tables of visits; None where no participant has one that can be used.

    Parameters
    ----------
    config : RunConfig
        Whose folder of the dataset may be absent; ``sessions.tsv`` lies in it.
    kind : SegmentationKind
    results : Gathered
        Whose T1w images are looked for: others, such as discarded ones, are left out, and changes are between the
        rest. Tables that cannot be read, or were made otherwise than those of the images, join what failed.
    """
    gathered = (_of_gathered(table, kind, results) for table in _read_tables(config, kind, results))
    tables = [table for table in gathered if table is not None]
    if not tables:
        return None
    by_subject = {f"sub-{table.subject}": table.rows for table in tables}
    long = _joined(by_subject)
    about = pd.concat(
        [_known(config.bids_dir, table.subject, results.participants, table.rows) for table in tables],
        ignore_index=True,
    )
    wide = long.pivot_table("Volume_mm3", _KEY[:3], "StructName", sort=False).reset_index()
    years = long.drop_duplicates("scan").set_index("scan")["years"]
    # The pivot puts sessions in the order in which any participant has them.
    wide = wide.sort_values("scan", key=years.index.get_indexer, ignore_index=True)
    wide.insert(3, "years", wide["scan"].map(years))
    slopes = _joined({name: annual_slopes(rows) for name, rows in by_subject.items()})
    keys = ["participant_id", "session_id"]
    return VisitsOfGroup(long.merge(about, "left", keys), wide.merge(about, "left", keys), slopes, tables)


def _joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return tables of participants below each other, with a first column that tells them apart."""
    return pd.concat(tables, names=["participant_id"]).reset_index(0).reset_index(drop=True)


def _read_tables(config: RunConfig, kind: SegmentationKind, results: Gathered) -> list[VisitsTable]:
    """Return tables of visits; what cannot be read or compared is named and left out."""
    tables = []
    for subject, images in _by_subject(results.tables[kind.name]).items():
        path = config.output_dir / output_name(f"sub-{subject}", kind.changes)
        if not path.is_file():
            continue
        try:
            sidecar = read_json(path.with_suffix(".json"))
            made_by = weights_of(sidecar, kind.name), version_of(sidecar)
            table = VisitsTable(subject, read_changes(path), *made_by)
        except TableError as error:
            fail(results, path.name, error, config.output_dir)
            continue
        if why := _why_made_otherwise(table, images[0], config):
            results.failed[path.name] = why
        else:
            tables.append(table)
    return tables


def _by_subject(tables: Iterable[ScanTable]) -> dict[str, list[ScanTable]]:
    images: dict[str, list[ScanTable]] = {}
    for table in tables:
        images.setdefault(table.scan.entities["sub"], []).append(table)
    return images


def _why_made_otherwise(visits: VisitsTable, image: ScanTable, config: RunConfig) -> str:
    """Say in what visits differ from the participant's images by themselves; empty where they do not, or may.

    All images have the same weights and version by then, so that the visits that are taken have, too.
    """
    if not config.allow_mixed_weights and visits.weights.key != image.weights.key:
        if not visits.weights.key:
            return f"it does not say which weights made it, as older versions did not; {_ANEW}, and --force"
        names = different_names([visits.weights, image.weights])
        return (
            f"the visits were made with {names[0]}, the participant's T1w images with {names[1]}; left out "
            f"(--allow-mixed-weights takes it in); {_ANEW}"
        )
    if not config.allow_mixed_versions and visits.version != image.version:
        return (
            f"it was made by version {visits.version or 'unknown'} of medsegmamba_bids, the tables of T1w images by "
            f"{image.version or 'unknown'}; left out (--allow-mixed-versions takes it in); {_ANEW}"
        )
    return ""


def _of_gathered(table: VisitsTable, kind: SegmentationKind, results: Gathered) -> VisitsTable | None:
    """Return a participant's table of those visits that are gathered; None, with a reason, where no two are left."""
    rows, there = table.rows, {f"{one.scan.prefix}_T1w" for one in results.tables[kind.name]}
    if not (gone := [scan for scan in dict.fromkeys(rows["scan"]) if scan not in there]):
        return table
    left_out = results.left_out[kind.name]
    for scan in gone:
        left_out[scan] = _DISCARDED if scan.removesuffix("_T1w") in results.discarded else _NOT_GATHERED
    if rows.loc[rows["scan"].isin(there), "session_id"].nunique() < 2:
        left_out[f"sub-{table.subject}"] = "one session is left of its visits; two are needed"
        return None
    return replace(table, rows=of_visits(rows, there))


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
    if not os.path.lexists(path):
        return rows
    try:
        told = read_table(path)
    except TableError as error:
        logger.warning("%s; it is not joined", error)
        return rows
    if "session_id" not in told:
        return rows
    told["session_id"] = [f"ses-{name.removeprefix('ses-')}" for name in told["session_id"]]
    told = told.drop_duplicates()
    if (twice := told["session_id"].duplicated(keep=False)).any():
        several = ", ".join(dict.fromkeys(told["session_id"][twice]))
        logger.warning("%s: has several rows of %s that differ; they are not joined", path, several)
    told = told[~twice].rename(
        columns={name: f"sessions_{name}" for name in told if name in {*taken, *rows} and name != "session_id"}
    )
    return rows.merge(told, "left", "session_id")
