"""What changed between visits: tables of volumes in, one table of volumes and changes out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from medsegmamba_bids.anatomy import HYPOINTENSITIES, SUBFIELDS_FROM
from medsegmamba_bids.datasets.visit_times import DAYS_A_YEAR
from medsegmamba_bids.stats.tables import MISSING

#: What each column of the table of a participant's visits holds, in order; the JSON beside it says the same.
COLUMNS: dict[str, dict[str, str]] = {
    "session_id": {"Description": "Session"},
    "scan": {"Description": "Name of the T1w, without extension"},
    "years": {"Description": "Time since the first visit", "Units": "year"},
    "SegId": {"Description": "FreeSurfer's label of the structure"},
    "StructName": {"Description": "FreeSurfer's name of the structure"},
    "Volume_mm3": {
        "Description": "Volume, all visits processed together: LabelVolume_mm3 to the power 0.3 times "
        "ShapeVolume_mm3 to the power 0.7 for ventricles, caudate, hippocampus, amygdala and accumbens; of subfields "
        "LabelVolume_mm3 times what that makes of their sum on a side; LabelVolume_mm3 for all else",
        "Units": "mm3",
    },
    "LabelVolume_mm3": {
        "Description": "Volume of the labels of this visit in the space between visits, all visits processed together",
        "Units": "mm3",
    },
    "ShapeVolume_mm3": {
        "Description": "Volume: the level is that of the labels of all visits, the change that of the deformation "
        "from the template of all visits to this one",
        "Units": "mm3",
    },
    "CrossSectionalVolume_mm3": {"Description": "Volume, the visit processed by itself", "Units": "mm3"},
    "Change_mm3": {"Description": "Volume_mm3 minus that of the first visit", "Units": "mm3"},
    "Change_percent": {"Description": "Change_mm3 in percent of the first visit's volume", "Units": "percent"},
    "AnnualSymmetrizedChange_percent": {
        "Description": "Change_mm3 a year, in percent of the mean of this and the first visit's volume "
        "(symmetrised percent change, Reuter et al. 2012, NeuroImage 61:1402); n/a within 30 days of the first visit",
        "Units": "percent/year",
    },
    "MeanPosterior": {"Description": "Mean posterior probability of the label over its voxels: the confidence"},
}
#: The same of a table of slopes.
SLOPE_COLUMNS: dict[str, dict[str, str]] = {
    "SegId": COLUMNS["SegId"],
    "StructName": COLUMNS["StructName"],
    "Slope_mm3": {
        "Description": "Slope of a line through the visits whose time is known; n/a where all lie within 30 days",
        "Units": "mm3/year",
    },
    "Slope_percent": {
        "Description": "The slope in percent of the line's value midway between first and last visit",
        "Units": "percent/year",
    },
}
#: Structures whose change is seen by both: by labels, which repeat better, and by shape, which sees more of it. The
#: thalamus, putamen and pallidum have borders too faint for a deformation; of the others nothing was measured.
BY_BOTH = (4, 43, 5, 44, 14, 11, 50, 17, 53, 18, 54, 26, 58)
#: Power of the volume by shape among the two (docs/longitudinal.md says what it was chosen by).
SHAPE_SHARE = 0.7
#: Shortest interval, in days, of which a change a year is given. Two scans of an unchanged brain differ by about a
#: percent: within a month that makes twelve a year and more, and within an hour thousands.
LEAST_DAYS = 30
#: Labels whose voxels change their kind rather than their place.
_NO_SHAPE = (HYPOINTENSITIES,)
_LEAST_YEARS = LEAST_DAYS / DAYS_A_YEAR
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
    relative : mapping of int to float
        How many times larger structures of the template are in this visit.
    """

    session: str
    scan: str
    years: float | None
    together: pd.DataFrame
    alone: pd.DataFrame
    relative: Mapping[int, float] = field(default_factory=dict)


