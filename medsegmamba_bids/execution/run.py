"""Run the workflow over participants: a few at a time, so that start and memory do not depend on their number."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import Inputs, T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.execution.batches import Subjects, Turn, turns
from medsegmamba_bids.execution.crashes import last_error, read_crashes
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.execution.outcomes import (
    DONE,
    FAILED,
    FINISHED,
    SKIPPED,
    Outcome,
    finished_before,
    judge_image,
    with_quality_flags,
)
from medsegmamba_bids.execution.resume import record_report, report_is_current, why_unfinished
from medsegmamba_bids.execution.work_folders import discard, prepare_work_dir
from medsegmamba_bids.records import read_mapping, unknown_keys
from medsegmamba_bids.stats.intracranial import Template, find_template
from medsegmamba_bids.workflows.ingredients import made_from
from medsegmamba_bids.workflows.networks import Networks, choose_networks
from medsegmamba_bids.workflows.participants import (
    ROOT,
    init_medsegmamba_wf,
    participant_wf_name,
    participant_work_dir,
    report_wf_name,
)

logger = logging.getLogger(__name__)

LOG_FILE = "medsegmamba.log"

#: Called with a node and "start", "end" or "exception".
StatusCallback = Callable[[Any, str], None]


class Runner:
    """Runs workflows one after the other with the same processes."""

    def __init__(self, config: RunConfig, status: StatusCallback | None = None) -> None:
        self.plugin, self.arguments = _plugin(config, status)

    def run(self, workflow: Workflow) -> str:
        """Run a workflow; return why it ended early, or nothing. Nodes that failed are in crash files."""
        try:
            workflow.run(plugin=self.plugin, plugin_args=self.arguments)
        except Exception as error:  # Nipype raises what it likes once nodes have failed
            logger.debug("the workflow ended with an error", exc_info=True)
            return last_error(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return ""

    def close(self) -> None:
        """End its processes."""
        if not isinstance(self.plugin, str):
            self.plugin.close()


@contextmanager
def open_runner(config: RunConfig, status: StatusCallback | None = None) -> Iterator[Runner]:
    """A runner whose processes end with the block."""
    runner = Runner(config, status)
    try:
        yield runner
    finally:
        runner.close()


def _plugin(config: RunConfig, status: StatusCallback | None) -> tuple[Any, dict[str, Any]]:
    """The plugin, by name if it is one of Nipype's own, and its arguments."""
    if config.use_plugin:
        name, arguments = read_plugin(config.use_plugin)
        return name, {**arguments, "status_callback": status}
    from medsegmamba_bids.execution.plugin import NetworkProcessPlugin

    arguments = {
        "n_procs": config.nprocs,
        "memory_gb": config.mem_gb,
        "raise_insufficient": False,
        "device": config.device,
        "threads": config.omp_nthreads,
        "log_file": str(config.log_dir / LOG_FILE),
        "status_callback": status,
    }
    return NetworkProcessPlugin(arguments), arguments


def read_plugin(path: Path) -> tuple[str, dict[str, Any]]:
    """Read the name of a plugin of Nipype and its arguments from a JSON or YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read, or names no plugin that there is.
    """
    from nipype.pipeline import plugins

    entries = read_mapping(path, "--use-plugin", "json" if path.suffix == ".json" else "yaml")
    if sentence := unknown_keys(entries, ("plugin", "plugin_args")):
        raise ConfigError(f"{path}: cannot be used as --use-plugin: {sentence}")
    name, arguments = entries.get("plugin"), entries.get("plugin_args") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ConfigError(
            f"{path}: cannot be used as --use-plugin: it must hold 'plugin', a name, and may hold 'plugin_args'"
        )
    known = sorted(key.removesuffix("Plugin") for key in vars(plugins) if key.endswith("Plugin"))
    if name not in known:
        raise ConfigError(f"{path}: Nipype has no plugin {name!r}; there are {', '.join(known)}")
    return name, dict(arguments)


def run_participants(inputs: Inputs, config: RunConfig, status: StatusCallback | None = None) -> list[Outcome]:
    """Process T1w images that are not finished, and write reports; return what became of each.

    Raises
    ------
    WeightsError, ConfigError
        Weights or the plugin cannot be used.
    """
    networks, template = choose_networks(config), find_template()
    write_dataset_files(config)
    outcomes = [Outcome(name, SKIPPED, (reason,)) for name, reason in inputs.skipped.items()]
    with open_runner(config, status) as runner, _Participants(config, networks, template, runner) as participants:
        for turn in turns(inputs.subjects(), config):
            outcomes += participants.process(turn)
    return sorted(with_quality_flags(outcomes, config), key=lambda outcome: outcome.name)


