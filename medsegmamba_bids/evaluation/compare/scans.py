"""Scans compared with their reference, method by method: label images in, one long table out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import pandas as pd
from tqdm import tqdm

from medsegmamba_bids.datasets.label_images import LabelImage, read_on_grid, read_reference
from medsegmamba_bids.datasets.scan_names import listed
from medsegmamba_bids.errors import EvaluationError, UserError
from medsegmamba_bids.evaluation.compare.study import Item
from medsegmamba_bids.evaluation.metrics import COLUMNS as METRICS
from medsegmamba_bids.evaluation.metrics import structure_metrics
from medsegmamba_bids.image.labels import LabelTable, load_label_table
from medsegmamba_bids.segmentations import ASEG

#: Columns of the long table, which has a row per structure, method and scan.
COLUMNS = ("dataset", "participant", "session", "scan", "method", "structure", *METRICS, "resampled")


@dataclass(frozen=True)
class Settings:
    """How scans are compared.

    Attributes
    ----------
    table : str
        Name of the label table.
    without : tuple of int
        Its labels that are left out.
    background : tuple of int
        Labels outside the table that mean nothing.
    """

    table: str = ASEG.published
    without: tuple[int, ...] = ()
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        foreign = sorted(set(self.without) - set(self.label_table.labels[1:].tolist()))
        if foreign:
            raise EvaluationError(f"--without {listed(foreign)}: not structures of the table {self.table}")
        if not self.structures:
            raise EvaluationError(f"--without leaves no structure of the table {self.table}")

    @property
    def label_table(self) -> LabelTable:
        """The label table."""
        return load_label_table(self.table)

    @property
    def structures(self) -> dict[int, str]:
        """Names of the structures that are compared, by label."""
        return {label: name for label, name in self.label_table.structures.items() if label not in self.without}


@dataclass(frozen=True)
class Compared:
    """What came of a scan.

    Attributes
    ----------
    item : Item
    rows : pandas.DataFrame or None
        ``COLUMNS``; None for a scan that cannot be compared.
    notes : list of str
    problem : str
        Why it cannot be compared.
    """

    item: Item
    rows: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    problem: str = ""


def compare_all(items: list[Item], settings: Settings, nprocs: int = 1) -> Iterator[Compared]:
    """Compare scans in their order, several at a time where there are processes for it.

    A scan with an image that cannot be used is left out for all methods, so that methods stay comparable.
    """
    bar = {"total": len(items), "desc": "scans", "disable": None}
    if nprocs == 1 or len(items) == 1:
        yield from tqdm((compare_scan(item, settings) for item in items), **bar)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(nprocs, len(items)), mp_context=context) as pool:
        yield from tqdm(pool.map(compare_scan, items, [settings] * len(items)), **bar)


def compare_scan(item: Item, settings: Settings) -> Compared:
    """Compare one scan's labels by all methods with its reference."""
    table = settings.label_table
    try:
        reference = read_reference(item.reference, table, settings.background)
        parts, notes = [], []
        for method, files in item.methods.items():
            labels, resampled = read_on_grid(files, reference, table, settings.background)
            rows = compare_labels(labels, reference, settings)
            notes += _notes(f"{item.dataset}, {item.name}, {method}", rows, labels)
            parts.append(rows.assign(method=method, resampled="yes" if resampled else "no"))
    except (UserError, OSError) as error:  # as in cli.common: what a user can mend
        return Compared(item, problem=f"{item.dataset}, {item.name}: {error}")
    name = item.name
    rows = pd.concat(parts, ignore_index=True).assign(
        dataset=item.dataset, participant=name.shown_participant, session=name.session or "n/a", scan=str(name)
    )
    return Compared(item, rows[list(COLUMNS)], notes)


def compare_labels(labels: LabelImage, reference: LabelImage, settings: Settings) -> pd.DataFrame:
    """Return metrics of every structure, with its name."""
    rows = structure_metrics(labels.data, reference.data, reference.grid.edges, list(settings.structures))
    return rows.assign(structure=list(settings.structures.values()))


def _notes(where: str, rows: pd.DataFrame, labels: LabelImage) -> list[str]:
    """Return what is suspicious about a method's labels."""
    if not rows["found_mm3"].any():
        return [f"{where}: has none of the structures ({labels.path}); they count as Dice 0"]
    if rows["dice"].max() == 0:
        return [f"{where}: overlaps the reference in no structure; are both of one scan and in one space?"]
    return []


def grid_notes(rows: pd.DataFrame) -> list[str]:
    """Return which methods' labels were resampled to the reference's grid, and in how many scans."""
    scans = rows.drop_duplicates(["dataset", "scan", "method"])
    notes = []
    for (dataset, method), group in scans.groupby(["dataset", "method"], sort=False):
        if moved := int((group["resampled"] == "yes").sum()):
            notes.append(
                f"{dataset}: {method} lies on another grid than the reference in {moved} of {len(group)} scans and was "
                "resampled to it"
            )
    return notes
