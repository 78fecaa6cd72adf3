"""From the long table to the paper's: means over the structures of a scan, then mean and deviation over scans."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

#: What is summarised, by column of the long table: title with the better direction, and the unit.
MEASURES = {
    "dice": ("DSC ↑", ""),
    "volume_similarity": ("VS ↑", ""),
    "assd_mm": ("ASSD ↓", "mm"),
    "hd95_mm": ("HD95 ↓", "mm"),
    "abs_error_percent": ("Volume error ↓", "%"),
}
OVERALL = "Overall"
SCAN = ["dataset", "participant", "session", "scan"]


def with_absolute_error(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the long table with a column for the size of the volume error, in percent of the reference."""
    return rows.assign(abs_error_percent=rows["error_percent"].abs())


def scan_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean over the structures of every scan and method.

    A structure that both sides lack counts for nothing; one that a single side lacks counts as Dice 0 and volume
    similarity 0, and has no surface distances: ``undefined`` says how many there are of these.

    Parameters
    ----------
    rows : pandas.DataFrame
        The long table.

    Returns
    -------
    pandas.DataFrame
        A row per scan and method: ``MEASURES``, ``structures`` and ``undefined``.
    """
    rows = with_absolute_error(rows[rows["dice"].notna()])
    groups = rows.groupby([*SCAN, "method"], sort=False)
    means = groups[list(MEASURES)].mean()
    means["structures"] = groups.size()
    means["undefined"] = means["structures"] - groups["assd_mm"].count()
    return means.reset_index()


def by_dataset(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every dataset's rows, and all of them where there are several datasets."""
    yield from rows.groupby("dataset", sort=False)
    if rows["dataset"].nunique() > 1:
        yield OVERALL, rows


def summarise(means: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation (over scans, n - 1) of every dataset and method, in their order.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``method``, ``scans``; ``<measure>_mean`` and ``<measure>_sd``; ``undefined``.
    """
    lines = []
    for dataset, part in by_dataset(means):
        for method, group in part.groupby("method", sort=False):
            line = {"dataset": dataset, "method": method, "scans": len(group)}
            for measure in MEASURES:
                line |= {f"{measure}_mean": group[measure].mean(), f"{measure}_sd": group[measure].std()}
            lines.append(line | {"undefined": int(group["undefined"].sum())})
    return pd.DataFrame(lines)


def by_structure(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the same of every structure: mean and standard deviation over the scans of all datasets.

    ``missed`` counts scans whose reference has the structure and the method has not, ``extra`` the opposite.
    """
    rows = with_absolute_error(rows)
    lines = []
    for (label, structure, method), group in rows.groupby(["label", "structure", "method"], sort=False):
        there, found = group["reference_mm3"] > 0, group["found_mm3"] > 0
        line = {"label": label, "structure": structure, "method": method, "scans": int(group["dice"].notna().sum())}
        for measure in MEASURES:
            line |= {f"{measure}_mean": group[measure].mean(), f"{measure}_sd": group[measure].std()}
        lines.append(line | {"missed": int((there & ~found).sum()), "extra": int((~there & found).sum())})
    return pd.DataFrame(lines)


def plus_minus(mean: float, deviation: float, decimals: int = 5) -> str:
    """Return mean and standard deviation as the paper's tables print them.

    Examples
    --------
    >>> plus_minus(0.883834, 0.0211), plus_minus(0.5, float("nan")), plus_minus(float("nan"), 1)
    ('0.88383±0.021', '0.50000', '–')
    """
    if mean != mean:
        return "–"
    spread = "" if deviation != deviation else f"±{deviation:.{max(decimals - 2, 1)}f}"
    return f"{mean:.{decimals}f}{spread}"


def paper_cells(summary: pd.DataFrame) -> list[list[str]]:
    """Return lines of the table as text: dataset, method, scans, the measures, and structures without distances."""
    lines = []
    for row in summary.to_dict("records"):
        cells = [
            plus_minus(row[f"{measure}_mean"], row[f"{measure}_sd"], 5 if unit != "%" else 2)
            for measure, (_, unit) in MEASURES.items()
        ]
        lines.append([row["dataset"], row["method"], str(row["scans"]), *cells, str(row["undefined"])])
    return lines


def paper_header() -> list[str]:
    """Return titles of the columns of :func:`paper_cells`."""
    titles = [f"{title} ({unit})" if unit else title for title, unit in MEASURES.values()]
    return ["Dataset", "Method", "Scans", *titles, "No distance"]
