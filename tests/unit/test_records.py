"""Configurations from files: what nobody knows, and what is of a wrong type, is found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.records import build, fits, read_mapping, unknown_keys, wrong_types


@dataclass(frozen=True)
class Record:
    number: int
    share: float = 0.5
    names: tuple[str, ...] = ()
    size: tuple[float, float] = (1.0, 1.0)
    folder: Path | None = None
    more: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        (1, int, True),
        (1.0, int, False),
        (True, int, False),
        (1, float, True),
        (False, float, False),
        ("a", str, True),
        (None, str | None, True),
        (None, str, False),
        ([1, "a"], tuple[int, ...], False),
        ((), tuple[int, ...], True),
        ([1, 2, 3], tuple[float, float], False),
        ("ab", tuple[str, ...], False),
        ("a/b", Path, True),
        ({"a": 1}, dict[str, Any], True),
    ],
)
def test_what_fits(value, kind, right):
    assert fits(value, kind) is right


def test_a_record_is_built_with_tuples_for_lists():
    record = build(Record, {"number": 3, "names": ["a"], "size": [1, 2]}, "x.toml")
    assert record == Record(3, 0.5, ("a",), (1, 2))


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "x.toml: must be a table of keys, not []"),
        ({}, "x.toml: the keys number are missing"),
        ({"number": 1, "Share": 1}, "x.toml: unknown keys Share (share is meant?); known are number, share, names,"),
        ({"number": 1, "zzz": 1}, "x.toml: unknown keys zzz; known are"),
        ({"number": "1"}, "x.toml: number is '1'; it must be a whole number"),
        ({"number": 1, "names": [1]}, "x.toml: names is [1]; it must be a list of texts"),
        ({"number": 1, "folder": 3}, "x.toml: folder is 3; it must be a path"),
    ],
)
def test_what_a_record_is_not_built_from(entries, sentence):
    with pytest.raises(ConfigError) as caught:
        build(Record, entries, "x.toml")
    assert str(caught.value).startswith(sentence)


def test_dashes_and_capitals_do_not_hide_the_nearest_name():
    assert (
        unknown_keys(["Mem-GB"], ["mem_gb", "nprocs"])
        == "unknown keys Mem-GB (mem_gb is meant?); known are mem_gb, nprocs"
    )


def test_wrong_types_are_listed():
    assert list(wrong_types(Record("1", names="a"))) == [
        ("number", "1", "a whole number"),
        ("names", "a", "a list of texts"),
    ]


@pytest.mark.parametrize(
    ("content", "form", "sentence"),
    [
        (None, "json", "No such file or directory"),
        (b"\xff", "json", "it is not text in utf-8"),
        (b"{", "json", "it is not JSON ("),
        (b"[" * 100000, "json", "it is not JSON ("),
        (b'{"a": 1, "a": 2}', "json", "it is not JSON (the key 'a' is there twice)"),
        (b"[1]", "json", "it must hold keys with values"),
        (b"a = ", "toml", "it is not TOML ("),
        (b"a: [", "yaml", "it is not YAML ("),
        (b"", "yaml", "it must hold keys with values"),
    ],
)
def test_files_that_hold_no_mapping(tmp_path, content, form, sentence):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_mapping(path, "--option", form)
    assert str(caught.value).startswith(f"{path}: cannot be used as --option: {sentence}")
    assert str(caught.value).count(str(path)) == 1


def test_all_forms_are_read_in_utf8_with_or_without_a_mark(tmp_path):
    for form, text in (("json", '{"name": "Zoë"}'), ("toml", 'name = "Zoë"'), ("yaml", "name: Zoë")):
        for encoding in ("utf-8", "utf-8-sig"):
            (tmp_path / "file").write_bytes(text.encode(encoding))
            assert read_mapping(tmp_path / "file", "x", form) == {"name": "Zoë"}
