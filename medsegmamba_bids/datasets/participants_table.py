"""The one reader of ``participants.tsv`` and tables like it: tabs separate cells, and a quote is a character."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medsegmamba_bids.errors import TableError

ID = "participant_id"
_SESSIONS = ("session_id", "session")
_NO_LABEL = re.compile(r"""[\s"'/\\]""")


@dataclass(frozen=True, eq=False)
class Participants:
    """A table about participants, a row for each or for each of their sessions.

    Attributes
    ----------
    path : Path
    rows : pandas.DataFrame
        All cells as text. ``participant_id`` is ``sub-…`` and the session, where there is a column for it, ``ses-…``
        or empty; the index counts the file's lines from 1.
    """

    path: Path
    rows: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        """Participants without ``sub-``, each once, in the file's order."""
        return list(dict.fromkeys(name.removeprefix("sub-") for name in self.rows[ID]))

    @property
    def session_column(self) -> str | None:
        """Name of the column that tells sessions apart, if there is one."""
        return next((name for name in _SESSIONS if name in self.rows), None)

    @property
    def columns(self) -> list[str]:
        """What the table tells of participants."""
        return [name for name in self.rows if name not in (ID, self.session_column)]

    def of_scans(self, scans: Iterable[tuple[str, str]], columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return what the table tells of scans.

        Parameters
        ----------
        scans : iterable of (participant, session)
            Labels, without ``sub-`` and ``ses-``; no session is "".
        columns : sequence of str, optional
            All by default.

        Returns
        -------
        pandas.DataFrame
            A row per scan in this order; missing where the table does not know a participant.

        Raises
        ------
        TableError
            It has no such column, or several rows for a scan that differ in one of them.
        """
        wanted = self.columns if columns is None else list(columns)
        if absent := [name for name in wanted if name not in self.rows]:
            raise TableError(f"{self.path}: has no column {', '.join(absent)}; there are {', '.join(self.rows)}")
        by_participant = dict(iter(self.rows.groupby(ID, sort=False)))
        answers = [self._row(by_participant.get(f"sub-{name}"), session, wanted) for name, session in scans]
        return pd.DataFrame(answers, columns=wanted, dtype=object)

    def _row(self, rows: pd.DataFrame | None, session: str, columns: list[str]) -> dict[str, str]:
        """Return the one answer for a scan; empty where the table does not know its participant or session."""
        if rows is None:
            return {}
        if self.session_column and session:
            of_session = rows[rows[self.session_column] == f"ses-{session}"]
            rows = of_session if len(of_session) else rows[rows[self.session_column] == ""]
        if rows.empty:
            return {}
        for name in columns:
            if rows[name].nunique() > 1:
                raise TableError(self._contradiction(rows, name))
        return rows.iloc[0][columns].to_dict()

    def _contradiction(self, rows: pd.DataFrame, column: str) -> str:
        lines = ", ".join(map(str, rows.index))
        return (
            f"{self.path}: {rows[ID].iloc[0]} has several rows (lines {lines}) that differ in {column}; a column "
            "session_id must tell which is of which session"
        )


def read_participants(path: Path) -> Participants:
    """Read ``participants.tsv``.

    Ids may stand with or without ``sub-`` and with blanks around. Lines may end in any way, with tabs too many.

    Raises
    ------
    TableError
        The file cannot be read (see :func:`read_table`), has no column ``participant_id``, or one of these is empty or
        no label.
    """
    rows = read_table(path)
    if ID not in rows:
        raise TableError(
            f"{path}: has no column {ID}; there are {', '.join(rows) or 'none'}. Tabs separate columns, and quotes "
            "are part of a name"
        )
    for line, name in rows[ID].items():
        if not name or _NO_LABEL.search(name):
            raise TableError(f"{path}: line {line} has the {ID} {name!r}; it must be a label such as sub-01")
    people = Participants(Path(path), rows.assign(**{ID: [f"sub-{name.removeprefix('sub-')}" for name in rows[ID]]}))
    if column := people.session_column:
        rows = people.rows
        people = Participants(Path(path), rows.assign(**{column: [_session(text) for text in rows[column]]}))
    return people


def _session(text: str) -> str:
    return "" if text in ("", "n/a") else f"ses-{text.removeprefix('ses-')}"


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of tab-separated text as it stands: nothing is quoting, and nothing becomes a number.

    Returns
    -------
    pandas.DataFrame
        Text without blanks around; the index counts the file's lines from 1.

    Raises
    ------
    TableError
        The file cannot be read, is not UTF-8 or empty, names a column twice or not at all, or a line has more or fewer
        cells than the first.
    """
    lines = [(number, line) for number, line in enumerate(_lines(Path(path)), 1) if line.strip()]
    if not lines:
        raise TableError(f"{path}: is empty")
    header = _cells(lines[0][1], 0)
    if len(set(header)) < len(header) or not all(header):
        raise TableError(f"{path}: its first line must name every column once; it has {header}")
    rows = [_cells(line, len(header)) for _, line in lines[1:]]
    for (number, _), cells in zip(lines[1:], rows, strict=True):
        if len(cells) != len(header):
            raise TableError(
                f"{path}: line {number} has {len(cells)} cells, but there are {len(header)} columns "
                f"({', '.join(header)}); tabs separate cells"
            )
    return pd.DataFrame(rows, [number for number, _ in lines[1:]], header, dtype=object)


def _lines(path: Path) -> list[str]:
    if path.is_symlink() and not path.exists():
        raise TableError(f"{path}: a link whose target is not there (datalad get fetches it)")
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError(f"{path}: is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TableError(
            f"{path}: line {line} is not UTF-8; if it is latin-1, convert it with `iconv -f latin1 -t utf-8`"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _cells(line: str, least: int) -> list[str]:
    """Return cells without blanks around; empty ones at the end do not count beyond ``least``."""
    cells = [cell.strip() for cell in line.split("\t")]
    while len(cells) > least and not cells[-1]:
        cells.pop()
    return cells
