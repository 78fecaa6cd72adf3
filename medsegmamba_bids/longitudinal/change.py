"""What changed between visits: tables of volumes in, one table of volumes and changes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medsegmamba_bids.stats.tables import MISSING

#: What each column of the table of a participant's visits holds, in order; the JSON beside it says the same.
COLUMNS: dict[str, dict[str, str]] = {
    "session_id": {"Description": "Session"},
    "scan": {"Description": "Name of the T1w, without extension"},
    "years": {"Description": "Time since the first visit", "Units": "year"},
    "SegId": {"Description": "FreeSurfer's label of the structure"},
    "StructName": {"Description": "FreeSurfer's name of the structure"},
    "Volume_mm3": {"Description": "Volume, all visits processed together in the space between them", "Units": "mm3"},
    "CrossSectionalVolume_mm3": {"Description": "Volume, the visit processed by itself", "Units": "mm3"},
    "Change_mm3": {"Description": "Volume_mm3 minus that of the first visit", "Units": "mm3"},
    "Change_percent": {"Description": "Change_mm3 in percent of the first visit's volume", "Units": "percent"},
    "AnnualSymmetrizedChange_percent": {
        "Description": "Change_mm3 a year, in percent of the mean of this and the first visit's volume "
        "(symmetrised percent change, Reuter et al. 2012, NeuroImage 61:1402)",
        "Units": "percent/year",
    },
    "MeanPosterior": {"Description": "Mean posterior probability of the label over its voxels: the confidence"},
}
#: The same of a table of slopes.
SLOPE_COLUMNS: dict[str, dict[str, str]] = {
    "SegId": COLUMNS["SegId"],
    "StructName": COLUMNS["StructName"],
    "Slope_mm3": {"Description": "Slope of a line through the visits whose time is known", "Units": "mm3/year"},
    "Slope_percent": {
        "Description": "The slope in percent of the line's value midway between first and last visit",
        "Units": "percent/year",
    },
}
_DECIMALS = {
    "Slope_percent": 4,
    "years": 4,
    "Change_percent": 4,
    "AnnualSymmetrizedChange_percent": 4,
    "MeanPosterior": 5,
}
_DECIMALS |= {name: 3 for name in COLUMNS if name.endswith("_mm3")}


@dataclass(frozen=True, eq=False)
class VisitTable:
    """Volumes of one visit.

    Attributes
    ----------
    session : str
        Label, without ``ses-``.
    scan : str
        Name of the T1w without extension.
    years : float or None
        Since the first visit whose time is known.
    together, alone : pandas.DataFrame
        Volume tables, as ``stats.tables.read_tsv`` returns them, of all visits processed together and of this one
        processed by itself.
    """

    session: str
    scan: str
    years: float | None
    together: pd.DataFrame
    alone: pd.DataFrame


def in_time(visits: Sequence[VisitTable]) -> list[VisitTable]:
    """Return visits in order of time; by session and name where the time of one is not known, and of equal times."""
    dated = all(visit.years is not None for visit in visits)
    return sorted(visits, key=lambda visit: (visit.years if dated else 0, visit.session, visit.scan))


def change_table(visits: Sequence[VisitTable]) -> pd.DataFrame:
    """Return a row per visit and structure: volumes, and their change since the first visit.

    Parameters
    ----------
    visits : sequence of VisitTable

    Returns
    -------
    pandas.DataFrame
        Columns as ``COLUMNS``; NaN where a number is not known: percent of nothing, changes a year without times.
    """
    ordered = in_time(visits)
    first = ordered[0].together.set_index("SegId")["Volume_mm3"]
    return pd.concat([_rows(visit, first, ordered[0].years) for visit in ordered], ignore_index=True)


def _rows(visit: VisitTable, first: pd.Series, start: float | None) -> pd.DataFrame:
    table = visit.together
    before = first.reindex(table["SegId"]).to_numpy(float)
    volume = table["Volume_mm3"].to_numpy(float)
    alone = visit.alone.set_index("SegId")["Volume_mm3"].reindex(table["SegId"]).to_numpy(float)
    interval = np.nan if visit.years is None or start is None else visit.years - start
    change = volume - before
    rows = {
        "session_id": f"ses-{visit.session}",
        "scan": visit.scan,
        "years": np.nan if visit.years is None else visit.years,
        "SegId": table["SegId"].to_numpy(),
        "StructName": table["StructName"].to_numpy(),
        "Volume_mm3": volume,
        "CrossSectionalVolume_mm3": alone,
        "Change_mm3": change,
        "Change_percent": _percent(change, before),
        "AnnualSymmetrizedChange_percent": annual_symmetrized_change(before, volume, interval),
        "MeanPosterior": table["MeanPosterior"].to_numpy(float),
    }
    return pd.DataFrame(rows)[list(COLUMNS)]


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a part in percent of a whole; NaN of nothing."""
    return 100 * np.divide(part, whole, out=np.full(len(part), np.nan), where=np.asarray(whole) > 0)


def in_percent_of_first(volumes: pd.Series) -> np.ndarray:
    """Return how volumes of several visits differ from the first one, percent of it; NaN where that has none.

    Examples
    --------
    >>> in_percent_of_first(pd.Series([200.0, 190.0])).tolist()
    [0.0, -5.0]
    """
    values = volumes.to_numpy(float)
    return _percent(values - values[0], np.full(len(values), values[0]))


def annual_symmetrized_change(first: np.ndarray, second: np.ndarray, years: float) -> np.ndarray:
    """Return the change a year in percent of the mean of two volumes; NaN without an interval.

    Swapping the visits only changes the sign, unlike percent of the first volume, which is noisier.

    Examples
    --------
    >>> annual_symmetrized_change(np.array([1100.0]), np.array([900.0]), 2.0).tolist()
    [-10.0]
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if not years > 0:
        return np.full(len(first), np.nan)
    return _percent((second - first) / years, (first + second) / 2)


def annual_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per structure: the slope of a straight line through all visits whose time is known.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`change_table`.

    Returns
    -------
    pandas.DataFrame
        ``SegId``, ``StructName``, ``Slope_mm3`` a year, and ``Slope_percent``: the slope in percent of the line's
        value in the middle of the time between first and last visit, as FreeSurfer's long_stats_slopes has it.
    """
    rows = []
    for (label, name), part in table.groupby(["SegId", "StructName"], sort=False):
        known = part[part["years"].notna() & part["Volume_mm3"].notna()]
        years, volumes = known["years"].to_numpy(float), known["Volume_mm3"].to_numpy(float)
        slope = middle = np.nan
        if len(known) > 1 and np.ptp(years) > 0:
            slope, intercept = np.polyfit(years, volumes, 1)
            middle = intercept + slope * (years.min() + years.max()) / 2
        percent = 100 * slope / middle if middle > 0 else np.nan
        rows.append({"SegId": label, "StructName": name, "Slope_mm3": slope, "Slope_percent": percent})
    return pd.DataFrame(rows)


def to_tsv(rows: pd.DataFrame) -> str:
    """Return the text of a table; what is missing is ``n/a``."""
    out = rows.astype(object)
    for name, decimals in _DECIMALS.items():
        if name in out:
            out[name] = [MISSING if pd.isna(value) else f"{value:.{decimals}f}" for value in rows[name]]
    return out.to_csv(sep="\t", index=False, na_rep=MISSING, lineterminator="\n")
