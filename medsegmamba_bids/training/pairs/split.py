"""Participants divided 3:1:1 into training, validation and test, balanced by age and sex."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from medsegmamba_bids.datasets import participants_table
from medsegmamba_bids.errors import SplitError, reason
from medsegmamba_bids.image.io import atomic_path
from medsegmamba_bids.records import parse_json

logger = logging.getLogger(__name__)

SETS = ("train", "validation", "test")
#: Of each five participants of like age and sex; what is left over at the end starts with the first.
_SHARES = ("train", "validation", "test", "train", "train")
_MISSING = ("n/a", "na", "nan", "none", "")


def read_participants(path: Path, age: str = "age", sex: str = "sex") -> pd.DataFrame:
    """Return participants with age (years, NaN where unknown) and sex (one letter, "" where unknown).

    Several rows of a participant, such as one per session, count once, with the first row's age. In a BIDS dataset
    only participants that have a folder count.

    Parameters
    ----------
    path : Path
        A BIDS dataset or a ``participants.tsv``.
    age, sex : str
        Names of the columns.

    Returns
    -------
    pandas.DataFrame
        Columns ``participant_id``, ``age`` and ``sex``, in the order of the file.

    Raises
    ------
    SplitError, TableError
        There is no such file, it cannot be read, a column is missing or holds something else, or a participant's rows
        differ in sex.
    """
    path = Path(path)
    file = path / "participants.tsv" if path.is_dir() else path
    if not file.is_file():
        raise SplitError(f"{file}: no such file; a participants.tsv with age and sex is needed")
    table = participants_table.read_participants(file)
    missing = [column for column in (age, sex) if column not in table.rows]
    if missing:
        raise SplitError(f"{file}: the columns {missing} are missing; it has {list(table.rows)}")
    sexes = table.of_scans([(label, "") for label in table.labels], [sex])[sex]
    people = pd.DataFrame(
        {
            "participant_id": [f"sub-{label}" for label in table.labels],
            "age": [_years(text, file) for text in table.rows.drop_duplicates(participants_table.ID)[age]],
            "sex": ["" if _is_missing(text) else text[0].upper() for text in sexes],
        }
    )
    return _with_folder(people, path) if path.is_dir() else people


def _with_folder(people: pd.DataFrame, dataset: Path) -> pd.DataFrame:
    present = [(dataset / name).is_dir() for name in people["participant_id"]]
    if not all(present):
        logger.warning("%s: %d participants have no folder and are left out", dataset, len(people) - sum(present))
    return people[present].reset_index(drop=True)


def _is_missing(text: str) -> bool:
    return text.strip().lower() in _MISSING


def _years(text: str, file: Path) -> float:
    if _is_missing(text):
        return np.nan
    try:
        return float(text.strip().rstrip("+"))  # ages above a limit are often written as "89+"
    except ValueError:
        raise SplitError(f"{file}: the age {text!r} is not a number") from None


def split_participants(people: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Put every participant into one set, 3:1:1, so that the sets are alike in age and sex.

    Participants are lined up by sex and age (equal ones in random order; ages go up for one sex and down for the
    next, so that neighbours are alike where the sex changes), and of each five neighbours three go to training and
    one each to validation and test, at random.

    Parameters
    ----------
    people : pandas.DataFrame
        As :func:`read_participants` returns it.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The same with a column ``set``, sorted by participant.

    Raises
    ------
    SplitError
        There are fewer than five participants.

    Examples
    --------
    >>> people = pd.DataFrame({"participant_id": list("abcdefghij"), "age": range(10), "sex": ["F", "M"] * 5})
    >>> split_participants(people, seed=0)["set"].value_counts()[list(SETS)].to_dict()
    {'train': 6, 'validation': 2, 'test': 2}
    """
    if len(people) < len(_SHARES):
        raise SplitError(f"{len(people)} participants; at least {len(_SHARES)} are needed to fill all three sets")
    rng = np.random.default_rng(seed)
    line = people.sort_values("participant_id").iloc[rng.permutation(len(people))]
    upwards = 1 - 2 * (pd.factorize(line["sex"], sort=True)[0] % 2)
    line = line.assign(order=line["age"] * upwards).sort_values(["sex", "order"], kind="stable", na_position="last")
    line = line.drop(columns="order")
    sets = [rng.permutation(_SHARES[: len(line) - start]) for start in range(0, len(line), len(_SHARES))]
    return line.assign(set=np.concatenate(sets)).sort_values("participant_id").reset_index(drop=True)


def describe(split: pd.DataFrame) -> str:
    """Return a line for each set: size, mean age and sexes."""
    lines = []
    for name in SETS:
        rows = split[split["set"] == name]
        sexes = ", ".join(f"{n} {sex or 'n/a'}" for sex, n in sorted(rows["sex"].value_counts().items()))
        lines.append(f"{name}: {len(rows)} participants, mean age {rows['age'].mean():.1f}, {sexes}")
    return "\n".join(lines)


def write_split(split: pd.DataFrame, path: Path, seed: int) -> None:
    """Write the division as a table (``.tsv``) or as lists (``.json``, with the seed).

    Raises
    ------
    SplitError
        The name ends otherwise.
    """
    path = Path(path)
    if path.suffix not in (".tsv", ".json"):
        raise SplitError(f"{path}: the name must end with .tsv or .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if path.suffix == ".tsv":
            columns = ["participant_id", "set", "age", "sex"]
            split[columns].replace({"sex": {"": "n/a"}}).to_csv(temporary, sep="\t", index=False, na_rep="n/a")
        else:
            lists = {name: split.loc[split["set"] == name, "participant_id"].tolist() for name in SETS}
            temporary.write_text(json.dumps({"seed": seed, **lists}, indent=2) + "\n")


def read_split(path: Path) -> dict[str, str]:
    """Return the set of every participant, from a file that :func:`write_split` wrote.

    Raises
    ------
    SplitError
        The file is no such division, a participant is in two sets, or one of the sets is empty.
    """
    path = Path(path)
    try:
        pairs = _json_pairs(path) if path.suffix == ".json" else _table_pairs(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = reason(error).removeprefix(f"{path}: ")
        raise SplitError(f"{path}: cannot be read as a division into {', '.join(SETS)} ({why})") from error
    sets: dict[str, str] = {}
    for participant, name in pairs:
        if name not in SETS:
            raise SplitError(f"{path}: the set {name!r} of {participant} is unknown; there are {', '.join(SETS)}")
        if sets.setdefault(participant, name) != name:
            raise SplitError(f"{path}: {participant} is in {sets[participant]} and in {name}")
    if empty := [name for name in SETS if name not in sets.values()]:
        raise SplitError(f"{path}: nobody is in {' or '.join(empty)}; every set needs participants")
    return sets


def _table_pairs(path: Path) -> list[tuple[str, str]]:
    rows = participants_table.read_participants(path).rows
    return list(zip(rows[participants_table.ID], rows["set"], strict=True))


def _json_pairs(path: Path) -> list[tuple[str, str]]:
    lists = parse_json(path.read_text(encoding="utf-8-sig"))
    groups = {name: group for name, group in lists.items() if name != "seed"}
    if not all(isinstance(group, list) for group in groups.values()):
        raise TypeError("a set must be a list of participants")
    named = [(participant.strip(), name) for name, group in groups.items() for participant in group]
    return [(f"sub-{participant.removeprefix('sub-')}", name) for participant, name in named]