class _Participants:
    """Processes turns of participants; their reports are written together with the next turn."""

    def __init__(self, config: RunConfig, networks: Networks, template: Template, runner: Runner) -> None:
        self.config, self.networks, self.template, self.runner = config, networks, template, runner
        self.to_report: list[str] = []
        self.before = Turn()

    def __enter__(self) -> _Participants:
        return self

    def __exit__(self, *error: object) -> None:
        self.before.release()

    def process(self, turn: Turn) -> list[Outcome]:
        """Process a turn, and write the reports of the one before."""
        try:
            return self._process(turn)
        except BaseException:
            turn.release()
            raise

    def _process(self, turn: Turn) -> list[Outcome]:
        config, reports = self.config, self.to_report
        left = {subject: self._left(images) for subject, images in turn.subjects.items()}
        todo = {subject: images for subject, images in left.items() if images}
        _prepare(todo, config)
        error = self._run(todo, reports)
        crashes = _crashes({*todo, *reports}, config)
        # Where nodes failed, the error only repeats one of theirs.
        error = "" if crashes else error
        failed = _failed_reports(reports, crashes)
        if not error:
            _record_reports(reports, failed, config)
        found = {
            subject: [
                _judge(image, crashes, error, config) if image in left[subject] else finished_before(image, turn.waited)
                for image in images
            ]
            for subject, images in turn.subjects.items()
        }
        self.to_report = [subject for subject, group in found.items() if _needs_report(subject, group, config)]
        _clean(found, config)
        self.before.release()
        self.before = turn
        return failed + [outcome for group in found.values() for outcome in group]

    def _left(self, images: list[T1wImage]) -> list[T1wImage]:
        """Images that are not finished."""
        left = []
        for image in images:
            made = made_from(image, self.config, self.networks, self.template)
            if why := why_unfinished(image, made, self.config):
                logger.info("%s_T1w is processed: %s", image.prefix, why)
                left.append(image)
        return left

    def _run(self, todo: Subjects, reports: list[str]) -> str:
        """Run a workflow; return why it ended early."""
        if not (todo or reports):
            return ""
        workflow = init_medsegmamba_wf(todo, self.config, self.networks, self.template, reports)
        if self.config.write_graph and todo:
            _write_graph(workflow, self.config)
        return self.runner.run(workflow)


def _prepare(subjects: Subjects, config: RunConfig) -> None:
    """Settle what earlier runs left of participants that are processed."""
    made_by = {subject: prepare_work_dir(subject, images, config) for subject, images in subjects.items()}
    for other in sorted(set(made_by.values()) - {""}):
        logger.warning(
            "%s: intermediate results of %d participants were made by version %s, not %s; they are not used",
            *(config.work_dir, list(made_by.values()).count(other), other, __version__),
        )


def _needs_report(subject: str, outcomes: list[Outcome], config: RunConfig) -> bool:
    if all(outcome.status == FINISHED for outcome in outcomes):
        return not report_is_current(subject, config)
    return any(outcome.status != FAILED for outcome in outcomes)


def _record_reports(subjects: list[str], failed: list[Outcome], config: RunConfig) -> None:
    names = {outcome.name for outcome in failed}
    for subject in subjects:
        if f"sub-{subject}.html" not in names:
            record_report(subject, config)


def write_reports(config: RunConfig, status: StatusCallback | None = None) -> list[Outcome]:
    """Write the reports of participants that are in the output folder; segment nothing."""
    there = BIDSFolder(config.output_dir).participants
    chosen = sorted(set(config.participant_label)) or there
    absent = [subject for subject in chosen if subject not in there]
    outcomes = [Outcome(f"sub-{subject}", SKIPPED, ("it has no results",)) for subject in absent]
    present = [subject for subject in chosen if subject in there]
    failed: dict[str, Outcome] = {}
    if present:
        with open_runner(config, status) as runner:
            error = runner.run(init_medsegmamba_wf({}, config, reports=present))
            crashes = _crashes(present, config)
            if error and not crashes:
                crashes = {f"{ROOT}.{report_wf_name(subject)}.report": error for subject in present}
            failed = {outcome.name: outcome for outcome in _failed_reports(present, crashes)}
    names = [f"sub-{subject}.html" for subject in present]
    return outcomes + [failed.get(name, Outcome(name, DONE)) for name in names]


def _crashes(subjects: Iterable[str], config: RunConfig) -> dict[str, str]:
    """Full name of a node -> what it failed with, for all nodes of some participants."""
    found: dict[str, str] = {}
    for subject in subjects:
        found |= read_crashes(config.participant_log_dir(subject))
    return found


def _judge(image: T1wImage, crashes: dict[str, str], error: str, config: RunConfig) -> Outcome:
    start = f"{ROOT}.{participant_wf_name(image.subject)}.{image.node_name}."
    own = {name.rsplit(".", 1)[-1]: text for name, text in crashes.items() if name.startswith(start)}
    return judge_image(image, own, error, config)


def _failed_reports(subjects: list[str], crashes: dict[str, str]) -> list[Outcome]:
    reasons = {subject: crashes.get(f"{ROOT}.{report_wf_name(subject)}.report") for subject in subjects}
    return [Outcome(f"sub-{subject}.html", FAILED, (reason,)) for subject, reason in reasons.items() if reason]


def _clean(found: dict[str, list[Outcome]], config: RunConfig) -> None:
    """Delete the work folders of participants that are done, if that was asked for."""
    if not config.clean_workdir:
        return
    for subject, outcomes in found.items():
        if all(outcome.status != FAILED for outcome in outcomes):
            discard(participant_work_dir(subject, config))


def _write_graph(workflow: Workflow, config: RunConfig) -> None:
    """Write the workflow as a graph; as a picture where Graphviz is installed."""
    path = config.log_dir / "graph.dot"
    workflow.write_hierarchical_dotfile(dotfilename=str(path), colored=True, simple_form=True)
    # Nipype draws an arrow for each file that is handed on; strict graphs have one between two nodes.
    path.write_text(path.read_text(encoding="utf-8").replace("digraph", "strict digraph", 1), encoding="utf-8")
    if dot := shutil.which("dot"):
        subprocess.run([dot, "-Tsvg", str(path), "-o", str(path.with_suffix(".svg"))], check=False)
