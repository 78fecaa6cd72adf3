"""Figures of a comparison, and one page with all of it that needs no other file."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from medsegmamba_bids import __version__
from medsegmamba_bids.datasets.places import find_images
from medsegmamba_bids.datasets.scan_names import ScanName, listed
from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.evaluation.compare import charts
from medsegmamba_bids.evaluation.compare import side_by_side as pictures
from medsegmamba_bids.evaluation.compare.comparison_tables import Results, p_text
from medsegmamba_bids.evaluation.compare.significance import CORRECTIONS
from medsegmamba_bids.evaluation.compare.study import Item
from medsegmamba_bids.evaluation.compare.summary import (
    MEASURES,
    OVERALL,
    paper_cells,
    paper_header,
    plus_minus,
    with_absolute_error,
)
from medsegmamba_bids.image.io import atomic_path, write_text
from medsegmamba_bids.segmentations import of_table
from medsegmamba_bids.viz.encoding import colors_of, svg_uri, to_uri
from medsegmamba_bids.viz.templates import render

PAGE = "evaluation.html"
_FEW_SCANS = 6  # below, no p can fall under 0.05


@dataclass
class Figures:
    """Charts as SVG and pictures as arrays, by the names of their files without extension.

    Attributes
    ----------
    charts : dict of str to str
    pictures : dict of str to uint8 (H, W, 3)
    shown : str
        The scan of the pictures.
    """

    charts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    shown: str = ""


def draw(results: Results, items: Sequence[Item], show: str = "") -> Figures:
    """Draw everything.

    Parameters
    ----------
    results : Results
    items : sequence of Item
        The scans.
    show : str
        The scan that is drawn; by default the one whose mean Dice is in the middle.
    """
    item = choose_scan(results, items, show)
    rows = with_absolute_error(results.rows)
    drawn = {"scans": charts.scan_boxes(results.means)}
    drawn |= {f"structures_{measure}": charts.structure_boxes(rows, measure) for measure in MEASURES}
    drawn["bland_altman"] = charts.bland_altman_plots(results.rows)
    sides = pictures.load_side_by_side(item, results.settings, image_of(item))
    shown = {
        "slices": pictures.draw_slices(sides),
        "differences": pictures.draw_differences(sides),
        "views": pictures.draw_views(sides),
    }
    return Figures(drawn, shown, f"{item.name} of {item.dataset}")


def check_shown(items: Sequence[Item], show: str) -> Item:
    """Return the scan that is to be drawn, by its name or its participant's.

    Raises
    ------
    EvaluationError
        There is none.
    """
    for item in items:
        if show in (str(item.name), item.name.shown_participant, item.name.participant):
            return item
    raise EvaluationError(f"--show {show}: no such scan; there are {listed(item.name for item in items)}")


def choose_scan(results: Results, items: Sequence[Item], show: str = "") -> Item:
    """Return the scan that is drawn: the one that is named, else the one whose Dice (mean of the methods) is in the
    middle.

    One that could not be compared cannot be drawn either; the middle one takes its place.
    """
    dice = results.means.groupby(["dataset", "scan"], sort=False)["dice"].mean().sort_values(kind="stable")
    compared = {(item.dataset, str(item.name)): item for item in items if (item.dataset, str(item.name)) in dice.index}
    if show:
        named = check_shown(items, show)
        if named in compared.values():
            return named
    return compared[dice.index[len(dice) // 2]]


def image_of(item: Item) -> Path | None:
    """Return a T1-weighted image of a scan: where the user said, else beside the reference's or a method's labels."""
    source = item.source
    if source is None:
        return None
    if source.images:
        return _fitting(item.name, find_images(source.images))
    for place in (source.reference, *source.methods.values()):
        # A pattern or a file names label images.
        if Path(place).is_dir() and (file := _fitting(item.name, find_images(place))) is not None:
            return file
    return None


def _fitting(name: ScanName, images: dict[ScanName, Path]) -> Path | None:
    if name in images:
        return images[name]
    fitting = [file for other, file in images.items() if name.fits(other)]
    return fitting[0] if len(fitting) == 1 else None


def write_figures(figures: Figures, folder: Path) -> None:
    """Write charts as SVG and pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in figures.charts.items():
        write_text(folder / f"{name}.svg", text)
    for name, picture in figures.pictures.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            Image.fromarray(picture).save(temporary)


def write_page(results: Results, figures: Figures, path: Path) -> None:
    """Write the page."""
    text = render("evaluation.html.jinja", **page_values(results, figures))
    write_text(path, text)


