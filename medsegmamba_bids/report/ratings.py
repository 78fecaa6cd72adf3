"""Ratings of T1w images by people, as the participants' pages save them."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medsegmamba_bids.errors import TableError, reason
from medsegmamba_bids.report.derivatives import Scan

logger = logging.getLogger(__name__)

RATINGS = ("keep", "maybe", "discard")
_NEEDED = ("participant", "rating")
_COLUMNS = ("participant", "session", "run", "rating", "note", "date", "rater", "scan")
_MOST_NAMED = 5  # of rows that are passed over


@dataclass(frozen=True)
class Rating:
    """What a person says of a T1w.

    Attributes
    ----------
    rating : {"keep", "maybe", "discard"}
    note, date, rater : str
        May be empty.
    others : tuple of str
        Different ratings that raters gave the same T1w before; the latest counts.
    """

    rating: str
    note: str = ""
    date: str = ""
    rater: str = ""
    others: tuple[str, ...] = ()


def read_ratings(path: Path, scans: Sequence[Scan]) -> dict[str, Rating]:
    """Return ratings by the T1w's name; of several of one T1w the latest by date, then by line.

    A row names a T1w by ``scan``, or else by participant, session and run, where these leave one. Rows that name none
    of these scans are passed over, with a warning: one file may rate more than is gathered.

    Parameters
    ----------
    path : Path
        Table with the columns ``participant`` and ``rating``, and maybe ``session``, ``run``, ``note``, ``date``,
        ``rater`` and ``scan``.
    scans : sequence of Scan
        That may be rated.

    Raises
    ------
    TableError
        The file cannot be read, lacks a column, or a row has an unknown rating or may mean several T1w images.
    """
    rows = _read(path)
    rated: dict[str, list[Rating]] = {}
    others = []
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        where = f"{path}, line {line}"
        if row["rating"] not in RATINGS:
            raise TableError(f"{where}: the rating is {row['rating']!r}; it must be {', '.join(RATINGS)}")
        if prefix := _named(row, scans, where):
            rated.setdefault(prefix, []).append(Rating(*(row[name] for name in ("rating", "note", "date", "rater"))))
        else:
            others.append(f"{_name(row)} (line {line})")
    if others:
        logger.warning(
            "%s: %d rows rate what is not among the T1w images with results that are gathered, and are passed over: %s",
            *(path, len(others), ", ".join(others[:_MOST_NAMED]) + " …" * (len(others) > _MOST_NAMED)),
        )
    return {prefix: _latest(ratings) for prefix, ratings in rated.items()}


def _read(path: Path) -> pd.DataFrame:
    """Return rows as texts, numbered by lines of the file; empty texts where a column is absent or says n/a.

    Rows without any text, which spreadsheets leave below others, are none.
    """
    try:
        whole = path.read_text(encoding="utf-8-sig")
        text = whole.lstrip("\n")
        options = {"dtype": str, "na_values": ["n/a"], "keep_default_na": False, "quoting": 3, "index_col": False}
        options["skip_blank_lines"] = False  # they count as lines
        rows = pd.read_csv(io.StringIO(text), sep="\t", **options)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as a table of ratings ({reason(error)})") from error
    if absent := [name for name in _NEEDED if name not in rows]:
        raise TableError(
            f"{path}: not a table of ratings, it lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)}; the "
            "participants' pages save such tables"
        )
    rows = rows.reindex(columns=list(_COLUMNS), fill_value="").fillna("").apply(lambda column: column.str.strip())
    return rows.set_axis(rows.index + 2 + len(whole) - len(text))[(rows != "").any(axis=1).to_numpy()]


def _named(row: dict[str, str], scans: Sequence[Scan], where: str) -> str:
    """Return the prefix of the one T1w that a row names; empty where it names none of them."""
    wanted, prefix = _wanted(row), row["scan"].removesuffix("_T1w")
    found = [
        scan.prefix
        for scan in scans
        if (scan.prefix == prefix if prefix else all(scan.entities.get(key, "") == wanted[key] for key in wanted))
    ]
    if len(found) > 1:
        raise TableError(f"{where}: {_name(row)} may be any of {', '.join(found)}; a column 'scan' must tell which")
    return found[0] if found else ""


def _wanted(row: dict[str, str]) -> dict[str, str]:
    """Return the entities that a row gives, without their keys; empty texts where it gives none."""
    columns = {"sub": "participant", "ses": "session", "run": "run"}
    return {key: row[column].removeprefix(f"{key}-") for key, column in columns.items()}


def _name(row: dict[str, str]) -> str:
    return row["scan"] or "_".join(f"{key}-{value}" for key, value in _wanted(row).items() if value)


def _latest(ratings: list[Rating]) -> Rating:
    last = max(enumerate(ratings), key=lambda entry: (entry[1].date, entry[0]))[1]
    others = dict.fromkeys(one.rating for one in ratings if one.rating != last.rating)
    return Rating(last.rating, last.note, last.date, last.rater, tuple(others))
