"""When visits were: from ``scans.tsv``, ``sessions.tsv`` or, by age, from ``participants.tsv``."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pandas as pd

from medsegmamba_bids.datasets.participants_table import read_participants, read_table
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.records import read_mapping

logger = logging.getLogger(__name__)

_Key = TypeVar("_Key", str, tuple[str, str])

_FRACTION = re.compile(r"\.(\d+)")  # of a second; Python 3.10 reads three or six digits alone

DAYS_A_YEAR = 365.25
_DATE, _AGE = "acq_time", "age"
#: How many of a unit of ages are a year; names without an s at the end.
_A_YEAR = {
    **dict.fromkeys(("year", "yr", "y", "a"), 1.0),
    **dict.fromkeys(("month", "mo"), 12.0),
    **dict.fromkeys(("week", "wk"), DAYS_A_YEAR / 7),
    **dict.fromkeys(("day", "d"), DAYS_A_YEAR),
}
_OLDEST = 130.0  # years; ages beyond are in other units, or codes of missing ones, as -9 and 999 are


@dataclass(frozen=True)
class VisitTimes:
    """Years of visits, counted from the first.

    Attributes
    ----------
    years : tuple of float or None
        None where it is not known.
    source : str
        Where they come from; empty where none is known.
    """

    years: tuple[float | None, ...]
    source: str = ""


def visit_times(bids_dir: Path, subject: str, scans: Sequence[tuple[str, str]]) -> VisitTimes:
    """Find when visits were.

    The one of these that knows most visits, and two at least, or the first of several: ``acq_time`` of the image in
    ``scans.tsv`` of its session, ``acq_time`` in ``sessions.tsv``, ``age`` there, ``age`` in ``participants.tsv`` where
    that has rows for sessions. One by which all sessions are of one day gives way to any by which they are not.
    Dates may be shifted, as long as all of a participant are shifted alike. Ages are in years, unless the JSON beside
    their table or, of sessions, at the root of the dataset gives other ``Units`` of ``age``; a table with ages that no
    person has in these is not used. Nor are rows about one visit that contradict each other. Both are warned of.

    Parameters
    ----------
    bids_dir : Path
    subject : str
        Without ``sub-``.
    scans : sequence of (session, path)
        Label without ``ses-``, and path of the image within the dataset.
    """
    sessions = _sessions(bids_dir, subject)
    people = _people(bids_dir, subject)
    rows = [people.get((f"sub-{subject}", f"ses-{session}"), {}) for session, _ in scans]
    told = [sessions.get(session, {}) for session, _ in scans]
    of_sessions = bids_dir / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    found = {
        "acq_time of scans.tsv": [_date(_of_scan(bids_dir, subject, *scan)) for scan in scans],
        "acq_time of sessions.tsv": [_date(row.get(_DATE)) for row in told],
        "age of sessions.tsv": _ages(told, of_sessions, bids_dir / "sessions.json"),
        "age of participants.tsv": _ages(rows, bids_dir / "participants.tsv"),
    }
    source = max(found, key=lambda source: _worth(found[source], scans))  # of equal ones the first
    times, known = found[source], [time for time in found[source] if time is not None]
    if len(known) < 2:
        return VisitTimes((None,) * len(scans))
    return VisitTimes(tuple(None if time is None else time - min(known) for time in times), source)


def _worth(times: Sequence[float | None], scans: Sequence[tuple[str, str]]) -> tuple[bool, int]:
    """Return whether times tell sessions apart, and how many there are.

    Sessions that are all of one day may be so, or have the one date that anonymising puts everywhere: what else is
    known decides.
    """
    first: dict[str, float] = {}
    for time, (session, _) in zip(times, scans, strict=True):
        if time is not None:
            first[session] = min(time, first.get(session, time))
    apart = len(first) > 1 and max(first.values()) - min(first.values()) >= 1 / DAYS_A_YEAR
    return apart, sum(time is not None for time in times)


def _sessions(bids_dir: Path, subject: str) -> dict[str, dict[str, str]]:
    """Return rows of ``sessions.tsv`` by session."""
    path = bids_dir / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    return _told_once(path, ((row["session_id"].removeprefix("ses-"), row) for row in _rows(path, "session_id")))


def _of_scan(bids_dir: Path, subject: str, session: str, relative: str) -> str | None:
    folder = f"sub-{subject}/ses-{session}"
    path = bids_dir / folder / f"sub-{subject}_ses-{session}_scans.tsv"
    rows = _told_once(path, ((f"{folder}/{row['filename']}", row) for row in _rows(path, "filename")))
    return rows.get(relative, {}).get(_DATE)


def _people(bids_dir: Path, subject: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return rows of ``participants.tsv`` about a participant, by participant and session."""
    path = bids_dir / "participants.tsv"
    if not os.path.lexists(path):
        return {}
    try:
        people = read_participants(path)
    except TableError as error:
        logger.warning("%s; it is not used for times of visits", error)
        return {}
    if not (column := people.session_column):
        return {}
    rows = people.rows[people.rows["participant_id"] == f"sub-{subject}"].to_dict("records")
    return _told_once(path, (((row["participant_id"], row[column]), row) for row in rows))


