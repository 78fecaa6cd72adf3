"""What need not be done again: results and reports whose records say that the same would come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.record import fingerprint, is_unchanged, read_record, record_path
from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.stats.intracranial import find_template
from medsegmamba_bids.workflows.ingredients import files_read, made_from
from medsegmamba_bids.workflows.networks import choose_networks


def why_unfinished(image: T1wImage, made: dict[str, Any], config: RunConfig) -> str:
    """Say why a T1w must be processed; empty where its results are there and would come out the same.

    Parameters
    ----------
    image : T1wImage
    made : dict
        As :func:`~medsegmamba_bids.workflows.ingredients.made_from` returns it for this run.
    config : RunConfig
    """
    if config.force:
        return "it was asked for (--force)"
    record = read_record(record_path(config.output_dir, image.prefix))
    before, inputs, outputs = (record.get(key) for key in ("MadeFrom", "Inputs", "Outputs"))
    if not all(isinstance(entry, dict) for entry in (before, inputs, outputs)):
        return "it was not finished before"
    if different := sorted(key for key in made.keys() | before.keys() if made.get(key) != before.get(key)):
        return f"it was made with another {' and another '.join(map(str.lower, different))}"
    read = files_read(image)
    if read.keys() != inputs.keys():
        return "it was made with another mask"
    if changed := [name for name, path in read.items() if not is_unchanged(path, inputs[name])]:
        return f"the {' and the '.join(changed)} changed"
    gone = [name for name, before in outputs.items() if not is_unchanged(config.output_dir / name, before)]
    return f"{len(gone)} of its results are gone or changed, such as {gone[0]}" if gone else ""


def unfinished(subjects: dict[str, list[T1wImage]], config: RunConfig) -> dict[str, list[T1wImage]]:
    """Return participants of which images or the report are missing, with the images that are left to process.

    Raises
    ------
    WeightsError
        Weights cannot be used.
    """
    networks, template = choose_networks(config), find_template()
    remaining = {}
    for subject, images in subjects.items():
        left = [i for i in images if why_unfinished(i, made_from(i, config, networks, template), config)]
        if left or not report_is_current(subject, config):
            remaining[subject] = left
    return remaining


def _report_record(subject: str, config: RunConfig) -> Path:
    return config.output_dir / f"sub-{subject}" / "log" / "report.json"


def _report_from(subject: str, config: RunConfig) -> dict[str, Any]:
    """Return what a participant's report is made from, and the page itself."""
    folder = _report_record(subject, config).parent
    thresholds = fingerprint(config.quality_thresholds) if config.quality_thresholds else {}
    return {
        "Version": __version__,
        "Images": {path.name: fingerprint(path).get("SHA256") for path in sorted(folder.glob("*_T1w.json"))},
        "Thresholds": thresholds.get("SHA256"),
        "Page": fingerprint(config.output_dir / f"sub-{subject}.html").get("SHA256"),
    }


def report_is_current(subject: str, config: RunConfig) -> bool:
    """Return whether a participant's report shows its results as they are."""
    now = _report_from(subject, config)
    return now["Page"] is not None and read_record(_report_record(subject, config)) == now


def record_report(subject: str, config: RunConfig) -> None:
    """Record what a report was made from, once it is written."""
    write_new(json.dumps(_report_from(subject, config), indent=1) + "\n", _report_record(subject, config))
