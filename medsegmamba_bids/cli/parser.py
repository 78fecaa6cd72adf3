"""The options of ``medsegmamba``: argparse only, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from medsegmamba_bids.cli.common import make_parser
from medsegmamba_bids.cli.machine import DEFAULT_MEMORY_GB, amount_gb, amount_of_mb, memory_gb, processors
from medsegmamba_bids.config import LEVELS, PRECISIONS, RunConfig, options_from_json
from medsegmamba_bids.errors import ConfigError, reason

DESCRIPTION = """\
Segment subcortical structures and hippocampal subfields in the T1w images of a BIDS dataset with MedSegMamba,
and measure them. Each T1w is processed by itself; runs and sessions are never averaged.
"""
EPILOG = """\
exit code:
  0    everything that was asked for is done (flagged results count as done)
  1    something failed or was skipped, or the options cannot be carried out; the table at the end says what
  2    the command line cannot be read
  130  interrupted; the same command takes the work up again

examples:
  medsegmamba /data/bids /data/bids/derivatives/medsegmamba participant --participant-label 01 02
  medsegmamba /data/bids /data/out participant -d /data/fmriprep --aseg-weights authors --device cuda
  medsegmamba /data/bids /data/out group
"""
_MOST_THREADS = 8  # of one step; more do not help


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser; options that were not given are absent from its result."""
    parser = start_parser("medsegmamba", DESCRIPTION, EPILOG)
    parser.add_argument(
        "level",
        choices=LEVELS,
        metavar="{participant,group}",
        help="participant: segment and measure; group: gather the results of all participants",
    )
    add_options(parser)
    return parser


def start_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser of a command that takes a dataset and a folder of results, without its options."""
    parser = make_parser(prog, description, epilog=epilog, argument_default=argparse.SUPPRESS)
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="folder of the BIDS dataset")
    parser.add_argument("output_dir", type=Path, metavar="OUT_DIR", help="folder of the results, made if need be")
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of the app."""
    for add in (_add_selection, _add_processing, _add_outputs, _add_group, _add_performance, _add_run, _add_accepted):
        add(parser)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which images")
    for names, prefix, what in (
        (("--participant-label",), "sub", "participants"),
        (("--session-label", "--session-id"), "ses", "sessions"),
        (("--run-id",), "run", "runs"),
    ):
        group.add_argument(
            *names,
            dest={"sub": "participant_label", "ses": "session_label", "run": "run_label"}[prefix],
            nargs="+",
            action="extend",
            type=_label_type(prefix),
            metavar="LABEL",
            help=f"only these {what}; '{prefix}-' may be left out (default: all)",
        )
    group.add_argument(
        "--exclude-participant-label",
        nargs="+",
        action="extend",
        type=_label_type("sub"),
        metavar="LABEL",
        help="all but these participants (default: none is left out)",
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON that selects by other entities, as for fMRIPrep: {"t1w": {"acquisition": "mprage"}} (default: none)',
    )
    group.add_argument(
        "--skip-bids-validation",
        action="store_true",
        help="also take images whose names are not valid BIDS, and datasets without dataset_description.json",
    )
    group.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="keep pybids' index here and use it again; it must fit (default: the folders are read)",
    )
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        action="extend",
        type=dataset_path,
        metavar="[NAME=]DIR",
        help="results of fMRIPrep, sMRIPrep or FreeSurfer, whose brain masks are used; a name may stand "
        "before each, as for fMRIPrep, and changes nothing (default: none)",
    )


def dataset_path(text: str) -> Path:
    """Return the folder of ``NAME=FOLDER``, or of a folder alone.

    Examples
    --------
    >>> dataset_path("fmriprep=/data/out").as_posix(), dataset_path("/data/a=b").as_posix()
    ('/data/out', '/data/a=b')
    """
    name, _, folder = text.partition("=")
    return Path(folder if folder and re.fullmatch(r"[\w.-]+", name) and not Path(text).exists() else text)


