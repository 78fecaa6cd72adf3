"""The command ``medsegmamba``, a BIDS App."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from medsegmamba_bids.cli.common import set_up_logging, user_errors
from medsegmamba_bids.cli.machine import memory_gb
from medsegmamba_bids.cli.parser import parse_config
from medsegmamba_bids.cli.progress import duration
from medsegmamba_bids.config import RunConfig, check_folders
from medsegmamba_bids.errors import UserError

_MOST_LINES = 3  # of reasons of each image on the terminal; the log has all
_ENDING = (signal.SIGINT, signal.SIGTERM)


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    config = parse_config(argv)
    check_folders(config)
    # A scheduler that ends the job asks first: the same as Ctrl-C.
    for number in _ENDING:
        signal.signal(number, _interrupt_once)
    if config.level == "group":
        from medsegmamba_bids.report.group import write_group

        code = write_group(config)
        print(f"tables:  {config.output_dir / 'group_seg-*_stats.tsv'}")
        print(f"page:    {config.output_dir / 'group.html'}")
        return code
    return run_level(config)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Interrupt; what comes after must not disturb the tidying up, and signals often come in pairs."""
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_level(config: RunConfig) -> int:
    """Process participants; print the table and return the exit code that follows from it."""
    os.environ.update(NIPYPE_NO_ET="1", NO_ET="1")  # Nipype would report over the network that it is used
    if not (config.dry_run or config.use_plugin):
        from medsegmamba_bids.execution.workers import start_forkserver

        start_forkserver(config.omp_nthreads)  # it imports what steps need, while this process does

    from medsegmamba_bids.cli.progress import Progress
    from medsegmamba_bids.execution.machine_check import check_machine
    from medsegmamba_bids.execution.outcomes import exit_code, outcome_table
    from medsegmamba_bids.execution.resource_monitor import resource_monitor

    check_files(config)
    if config.dry_run:
        return _tell_plan(config)
    check_machine(config)
    watched = config.log_dir if config.resource_monitor else None
    with _log(config), resource_monitor(watched), Progress() as progress:
        _tell_memory(config)
        outcomes = _outcomes(config, progress)
        table = outcome_table(outcomes)
        logging.getLogger(__name__).info("what became of each image:\n%s", table)
    print(outcome_table(outcomes, _MOST_LINES))
    print(f"results: {config.output_dir}")
    print(f"reports: {config.output_dir / 'sub-*.html'}")
    _tell_viewers(config, outcomes)
    print(f"log:     {config.log_dir}")
    print(f"next:    medsegmamba {_quoted(config.bids_dir)} {_quoted(config.output_dir)} group   (tables of all)")
    return exit_code(outcomes)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _tell_plan(config: RunConfig) -> int:
    """Print what would be done and for how long; 1 where something would be skipped."""
    from medsegmamba_bids.bids import collect_inputs
    from medsegmamba_bids.execution.dry_run import (
        images_together,
        plan_run,
        plan_text,
        seconds_of_networks,
        seconds_of_run,
    )

    set_up_logging(config.verbose)
    inputs = collect_inputs(config)
    plan = plan_run(inputs, config)
    print(plan_text(plan))
    if plan.process or plan.together:
        network_s, device = seconds_of_networks(plan, config)
        took = seconds_of_run(len(plan.process), network_s, config, device == "cpu", images_together(plan))
        print(f"for about {duration(took)} here: the networks take {duration(network_s)} a T1w of an adult ({device})")
    return int(bool(plan.skipped))


def _tell_viewers(config: RunConfig, outcomes: list) -> None:
    """Print commands that open the first T1w that is done; the reports have those of all."""
    from medsegmamba_bids.report.derivatives import Scan, viewer_commands

    prefixes = [outcome.name.removesuffix("_T1w") for outcome in outcomes if outcome.name.endswith("_T1w")]
    found = (viewer_commands(Scan(config.output_dir, prefix), config.output_dir) for prefix in prefixes)
    for command in next(filter(None, found), {}).values():
        print(f"look:    {command}")


def check_files(config: RunConfig) -> None:
    """Refuse files of options that cannot be used, before any work."""
    from medsegmamba_bids.execution.runner import read_plugin
    from medsegmamba_bids.report.thresholds import load_thresholds

    load_thresholds(config.quality_thresholds)
    if config.use_plugin:
        read_plugin(config.use_plugin)


def _tell_memory(config: RunConfig) -> None:
    """Say where steps plan with memory that is not there; fMRIPrep's --mem counts MB."""
    there = memory_gb()
    if there and config.mem_gb > there:
        advice = f"; --mem counts GB, --mem-mb {config.mem_gb:g} MB" if config.mem_gb >= 1000 else ""
        logging.getLogger(__name__).warning(
            "--mem %g GB is more than the %.1f GB that there are: memory may run out%s", config.mem_gb, there, advice
        )


def _outcomes(config: RunConfig, progress: Any) -> list:
    from medsegmamba_bids.execution.reports_only import write_reports
    from medsegmamba_bids.execution.run import run_participants

    if config.reports_only:
        return write_reports(config, progress)
    from medsegmamba_bids.bids import collect_inputs

    inputs = collect_inputs(config)
    progress.total = len(inputs.subjects())
    return run_participants(inputs, config, progress, progress.passed)


@contextmanager
def _log(config: RunConfig) -> Iterator[None]:
    """Write the options, and send messages to the run's log file; warnings (-v: more) also to the terminal."""
    from medsegmamba_bids.execution.runner import LOG_FILE
    from medsegmamba_bids.execution.workers import log_to_file
    from medsegmamba_bids.interfaces.sink import write_new

    write_new(config.to_json(), config.log_dir / "config.json")
    terminal = set_up_logging(config.verbose)
    to_file = log_to_file(str(config.log_dir / LOG_FILE))  # that has it all
    if sys.stderr.isatty():  # steps are shown already
        terminal.addFilter(lambda record: record.name != "medsegmamba_bids.cli.progress")
    package = logging.getLogger("medsegmamba_bids")
    refused = False
    try:
        yield
    except UserError:
        refused = True  # before any work: there is nothing to look up
        raise
    except Exception as error:
        package.debug("the run ended with an error: %s", error, exc_info=True)
        raise
    finally:
        package.removeHandler(terminal)
        package.removeHandler(to_file)
        logging.getLogger("nipype").removeHandler(to_file)
        to_file.close()
        if refused:
            shutil.rmtree(config.log_dir, ignore_errors=True)
            with contextlib.suppress(OSError):  # other runs' logs
                config.log_dir.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