def _told_once(path: Path, rows: Iterable[tuple[_Key, dict[str, str]]]) -> dict[_Key, dict[str, str]]:
    """Return dates and ages by what rows are about; where several rows differ in one it is left out, with a warning."""
    by_key: dict[_Key, list[dict[str, str]]] = {}
    for key, row in rows:
        by_key.setdefault(key, []).append(row)
    told: dict[_Key, dict[str, str]] = {}
    for key, several in by_key.items():
        told[key] = {}
        for name, read in ((_DATE, _date), (_AGE, _age)):
            texts = {read(row.get(name)): row.get(name, "") for row in several}
            texts.pop(None, None)
            if len(texts) > 1:
                about = key if isinstance(key, str) else ", ".join(key)
                logger.warning("%s: has %d rows of %s with another %s; none is used", path, len(several), about, name)
            elif texts:
                told[key][name] = next(iter(texts.values()))
    return told


def _rows(path: Path, key: str) -> list[dict[str, str]]:
    """Return rows of a table; none, with a warning, where it cannot be read."""
    if not os.path.lexists(path):
        return []
    try:
        rows = read_table(path)
    except TableError as error:
        logger.warning("%s; it is not used for times of visits", error)
        return []
    return rows.to_dict("records") if key in rows else []


def _six_digits(fraction: re.Match[str]) -> str:
    return f".{fraction[1][:6]:0<6}"


def _date(text: str | None) -> float | None:
    """Return a date in years; None where there is none.

    Examples
    --------
    >>> round((_date("2020-01-01T12:00:00") - _date("2019-01-01T12:00:00")) * 365.25, 6), _date("n/a")
    (365.0, None)
    >>> _six_digits(_FRACTION.search("12:00:00.5")), _six_digits(_FRACTION.search("12:00:00.1234567"))
    ('.500000', '.123456')
    """
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(_six_digits, (text or "").removesuffix("Z")))
    except ValueError:
        return None
    moment = moment.replace(tzinfo=None)
    return (moment - datetime(1, 1, 1)).total_seconds() / 86400 / DAYS_A_YEAR


def _ages(rows: Sequence[dict[str, str]], table: Path, *sidecars: Path) -> list[float | None]:
    """Return ages in years; none, with a warning, where their units are not known or cannot be those.

    Units are told by the JSON beside the table, or else by ``sidecars``.
    """
    ages = [_age(row.get(_AGE)) for row in rows]
    if all(age is None for age in ages):
        return ages
    try:
        a_year = _units_a_year((table.with_suffix(".json"), *sidecars))
    except TableError as error:
        logger.warning("%s; ages are not used for times of visits", error)
        return [None] * len(ages)
    years = [None if age is None else age / a_year for age in ages]
    if odd := [year for year in years if year is not None and not 0 <= year <= _OLDEST]:
        logger.warning(
            "%s: an age of %g years is no person's; ages are not used for times of visits (it may lack Units of age)",
            *(table, odd[0]),
        )
        return [None] * len(ages)
    return years


def _units_a_year(sidecars: Sequence[Path]) -> float:
    """Return how many units of age are a year, by the first file that says so: the nearest to the table."""
    for path in sidecars:
        column = read_mapping(path, "the description of ages", error=TableError).get(_AGE) if path.is_file() else None
        units = column.get("Units") if isinstance(column, dict) else None
        if units is None:
            continue
        if (a_year := _A_YEAR.get(str(units).strip().lower().removesuffix("s"))) is None:
            raise TableError(f"{path}: age has the Units {units!r}; they must be year, month, week or day")
        return a_year
    return 1.0


def _age(text: str | None) -> float | None:
    age = pd.to_numeric(text, errors="coerce") if text else None
    return None if age is None or pd.isna(age) else float(age)
