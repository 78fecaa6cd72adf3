"""``medsegmamba-evaluate compare`` from what is asked for to its files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.evaluation.compare.comparison_page import PAGE, check_shown, draw, write_figures, write_page
from medsegmamba_bids.evaluation.compare.comparison_tables import Results, write_tables
from medsegmamba_bids.evaluation.compare.scans import Settings, compare_all
from medsegmamba_bids.evaluation.compare.study import Dataset, Item, divide, match_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is to be compared, and what is written of it.

    Attributes
    ----------
    datasets : list of Dataset
    settings : Settings
    out : Path
        Folder of the tables, the figures and the page.
    participants : Path or None
        Table that says who is of which dataset.
    dataset_column : str
        Its column with the dataset; empty where datasets are as they are.
    correction : str
        Of the tests for multiple comparisons.
    nprocs : int
        Scans that are compared at the same time.
    figures : bool
        Whether figures and the page are written.
    show : str
        Scan that is drawn; empty for the one of median Dice.
    """

    datasets: list[Dataset]
    settings: Settings
    out: Path
    participants: Path | None = None
    dataset_column: str = ""
    correction: str = "none"
    nprocs: int = 1
    figures: bool = True
    show: str = ""


def run(request: Request) -> Results:
    """Compare and write.

    Raises
    ------
    EvaluationError, ImageError
        A place cannot be used, or no scan can be compared.
    """
    items, notes = find_items(request)
    if request.show:
        check_shown(items, request.show)
    results = compare(items, request.settings, notes, request.correction, request.nprocs)
    write_tables(results, request.out)
    if request.figures:
        figures = draw(results, items, request.show)
        write_figures(figures, request.out / "figures")
        write_page(results, figures, request.out / PAGE)
    for sentence in (*results.notes, *results.problems):
        logger.warning("%s", sentence)
    logger.info("wrote %s", request.out)
    return results


def find_items(request: Request) -> tuple[list[Item], list[str]]:
    """Return scans of all datasets, and what to know of them."""
    items, notes = [], []
    for dataset in request.datasets:
        matched, sentences = match_dataset(dataset, request.settings.table)
        items += matched
        notes += sentences
    if request.dataset_column:
        items = divide(items, request.participants, request.dataset_column)
    return items, notes


def compare(items: list[Item], settings: Settings, notes: list[str], correction: str, nprocs: int) -> Results:
    """Compare all scans.

    Raises
    ------
    EvaluationError
        None could be compared.
    """
    compared = list(compare_all(items, settings, nprocs))
    problems = [scan.problem for scan in compared if scan.problem]
    parts = [scan.rows for scan in compared if scan.rows is not None]
    if not parts:
        raise EvaluationError("no scan could be compared:\n" + "\n".join(problems))
    notes = [*notes, *(sentence for scan in compared for sentence in scan.notes)]
    return Results(settings, pd.concat(parts, ignore_index=True), notes, problems, correction)
