"""What need not be done again: results and reports whose records say that the same would come out."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.finished import fingerprint, is_unchanged, read_record, record_path, size_and_time
from medsegmamba_bids.interfaces.outputs import write_new
from medsegmamba_bids.stats.intracranial import Template, find_template
from medsegmamba_bids.workflows.networks import Networks, choose_networks

# Of the options, those that change results; device, batch size, threads and memory do not.
_OPTIONS = ("step_size", "precision", "save_posteriors", "fs_stats")


def made_from(image: T1wImage, config: RunConfig, networks: Networks, template: Template) -> dict[str, Any]:
    """What a T1w's results depend on, apart from the content of the files that are read for it."""
    used = {"aseg": networks.aseg, "hippocampus": networks.hippocampus, "brain": networks.brain}
    return {
        "Version": __version__,
        "T1w": image.relative,
        "Weights": {name: network.info.checksum for name, network in used.items() if network},
        "Options": {name: getattr(config, name) for name in _OPTIONS},
        "Template": _template(template),
    }


@lru_cache(maxsize=8)
def _template(template: Template) -> dict[str, Any]:
    return {"Name": template.name, "Volume_mm3": template.volume, "SHA256": fingerprint(template.path).get("SHA256")}


def files_read(image: T1wImage) -> dict[str, Path]:
    """Files that a T1w's results are made from, by name."""
    return {"T1w": image.path} | ({"mask": image.mask} if image.mask else {})


def files_now(image: T1wImage) -> dict[str, dict[str, Any]]:
    """Path, size and time of the files that are read, to tell later whether they changed meanwhile."""
    return {name: {"Path": str(path), **size_and_time(path)} for name, path in files_read(image).items()}


def why_unfinished(image: T1wImage, made: dict[str, Any], config: RunConfig) -> str:
    """Say why a T1w must be processed; empty where its results are there and would come out the same.

    Parameters
    ----------
    image : T1wImage
    made : dict
        As :func:`made_from` returns it for this run.
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
    """Participants of which images or the report are missing, with the images that are left to process.

    Raises
    ------
    WeightsError
        Weights cannot be used.
    """
    networks, template = choose_networks(config), find_template()
    found = {}
    for subject, images in subjects.items():
        left = [i for i in images if why_unfinished(i, made_from(i, config, networks, template), config)]
        if left or not report_is_current(subject, config):
            found[subject] = left
    return found


def _report_record(subject: str, config: RunConfig) -> Path:
    return config.output_dir / f"sub-{subject}" / "log" / "report.json"


def _report_from(subject: str, config: RunConfig) -> dict[str, Any]:
    """What a participant's report is made from, and the page itself."""
    folder = _report_record(subject, config).parent
    thresholds = fingerprint(config.quality_thresholds) if config.quality_thresholds else {}
    return {
        "Version": __version__,
        "Images": {path.name: fingerprint(path).get("SHA256") for path in sorted(folder.glob("*_T1w.json"))},
        "Thresholds": thresholds.get("SHA256"),
        "Page": fingerprint(config.output_dir / f"sub-{subject}.html").get("SHA256"),
    }


def report_is_current(subject: str, config: RunConfig) -> bool:
    """Whether a participant's report shows its results as they are."""
    now = _report_from(subject, config)
    return now["Page"] is not None and read_record(_report_record(subject, config)) == now


def record_report(subject: str, config: RunConfig) -> None:
    """Keep in mind what a report was made from, once it is written."""
    write_new(json.dumps(_report_from(subject, config), indent=1) + "\n", _report_record(subject, config))
