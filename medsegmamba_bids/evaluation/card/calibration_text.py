"""The card's section on calibration: a table of structures, and the reliability diagram."""

from __future__ import annotations

import re

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medsegmamba_bids.evaluation.card.calibration import reliability
from medsegmamba_bids.evaluation.card.card_text import counted_labels, table
from medsegmamba_bids.evaluation.card.temperature import leave_one_out, unscaled
from medsegmamba_bids.evaluation.compare.charts import STYLE, colour, to_svg

_COLUMNS = 5
_FEWEST = 50  # voxels of a bin that is drawn
_SIDE = re.compile("^(Left|Right)-")
NOT_MEASURED = "Not measured."


def calibration_table(rows: pd.DataFrame) -> str:
    """Return a line per structure, means of the cases: calibration errors, then sizes of the errors of volumes.

    Below it stands in how many structures scaling helps.

    Parameters
    ----------
    rows : pandas.DataFrame
        Counts of the cases that count; see ``calibration.COLUMNS``.
    """
    ways = {"as it is": unscaled(rows)}
    if rows["case"].nunique() > 1:
        ways |= {"temperature": leave_one_out(rows), "with bias": leave_one_out(rows, with_bias=True)}
    means = {way: _means(values) for way, values in ways.items()}
    plain = means["as it is"]
    columns = {f"ECE, {way}": values["ece"] for way, values in means.items()}
    columns |= {"labels, %": plain["labelled_percent"]}
    columns |= {f"soft, % ({way})": values["soft_percent"] for way, values in means.items()}
    wide = pd.DataFrame(columns)
    lines = [[name, *_texts(line)] for name, line in wide.iterrows()]
    counted = wide[wide.index.isin(_counted_names(rows))]
    lines.append(["mean of the 28", *_texts(counted.mean())])
    return "\n\n".join([table(["structure", *columns], lines), *_gains(counted, list(ways)[1:])])


def _gains(means: pd.DataFrame, ways: list[str]) -> list[str]:
    """Return how many structures a way of scaling makes better, a sentence for each way."""
    before = means[["ECE, as it is", "soft, % (as it is)"]].to_numpy()
    sentences = []
    for way in ways:
        ece, soft = (means[[f"ECE, {way}", f"soft, % ({way})"]].to_numpy() < before).sum(0)
        sentences.append(f"Better than as it is, {way}: ECE of {ece}, soft volume of {soft} of these {len(means)}.")
    return sentences


def _means(values: pd.DataFrame) -> pd.DataFrame:
    sizes = values.assign(**values[["soft_percent", "labelled_percent"]].abs())
    return sizes.groupby("structure", sort=False)[["ece", "soft_percent", "labelled_percent"]].mean()


def _counted_names(rows: pd.DataFrame) -> list[str]:
    return rows.loc[rows["label"].isin(counted_labels()), "structure"].unique().tolist()


def _texts(line: pd.Series) -> list[str]:
    return ["n/a" if pd.isna(value) else f"{value:{'.1f' if '%' in name else '.3f'}}" for name, value in line.items()]


def reliability_diagram(rows: pd.DataFrame) -> str:
    """Return the diagram as SVG: a panel per structure, both sides in it, all cases together.

    Below the diagonal posteriors are too high. Bins of few voxels are left out.
    """
    panels: dict[str, list[str]] = {}
    for structure in rows["structure"].unique():
        panels.setdefault(_SIDE.sub("", structure), []).append(structure)
    with mpl.rc_context({**STYLE, "font.size": 7}):
        lines = -(-len(panels) // _COLUMNS)
        figure = Figure(figsize=(1.6 * _COLUMNS, 1.65 * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, _COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (title, structures) in zip(grid, panels.items(), strict=False):
            _draw_panel(axes, title, [rows[rows["structure"] == structure] for structure in structures])
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("mean posterior")
        figure.supylabel("share that is the structure in the reference")
        return to_svg(figure)


def _draw_panel(axes: Axes, title: str, parts: list[pd.DataFrame]) -> None:
    axes.plot([0, 1], [0, 1], color="#9aa4ae", linewidth=0.8)
    for number, part in enumerate(parts):
        drawn = reliability(part)
        drawn = drawn[drawn["voxels"] >= _FEWEST]
        axes.plot(drawn["mean_posterior"], drawn["share"], ".-", color=colour(number), linewidth=1, markersize=3)
    axes.set_title(title, loc="left", fontsize=7)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