def _label_type(prefix: str) -> Any:
    def label(text: str) -> str:
        return text.removeprefix(f"{prefix}-")

    label.__name__ = f"{prefix} label"
    return label


def _add_processing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how they are segmented")
    group.add_argument(
        "--aseg-weights",
        metavar="WEIGHTS",
        help="file or name of the weights for subcortical structures (default: those of the package)",
    )
    group.add_argument(
        "--hippocampus-weights",
        metavar="WEIGHTS",
        help="the same for hippocampal subfields; 'none' leaves them out (default: those of the package, if any)",
    )
    group.add_argument(
        "--brain-mask",
        metavar="FILE",
        help="brain mask in the T1w's space; {subject}, {session} and {prefix} are replaced "
        "(default: from --derivatives, else from the package's network)",
    )
    group.add_argument(
        "--step-size", type=int, metavar="N", help="voxels between patches; smaller is slower (default: by the weights)"
    )
    group.add_argument(
        "--longitudinal",
        action="store_true",
        help="also process the sessions of each participant who has several together, for what changed between them",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="what the network computes in; bfloat16 and float16 are faster and differ a little (default: float32)",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument("--save-posteriors", action="store_true", help="write the probabilities of all classes, 4D")
    group.add_argument(
        "--fs-stats",
        action=argparse.BooleanOptionalAction,
        help="also write FreeSurfer's aseg.stats, for asegstats2table (default: it is written)",
    )
    group.add_argument(
        "--fs-subfields",
        action="store_true",
        help="also write the subfields as FreeSurfer does, a file per side with its numbers 203 to 226",
    )
    group.add_argument(
        "--meshes", action="store_true", help="also write the surface of each structure, GIFTI in scanner coordinates"
    )
    group.add_argument(
        "--output-spaces",
        nargs="+",
        action="extend",
        metavar="TEMPLATE",
        help="also write the labels in the space of these templates of TemplateFlow, such as MNI152NLin2009cAsym; "
        "T1w and conform are written anyway (default: none)",
    )
    group.add_argument(
        "--fetch-templates",
        action="store_true",
        help="download templates that are not in TEMPLATEFLOW_HOME; else nothing is ever downloaded",
    )
    group.add_argument(
        "--reports-only", action="store_true", help="segment nothing; write the reports of what is there anew"
    )
    group.add_argument("--write-graph", action="store_true", help="write the workflow as a graph into the log folder")


def _add_group(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reports and the group level")
    group.add_argument(
        "--quality-thresholds",
        type=Path,
        metavar="FILE",
        help="JSON that replaces some limits of the quality flags; its form is that of data/quality/thresholds.json "
        "(default: the package's)",
    )
    group.add_argument(
        "--group-long", action="store_true", help="also write the group's tables with a row per T1w and structure"
    )
    group.add_argument(
        "--ratings",
        type=Path,
        metavar="FILE",
        help="table of ratings (keep, maybe, discard) that the participants' pages save, for the group level to show "
        "(default: none)",
    )
    group.add_argument(
        "--exclude-discarded", action="store_true", help="leave T1w images out that --ratings says to discard"
    )
    group.add_argument(
        "--allow-mixed-weights", action="store_true", help="put volumes by different weights into one table"
    )
    group.add_argument(
        "--allow-mixed-versions",
        action="store_true",
        help="also take tables that another version of this package made than most",
    )


def _add_performance(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it may use")
    group.add_argument(
        "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: auto, a GPU that works or the CPU)"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="patches at once (default: 4 on a GPU, 1 on a CPU)")
    group.add_argument("--low-memory", action="store_true", help="take less than 2 GiB of a GPU's memory; slower")
    group.add_argument(
        "--nprocs", "--nthreads", "--n-cpus", type=int, metavar="N", help="processors in all (default: all there are)"
    )
    group.add_argument(
        "--omp-nthreads", type=int, metavar="N", help="threads of one step (default: --nprocs, at most 8)"
    )
    group.add_argument(
        "--mem",
        "--mem-gb",
        dest="mem_gb",
        type=amount_gb,
        metavar="GB",
        help="memory that steps may plan with, in GB or with a unit, such as 8G or 8000MB (default: 90 %% of the "
        "machine's, or of what its control group or Slurm job allows)",
    )
    group.add_argument(
        "--mem-mb",
        dest="mem_gb",
        type=amount_of_mb,
        metavar="MB",
        help="the same in MB, as fMRIPrep counts (default: --mem)",
    )
    group.add_argument(
        "--use-plugin",
        type=Path,
        metavar="FILE",
        help="JSON or YAML with 'plugin' and 'plugin_args' for Nipype (default: its "
        "processes, a lasting one for the networks)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="intermediate results; a run with the same folder takes up what is there (default: ./work)",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="also process what is finished: else a T1w is skipped whose results are there, made from the same "
        "image by the same weights and options",
    )
    group.add_argument(
        "--clean-workdir", action="store_true", help="delete the intermediate results of each participant that is done"
    )
    group.add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="JSON of options, such as the config.json of an earlier run; options on the command line win "
        "(default: none)",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="process nothing and write nothing: say what would be processed, what not and why, and for how long by "
        "this machine's speed, which a patch is measured for",
    )
    group.add_argument(
        "--stop-on-first-crash",
        action="store_true",
        help="start nothing more once a step has failed; else the other images are processed all the same",
    )
    group.add_argument(
        "--resource-monitor",
        action="store_true",
        help="write memory and processors in use, a row a second, into resources.tsv beside the log",
    )
    group.add_argument(
        "-v", "--verbose", action="count", help="more about what is being done (-vv: details); the log file has it all"
    )


def _add_accepted(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("taken as other apps have them, without effect")
    group.add_argument("--notrack", action="store_true", help="nothing is ever reported to anyone, with or without it")
    group.add_argument(
        "--fs-license-file",
        type=Path,
        metavar="FILE",
        help="FreeSurfer is not run, so no licence is read (default: none)",
    )
    group.add_argument("--anat-only", action="store_true", help="anatomical images are all that is processed anyway")


def parse_config(argv: list[str] | None = None) -> RunConfig:
    """Turn a command line into a record of options.

    Raises
    ------
    ConfigError
        A value is out of range, or the file of options cannot be used.
    SystemExit
        The command line cannot be read (code 2), or asks for help or the version (0).
    """
    given = vars(build_parser().parse_args(argv))
    stored = stored_options(given.pop("config_file", None))
    return make_config(stored, given)


def make_config(stored: dict[str, Any], given: dict[str, Any]) -> RunConfig:
    """Join options from a file and from the command line, which win; the rest follows from the machine.

    Raises
    ------
    ConfigError
        A value is out of range.
    """
    defaults = {"nprocs": processors(), "mem_gb": _memory_gb()}
    options = {**defaults, **stored, "omp_nthreads": 1, **given}
    names = {entry.name for entry in fields(RunConfig)}
    config = RunConfig(**{key: value for key, value in options.items() if key in names})
    if "omp_nthreads" in given:
        return config
    # A file may come from a larger machine: its number of threads gives way to that of processors.
    threads = stored.get("omp_nthreads", _MOST_THREADS)
    return replace(config, omp_nthreads=min(config.nprocs, threads) if isinstance(threads, int) else threads)


def stored_options(path: Path | None) -> dict[str, Any]:
    """Return options from a file; what belongs to that run alone is left out."""
    if path is None:
        return {}
    try:
        options = options_from_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: cannot be used as --config-file: {reason(error)}") from error
    return {key: value for key, value in options.items() if key != "run_id"}


def _memory_gb() -> float:
    """Return 90 % of the memory that this process may use."""
    there = memory_gb()
    return round(0.9 * there, 2) if there else DEFAULT_MEMORY_GB
