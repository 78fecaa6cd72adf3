"""The Boutiques descriptor of ``medsegmamba``, made from its parser: platforms such as CBRAIN and Clowdr read it.

``python -m medsegmamba_bids.cli.descriptor > boutiques/medsegmamba.json`` writes it anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.cli.common import make_parser, user_errors
from medsegmamba_bids.cli.parser import DESCRIPTION, build_parser, dataset_path

SCHEMA_VERSION = "0.5"
_NAME = "medsegmamba"
_MADE = ("output_dir", "work_dir", "bids_database_dir")  # folders that need not be there before
_NOT_FOR_PLATFORMS = (argparse._HelpAction, argparse._VersionAction)
_FLAGS = (argparse._StoreTrueAction, argparse.BooleanOptionalAction, argparse._CountAction)


def descriptor() -> dict[str, Any]:
    """Return the descriptor as the Boutiques schema wants it, one input for each argument of the command."""
    parser = build_parser()
    actions = [action for action in parser._actions if _is_input(action)]
    inputs = [entry for action in actions for entry in _inputs(parser, action)]
    return {
        "name": _NAME,
        "tool-version": __version__,
        "description": " ".join(DESCRIPTION.split()),
        "author": "The medsegmamba_bids developers",
        "url": "https://pypi.org/project/medsegmamba-bids/",
        "schema-version": SCHEMA_VERSION,
        "command-line": " ".join([_NAME, *(entry["value-key"] for entry in inputs)]),
        "inputs": inputs,
        "groups": _groups(actions, inputs),
        "output-files": [
            {
                "id": "results",
                "name": "Results",
                "description": "BIDS derivatives, tables of volumes, and reports",
                "path-template": "[OUTPUT_DIR]",
                "optional": False,
            }
        ],
        "tags": {"domain": ["neuroinformatics", "mri", "bids-app"]},
    }


def descriptor_text() -> str:
    """Return the descriptor as the text of its file."""
    return json.dumps(descriptor(), indent=2) + "\n"


def _is_input(action: argparse.Action) -> bool:
    return not isinstance(action, _NOT_FOR_PLATFORMS) and action.dest != "print_completion"


def _inputs(parser: argparse.ArgumentParser, action: argparse.Action) -> list[dict[str, Any]]:
    """Return the input of an action; two where the option may also be denied."""
    flags = [next((name for name in action.option_strings if name.startswith("--")), "")]
    if isinstance(action, argparse.BooleanOptionalAction):
        flags = action.option_strings
    help_text = parser._get_formatter()._expand_help(action)
    return [{**_names(flag or action.dest), "description": help_text, **_value(action, flag)} for flag in flags]


def _names(name: str) -> dict[str, str]:
    plain = name.removeprefix("--").replace("-", "_")
    title = plain.replace("_", " ").capitalize().replace("Bids", "BIDS")
    return {"id": plain, "name": title, "value-key": f"[{plain.upper()}]"}


def _value(action: argparse.Action, flag: str) -> dict[str, Any]:
    """Return what an input takes."""
    if not flag:
        entry: dict[str, Any] = {"optional": False}
    else:
        entry = {"optional": True, "command-line-flag": flag}
    if isinstance(action, _FLAGS):
        return {**entry, "type": "Flag"}
    if action.choices:
        return {**entry, "type": "String", "value-choices": list(action.choices)}
    if action.type is int:
        return {**entry, "type": "Number", "integer": True}
    there = action.type in (Path, dataset_path) and action.dest not in _MADE
    entry["type"] = "File" if there else "String"
    return {**entry, "list": True, "min-list-entries": 1} if action.nargs == "+" else entry


def _groups(actions: list[argparse.Action], inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return which inputs say the same thing in two ways, so that one of them at most may be given."""
    said = Counter(action.dest for action in actions)
    alike = [[action.option_strings[0] for action in actions if action.dest == dest] for dest in said if said[dest] > 1]
    alike += [action.option_strings for action in actions if isinstance(action, argparse.BooleanOptionalAction)]
    by_flag = {entry.get("command-line-flag"): entry["id"] for entry in inputs}
    members = [[by_flag[flag] for flag in flags] for flags in alike]
    return [
        {"id": f"one_of_{ids[0]}", "name": f"One of {' and '.join(ids)}", "members": ids, "mutually-exclusive": True}
        for ids in members
    ]


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Print the descriptor; return the exit code."""
    make_parser("python -m medsegmamba_bids.cli.descriptor", "Print the Boutiques descriptor.").parse_args(argv)
    sys.stdout.write(descriptor_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
