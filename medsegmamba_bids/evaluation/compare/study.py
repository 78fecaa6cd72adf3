"""What is compared with what: datasets, their reference and methods, matched by scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsegmamba_bids.datasets.participants_table import read_participants
from medsegmamba_bids.datasets.places import LabelFiles, Place, find_labels
from medsegmamba_bids.datasets.scan_names import ScanName, listed
from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.records import build, read_mapping

REFERENCE = "reference"


@dataclass(frozen=True)
class Dataset:
    """Where the label images of a dataset are.

    Attributes
    ----------
    name : str
    reference : str
        A place, see :func:`~medsegmamba_bids.datasets.places.find_labels`.
    methods : dict of str to str
        Places by the methods' names.
    images : str
        Place of the T1-weighted images, for pictures; empty where it is not known.
    """

    name: str
    reference: str
    methods: Mapping[str, str]
    images: str = ""


@dataclass(frozen=True)
class Item:
    """A scan that the reference and all methods have.

    Attributes
    ----------
    dataset : str
    name : ScanName
        The reference's.
    reference : LabelFiles
    methods : dict of str to LabelFiles
    source : Dataset or None
        Where all this was found.
    """

    dataset: str
    name: ScanName
    reference: LabelFiles
    methods: Mapping[str, LabelFiles]
    source: Dataset | None = None


def parse_methods(texts: list[str]) -> dict[str, str]:
    """Return methods of the command line, ``NAME=PLACE`` each.

    Raises
    ------
    EvaluationError
        One has no name, or two have the same.
    """
    methods: dict[str, str] = {}
    for text in texts:
        name, separator, place = text.partition("=")
        if not (name and separator and place):
            raise EvaluationError(f"--method {text}: must be NAME=PLACE, such as FastSurfer=derivatives/fastsurfer")
        if name in methods:
            raise EvaluationError(f"--method {text}: there are two methods of the name {name}")
        methods[name] = place
    _check_methods(methods, "--method")
    return methods


def _check_methods(methods: Mapping[str, str], where: str) -> None:
    if not methods:
        raise EvaluationError(f"{where}: at least one method is needed")
    if REFERENCE in methods:
        raise EvaluationError(f"{where}: a method cannot be called {REFERENCE!r}; give it another name")


def read_study(path: Path) -> list[Dataset]:
    """Return datasets of a TOML file; relative places are relative to it.

    Raises
    ------
    EvaluationError
        It cannot be read, has unknown keys, or its datasets have different methods.
    """
    content = read_mapping(path, "--study", "toml", EvaluationError)
    entries = content.get("dataset")
    if set(content) != {"dataset"} or not isinstance(entries, list):
        raise EvaluationError(f"{path}: must hold [[dataset]] tables and nothing else; it has {listed(content)}")
    datasets = [_dataset(entry, path) for entry in entries]
    for dataset in datasets:
        if set(dataset.methods) != set(datasets[0].methods):
            raise EvaluationError(
                f"{path}: the dataset {dataset.name} has the methods {listed(dataset.methods)}, but "
                f"{datasets[0].name} has {listed(datasets[0].methods)}; all must have the same"
            )
        if sum(other.name == dataset.name for other in datasets) > 1:
            raise EvaluationError(f"{path}: two datasets are called {dataset.name}")
    return datasets


def _dataset(entry: Mapping[str, Any], path: Path) -> Dataset:
    given = build(Dataset, entry, f"{path}, [[dataset]]", EvaluationError)
    for name, text in given.methods.items():
        if not isinstance(text, str):
            raise EvaluationError(f"{path}: the method {name} of {given.name} is {text!r}; it must be a place")
    _check_methods(given.methods, str(path))

    def place(text: str) -> str:
        return str(path.parent / Path(text).expanduser())

    methods = {name: place(text) for name, text in given.methods.items()}
    return Dataset(given.name, place(given.reference), methods, place(given.images) if given.images else "")


def match_dataset(dataset: Dataset, table: str) -> tuple[list[Item], list[str]]:
    """Return scans that the reference and all methods have, and sentences about the others.

    Raises
    ------
    EvaluationError
        A place has no labels, or no scan is in all.
    """
    reference = find_labels(dataset.reference, table)
    methods = {name: find_labels(place, table) for name, place in dataset.methods.items()}
    notes = [sentence for place in (reference, *methods.values()) for sentence in place.incomplete]
    partners = {name: _partners(reference, place) for name, place in methods.items()}
    for name, matched in partners.items():
        if not matched:
            raise EvaluationError(_nothing_common(dataset.reference, reference, name, methods[name]))
        notes += _differences(dataset, reference, name, methods[name], matched)
    items = [
        Item(dataset.name, scan, files, {name: matched[scan] for name, matched in partners.items()}, dataset)
        for scan, files in reference.scans.items()
        if all(scan in matched for matched in partners.values())
    ]
    if not items:
        counts = ", ".join(f"{name} has {len(matched)}" for name, matched in partners.items())
        raise EvaluationError(
            f"{dataset.reference}: of its {len(reference.scans)} scans none is in all methods ({counts}); "
            "compare the methods one at a time, or complete them"
        )
    return items, notes


def _partners(reference: Place, place: Place) -> dict[ScanName, LabelFiles]:
    """Return a place's files by the reference's scans: equal names, else names that fit each other alone.

    Two single files are one scan, whatever their names.
    """
    if reference.kind == place.kind == "one file":
        return dict(zip(reference.scans, place.scans.values(), strict=True))
    matched = {scan: place.scans[scan] for scan in reference.scans if scan in place.scans}
    left = [scan for scan in reference.scans if scan not in matched]
    free = [scan for scan in place.scans if scan not in matched]
    for scan in left:
        fitting = [other for other in free if scan.fits(other)]
        if len(fitting) == 1 and [name for name in left if name.fits(fitting[0])] == [scan]:
            matched[scan] = place.scans[fitting[0]]
    return matched


def _differences(
    dataset: Dataset, reference: Place, name: str, place: Place, matched: Mapping[ScanName, LabelFiles]
) -> list[str]:
    lacking = [scan for scan in reference.scans if scan not in matched]
    used = {files.name for files in matched.values()}
    extra = [scan for scan in place.scans if scan not in used]
    notes = []
    if lacking:
        notes.append(
            f"{dataset.name}: {name} has {len(matched)} of the reference's {len(reference.scans)} scans; without it "
            f"and therefore left out for all methods: {listed(lacking)}"
        )
    if extra:
        notes.append(f"{dataset.name}: {name} has {len(extra)} scans that the reference lacks: {listed(extra)}")
    return notes


def _nothing_common(path: str, reference: Place, name: str, place: Place) -> str:
    return (
        f"{place.path}: the method {name} has no scan in common with the reference {path}; it has "
        f"{listed(place.scans)} ({place.kind}), the reference {listed(reference.scans)} ({reference.kind}). "
        "Names must agree in the participant; a pattern says where it stands, such as FOLDER/x_{participant}.nii.gz"
    )


def divide(items: list[Item], participants: Path, column: str) -> list[Item]:
    """Return the same scans with a column of ``participants.tsv`` as their dataset.

    Raises
    ------
    TableError, EvaluationError
        The table or the column cannot be read, a participant is not in it, or is in several datasets.
    """
    table = read_participants(participants)
    datasets = table.of_scans([(item.name.participant, item.name.session) for item in items], [column])[column]
    unknown = [item.name for item, dataset in zip(items, datasets, strict=True) if not isinstance(dataset, str)]
    if unknown:
        raise EvaluationError(f"{participants}: does not know the participants of {listed(unknown)}")
    return [replace(item, dataset=dataset) for item, dataset in zip(items, datasets, strict=True)]
