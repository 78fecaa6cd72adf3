"""Tables of the group: a row per T1w, or a row per T1w and structure, with the JSON that explains them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from medsegmamba_bids import __version__
from medsegmamba_bids.datasets.participants_table import Participants
from medsegmamba_bids.report.gather import Gathered, ScanTable
from medsegmamba_bids.report.provenance import ATLAS_NOTE
from medsegmamba_bids.report.visit_tables import VisitsTable
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, VOLUME_DEFINITIONS, of_name
from medsegmamba_bids.stats.measures import INTRACRANIAL
from medsegmamba_bids.stats.tables import MISSING

_LONG = {"ses": "session_id"}
_ENTITIES = {
    "acq": "acquisition", "ce": "contrast_agent", "rec": "reconstruction", "dir": "direction", "run": "run",
    "echo": "echo", "part": "part", "proc": "processing", "chunk": "chunk",
}  # fmt: skip


def volume_matrix(tables: list[ScanTable]) -> pd.DataFrame:
    """Return volumes in mm3, a row per T1w (index: its name) and a column per structure, in the order of the tables."""
    series = {
        table.scan.prefix: pd.Series(table.rows["Volume_mm3"].to_numpy(float), table.rows["StructName"])
        for table in tables
    }
    columns = list(dict.fromkeys(name for table in tables for name in table.rows["StructName"]))
    same = all(list(volumes.index) == columns for volumes in series.values())
    if same:
        return pd.DataFrame(np.stack(list(series.values())), list(series), columns)
    return pd.DataFrame({name: volumes.groupby(level=0).first() for name, volumes in series.items()}).T[columns]


def measure_matrix(tables: list[ScanTable]) -> pd.DataFrame:
    """Return measures of the whole brain, a row per T1w and a column per measure."""
    return pd.DataFrame([table.measures for table in tables], [table.scan.prefix for table in tables])


def robust_z(values: pd.DataFrame) -> pd.DataFrame:
    """Return the distance from the median of each column, in robust standard deviations.

    0.6745 (x - median) / median absolute deviation (Iglewicz and Hoaglin 1993); NaN where the deviation is 0.

    Examples
    --------
    >>> robust_z(pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0, 100.0]}))["a"].round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    """
    apart = values - values.median()
    deviation = apart.abs().median()
    return 0.6745 * apart / deviation.where(deviation > 0)


def outliers_of(z: pd.DataFrame, rule: dict[str, Any]) -> dict[str, list[str]]:
    """Return structures of each T1w that are outliers of the group; none in a group that is too small to judge.

    Parameters
    ----------
    z : pandas.DataFrame
        From :func:`robust_z`.
    rule : dict
        ``limit`` and ``smallest_group``.
    """
    outliers: dict[str, list[str]] = {name: [] for name in z.index}
    beyond = z.abs().to_numpy() > rule["limit"]
    beyond &= (z.notna().sum() >= rule["smallest_group"]).to_numpy()
    for row, column in np.argwhere(beyond):
        outliers[z.index[row]].append(z.columns[column])
    return outliers


def identity(tables: list[ScanTable]) -> pd.DataFrame:
    """Return ``participant_id``, ``session_id`` and other entities of the names; only those that occur, and
    ``scan``.
    """
    entities = [table.scan.entities for table in tables]
    named = _LONG | _ENTITIES
    rows = {"participant_id": [f"sub-{names['sub']}" for names in entities]}
    for key in dict.fromkeys(key for names in entities for key in names if key != "sub"):
        label = "ses-{}" if key == "ses" else "{}"
        rows[named.get(key, key)] = [label.format(names[key]) if key in names else None for names in entities]
    rows["scan"] = [f"{table.scan.prefix}_T1w" for table in tables]
    return pd.DataFrame(rows, [table.scan.prefix for table in tables])


def join_participants(ids: pd.DataFrame, participants: Participants | None, taken: set[str]) -> pd.DataFrame:
    """Return columns of ``participants.tsv`` for each row; a name that is taken gets ``participants_`` before it."""
    if participants is None:
        return pd.DataFrame(index=ids.index)
    sessions = ids["session_id"].fillna("") if "session_id" in ids else [""] * len(ids)
    scans = [(name[4:], session[4:]) for name, session in zip(ids["participant_id"], sessions, strict=True)]
    joined = participants.of_scans(scans).replace(MISSING, np.nan).set_index(ids.index)
    return joined.rename(columns={name: f"participants_{name}" for name in joined if name in taken})


def wide_table(results: Gathered, segmentation: str, rule: dict[str, Any]) -> pd.DataFrame:
    """Return a row per T1w: who, columns of ``participants.tsv``, volumes, measures, flags, outliers and weights."""
    tables = results.tables[segmentation]
    ids, volumes, measures = identity(tables), volume_matrix(tables), measure_matrix(tables)
    etiv = _head_sizes(results) if segmentation != ASEG.name else None
    outliers = outliers_of(robust_z(volumes), rule)
    quality = pd.DataFrame(index=ids.index)
    quality["flags"] = ["; ".join(_flags(results, prefix, segmentation)) or None for prefix in ids.index]
    quality["outliers"] = ["; ".join(outliers[prefix]) or None for prefix in ids.index]
    if results.ratings:
        quality["rating"] = [_rating(results, prefix, "rating") for prefix in ids.index]
        quality["rating_note"] = [_rating(results, prefix, "note") for prefix in ids.index]
    quality["weights"] = [table.weights.label for table in tables]
    taken = {*ids, *volumes, *measures, *quality, *INTRACRANIAL}  # also where no image has one: it would pass for ours
    people = join_participants(ids, results.participants, taken)
    if etiv is not None:
        measures = measures.assign(eTIV=etiv.reindex(ids.index))
    return pd.concat([ids, people, volumes.round(3), measures.round(6), quality], axis=1)


def _head_sizes(results: Gathered) -> pd.Series | None:
    """Return eTIV in mm3 by T1w, from the tables of the whole brain; None where no table has it."""
    return measure_matrix(results.tables[ASEG.name]).get("eTIV")


def _rating(results: Gathered, prefix: str, part: str) -> str | None:
    return getattr(results.ratings[prefix], part) or None if prefix in results.ratings else None


def _flags(results: Gathered, prefix: str, segmentation: str) -> list[str]:
    """Return messages about the image or this segmentation."""
    return [message for about, message in results.flags.get(prefix, []) if about in ("", segmentation)]


def long_table(results: Gathered, segmentation: str) -> pd.DataFrame:
    """Return a row per T1w and structure, with all columns of the volume tables and the robust z of the volume."""
    tables = results.tables[segmentation]
    ids, z = identity(tables), robust_z(volume_matrix(tables))
    parts = []
    for number, table in enumerate(tables):
        rows = table.rows.copy()
        rows.insert(0, "robust_z", z.loc[table.scan.prefix].reindex(rows["StructName"]).to_numpy())
        for name in reversed(list(ids)):
            rows.insert(0, name, ids.iloc[number][name])
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def to_tsv(rows: pd.DataFrame) -> str:
    """Return the text of a table; what is missing or empty is ``n/a``."""
    return rows.replace("", np.nan).to_csv(sep="\t", index=False, na_rep=MISSING, lineterminator="\n")


def wide_sidecar(results: Gathered, segmentation: str, table: pd.DataFrame, rule: dict[str, Any]) -> dict[str, Any]:
    """Return what stands in the JSON beside a wide table."""
    tables = results.tables[segmentation]
    structures = set(tables[0].rows["StructName"]) if tables else set()
    measures = described_measures(tables)
    if "eTIV" in table and "eTIV" not in measures:
        measures["eTIV"] = {"Description": "Estimated total intracranial volume, of the aseg table", "Units": "mm3"}
    described: dict[str, Any] = {
        "participant_id": {"Description": "Participant"},
        "session_id": {"Description": "Session"},
        "scan": {"Description": "Name of the T1w, without extension"},
        "flags": {"Description": "Quality flags of the image and this segmentation, by sentence; nothing is dropped"},
        "outliers": {
            "Description": f"Structures whose robust z within this table exceeds {rule['limit']:g}",
            "Source": rule["source"],
        },
        "rating": {"Description": "What a person says of the T1w: keep, maybe or discard"},
        "rating_note": {"Description": "Why"},
        "weights": {"Description": "Name of the weights and beginning of their checksum"},
    }
    columns = {}
    volume = VOLUME_DEFINITIONS[of_name(segmentation).volumes]
    for name in table:
        if name in described:
            columns[name] = described[name]
        elif name in structures:
            columns[name] = {"Description": f"Volume of {name}; {volume}", "Units": "mm3"}
        elif name in measures:
            columns[name] = measures[name]
        else:
            columns[name] = {"Description": "Of the image's name" if name in _ENTITIES.values() else "participants.tsv"}
    return {**columns, **provenance_of(results, segmentation)}


def described_measures(tables: Sequence[ScanTable]) -> dict[str, dict[str, str]]:
    """Return what the measures of tables are; where that is not the same in all, each with how many have it.

    The intracranial volume of a head whose outer fluid was not found is another than those of the others.
    """
    texts: dict[str, Counter[str]] = {}
    described: dict[str, dict[str, str]] = {}
    for table in tables:
        entries = table.scan.sidecar(ASEG.name).get("Measures", {}) if table.measures else {}
        for name, entry in entries.items():
            described.setdefault(name, {key: entry[key] for key in ("Description", "Units") if key in entry})
            texts.setdefault(name, Counter())[entry.get("Description", "")] += 1
    for name, counts in texts.items():
        if len(counts) > 1:
            each = "; ".join(f"{text} ({count} images)" for text, count in counts.most_common())
            described[name]["Description"] = f"Not the same in all images: {each}"
    return described


def provenance_of(
    results: Gathered, segmentation: str, made_from: Sequence[ScanTable | VisitsTable] | None = None
) -> dict[str, Any]:
    """Return weights and versions behind a table, and what is not in it; by default of all tables of volumes."""
    tables = results.tables[segmentation] if made_from is None else made_from
    weights = {table.weights.key: table.weights for table in tables}
    out: dict[str, Any] = {
        "Weights": [
            {
                "Name": made_by.name,
                "Checksum": made_by.checksum,
                "Fingerprint": made_by.fingerprint,
                "Origin": made_by.origin,
            }
            for made_by in weights.values()
        ],
        "Versions": sorted({table.version for table in tables if table.version}),
        "GeneratedBy": {"Name": "medsegmamba_bids", "Version": __version__},
        "Failed": results.failed,
        "Old": results.old,
        "Missing": results.missing,
        "Discarded": results.discarded,
    }
    if segmentation == HIPPOCAMPUS.name and any(made_by.from_atlas for made_by in weights.values()):
        out["Note"] = ATLAS_NOTE
    return out
