"""The entry for T1w images in a filter file of fMRIPrep's form, and which names it selects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegmamba_bids.errors import BIDSError
from medsegmamba_bids.records import read_mapping

#: Entities as filter files call them (pybids' names) and as file names do.
ENTITIES = {
    "subject": "sub", "session": "ses", "sample": "sample", "task": "task", "tracksys": "tracksys",
    "acquisition": "acq", "nucleus": "nuc", "volume": "voi", "ceagent": "ce", "staining": "stain", "tracer": "trc",
    "reconstruction": "rec", "direction": "dir", "run": "run", "proc": "proc", "modality": "mod", "echo": "echo",
    "flip": "flip", "inv": "inv", "mt": "mt", "part": "part", "recording": "recording", "space": "space",
    "chunk": "chunk",
}  # fmt: skip
#: Keys that filter files of fMRIPrep and its relatives have for other images.
_OTHER_KEYS = {
    "bold",
    "sbref",
    "fmap",
    "flair",
    "t2w",
    "pdw",
    "roi",
    "asl",
    "m0scan",
    "dwi",
    "pet",
    "beh",
    "eeg",
    "meg",
}
_FIXED = {"suffix": ("T1w",), "datatype": ("anat",), "scope": ("all", "raw", "self")}
#: Entities that are numbers: 1 is 01.
_NUMBERED = ("run", "echo", "flip", "inv", "chunk")
_ANY, _OPTIONAL = object(), object()
_SPECIAL = {
    "*": _ANY, "query.any": _ANY, "query.required": _ANY, "query.none": None, "query.optional": _OPTIONAL
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """What entities must be.

    Attributes
    ----------
    wanted : mapping
        Short name of an entity -> values, one of which it must have: a text, a whole number, ``None`` for an image
        without the entity, or a mark for any value.
    extensions : tuple of str
        Empty for all.
    regex : bool
        Whether texts are regular expressions, to be found anywhere in a label.
    """

    wanted: Mapping[str, tuple[Any, ...]]
    extensions: tuple[str, ...] = ()
    regex: bool = False

    def accepts(self, entities: Mapping[str, str], extension: str = "") -> bool:
        """Return whether a name is selected.

        Examples
        --------
        >>> Selection({"run": (1,), "acq": (None,)}).accepts({"sub": "01", "run": "01"})
        True
        """
        if self.extensions and extension not in self.extensions:
            return False
        return all(
            any(self._fits(value, entities.get(entity)) for value in values) for entity, values in self.wanted.items()
        )

    def _fits(self, value: Any, label: str | None) -> bool:
        if value is None or label is None:
            return value is label
        if value is _ANY:
            return True
        if self.regex and isinstance(value, str):
            return re.search(value, label, re.IGNORECASE) is not None
        return _plain(str(value)) == _plain(label) if isinstance(value, int) else str(value) == label

    def replaced(self, **entities: tuple[Any, ...]) -> Selection:
        """Return the same with other values for some entities; an empty tuple leaves what is there."""
        given = {entity: values for entity, values in entities.items() if values}
        return Selection({**self.wanted, **given}, self.extensions, self.regex)


def _plain(number: str) -> str:
    return number.lstrip("0") or "0" if number.isdecimal() else number


def numbered(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the same with texts of digits as numbers, so that 1 is 01 (runs, echoes)."""
    return tuple(int(value) if isinstance(value, str) and value.isdecimal() else value for value in values)


def read_selection(path: Path | None) -> Selection:
    """Read the entry ``t1w`` (in any case) of a filter file; without a file everything is selected.

    Raises
    ------
    BIDSError
        The file cannot be read, has a key or an entity that is not known, or a value that says nothing.
    """
    if path is None:
        return Selection({})
    content = read_mapping(path, "--bids-filter-file", error=BIDSError)
    return _selection(_entry(content, path), path)


def _entry(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    ours = [key for key in content if key.lower() == "t1w"]
    unknown = [key for key in content if key.lower() not in {"t1w", *_OTHER_KEYS}]
    if unknown or not content or len(ours) > 1:
        what = f"it has the key {unknown[0]}" if unknown else "it has no key" if not content else f"it has {ours}"
        raise BIDSError(
            f"{path}: cannot be used as --bids-filter-file: {what}; T1w images are selected by one key t1w, such as "
            f'{{"t1w": {{"acquisition": "mprage"}}}} (known for other images are {", ".join(sorted(_OTHER_KEYS))})'
        )
    entry = content[ours[0]] if ours else {}
    if not isinstance(entry, dict):
        raise BIDSError(f'{path}: its entry "{ours[0]}" must hold entities, such as {{"acquisition": "mprage"}}')
    return dict(entry)


def _selection(entry: dict[str, Any], path: Path) -> Selection:
    for key, allowed in _FIXED.items():
        value = entry.pop(key, allowed[0])
        if value not in allowed and value not in ([text] for text in allowed):
            raise BIDSError(f"{path}: {key} is {value!r}; only T1w images ({key} {allowed[0]}) are segmented")
    regex = entry.pop("regex_search", False)
    if not isinstance(regex, bool):
        raise BIDSError(f"{path}: regex_search is {regex!r}; it must be true or false")
    extensions = tuple(f".{text.lstrip('.')}" for text in _texts(entry.pop("extension", []), path))
    wanted = {_short(key, path): _values(key, value, path) for key, value in entry.items()}
    if len(wanted) < len(entry):
        raise BIDSError(f"{path}: names an entity in its long and in its short form")
    selection = Selection({key: values for key, values in wanted.items() if _OPTIONAL not in values}, extensions, regex)
    _check_patterns(selection, path)
    return selection


def _short(key: str, path: Path) -> str:
    if key not in ENTITIES and key not in ENTITIES.values():
        near = difflib.get_close_matches(key, [*ENTITIES, *ENTITIES.values()], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BIDSError(f"{path}: {key!r} is no entity of T1w images{hint}; known are {', '.join(ENTITIES)}")
    return ENTITIES.get(key, key)


def _texts(value: Any, path: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        raise BIDSError(f"{path}: extension is {value!r}; it must be a text or a list of texts")
    return values


def _values(key: str, value: Any, path: Path) -> tuple[Any, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(label, (bool, float, list, dict)) for label in values):
        raise BIDSError(
            f"{path}: {key} is {value!r}; it must be a label, a list of labels, null for images without it, or "
            '"*" for any'
        )
    values = tuple(_SPECIAL.get(label.lower(), label) if isinstance(label, str) else label for label in values)
    return numbered(values) if ENTITIES.get(key, key) in _NUMBERED else values


def _check_patterns(selection: Selection, path: Path) -> None:
    texts = [value for values in selection.wanted.values() for value in values if isinstance(value, str)]
    for text in texts if selection.regex else ():
        try:
            re.compile(text)
        except re.error as error:
            raise BIDSError(f"{path}: {text!r} is no regular expression ({error})") from error
