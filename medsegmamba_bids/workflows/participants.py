"""The whole workflow: a part per participant, in it a part per T1w, in it a node per step."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import as_identifier
from medsegmamba_bids.interfaces.write_report import PICTURES, VIEWER, WriteReport
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.workflows.longitudinal import Visits, init_longitudinal_wf
from medsegmamba_bids.workflows.networks import Networks
from medsegmamba_bids.workflows.t1w import DRAW, init_t1w_wf

ROOT = "medsegmamba_wf"
REPORT = "report"  # the node of a participant


def init_medsegmamba_wf(
    subjects: dict[str, list[T1wImage]],
    config: RunConfig,
    networks: Networks | None = None,
    template: Template | None = None,
) -> Workflow:
    """Build the workflow of some participants.

    Parameters
    ----------
    subjects : dict
        Participant -> T1w images; none where only the report is written, from what is in the output folder already.
    config : RunConfig
    networks : Networks, optional
    template : Template, optional
        For the intracranial volume; both are needed for images only.
    """
    workflow = Workflow(name=ROOT, base_dir=str(config.work_dir))
    workflow.config["execution"] = _execution(config, config.log_dir)
    for subject, images in subjects.items():
        workflow.add_nodes([init_participant_wf(subject, images, config, networks, template)])
    return workflow


def init_visits_wf(plan: Iterable[Visits], config: RunConfig, networks: Networks, template: Template) -> Workflow:
    """Build the workflow of participants whose visits are processed together; their T1w images are done."""
    workflow = Workflow(name=ROOT, base_dir=str(config.work_dir))
    workflow.config["execution"] = _execution(config, config.log_dir)
    for visits in plan:
        part = Workflow(name=participant_wf_name(visits.subject))
        part.add_nodes([init_longitudinal_wf(visits, config, networks, template)])
        workflow.add_nodes([_with_crashes_apart(part, visits.subject, config)])
    return workflow


def init_participant_wf(
    subject: str, images: list[T1wImage], config: RunConfig, networks: Networks | None, template: Template | None
) -> Workflow:
    """Build the workflow of a participant: its T1w images, then the report. Crash files go into its own folder."""
    parts = [init_t1w_wf(image, config, networks, template, len(images)) for image in images]
    report = _report_node(subject, config, [part.name for part in parts])
    workflow = Workflow(name=participant_wf_name(subject))
    workflow.add_nodes([*parts, report])
    drawn = [(f"{DRAW}.pictures_file", PICTURES), (f"{DRAW}.viewer_file", VIEWER)]
    for part in parts:
        outputs = [("finish.out_file", part.name), *((output, part.name + kind) for output, kind in drawn)]
        workflow.connect([(part, report, outputs)])
    return _with_crashes_apart(workflow, subject, config)


def _with_crashes_apart(workflow: Workflow, subject: str, config: RunConfig) -> Workflow:
    """Make crash files of a participant's workflow go into its own folder; return it."""
    workflow.config["execution"] = _execution(config, config.participant_log_dir(subject))
    for node in workflow._get_all_nodes():
        node.config = deepcopy(workflow.config)
    return workflow


def _report_node(subject: str, config: RunConfig, parts: list[str]) -> Node:
    interface = WriteReport(parts, output_dir=str(config.output_dir), subject=subject)
    if config.quality_thresholds:
        interface.inputs.thresholds = str(config.quality_thresholds)
    return Node(interface, name=REPORT, mem_gb=min(1.0, config.mem_gb))


def participant_wf_name(subject: str) -> str:
    """Return the name of a participant's workflow and, within ``ROOT``, of its work folder."""
    return f"{as_identifier(f'sub-{subject}')}_wf"


def participant_work_dir(subject: str, config: RunConfig) -> Path:
    """Return the folder of a participant's intermediate results."""
    return config.work_dir / ROOT / participant_wf_name(subject)


def _execution(config: RunConfig, crashes: Path) -> dict[str, Any]:
    return {
        "crashdump_dir": str(crashes),
        "crashfile_format": "txt",
        "stop_on_first_crash": config.stop_on_first_crash,
        "stop_on_first_rerun": False,
        "poll_sleep_duration": 0.02,
        "remove_unnecessary_outputs": False,
        "create_report": False,
        "check_version": False,
        "hash_method": "timestamp",
        "use_relative_paths": False,
    }
