"""The tables of a comparison: what they hold, and where they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medsegmamba_bids import __version__
from medsegmamba_bids.evaluation.compare.scans import Settings, grid_notes
from medsegmamba_bids.evaluation.compare.significance import CORRECTIONS, compare_methods
from medsegmamba_bids.evaluation.compare.summary import by_structure, paper_cells, paper_header, scan_means, summarise
from medsegmamba_bids.evaluation.compare.volume_agreement import agreement, repeatability
from medsegmamba_bids.image.io import write_text

#: What the columns of the long table hold; ``metrics.json`` says the same.
DESCRIPTIONS = {
    "dataset": {"Description": "Dataset of the scan"},
    "participant": {"Description": "Participant, as the reference's files name them"},
    "session": {"Description": "Session, n/a where the name has none"},
    "scan": {"Description": "Scan, as the reference's files name it"},
    "method": {"Description": "Method that is compared with the reference"},
    "structure": {"Description": "FreeSurfer's name of the structure"},
    "label": {"Description": "FreeSurfer's label of the structure"},
    "found_mm3": {"Description": "Volume by the method, on the reference's grid", "Units": "mm3"},
    "reference_mm3": {"Description": "Volume by the reference", "Units": "mm3"},
    "error_mm3": {"Description": "Volume by the method minus volume by the reference", "Units": "mm3"},
    "error_percent": {"Description": "The same in percent of the reference's volume", "Units": "%"},
    "dice": {"Description": "Dice similarity coefficient (Taha and Hanbury 2015); 0 where one side has none"},
    "volume_similarity": {"Description": "1 - |difference| / sum of both volumes; 0 where one side has none"},
    "assd_mm": {
        "Description": "Average symmetric surface distance (Yeghiazaryan and Voiculescu 2018); n/a without one",
        "Units": "mm",
    },
    "hd95_mm": {"Description": "95th percentile of the surface distances, the larger direction", "Units": "mm"},
    "resampled": {
        "Description": "Whether the method's labels lay on another grid and were resampled",
        "Levels": {"yes": "another grid", "no": "the reference's grid"},
    },
}


@dataclass
class Results:
    """All of a comparison.

    Attributes
    ----------
    settings : Settings
    rows : pandas.DataFrame
        The long table.
    notes : list of str
        What a reader should know of the input.
    problems : list of str
        Scans that could not be compared, and why.
    correction : str
    """

    settings: Settings
    rows: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    correction: str = "none"

    def __post_init__(self) -> None:
        self.notes = [*self.notes, *grid_notes(self.rows)]
        self.means = scan_means(self.rows)
        self.summary = summarise(self.means)
        self.structures = by_structure(self.rows)
        self.tests = compare_methods(self.rows, self.correction)
        self.structure_tests = compare_methods(self.rows, self.correction, each_structure=True)
        self.agreement = agreement(self.rows)
        self.repeatability = repeatability(self.rows)

    @property
    def methods(self) -> list[str]:
        """Names of the methods in their order."""
        return list(dict.fromkeys(self.rows["method"]))

    @property
    def scans(self) -> int:
        """How many scans were compared."""
        return len(self.rows.drop_duplicates(["dataset", "scan"]))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return tables by the names of their files, those that are empty left out."""
        tests = [table for table in (self.tests, self.structure_tests) if len(table)]
        named = {
            "metrics.tsv": self.rows,
            "summary.tsv": self.summary,
            "structures.tsv": self.structures,
            "tests.tsv": pd.concat(tests, ignore_index=True) if tests else pd.DataFrame(),
            "volumes.tsv": self.agreement,
            "repeatability.tsv": self.repeatability,
        }
        return {name: table for name, table in named.items() if len(table)}

    def sidecar(self) -> dict[str, Any]:
        """Return what stands in the JSON beside the long table."""
        return {
            **DESCRIPTIONS,
            "GeneratedBy": {"Name": "medsegmamba-evaluate", "Version": __version__},
            "LabelTable": self.settings.table,
            "LeftOut": list(self.settings.without),
            "Correction": CORRECTIONS[self.correction],
            "Notes": self.notes,
            "Problems": self.problems,
        }


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Write all tables, each at once; tables of an earlier comparison that this one lacks are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = results.tables()
    for name in ("tests.tsv", "repeatability.tsv"):
        if name not in tables:
            (folder / name).unlink(missing_ok=True)
    written = [write_tsv(table, folder / name) for name, table in tables.items()]
    text = json.dumps(results.sidecar(), indent=2, ensure_ascii=False) + "\n"
    return [
        *written,
        write_text(folder / "metrics.json", text),
        write_text(folder / "summary.md", to_markdown(results)),
    ]


def write_tsv(rows: pd.DataFrame, path: Path) -> Path:
    """Write a table; missing values are n/a."""
    text = rows.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n")
    return write_text(path, text)


def to_markdown(results: Results) -> str:
    """Return the table like the paper's, as Markdown."""
    header = paper_header()
    rule = "|:---|:---|" + "---:|" * (len(header) - 2)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *paper_cells(results.summary))]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def p_text(line: Mapping[str, Any], key: str = "p") -> str:
    """Return a value of p in words: ``< 0.001``, three decimals, or why there is none."""
    p = line[key]
    if p != p:
        return "equal" if line["participants"] else "none in common"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
