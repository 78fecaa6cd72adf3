"""Limits of the quality flags: the package's own, changed by a user's file."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ThresholdError
from medsegmamba_bids.image.labels import TABLES, load_label_table, side_of
from medsegmamba_bids.records import fits, read_mapping, unknown_keys

_DEFAULTS = "quality/thresholds.json"
_PURPOSE = "--quality-thresholds"
#: What any check may have beside its own keys, and what values must be.
_MORE = ("except", "limits", "source")
_KINDS = {
    "limit": (float, "a number"),
    "smallest_group": (int, "a whole number"),
    "range": (tuple[float, float], "two numbers, the lower one first"),
    "except": (tuple[str, ...], "a list of structures"),
    "limits": (dict, "a table of structures and numbers"),
    "ranges": (dict, "a table of structures and pairs of numbers"),
}


def load_thresholds(path: Path | None = None) -> dict[str, Any]:
    """Return the package's thresholds, with those of a file in their place where it names them.

    Raises
    ------
    ThresholdError
        The file cannot be read, or names a check, a key or a structure that there is not.
    """
    thresholds = copy.deepcopy(_defaults())
    if path is None:
        return thresholds
    changes = read_mapping(path, _PURPOSE, error=ThresholdError)
    try:
        _check_changes(changes, thresholds)
    except ThresholdError as error:
        raise ThresholdError(f"{path}: cannot be used as {_PURPOSE}: {error}") from error
    for name, entries in changes.get("checks", {}).items():
        thresholds["checks"][name].update(entries)
    thresholds["outliers"].update(changes.get("outliers", {}))
    volumes = changes.get("volumes", {})
    thresholds["volumes"]["ranges"].update(volumes.get("ranges", {}))
    thresholds["volumes"]["source"] = volumes.get("source", thresholds["volumes"]["source"])
    return thresholds


@lru_cache
def _defaults() -> dict[str, Any]:
    return json.loads(data_path(_DEFAULTS).read_text(encoding="utf-8"))


def _check_changes(changes: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse what no check would look at."""
    _check_keys(changes, known, "keys", "the file")
    checks = changes.get("checks", {})
    _check_keys(checks, known["checks"], "checks", "checks")
    for name, entries in checks.items():
        _check_entries(entries, known["checks"][name], name, _MORE)
    for name in ("outliers", "volumes"):
        _check_entries(changes.get(name, {}), known[name], name)


def _check_keys(entries: Any, known: Any, what: str, where: str) -> None:
    if not isinstance(entries, dict):
        raise ThresholdError(f"{where} is {entries!r}; it must be a table of keys")
    if sentence := unknown_keys(entries, known, what):
        raise ThresholdError(sentence)


def _check_entries(entries: Any, known: dict[str, Any], where: str, more: tuple[str, ...] = ()) -> None:
    """Refuse keys that a check does not have, and values that it could not compare with."""
    _check_keys(entries, dict.fromkeys((*known, *more)), f"keys of {where}", where)
    for key, value in entries.items():
        if key in ("unit", "sense") and value != known[key]:
            raise ThresholdError(f"the {key} of {where} is {value!r}; it cannot be changed from {known[key]!r}")
        _check_value(f"the {key} of {where}", value, *_KINDS.get(key, (str, "a text")))
        if key in ("except", "limits", "ranges"):
            _check_structures(value, f"structures in the {key} of {where}")


def _check_value(what: str, value: Any, kind: Any, wanted: str) -> None:
    if not fits(value, kind) or (kind == tuple[float, float] and value[0] > value[1]):
        raise ThresholdError(f"{what} is {value!r}; it must be {wanted}")


def _check_structures(entries: Any, what: str) -> None:
    """Refuse structures of no label table; names are those without a side."""
    if sentence := unknown_keys(entries, _structures(), what):
        raise ThresholdError(sentence)
    for name, value in entries.items() if isinstance(entries, dict) else ():
        pair = what.startswith("structures in the ranges")
        _check_value(f"the limit of {name}", value, *_KINDS["range" if pair else "limit"])


@lru_cache
def _structures() -> tuple[str, ...]:
    names = (side_of(name)[1] for table in TABLES for name in load_label_table(table).names[1:])
    return tuple(dict.fromkeys(names))
