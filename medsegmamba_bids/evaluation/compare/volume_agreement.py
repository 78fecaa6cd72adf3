"""Volumes against the reference's (Bland-Altman, correlation), and against themselves where scans repeat."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from medsegmamba_bids.evaluation.compare.study import REFERENCE
from medsegmamba_bids.evaluation.compare.summary import by_dataset

LIMITS = 1.96  # standard deviations around the bias
REPEATABILITY = 1.96 * math.sqrt(2)


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how volumes agree with the reference's.

    Bland and Altman's (1986, Lancet 327:307) bias and limits of agreement, Pearson's correlation and Lin's (1989,
    Biometrics 45:255) concordance; over scans. Absent structures have 0 mm3; scans where both lack the
    structure are left out.

    Parameters
    ----------
    rows : pandas.DataFrame
        The long table.

    Returns
    -------
    pandas.DataFrame
        A row per dataset, method and structure; volumes in mm3, the bias being method minus reference.
    """
    rows = rows[rows["dice"].notna()]
    lines = []
    for dataset, part in by_dataset(rows):
        for (label, structure, method), group in part.groupby(["label", "structure", "method"], sort=False):
            found, reference = group["found_mm3"].to_numpy(float), group["reference_mm3"].to_numpy(float)
            line = {"dataset": dataset, "label": label, "structure": structure, "method": method}
            lines.append(line | bland_altman(found, reference))
    return pd.DataFrame(lines)


def bland_altman(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return bias, limits of agreement, correlation and concordance of volumes, mm3; float (N,) each.

    Examples
    --------
    >>> result = bland_altman(np.array([11.0, 21, 31]), np.array([10.0, 20, 30]))
    >>> [round(result[key], 4) for key in ("bias_mm3", "sd_mm3", "pearson_r", "concordance")]
    [1.0, 0.0, 1.0, 0.9926]
    """
    difference = found - reference
    n, bias = len(difference), float(difference.mean())
    spread = float(difference.std(ddof=1)) if n > 1 else math.nan
    mean = float(reference.mean())
    return {
        "scans": n,
        "reference_mm3": mean,
        "bias_mm3": bias,
        "sd_mm3": spread,
        "lower_mm3": bias - LIMITS * spread,
        "upper_mm3": bias + LIMITS * spread,
        "bias_percent": 100 * bias / mean if mean else math.nan,
        "pearson_r": _pearson(found, reference),
        "concordance": _concordance(found, reference),
    }


def _pearson(found: np.ndarray, reference: np.ndarray) -> float:
    """Return Pearson's correlation; NaN for fewer than three pairs, or where one side does not vary."""
    if len(found) < 3 or not np.ptp(found) or not np.ptp(reference):
        return math.nan
    return float(np.corrcoef(found, reference)[0, 1])


def _concordance(found: np.ndarray, reference: np.ndarray) -> float:
    """Return Lin's concordance with variances over n; NaN for fewer than three pairs, or where nothing varies."""
    scatter = found.var() + reference.var() + (found.mean() - reference.mean()) ** 2
    if len(found) < 3 or not scatter:
        return math.nan
    return float(2 * np.mean((found - found.mean()) * (reference - reference.mean())) / scatter)


def repeatability(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how volumes repeat in participants with several scans; the reference's own too.

    Returns
    -------
    pandas.DataFrame
        A row per dataset, method (or ``reference``) and structure, see :func:`repeated`; empty where no scan
        repeats.
    """
    lines = []
    for dataset, part in by_dataset(rows):
        for (label, structure), group in part.groupby(["label", "structure"], sort=False):
            first = group.drop_duplicates(["dataset", "scan"])
            volumes = {REFERENCE: first.set_index(["dataset", "participant"])["reference_mm3"]}
            for method, own in group.groupby("method", sort=False):
                volumes[method] = own.set_index(["dataset", "participant"])["found_mm3"]
            for method, series in volumes.items():
                sets = [values.to_numpy(float) for _, values in series.groupby(level=[0, 1]) if len(values) > 1]
                if sets and any(values.any() for values in sets):
                    line = {"dataset": dataset, "label": label, "structure": structure, "method": method}
                    lines.append(line | repeated(sets))
    return pd.DataFrame(lines)


def repeated(sets: list[np.ndarray]) -> dict[str, float]:
    """Return the repeatability of volumes of participants with two scans or more each.

    ``within_sd_mm3`` is the root of the mean variance within participants (weighted by degrees of freedom),
    ``cv_percent`` its share of the mean, ``repeatability_mm3`` the difference that 95 % of pairs of scans stay
    below (Bland and Altman 1999, Statistical Methods in Medical Research 8:135), ``icc`` the intraclass
    correlation of one-way random effects, ICC(1,1) (Shrout and Fleiss 1979, Psychological Bulletin 86:420).

    Examples
    --------
    >>> result = repeated([np.array([10.0, 12]), np.array([20.0, 22]), np.array([30.0, 32])])
    >>> {key: round(value, 3) for key, value in result.items()}["icc"]
    0.98
    """
    sizes = np.array([len(values) for values in sets])
    means = np.array([values.mean() for values in sets])
    total, groups = int(sizes.sum()), len(sets)
    within = sum(float(((values - values.mean()) ** 2).sum()) for values in sets) / (total - groups)
    grand = float(np.concatenate(sets).mean())
    icc = math.nan
    if groups > 1:
        between = float((sizes * (means - grand) ** 2).sum()) / (groups - 1)
        size = (total - float((sizes**2).sum()) / total) / (groups - 1)
        scatter = between + (size - 1) * within
        icc = (between - within) / scatter if scatter else math.nan
    deviation = math.sqrt(within)
    return {
        "participants": groups,
        "scans": total,
        "mean_mm3": grand,
        "within_sd_mm3": deviation,
        "cv_percent": 100 * deviation / grand if grand else math.nan,
        "repeatability_mm3": REPEATABILITY * deviation,
        "icc": icc,
    }
