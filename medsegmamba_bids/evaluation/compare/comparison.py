"""``medsegmamba-evaluate compare`` from its options to its files."""

from __future__ import annotations

import argparse
import logging

import pandas as pd

from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.evaluation.compare.comparison_page import PAGE, check_shown, draw, write_figures, write_page
from medsegmamba_bids.evaluation.compare.results import Results, write_tables
from medsegmamba_bids.evaluation.compare.scans import Settings, compare_all
from medsegmamba_bids.evaluation.compare.study import Dataset, Item, divide, match_dataset, parse_methods, read_study

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> Results:
    """Compare and write.

    Raises
    ------
    EvaluationError, ImageError
        An option or a place cannot be used, or no scan can be compared.
    """
    if options.out.exists() and not options.out.is_dir():
        raise EvaluationError(f"{options.out}: is a file; --out names a folder")
    if options.nprocs < 1:
        raise EvaluationError(f"--nprocs {options.nprocs}: must be 1 or more")
    settings = Settings(options.table, tuple(options.without or ()), tuple(options.background or ()))
    items, notes = find_items(datasets_of(options), options)
    if options.show:
        check_shown(items, options.show)
    results = compare(items, settings, notes, options.correction, options.nprocs)
    write_tables(results, options.out)
    if not options.no_figures:
        figures = draw(results, items, options.show or "")
        write_figures(figures, options.out / "figures")
        write_page(results, figures, options.out / PAGE)
    for sentence in (*results.notes, *results.problems):
        logger.warning("%s", sentence)
    logger.info("wrote %s", options.out)
    return results


def datasets_of(options: argparse.Namespace) -> list[Dataset]:
    """Datasets of the command line, or of the file that it names."""
    if options.study:
        if options.reference or options.method:
            raise EvaluationError("--study names references and methods itself; leave --reference and --method out")
        if options.dataset_column:
            raise EvaluationError("--study names datasets itself; leave --dataset-column out")
        return read_study(options.study)
    if not options.reference or not options.method:
        raise EvaluationError("--reference and at least one --method are needed, or --study")
    methods = parse_methods(options.method)
    return [Dataset(options.dataset, options.reference, methods, options.images or "")]


def find_items(datasets: list[Dataset], options: argparse.Namespace) -> tuple[list[Item], list[str]]:
    """Scans of all datasets, and what to know of them."""
    items, notes = [], []
    for dataset in datasets:
        found, sentences = match_dataset(dataset, options.table)
        items += found
        notes += sentences
    if options.dataset_column:
        if not options.participants:
            raise EvaluationError("--dataset-column needs --participants, the table that has it")
        items = divide(items, options.participants, options.dataset_column)
    return items, notes


def compare(items: list[Item], settings: Settings, notes: list[str], correction: str, nprocs: int) -> Results:
    """Compare all scans.

    Raises
    ------
    EvaluationError
        None could be compared.
    """
    compared = list(compare_all(items, settings, nprocs))
    problems = [one.problem for one in compared if one.problem]
    parts = [one.rows for one in compared if one.rows is not None]
    if not parts:
        raise EvaluationError("no scan could be compared:\n" + "\n".join(problems))
    notes = [*notes, *(sentence for one in compared for sentence in one.notes)]
    return Results(settings, pd.concat(parts, ignore_index=True), notes, problems, correction)
