"""The command ``medsegmamba-slurm``: an array job over the participants of a dataset, and the group level after it."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegmamba_bids.cli.common import user_errors
from medsegmamba_bids.cli.main import check_files, run_level
from medsegmamba_bids.cli.parser import add_options, make_config, start_parser, stored_options
from medsegmamba_bids.config import RunConfig, check_folders
from medsegmamba_bids.errors import ConfigError

if TYPE_CHECKING:
    from medsegmamba_bids.bids import Inputs
    from medsegmamba_bids.execution.slurm_jobs import Jobs

DESCRIPTION = """\
Write the scripts of a Slurm array job that runs medsegmamba over a dataset, a task per participant, and of a job that
gathers all results afterwards; with --submit, hand them to Slurm. Participants that are finished already are left out:
the same command again runs what is missing or failed. Options of sbatch follow after --.
"""
EPILOG = """\
examples:
  medsegmamba-slurm /data/bids /data/out -w /scratch/work --submit -- --partition=short
  medsegmamba-slurm /data/bids /data/out --image medsegmamba.sif --per-task 10 -- --partition=gpu --gres=gpu:1
"""
_OWN = ("submit", "per_task", "at_once", "image")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser; options that were not given are absent from its result."""
    parser = start_parser("medsegmamba-slurm", DESCRIPTION, EPILOG)
    parser.usage = "%(prog)s BIDS_DIR OUT_DIR [options of this command and of medsegmamba] [-- options of sbatch]"
    group = parser.add_argument_group("the jobs")
    group.add_argument("--submit", action="store_true", help="submit the scripts (default: only write them)")
    group.add_argument(
        "--per-task", type=int, metavar="N", help="participants per task, one after the other (default: 1)"
    )
    group.add_argument("--at-once", type=int, metavar="N", help="tasks that may run at once (default: as Slurm allows)")
    group.add_argument(
        "--image",
        type=Path,
        metavar="FILE",
        help="Singularity or Apptainer image to run in, on a GPU if there is one (default: none)",
    )
    add_options(parser)
    return parser


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    given, sbatch = _split(sys.argv[1:] if argv is None else argv)
    arguments = vars(build_parser().parse_args(given))
    own = {name: arguments.pop(name) for name in _OWN if name in arguments}
    stored = stored_options(arguments.pop("config_file", None))
    config = make_config(stored, {**arguments, "level": "participant"})
    chosen = stored.keys() | arguments.keys()
    _check(own, config)
    if config.dry_run:
        return run_level(config)
    jobs = _plan(own, config, chosen, sbatch)
    if jobs is None:
        return 0
    from medsegmamba_bids.execution.slurm_jobs import write_jobs

    submit = write_jobs(jobs)
    print(f"tasks:   {len(jobs.tasks)}, for {jobs.participants} participants")
    print(f"scripts: {submit.parent}")
    if not own.get("submit"):
        print(f"submit:  bash {_quoted(submit)}")
        return 0
    print(_submit(submit), end="")
    return 0


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return options before and after the first ``--``."""
    place = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def _check(own: dict[str, Any], config: RunConfig) -> None:
    """Refuse what no task could carry out."""
    for name in ("per_task", "at_once"):
        if own.get(name, 1) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {own[name]}; it must be 1 or more")
    if "image" in own and not own["image"].exists():
        raise ConfigError(f"{own['image']}: no such file (--image); it must be a Singularity or Apptainer image")
    check_folders(config)
    check_files(config)
    _check_templates(config, in_container="image" in own)
    _check_ratings(config)
    if config.reports_only:
        raise ConfigError("--reports-only is for medsegmamba itself: tasks are made of participants to segment")


def _check_templates(config: RunConfig, in_container: bool) -> None:
    """Refuse templates that no task would find; a container's, and those that tasks fetch, may come to be there."""
    from medsegmamba_bids.datasets.space_templates import find_templates

    if not (in_container or config.fetch_templates):
        find_templates(config.output_spaces)


def _check_ratings(config: RunConfig) -> None:
    """Refuse ratings that the group level, which runs last, could not use."""
    if config.exclude_discarded and config.ratings is None:
        raise ConfigError("--exclude-discarded needs --ratings, which says what to discard")
    if config.ratings is not None and not config.ratings.is_file():
        raise ConfigError(f"{config.ratings}: no such file (--ratings)")


def _plan(own: dict[str, Any], config: RunConfig, chosen: set[str], sbatch: list[str]) -> Jobs | None:
    """Return what is to be submitted; None, after saying so, where nothing is left to do."""
    from medsegmamba_bids.bids import collect_inputs
    from medsegmamba_bids.execution.resume import unfinished
    from medsegmamba_bids.execution.slurm_jobs import Jobs

    inputs = collect_inputs(config)
    for name, reason in inputs.skipped.items():
        print(f"left out: {name}: {reason}")
    left = unfinished(inputs.subjects(), config)
    _tell_finished(inputs, len(left), config)
    if not left:
        return None
    return Jobs(
        config=config,
        chosen=frozenset(chosen),
        images=left,
        per_task=own.get("per_task", 1),
        at_once=own.get("at_once"),
        image=own["image"].absolute() if "image" in own else None,
        options=tuple(sbatch),
    )


def _tell_finished(inputs: Inputs, left: int, config: RunConfig) -> None:
    there = len(inputs.subjects())
    if not there:
        raise ConfigError(f"{config.bids_dir}: none of the participants has a T1w image to process: there is no task")
    if left < there:
        print(f"finished already: {there - left} of {there} participants (--force redoes them)")
    if not left:
        print("nothing is left to do, so there is no array job; `medsegmamba BIDS_DIR OUT_DIR group` gathers results")


def _submit(script: Path) -> str:
    """Submit both jobs; return what was said of them."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            f"sbatch is not there: the scripts are written, run `bash {_quoted(script)}` where Slurm is installed"
        )
    ended = subprocess.run(["bash", str(script)], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if ended.returncode:
        raise ConfigError(f"Slurm refused the jobs: {_reason(ended.stderr)}")
    return ended.stdout


def _reason(text: str) -> str:
    """Return what sbatch said, and the partitions that there are where it is about them."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    reason = "; ".join(dict.fromkeys(line for line in lines if line)) or "it did not say why"
    if "partition" in reason.lower() and shutil.which("sinfo"):
        command = ["sinfo", "--noheader", "--format=%R"]
        there = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        ).stdout.split()
        reason += f"; partitions are {', '.join(there)}" if there else ""
    return reason


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


if __name__ == "__main__":
    sys.exit(main())