def page_values(results: Results, figures: Figures) -> dict[str, Any]:
    """Return what the template needs."""
    settings = results.settings
    return {
        "version": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "title": of_table(settings.table).titles[settings.table],
        "results": results,
        "counts": _counts(results),
        "without": [name for label, name in settings.label_table.structures.items() if label in settings.without],
        "header": paper_header(),
        "lines": _shaded(paper_cells(results.summary)),
        "colours": {method: charts.colour(number) for number, method in enumerate(results.methods)},
        "tests": _test_lines(results),
        "tested": int(results.tests["participants"].max()) if len(results.tests) else 0,
        "few": _FEW_SCANS,
        "structure_tests": _small_p(results.structure_tests),
        "correction": CORRECTIONS[results.correction],
        "measures": {name: charts.title_of(name) for name in MEASURES},
        "structures": _structure_lines(results),
        "agreement": _over_all_datasets(results.agreement),
        "repeatability": _over_all_datasets(results.repeatability),
        "charts": {name: svg_uri(text) for name, text in figures.charts.items()},
        "pictures": {name: _picture(picture) for name, picture in figures.pictures.items()},
        "shown": figures.shown,
    }


def _counts(results: Results) -> list[tuple[int, str, bool]]:
    """Return numbers at the head of the page: value, what it counts, and whether it is a warning."""
    rows = results.rows
    participants = len(rows.drop_duplicates(["dataset", "participant"]))
    return [
        (len(results.methods), "methods", False),
        (participants, "participants", False),
        (results.scans, "scans", False),
        (rows["dataset"].nunique(), "datasets", False),
        (len(results.settings.structures), "structures", False),
        (len(results.problems), "scans not comparable", bool(results.problems)),
    ]


def _shaded(lines: list[list[str]]) -> list[dict[str, Any]]:
    """Return lines of the table; a dataset is named once."""
    rows, last = [], None
    for cells in lines:
        rows.append({"cells": cells, "first": cells[0] != last, "overall": cells[0] == OVERALL})
        last = cells[0]
    return rows


def _test_lines(results: Results) -> list[dict[str, Any]]:
    """Return a line per dataset and pair of methods, with p of every measure."""
    if not len(results.tests):
        return []
    lines = []
    for (dataset, first, second), part in results.tests.groupby(["dataset", "method_a", "method_b"], sort=False):
        by_measure = part.set_index("measure").to_dict("index")
        cells = []
        for measure in MEASURES:
            line = by_measure[measure]
            small = line["p_corrected"] < 0.05
            cells.append({"text": p_text(line, "p_corrected"), "small": small, "better": _better(line, measure)})
        count = int(part["participants"].max())
        lines.append({"dataset": dataset, "one": first, "other": second, "n": count, "cells": cells})
    return lines


def _better(line: dict[str, Any], measure: str) -> str:
    """Return the method with the better mean."""
    if math.isnan(line["mean_a"]) or line["mean_a"] == line["mean_b"]:
        return ""
    upwards = "↑" in MEASURES[measure][0]
    return line["method_a"] if (line["mean_a"] > line["mean_b"]) == upwards else line["method_b"]


def _small_p(tests: pd.DataFrame) -> list[dict[str, Any]]:
    """Return in how many structures each pair differs, by dataset and measure."""
    if not len(tests):
        return []
    lines = []
    for (dataset, first, second), part in tests.groupby(["dataset", "method_a", "method_b"], sort=False):
        cells = []
        for measure in MEASURES:
            own = part[part["measure"] == measure]
            cells.append(f"{int((own['p_corrected'] < 0.05).sum())} of {int(own['p'].notna().sum())}")
        lines.append({"dataset": dataset, "one": first, "other": second, "cells": cells})
    return lines


def _structure_lines(results: Results) -> list[dict[str, Any]]:
    """Return a line per structure and method."""
    colors = colors_of(results.settings.table)
    lines = []
    for row in results.structures.to_dict("records"):
        cells = [
            plus_minus(row[f"{measure}_mean"], row[f"{measure}_sd"], 1 if unit == "%" else 3)
            for measure, (_, unit) in MEASURES.items()
        ]
        lines.append({**row, "color": colors[row["label"]], "cells": cells})
    return lines


def _over_all_datasets(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a line per structure and method; what is over all datasets stands last in a table."""
    return table[table["dataset"] == table["dataset"].iloc[-1]].to_dict("records") if len(table) else []


def _picture(array: np.ndarray) -> dict[str, Any]:
    return {"uri": to_uri(array, quality=88), "height": array.shape[0], "width": array.shape[1]}
