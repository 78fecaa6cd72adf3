"""How the cases rose while the network trained: a chart for the card."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from medsegmamba_bids.evaluation.card.cases import read_columns
from medsegmamba_bids.evaluation.compare.charts import STYLE, colour, to_svg

_COLUMNS = ("weights", "steps", "case", "dice")
_LETTERS = 100  # of names beside each other


def read_curve(path: Path) -> pd.DataFrame:
    """Return a table of the training: ``weights`` (a name for them), ``steps`` since version 1, ``case``, ``dice``.

    Its order is that in which the weights were made; where a training began anew, its steps are fewer again.

    Raises
    ------
    CaseError
        There is no such file, or it lacks a column.
    """
    return read_columns(path, "the training", _COLUMNS)


def training_curve(rows: pd.DataFrame) -> str:
    """Return the chart as SVG: mean Dice of each case by weights in the order of the table, and the mean of all.

    Weights are as far apart as their names need; those that were not measured on every case are crosses.

    Parameters
    ----------
    rows : pandas.DataFrame
        As :func:`read_curve` returns it.
    """
    rows = rows.assign(column=pd.factorize(rows["weights"])[0]).sort_values("column", kind="stable")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        everywhere = rows.groupby("column")["case"].transform("nunique") == rows["case"].nunique()
        for number, (case, part) in enumerate(rows.groupby("case", sort=True)):
            joined, alone = part[everywhere[part.index]], part[~everywhere[part.index]]
            axes.plot(joined["column"], joined["dice"], ".-", color=colour(number), label=case, linewidth=1.2)
            axes.plot(alone["column"], alone["dice"], "x", color=colour(number), markersize=5)
        means = rows[everywhere].groupby("column")["dice"].mean()
        axes.plot(means.index, means, "o-", color="black", label="mean", linewidth=2)
        measured = rows.drop_duplicates("column")
        width = max(8, _LETTERS // len(measured))
        names = [f"{fill(row.weights, width)}\n{row.steps:,} steps" for row in measured.itertuples()]
        axes.set_xticks(measured["column"], names, fontsize=7)
        axes.grid(axis="x", color="#d5dade", linewidth=0.8)
        axes.set(ylabel="mean Dice of 28 structures")
        figure.legend(loc="outside right center", frameon=False)
        return to_svg(figure)
