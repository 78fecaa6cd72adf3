"""What need not be done again: results and reports whose records say that the same would come out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.visit_times import visit_times
from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.report.run_records import fingerprint, is_unchanged, read_record, record_path
from medsegmamba_bids.stats.intracranial import Template, find_template
from medsegmamba_bids.workflows.ingredients import files_read, made_from
from medsegmamba_bids.workflows.longitudinal import RECORD, Visits, visits_made_from, visits_read
from medsegmamba_bids.workflows.networks import Networks, choose_networks


def why_unfinished(image: T1wImage, made: dict[str, Any], config: RunConfig) -> str:
    """Say why a T1w must be processed; empty where its results are there and would come out the same.

    Parameters
    ----------
    image : T1wImage
    made : dict
        As :func:`~medsegmamba_bids.workflows.ingredients.made_from` returns it for this run.
    config : RunConfig
    """
    return _why_not_as_recorded(record_path(config.output_dir, image.prefix), made, files_read(image), config)


def why_visits_unfinished(visits: Visits, made: dict[str, Any], config: RunConfig) -> str:
    """Say why the visits of a participant must be processed together; empty where the same would come out.

    Parameters
    ----------
    visits : Visits
    made : dict
        As :func:`~medsegmamba_bids.workflows.longitudinal.visits_made_from` returns it for this run.
    config : RunConfig
    """
    path = record_path(config.output_dir, visits.prefix, RECORD)
    before, now = (set(entry.get("Visits", ())) for entry in (read_record(path).get("MadeFrom", {}), made))
    if before and not config.force and before != now:
        told = [f"{what} {', '.join(sorted(names))}" for what, names in _moves(before, now) if names]
        return f"the visits changed: {'; '.join(told)}"
    return _why_not_as_recorded(path, made, visits_read(visits, config), config)


def _moves(before: set[str], now: set[str]) -> list[tuple[str, set[str]]]:
    return [("new is", now - before), ("gone is", before - now)]


def _why_not_as_recorded(path: Path, made: dict[str, Any], read: dict[str, Path], config: RunConfig) -> str:
    """Say in what a record differs from what is asked for now; empty where it does not."""
    if config.force:
        return "it was asked for (--force)"
    record = read_record(path)
    before, inputs, outputs = (record.get(key) for key in ("MadeFrom", "Inputs", "Outputs"))
    if not all(isinstance(entry, dict) for entry in (before, inputs, outputs)):
        return "it was not finished before"
    if different := sorted(key for key in made.keys() | before.keys() if made.get(key) != before.get(key)):
        articles = ("other" if name.endswith("s") else "another" for name in different)
        return f"it was made with {' and '.join(map('{} {}'.format, articles, map(str.lower, different)))}"
    if read.keys() != inputs.keys():
        return "it was made with another mask"
    if changed := [name for name, path in read.items() if not is_unchanged(path, inputs[name])]:
        return f"the {' and the '.join(changed)} changed"
    gone = [name for name, before in outputs.items() if not is_unchanged(config.output_dir / name, before)]
    return f"{len(gone)} of its results are gone or changed, such as {gone[0]}" if gone else ""


def unfinished(subjects: dict[str, list[T1wImage]], config: RunConfig) -> dict[str, int]:
    """Return participants of which images, visits or the report are missing, with how many images are left to segment.

    Visits that are processed together count, and so does their template.

    Raises
    ------
    WeightsError
        Weights cannot be used.
    """
    networks, template = choose_networks(config), find_template()
    remaining = {}
    for subject, images in subjects.items():
        left = [i for i in images if why_unfinished(i, made_from(i, config, networks, template), config)]
        visits = visits_left(subject, images, left, config, networks, template)
        if left or visits or not report_is_current(subject, config):
            remaining[subject] = len(left) + (images_of(visits[0]) if visits else 0)
    return remaining


def visits_left(
    subject: str,
    images: Sequence[T1wImage],
    left: Collection[T1wImage],
    config: RunConfig,
    networks: Networks,
    template: Template,
) -> tuple[Visits, str] | None:
    """Return the visits of a participant that would be processed together, and why; None where none would.

    Parameters
    ----------
    subject : str
    images : sequence of T1wImage
        Of the participant.
    left : collection of T1wImage
        Those that would be processed by themselves before.
    config, networks, template
    """
    if not config.longitudinal or len({image.session for image in images if image.session}) < 2:
        return None
    visits = visits_of(subject, images, config)
    why = why_visits_unfinished(visits, visits_made_from(visits, config, networks, template), config)
    if not why and any(image in left for image in visits.images):
        why = "they are processed one by one before"
    return (visits, why) if why else None


def images_of(visits: Visits) -> int:
    """Return how many images are segmented where visits are processed together: each once more, and their template."""
    return len(visits.images) + 1


def visits_of(subject: str, images: Iterable[T1wImage], config: RunConfig) -> Visits:
    """Return what of a participant is processed together: images that belong to a session, and when they were made."""
    chosen = tuple(image for image in images if image.session)
    times = visit_times(config.bids_dir, subject, [(image.session, image.relative) for image in chosen])
    return Visits(subject, chosen, times)


def _report_record(subject: str, config: RunConfig) -> Path:
    return config.output_dir / f"sub-{subject}" / "log" / "report.json"


def _report_from(subject: str, config: RunConfig) -> dict[str, Any]:
    """Return what a participant's report is made from, and the page itself."""
    folder = _report_record(subject, config).parent
    thresholds = fingerprint(config.quality_thresholds) if config.quality_thresholds else {}
    records = [*folder.glob("*_T1w.json"), *folder.glob(f"*_{RECORD}.json")]
    return {
        "Version": __version__,
        "Images": {path.name: fingerprint(path).get("SHA256") for path in sorted(records)},
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