def in_time(visits: Sequence[VisitTable]) -> list[VisitTable]:
    """Return visits in order of time; by session and name where the time of one is not known, and of equal times.

    Numbers within names count as such: ``ses-2`` comes before ``ses-10``.
    """
    dated = all(visit.years is not None for visit in visits)
    return sorted(
        visits, key=lambda visit: (visit.years if dated else 0, _natural(visit.session), _natural(visit.scan))
    )


def too_soon(visits: Sequence[VisitTable]) -> list[VisitTable]:
    """Return visits that follow the first within less than ``LEAST_DAYS``: there is no change a year for them."""
    first, *others = in_time(visits)
    return [
        visit
        for visit in others
        if None not in (first.years, visit.years) and 0 <= visit.years - first.years < _LEAST_YEARS
    ]


def _natural(name: str) -> list[str | int]:
    """Return what sorts a name by its numbers: every second part is one.

    Examples
    --------
    >>> sorted(["m12", "m6"], key=_natural)
    ['m6', 'm12']
    """
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def change_table(visits: Sequence[VisitTable]) -> pd.DataFrame:
    """Return a row per visit and structure: volumes, and their change since the first visit.

    Parameters
    ----------
    visits : sequence of VisitTable

    Returns
    -------
    pandas.DataFrame
        Columns as ``COLUMNS``; NaN where a number is not known: percent of nothing, changes a year without times
        or of visits within ``LEAST_DAYS`` of the first.
    """
    ordered = in_time(visits)
    shapes = shape_volumes(ordered)
    before = _volumes(ordered[0], shapes)
    return pd.concat([_rows(visit, ordered[0].years, before, shapes) for visit in ordered], ignore_index=True)


def of_visits(table: pd.DataFrame, scans: Collection[str]) -> pd.DataFrame:
    """Return what a table of changes says of some visits, as if it had been made of these alone.

    Their order, years, levels of volumes by shape, and changes are anew. What the other visits did to the template,
    and so to labels and deformations, stays.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`change_table`.
    scans : collection of str
        Names of T1w images, as in the column ``scan``; one at least is in the table.
    """
    left = table[table["scan"].isin(scans)]
    start = left["years"].min()
    return change_table([_visit_of(rows, start) for _, rows in left.groupby("scan", sort=False)])


def _visit_of(rows: pd.DataFrame, start: float) -> VisitTable:
    """Return a visit from its rows of a table of changes, years counted from ``start``."""
    session, scan, years = rows.iloc[0][["session_id", "scan", "years"]]
    together, alone = (rows.assign(Volume_mm3=rows[f"{name}Volume_mm3"]) for name in ("Label", "CrossSectional"))
    # Volumes by shape are in proportion to how much larger structures are than the template's, and no more is needed.
    relative = rows.set_index("SegId")["ShapeVolume_mm3"]
    since = None if pd.isna(years) else years - start
    return VisitTable(session.removeprefix("ses-"), scan, since, together, alone, relative[relative > 0].to_dict())


def shape_volumes(visits: Sequence[VisitTable]) -> pd.DataFrame:
    """Return a row per scan, a column per label: one level for all visits times how much larger each is.

    The level is the mean over visits of what the template would have by a visit's labels. A visit's labels themselves
    count for structures whose change is none of shape: lesions, which appear, and what the template lacks.
    """
    of_labels = pd.DataFrame({visit.scan: visit.together.set_index("SegId")["Volume_mm3"] for visit in visits}).T
    relative = pd.DataFrame([visit.relative for visit in visits], index=of_labels.index, dtype=float)
    relative = relative.reindex(columns=of_labels.columns.difference(_NO_SHAPE)).reindex(columns=of_labels.columns)
    known = of_labels.columns[relative.notna().all() & of_labels.gt(0).all()]
    out = of_labels.astype(float)
    out[known] = relative[known] * (of_labels[known] / relative[known]).mean()
    return out


