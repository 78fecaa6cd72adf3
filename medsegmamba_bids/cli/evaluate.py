"""``medsegmamba-evaluate``: compare segmentations with a reference, and measure the package's own weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medsegmamba_bids.cli.common import add_command, make_parser, set_up_logging, user_errors
from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import EvaluationError
from medsegmamba_bids.segmentations import ASEG, TABLES

if TYPE_CHECKING:
    from medsegmamba_bids.evaluation.compare.study import Dataset


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser; imports nothing that is slow."""
    parser = make_parser("medsegmamba-evaluate", "Measure how well segmentations agree with a reference.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_fastsurfer(commands)
    _add_model_card(commands)
    return parser


def _add_compare(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "compare",
        "compare segmentations of any number of methods with a reference",
        compare,
        "A PLACE is a BIDS derivatives folder, a FreeSurfer or FastSurfer subjects folder, a folder of label images "
        "(SynthSeg's output, plain files), one file, or a pattern such as 'FOLDER/{participant}_labels.nii.gz'. "
        "Exit code 1 if a scan could not be compared.",
    )
    command.add_argument(
        "--reference", metavar="PLACE", help="label images that count as right (default: --study names them)"
    )
    command.add_argument(
        "--method",
        metavar="NAME=PLACE",
        action="append",
        help="label images to compare; repeatable (default: --study names them)",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="folder of the tables, the figures and the page"
    )
    command.add_argument(
        "--table",
        choices=TABLES,
        default=ASEG.published,
        help="structures: 31 of aseg, these with cerebral white matter and cortex, or 24 hippocampal subfields",
    )
    command.add_argument(
        "--without",
        type=int,
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="structures to leave out (default: none)",
    )
    command.add_argument(
        "--background",
        type=int,
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="further labels that mean nothing (default: none)",
    )
    command.add_argument(
        "--correction",
        choices=("none", "bonferroni", "holm", "fdr"),
        default="none",
        help="of the tests for multiple comparisons",
    )
    command.add_argument(
        "--nprocs", "--nthreads", type=int, metavar="N", default=1, help="scans that are compared at the same time"
    )
    _add_figures(command)
    _add_datasets(command)


def _add_figures(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("figures")
    group.add_argument(
        "--images",
        metavar="PLACE",
        help="T1-weighted images (default: those beside the reference's or methods' labels)",
    )
    group.add_argument("--show", metavar="SCAN", help="scan that is drawn (default: the one of median Dice)")
    group.add_argument("--no-figures", action="store_true", help="write the tables alone")


def _add_datasets(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("several datasets")
    group.add_argument("--dataset", metavar="NAME", default="dataset", help="name of the dataset, where it is one")
    group.add_argument(
        "--participants",
        type=Path,
        metavar="FILE",
        help="participants.tsv that says who is of which dataset (default: not needed for one)",
    )
    group.add_argument(
        "--dataset-column", metavar="NAME", help="its column with the dataset, such as site (default: none)"
    )
    group.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="TOML file with [[dataset]] tables instead of --reference, --method (default: none)",
    )


def _add_fastsurfer(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "fastsurfer",
        "segment images with FastSurfer, where it is installed, to compare with it",
        fastsurfer,
        "Runs run_fastsurfer.sh --seg_only for every image that is not segmented yet.",
    )
    command.add_argument("--images", metavar="PLACE", required=True, help="T1-weighted images, such as a BIDS dataset")
    command.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of subjects to write into")
    command.add_argument(
        "--participant-label",
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="only these participants (default: all)",
    )
    command.add_argument(
        "--fastsurfer", type=Path, metavar="FILE", help="run_fastsurfer.sh (default: from PATH or $FASTSURFER_HOME)"
    )
    command.add_argument(
        "--options",
        metavar="TEXT",
        help="further options of FastSurfer, such as --options='--device cpu --no_cereb' (default: none)",
    )


def _add_model_card(commands: argparse._SubParsersAction) -> None:
    text = "measure weights on real cases and write their model card"
    command = add_command(commands, "model-card", text, model_card)
    command.add_argument(
        "--data-dir", type=Path, metavar="DIR", required=True, help="folder that the cases are relative to"
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="card to write (.md); its numbers go beside it (.tsv)"
    )
    command.add_argument(
        "--cases",
        nargs="+",
        action="extend",
        metavar="CASE",
        help="only these; others keep the numbers that they have (default: all)",
    )
    command.add_argument(
        "--case-table", type=Path, metavar="FILE", default=data_path("evaluation/cases.tsv"), help="table of the cases"
    )
    command.add_argument("--weights", metavar="WEIGHTS", help="aseg weights (default: those of the package)")
    command.add_argument(
        "--fold",
        nargs="+",
        action="append",
        metavar=("WEIGHTS", "CASE"),
        help="aseg weights that judge these cases, since the released ones were trained on them; repeatable "
        "(default: none)",
    )
    command.add_argument(
        "--earlier",
        metavar="WEIGHTS",
        help="aseg weights that the card compares with, on the same images (default: none)",
    )
    command.add_argument(
        "--hippocampus-weights", metavar="WEIGHTS", help="subfield weights (default: those of the package)"
    )
    command.add_argument("--no-hippocampus", action="store_true", help="leave the subfields out")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument(
        "--curve",
        type=Path,
        metavar="FILE",
        help="table with weights, steps, case and dice to draw the training of (default: none)",
    )
    command.add_argument("--aseg-hours", default="?", help="how long the training took")
    command.add_argument("--hippocampus-hours", default="?", help="the same for the subfields")
    command.add_argument("--machine", default="?", help="what the trainings ran on")


def compare(options: argparse.Namespace) -> int:
    """Compare segmentations with a reference; 1 where a scan could not be compared."""
    from medsegmamba_bids.evaluation.compare.comparison import Request, run
    from medsegmamba_bids.evaluation.compare.comparison_tables import to_markdown
    from medsegmamba_bids.evaluation.compare.scans import Settings

    _check_compare(options)
    results = run(
        Request(
            datasets=_datasets(options),
            settings=Settings(options.table, tuple(options.without or ()), tuple(options.background or ())),
            out=options.out,
            participants=options.participants,
            dataset_column=options.dataset_column or "",
            correction=options.correction,
            nprocs=options.nprocs,
            figures=not options.no_figures,
            show=options.show or "",
        )
    )
    print(to_markdown(results), end="")
    return 1 if results.problems else 0


def _check_compare(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.out.exists() and not options.out.is_dir():
        raise EvaluationError(f"{options.out}: is a file; --out names a folder")
    if options.nprocs < 1:
        raise EvaluationError(f"--nprocs {options.nprocs}: must be 1 or more")
    if options.study and (options.reference or options.method):
        raise EvaluationError("--study names references and methods itself; leave --reference and --method out")
    if options.study and options.dataset_column:
        raise EvaluationError("--study names datasets itself; leave --dataset-column out")
    if not options.study and not (options.reference and options.method):
        raise EvaluationError("--reference and at least one --method are needed, or --study")
    if options.dataset_column and not options.participants:
        raise EvaluationError("--dataset-column needs --participants, the table that has it")
    if options.participants and not options.dataset_column:
        raise EvaluationError("--participants needs --dataset-column, the column that says who is of which dataset")


def _datasets(options: argparse.Namespace) -> list[Dataset]:
    """Return datasets of the command line, or of the file that it names."""
    from medsegmamba_bids.evaluation.compare.study import Dataset, parse_methods, read_study

    if options.study:
        return read_study(options.study)
    return [Dataset(options.dataset, options.reference, parse_methods(options.method), options.images or "")]


def fastsurfer(options: argparse.Namespace) -> int:
    """Segment images with FastSurfer; 1 where one failed."""
    from medsegmamba_bids.evaluation.fastsurfer import segment_all

    wanted, more = options.participant_label or (), options.options or ""
    problems = segment_all(options.images, options.out, options.fastsurfer, wanted, more)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def model_card(options: argparse.Namespace) -> int:
    """Measure weights and write their card."""
    from medsegmamba_bids.evaluation.card.measure import Networks
    from medsegmamba_bids.evaluation.card.model_card import write_card
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

    segmenter = Segmenter(InferenceSettings(device=options.device))
    subfields = options.hippocampus_weights, not options.no_hippocampus
    networks = Networks(segmenter, options.weights, *subfields, _folds(options.fold or []))
    earlier = None if options.earlier is None else Networks(segmenter, options.earlier, *subfields)
    training = {key: getattr(options, key) for key in ("aseg_hours", "hippocampus_hours", "machine")}
    write_card(
        options.out, options.case_table, options.data_dir, options.cases, networks, training, earlier, options.curve
    )
    return 0


def _folds(folds: list[list[str]]) -> dict[str, str]:
    """Return the weights that judge each case of the folds."""
    judges: dict[str, str] = {}
    for weights, *cases in folds:
        if not cases:
            raise EvaluationError(f"--fold {weights}: name the cases that these weights judge after them")
        if again := sorted(set(cases) & set(judges)):
            raise EvaluationError(f"--fold {weights}: {', '.join(again)} is judged by another fold already")
        judges |= dict.fromkeys(cases, weights)
    return judges


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 when it succeeded, 1 for an input that was refused."""
    options = build_parser().parse_args(argv)
    set_up_logging(1, "%(message)s")
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
