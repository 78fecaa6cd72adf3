"""How the cases rose while the network trained: a chart for the card."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from medsegmamba_bids.evaluation.card.cases import read_columns
from medsegmamba_bids.evaluation.compare.charts import STYLE, colour, to_svg

_EARLY = 1000  # steps; later ones are drawn by their logarithm
_COLUMNS = ("weights", "steps", "case", "dice")


def read_curve(path: Path) -> pd.DataFrame:
    """Return a table of the training: ``weights`` (a name for them), ``steps`` since version 1, ``case``, ``dice``.

    Raises
    ------
    CaseError
        There is no such file, or it lacks a column.
    """
    return read_columns(path, "the training", _COLUMNS).sort_values("steps", kind="stable")


def training_curve(rows: pd.DataFrame) -> str:
    """Return the chart as SVG: mean Dice of each case against steps of training, and the mean of all.

    Weights that were not measured on every case are crosses beside the lines.

    Parameters
    ----------
    rows : pandas.DataFrame
        As :func:`read_curve` returns it.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        everywhere = rows.groupby("steps")["case"].transform("nunique") == rows["case"].nunique()
        for number, (case, part) in enumerate(rows.groupby("case", sort=True)):
            joined, alone = part[everywhere[part.index]], part[~everywhere[part.index]]
            axes.plot(joined["steps"], joined["dice"], ".-", color=colour(number), label=case, linewidth=1.2)
            axes.plot(alone["steps"], alone["dice"], "x", color=colour(number), markersize=5)
        means = rows[everywhere].groupby("steps")["dice"].mean()
        axes.plot(means.index, means, "o-", color="black", label="mean", linewidth=2)
        for steps, names in rows.groupby("steps")["weights"].unique().items():
            axes.axvline(steps, color="#d5dade", linewidth=0.8, zorder=0)
            axes.annotate(
                f" {names[0]}", (steps, 0), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="bottom"
            )
        axes.set_xscale("symlog", linthresh=_EARLY)
        axes.set_xticks(
            steps := sorted(rows["steps"].unique()),
            [f"{n:,}" for n in steps],
            rotation=60,
            ha="right",
            rotation_mode="anchor",
            fontsize=7,
        )
        axes.set_xlim(-0.1 * _EARLY, 1.4 * steps[-1])
        axes.minorticks_off()
        axes.set(xlabel="steps of training", ylabel="mean Dice of 28 structures")
        figure.legend(loc="outside right center", frameon=False)
        return to_svg(figure)