def both_volumes(labels: np.ndarray, shapes: np.ndarray, structures: np.ndarray) -> np.ndarray:
    """Return volumes by labels and shape: a weighted geometric mean for ``BY_BOTH`` and subfields, else by labels.

    Errors of labels and of a deformation have little in common, so that together they repeat better than either; what
    labels miss of a change is about what the deformation says too much. Within a hippocampus there is nothing that a
    deformation could follow: its subfields all change by what shape says of their sum.

    Parameters
    ----------
    labels, shapes : float (S,)
        Volumes of one visit, mm3.
    structures : int (S,)
        FreeSurfer's labels.

    Examples
    --------
    >>> volumes = both_volumes(np.array([3800.0, 3800.0]), np.array([4000.0, 4000.0]), np.array([17, 10]))
    >>> volumes.round(1).tolist()
    [3938.9, 3800.0]
    """
    ratio = np.divide(shapes, labels, out=np.ones(len(labels)), where=np.isin(structures, BY_BOTH) & (labels > 0))
    for first in SUBFIELDS_FROM.values():
        side = (structures > first) & (structures < first + 1000)
        if labels[side].sum() > 0:
            ratio[side] = shapes[side].sum() / labels[side].sum()
    return labels * ratio**SHAPE_SHARE


def _rows(visit: VisitTable, start: float | None, first: pd.Series, shapes: pd.DataFrame) -> pd.DataFrame:
    table = visit.together
    of_labels, by_shape = table["Volume_mm3"].to_numpy(float), shapes.loc[visit.scan, table["SegId"]].to_numpy(float)
    volume, before = _volumes(visit, shapes).to_numpy(), first.reindex(table["SegId"]).to_numpy(float)
    alone = visit.alone.set_index("SegId")["Volume_mm3"].reindex(table["SegId"]).to_numpy(float)
    times = (start, visit.years)
    interval = np.nan if None in times else times[1] - times[0]
    change = volume - before
    rows = {
        "session_id": f"ses-{visit.session}",
        "scan": visit.scan,
        "years": np.nan if visit.years is None else visit.years,
        "SegId": table["SegId"].to_numpy(),
        "StructName": table["StructName"].to_numpy(),
        "Volume_mm3": volume,
        "LabelVolume_mm3": of_labels,
        "ShapeVolume_mm3": by_shape,
        "CrossSectionalVolume_mm3": alone,
        "Change_mm3": change,
        "Change_percent": _percent(change, before),
        "AnnualSymmetrizedChange_percent": annual_symmetrized_change(before, volume, interval),
        "MeanPosterior": table["MeanPosterior"].to_numpy(float),
    }
    return pd.DataFrame(rows)[list(COLUMNS)]


def _volumes(visit: VisitTable, shapes: pd.DataFrame) -> pd.Series:
    """Return a visit's volumes by label, of all visits processed together."""
    labels = visit.together.set_index("SegId")["Volume_mm3"].astype(float)
    of_shape = shapes.loc[visit.scan].reindex(labels.index).to_numpy(float)
    return pd.Series(both_volumes(labels.to_numpy(), of_shape, labels.index.to_numpy()), labels.index)


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
    """Return the change a year in percent of the mean of two volumes; NaN without an interval of ``LEAST_DAYS``.

    Swapping the visits only changes the sign, unlike percent of the first volume, which is noisier.

    Examples
    --------
    >>> annual_symmetrized_change(np.array([1100.0]), np.array([900.0]), 2.0).tolist()
    [-10.0]
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if not years >= _LEAST_YEARS:
        return np.full(len(first), np.nan)
    return _percent((second - first) / years, (first + second) / 2)


def annual_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per structure: the slope of a straight line through all visits whose time is known.

    NaN where these are not ``LEAST_DAYS`` apart.

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
        if len(known) > 1 and np.ptp(years) >= _LEAST_YEARS:
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
