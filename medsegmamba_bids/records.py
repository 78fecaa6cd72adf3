"""Configurations from files that anyone may have written: keys that nobody knows and values of a wrong type are found.

All that is read into frozen records goes through here: options of a run, trainings, studies, thresholds, plugins, and
what weights files say of themselves. pydantic and msgspec would do the same with sentences that name types of Python.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from medsegmamba_bids.errors import ConfigError, UserError, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAMES = {
    bool: ("true or false", "truth values"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    dict: ("a table of keys", "tables"),
}


def read_mapping(path: Path, purpose: str, form: str = "json", error: type[UserError] = ConfigError) -> dict[str, Any]:
    """Read a file of keys with values, in UTF-8.

    Parameters
    ----------
    path : Path
    purpose : str
        What it is for, such as the option that names it.
    form : {"json", "toml", "yaml"}
    error : type of UserError
        What is raised.

    Raises
    ------
    UserError
        With the file, what it is for and why it cannot be read.
    """
    refused = f"{path}: cannot be used as {purpose}"
    try:
        content = _PARSERS[form](Path(path).read_text(encoding="utf-8-sig"))
    except OSError as trouble:
        raise error(f"{refused}: {reason(trouble)}") from trouble
    except UnicodeDecodeError as trouble:
        raise error(f"{refused}: it is not text in utf-8") from trouble
    except (ValueError, RecursionError) as trouble:
        raise error(f"{refused}: it is not {form.upper()} ({reason(trouble)})") from trouble
    if not isinstance(content, dict):
        raise error(f"{refused}: it must hold keys with values")
    return content


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; a key that is there twice is refused, with ``ValueError``."""
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return content


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("reading YAML needs the package pyyaml (pip install pyyaml)") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_PARSERS = {"json": parse_json, "toml": tomllib.loads, "yaml": _parse_yaml}


def unknown_keys(given: Iterable[str], known: Iterable[str], what: str = "keys") -> str:
    """Return a sentence about keys that nobody knows, with the nearest that somebody does; empty where there are none.

    Examples
    --------
    >>> unknown_keys(["limit", "colour"], ["color", "limit"])
    'unknown keys colour (color is meant?); known are color, limit'
    """
    known = list(known)
    strange = sorted(str(key) for key in given if key not in known)
    if not strange:
        return ""
    return f"unknown {what} {', '.join(_with_nearest(key, known) for key in strange)}; known are {', '.join(known)}"


def _with_nearest(key: str, known: list[str]) -> str:
    plain = {name.lower().replace("-", "_"): name for name in known}
    near = get_close_matches(key.lower().replace("-", "_"), plain, n=1)
    return f"{key} ({plain[near[0]]} is meant?)" if near else key


def wrong_types(record: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and what it must be, for each entry of a record whose value is of a wrong type."""
    for name, kind in _types(type(record)).items():
        value = getattr(record, name)
        if not fits(value, kind):
            yield name, value, _named(kind)


def build(kind: type, entries: Any, where: str, error: type[UserError] = ConfigError) -> Any:
    """Return a record from a table of a file, lists made tuples.

    Parameters
    ----------
    kind : frozen dataclass
    entries : dict
        What the file holds; anything else is refused.
    where : str
        File and table, for the sentence.
    error : type of UserError
        What is raised.

    Raises
    ------
    UserError
        Says which key is unknown, missing or of a wrong type.
    """
    if not isinstance(entries, dict):
        raise error(f"{where}: must be a table of keys, not {entries!r}")
    known = {entry.name: entry for entry in fields(kind)}
    if sentence := unknown_keys(entries, known):
        raise error(f"{where}: {sentence}")
    needed = [name for name, entry in known.items() if entry.default is entry.default_factory is MISSING]
    if missing := [name for name in needed if name not in entries]:
        raise error(f"{where}: the keys {', '.join(missing)} are missing")
    for name, value in entries.items():
        if not fits(value, _types(kind)[name]):
            raise error(f"{where}: {name} is {value!r}; it must be {_named(_types(kind)[name])}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()})


@lru_cache
def _types(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in fields(kind)}


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type; whole numbers are numbers, truth values are not.

    Examples
    --------
    >>> fits([1, 2.5], tuple[float, float]), fits(True, int), fits(None, int | None)
    (True, False, True)
    """
    if kind is Any or kind is type(None):
        return kind is Any or value is None
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and _parts_fit(value, get_args(kind))
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, (str, os.PathLike))
    return isinstance(value, get_origin(kind) or kind)


def _parts_fit(values: Any, kinds: tuple[Any, ...]) -> bool:
    if kinds[-1] is Ellipsis:
        return all(fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(fits, values, kinds))


def _named(kind: Any) -> str:
    """Return what a user calls a type: ``a list of texts``."""
    if get_origin(kind) in (Union, UnionType):
        return _named(get_args(kind)[0])
    if get_origin(kind) is tuple:
        first, last = get_args(kind)[0], get_args(kind)[-1]
        many = _NAMES.get(first, ("", "entries"))[1]
        return f"a list of {many}" if last is Ellipsis else f"a list of {len(get_args(kind))} {many}"
    return _NAMES.get(get_origin(kind) or kind, (getattr(kind, "__name__", str(kind)),))[0]
