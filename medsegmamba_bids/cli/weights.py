"""``medsegmamba-weights``: import the authors' checkpoints; list, show and verify weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from medsegmamba_bids.cli.common import add_command, make_parser, user_errors
from medsegmamba_bids.segmentations import TASKS


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "medsegmamba-weights",
        "Import, list, show and verify weights files. Imported files go to the user's cache, "
        "or to the folder in $MEDSEGMAMBA_WEIGHTS.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_import(actions)
    add_command(actions, "list", "list the weights that commands know by name", list_weights)
    for name, run, text in (
        ("show", show, "print what a weights file says of itself"),
        ("verify", verify, "load weights files completely and check them"),
    ):
        action = add_command(actions, name, text, run)
        action.add_argument("weights", nargs="+", metavar="WEIGHTS", help="a weights file, or a name from the list")
    return parser


def _add_import(actions: argparse._SubParsersAction) -> None:
    text = "turn a PyTorch checkpoint of the authors of MedSegMamba or TABSurfer into a weights file"
    action = add_command(actions, "import", text, import_checkpoint)
    action.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the authors' .pt file")
    action.add_argument("--task", choices=TASKS, required=True, help="what it was trained for")
    action.add_argument("--name", metavar="NAME", help="what to call it (default: the file's name)")
    action.add_argument("--overwrite", action="store_true", help="replace weights of this name")


def import_checkpoint(options: argparse.Namespace) -> int:
    """Import a checkpoint and say where it went."""
    from medsegmamba_bids.weights import checkpoints

    path = checkpoints.import_checkpoint(
        options.checkpoint, options.task, name=options.name, overwrite=options.overwrite
    )
    print(f"{path}\nuse it by its name: --weights {path.stem}")
    return 0


def list_weights(options: argparse.Namespace) -> int:
    """Print a line for each known weights file, damaged ones with the reason."""
    from medsegmamba_bids.weights import folders

    rows = [("name", "task", "network", "classes", "from")]
    rows += [_row(path, "package") for path in folders.embedded_weights()]
    rows += [_row(path, str(path)) for path in folders.user_weights()]
    if len(rows) == 1:
        print(f"no weights: none come with this version, none are in {folders.weights_folder()}")
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]))
    return 0


def _row(path: Path, source: str) -> tuple[str, str, str, str, str]:
    from medsegmamba_bids.errors import WeightsError
    from medsegmamba_bids.weights.info import read_info

    try:
        info = read_info(path)
    except WeightsError as error:
        return path.stem, "-", "-", "-", f"unusable: {error}"
    return path.stem, info.task, info.network, str(len(info.labels)), source


def show(options: argparse.Namespace) -> int:
    """Print the description of each named weights file."""
    from medsegmamba_bids.weights.folders import resolve_weights

    for name in options.weights:
        file = resolve_weights(name)
        print(f"file: {file.path}")
        for line in _lines(asdict(file.info)):
            print(line)
    return 0


def _lines(entries: dict, indent: str = "") -> Iterable[str]:
    """Yield ``key: value`` lines, nested dictionaries indented."""
    for key, value in entries.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, (tuple, list)):
            yield f"{indent}{key}: {' '.join(map(str, value))}"
        else:
            yield f"{indent}{key}: {value}"


def verify(options: argparse.Namespace) -> int:
    """Check each named weights file; the exit code is 1 if any is unusable."""
    from medsegmamba_bids.errors import WeightsError
    from medsegmamba_bids.weights.files import verify_weights
    from medsegmamba_bids.weights.folders import find_weights

    failures = 0
    for name in options.weights:
        try:
            path = find_weights(name)
            info = verify_weights(path)
            print(f"{path}: ok ({info.network}, {info.task}, {len(info.labels)} classes)")
        except WeightsError as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    return 1 if failures else 0


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    options = build_parser().parse_args(argv)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
