"""Charts of a comparison as SVG: box plots over scans and structures, Bland-Altman plots."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medsegmamba_bids.evaluation.compare.summary import MEASURES, by_dataset
from medsegmamba_bids.evaluation.compare.volume_agreement import bland_altman

#: Okabe and Ito's colours, told apart by most eyes; repeated where there are more methods.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31")
_FEW = 30  # scans that are drawn as dots as well
#: Of all figures.
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "medsegmamba",  # equal numbers give equal files
}


def title_of(measure: str) -> str:
    """Return the title of a measure with its unit."""
    title, unit = MEASURES[measure]
    return f"{title} ({unit})" if unit else title


def colour(number: int) -> str:
    """Return the colour of a method by its position."""
    return COLOURS[number % len(COLOURS)]


def scan_boxes(means: pd.DataFrame, measures: Sequence[str] = ("dice", "volume_similarity", "assd_mm")) -> str:
    """Return box plots of every scan's means, by dataset and method; a panel per measure.

    Parameters
    ----------
    means : pandas.DataFrame
        From :func:`~medsegmamba_bids.evaluation.compare.summary.scan_means`.
    measures : sequence of str
    """
    datasets = dict(by_dataset(means))
    methods = list(dict.fromkeys(means["method"]))
    with mpl.rc_context(STYLE):
        width = max(3.4, 0.5 + 0.42 * len(datasets) * len(methods))
        figure = Figure(figsize=(min(width * len(measures), 13), 3.4), layout="constrained")
        for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures, strict=True):
            values = [[part.loc[part["method"] == method, measure] for method in methods] for part in datasets.values()]
            _draw_boxes(axes, values)
            axes.set_xticks(range(len(datasets)), list(datasets), rotation=30 if len(datasets) > 2 else 0)
            axes.set_title(title_of(measure), loc="left", fontweight="bold")
        _legend(figure, methods)
        return to_svg(figure)


def structure_boxes(rows: pd.DataFrame, measure: str) -> str:
    """Return box plots of one measure by structure and method, over the scans of all datasets.

    Parameters
    ----------
    rows : pandas.DataFrame
        The long table, with ``abs_error_percent`` where that is the measure.
    measure : str
        Of ``MEASURES``.
    """
    methods, structures = list(dict.fromkeys(rows["method"])), list(dict.fromkeys(rows["structure"]))
    groups = {key: group[measure] for key, group in rows.groupby(["structure", "method"], sort=False)}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 4.3), layout="constrained")
        axes = figure.subplots()
        _draw_boxes(axes, [[groups[structure, method] for method in methods] for structure in structures])
        axes.set_xticks(range(len(structures)), structures, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_title(title_of(measure), loc="left", fontweight="bold")
        for middle in range(1, len(structures), 2):
            axes.axvspan(middle - 0.5, middle + 0.5, color="#f3f5f7", zorder=0)
        axes.set_xlim(-0.6, len(structures) - 0.4)
        _legend(figure, methods)
        return to_svg(figure)


def _draw_boxes(axes: Axes, values: Sequence[Sequence[pd.Series]]) -> None:
    """Draw boxes (quartiles, whiskers to 1.5 times their range) in groups, a colour per place within its group."""
    width = min(0.8 / max(len(group) for group in values), 0.35)
    random = np.random.default_rng(0)
    for place, group in enumerate(values):
        for number, series in enumerate(group):
            known = series.dropna().to_numpy(float)
            if not known.size:
                continue
            at = place + (number - (len(group) - 1) / 2) * width
            shade = colour(number)
            few = len(known) <= _FEW
            axes.boxplot(known, positions=[at], widths=width * 0.8, showfliers=not few, **_box_style(shade))
            if few:
                spread = at + width * 0.2 * random.uniform(-1, 1, len(known))
                axes.plot(spread, known, ".", color=shade, markersize=3.5, alpha=0.8)
    axes.grid(axis="y", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)


def _box_style(shade: str) -> dict[str, object]:
    line = {"color": shade, "linewidth": 1}
    return {
        "patch_artist": True,
        "manage_ticks": False,
        "boxprops": {"facecolor": shade + "40", "edgecolor": shade, "linewidth": 1},
        "whiskerprops": line,
        "capprops": line,
        "medianprops": {**line, "linewidth": 1.8},
        "flierprops": {"marker": ".", "markersize": 2.5, "markeredgecolor": shade},
    }


def bland_altman_plots(rows: pd.DataFrame, columns: int = 6) -> str:
    """Return a Bland-Altman plot per structure, methods in colour: bias as a line, limits of agreement as dashes.

    Parameters
    ----------
    rows : pandas.DataFrame
        The long table.
    columns : int
        Panels in a row.
    """
    rows = rows[rows["dice"].notna()]
    methods, structures = list(dict.fromkeys(rows["method"])), list(dict.fromkeys(rows["structure"]))
    with mpl.rc_context({**STYLE, "font.size": 7.5}):
        lines = -(-len(structures) // columns)
        figure = Figure(figsize=(13, 1.75 * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, structure in zip(panels, structures, strict=False):
            part = rows[rows["structure"] == structure]
            for number, method in enumerate(methods):
                _draw_agreement(axes, part[part["method"] == method], colour(number))
            axes.axhline(0, color="#9aa4ae", linewidth=0.7, zorder=0)
            axes.set_title(structure, loc="left", fontsize=8)
            axes.margins(x=0.08, y=0.15)
            axes.locator_params(nbins=4)
        for axes in panels[len(structures) :]:
            axes.set_axis_off()
        figure.supxlabel("mean of method and reference (mm³)")
        figure.supylabel("method − reference (mm³)")
        _legend(figure, methods)
        return to_svg(figure)


def _draw_agreement(axes: Axes, part: pd.DataFrame, shade: str) -> None:
    found, reference = part["found_mm3"].to_numpy(float), part["reference_mm3"].to_numpy(float)
    if not len(found):
        return
    axes.plot((found + reference) / 2, found - reference, ".", color=shade, markersize=3.5, alpha=0.75)
    limits = bland_altman(found, reference)
    axes.axhline(limits["bias_mm3"], color=shade, linewidth=1.1)
    if len(found) > 2:
        for key in ("lower_mm3", "upper_mm3"):
            axes.axhline(limits[key], color=shade, linewidth=0.8, linestyle=(0, (4, 3)))


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=colour(number), marker="s", linestyle="") for number in range(len(methods))]
    figure.legend(marks, methods, loc="outside upper right", ncols=min(len(methods), 6), frameon=False)


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG, equal for equal numbers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
