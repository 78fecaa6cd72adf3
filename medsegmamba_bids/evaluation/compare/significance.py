"""Wilcoxon signed-rank tests between methods, paired by participant."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.evaluation.compare.summary import MEASURES, by_dataset, with_absolute_error

CORRECTIONS = {
    "none": "not corrected for multiple comparisons",
    "bonferroni": "Bonferroni",
    "holm": "Holm (family-wise error)",
    "fdr": "Benjamini-Hochberg (false discovery rate)",
}
ALL = "all"
_DECIMALS = 12  # differences below are rounding


def compare_methods(rows: pd.DataFrame, correction: str = "none", each_structure: bool = False) -> pd.DataFrame:
    """Compare every pair of methods in every measure.

    A participant counts once: the values of a scan are averaged over the structures that have one by both
    methods, and scans over the participant. Where a method lacks structures, surface distances are therefore
    compared on the others.

    Parameters
    ----------
    rows : pandas.DataFrame
        The long table.
    correction : str
        One of ``CORRECTIONS``; over all p of a measure and dataset that are asked for together.
    each_structure : bool
        Test every structure on its own instead of their mean.

    Returns
    -------
    pandas.DataFrame
        ``dataset``, ``measure``, ``structure``, ``method_a``, ``method_b``, ``participants``, ``mean_a``,
        ``mean_b``, ``median_difference`` (a minus b), ``statistic``, ``p``, ``p_corrected``, ``correction``.
        p is NaN where both methods are equal for all participants.
    """
    rows = with_absolute_error(rows)
    pairs = list(itertools.combinations(dict.fromkeys(rows["method"]), 2))
    lines = []
    for dataset, part in by_dataset(rows):
        for measure in MEASURES:
            index = ["dataset", "participant", "scan", "structure"]
            wide = part.pivot(index=index, columns="method", values=measure)
            groups = wide.groupby(level="structure") if each_structure else [(ALL, wide)]
            family = []
            for (structure, values), (first, second) in itertools.product(groups, pairs):
                values = _paired(values, first, second)
                line = {"dataset": dataset, "measure": measure, "structure": structure}
                family.append(line | {"method_a": first, "method_b": second} | _tested(values[first], values[second]))
            corrected = correct([line["p"] for line in family], correction)
            lines += [line | {"p_corrected": p} for line, p in zip(family, corrected, strict=True)]
    return pd.DataFrame(lines).assign(correction=correction) if lines else pd.DataFrame()


def _paired(wide: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return values of two methods, a row per participant that has both."""
    both = wide[[first, second]].dropna()
    scans = both.groupby(level=["dataset", "participant", "scan"]).mean()
    return scans.groupby(level=["dataset", "participant"]).mean()


def _tested(first: pd.Series, second: pd.Series) -> dict[str, float]:
    difference = (first - second).to_numpy().round(_DECIMALS)
    result = {
        "participants": len(difference),
        "mean_a": first.mean(),
        "mean_b": second.mean(),
        "median_difference": float(np.median(difference)) if len(difference) else math.nan,
        "statistic": math.nan,
        "p": math.nan,
    }
    if difference.any():
        test = stats.wilcoxon(difference)
        result |= {"statistic": float(test.statistic), "p": float(test.pvalue)}
    return result


def correct(p_values: list[float], correction: str) -> list[float]:
    """Return values of p corrected for their number; missing ones stay missing and do not count.

    Raises
    ------
    EvaluationError
        The correction is unknown.

    Examples
    --------
    >>> correct([0.01, 0.04, 0.03], "holm")
    [0.03, 0.06, 0.06]
    >>> correct([0.01, 0.04, float("nan")], "bonferroni")
    [0.02, 0.08, nan]
    """
    if correction not in CORRECTIONS:
        raise EvaluationError(f"the correction {correction!r} is unknown; there are {', '.join(CORRECTIONS)}")
    p = np.array(p_values, float)
    known = np.flatnonzero(~np.isnan(p))
    ascending = known[np.argsort(p[known], kind="stable")]
    n, rank = len(ascending), np.arange(1, len(ascending) + 1)
    if correction == "bonferroni":
        p[ascending] *= n
    elif correction == "holm":
        p[ascending] = np.maximum.accumulate(p[ascending] * (n - rank + 1))
    elif correction == "fdr":
        p[ascending] = np.minimum.accumulate((p[ascending] * n / rank)[::-1])[::-1]
    return np.minimum(p, 1).tolist()
