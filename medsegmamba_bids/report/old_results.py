"""Results that the last run may not have made, by what a participant's records and crash files say.

A run that fails leaves the results of the run before. Whether these are wanted cannot be told from an output folder,
so that they are named and not left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import as_identifier, output_name
from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.datasets.scan_names import listed
from medsegmamba_bids.errors import BIDSError, reason
from medsegmamba_bids.report.crashes import read_crash
from medsegmamba_bids.report.gather import Gathered
from medsegmamba_bids.report.run_records import read_record, record_path
from medsegmamba_bids.report.visit_tables import VisitsOfGroup
from medsegmamba_bids.segmentations import of_name

_VISITS = "longitudinal"
_PICTURES = "draw"  # the step of a T1w without which its volumes are whole


def old_results(results: Gathered, visits: Mapping[str, VisitsOfGroup], config: RunConfig) -> dict[str, str]:
    """Return T1w images, and visits of participants, whose results may be old -> why.

    Parameters
    ----------
    results : Gathered
    visits : mapping of str to VisitsOfGroup
        By segmentation.
    config : RunConfig
        Whose folder of the dataset may be absent.
    """
    images: dict[str, list[Path]] = {}
    for segmentation, tables in results.tables.items():
        for table in tables:
            images.setdefault(table.scan.prefix, []).append(table.scan.path(of_name(segmentation).stats))
    together: dict[str, list[Path]] = {}
    for segmentation, group in visits.items():
        for table in group.tables:
            name = output_name(f"sub-{table.subject}", of_name(segmentation).changes)
            together.setdefault(f"sub-{table.subject}", []).append(config.output_dir / name)
    found = {f"{prefix}_T1w": _why_image_is_old(prefix, images[prefix], config) for prefix in sorted(images)}
    for prefix, paths in together.items():
        record = record_path(config.output_dir, prefix, _VISITS)
        why = _why_old(record, f"{_VISITS}_wf", paths, config.output_dir)
        found[f"{prefix}_{_VISITS}"] = why or _why_other_images(record)
    return {name: why for name, why in found.items() if why}


def _why_image_is_old(prefix: str, tables: Sequence[Path], config: RunConfig) -> str:
    part = f"T1w_{as_identifier(prefix)}_wf"
    record = record_path(config.output_dir, prefix)
    why = _why_old(record, part, tables, config.output_dir)
    return why or _why_another_image(prefix, read_record(record), config.bids_dir)


def _why_old(record: Path, part: str, tables: Sequence[Path], output_dir: Path) -> str:
    """Say why tables may not be of the last run; empty where they are, or nothing is known of it.

    That it cannot be told is said, too.

    Parameters
    ----------
    record : Path
    part : str
        Name of the workflow that makes the tables, within the participant's.
    tables : sequence of Path
    output_dir : Path
    """
    try:
        return _why_not_of_the_last_run(record, part, tables, output_dir)
    except OSError as error:
        return f"{error.filename}: cannot be read ({reason(error)})"


def _why_not_of_the_last_run(path: Path, part: str, tables: Sequence[Path], output_dir: Path) -> str:
    if not path.parent.is_dir():  # results that were copied without it
        return ""
    record = read_record(path)
    outputs = record.get("Outputs")
    if not isinstance(outputs, dict) or "MadeFrom" not in record:  # a forced run took back that it was finished
        return "no record says that the run that made them was finished"
    for table in tables:
        before = outputs.get(table.relative_to(output_dir).as_posix())
        if not isinstance(before, dict) or before.get("SHA256") != hashlib.sha256(table.read_bytes()).hexdigest():
            return f"{table.name} is not as the last run that was finished left it"
    return _later_crash(path, part, output_dir)


def _later_crash(record: Path, part: str, output_dir: Path) -> str:
    """Say which step of a part of the workflow failed after a record was written; empty where none did."""
    written = record.stat().st_mtime_ns
    for path in sorted(record.parent.glob("*/crash-*.txt"), reverse=True):
        if path.stat().st_mtime_ns <= written:
            continue
        node, reason = read_crash(path)
        step = node.rsplit(".", 1)[-1]
        if part in node.split(".") and step != _PICTURES:
            return f"a later run failed at {step}: {reason} (see {path.relative_to(output_dir)})"
    return ""


def _why_other_images(visits: Path) -> str:
    """Say of which images a record of visits has read other results than the images' own records tell of by now."""
    read = _entry(read_record(visits), "Inputs")
    anew = [
        path.stem
        for path in sorted(visits.parent.glob("*_T1w.json"))
        if _differ(read, _entry(read_record(path), "Outputs"))
    ]
    if not anew:
        return ""
    return f"images were processed anew since: {', '.join(anew)}; --longitudinal does the visits anew, too"


def _differ(read: Any, written: Any) -> bool:
    """Return whether the content of a file that both records name is not the same."""
    both = read.keys() & written.keys() if isinstance(read, dict) and isinstance(written, dict) else ()
    return any(_entry(read, name, "SHA256") != _entry(written, name, "SHA256") for name in both)


def _why_another_image(prefix: str, record: Mapping[str, Any], bids_dir: Path) -> str:
    """Say that a record is of another image than is there by now; by its size, as a group has no time for contents."""
    relative, size = (_entry(record, *keys) for keys in (("MadeFrom", "T1w"), ("Inputs", "T1w", "Size")))
    if not isinstance(relative, str):
        return ""
    if not Path(relative).name.startswith(f"{prefix}_T1w"):
        return f"they were made from another image, {Path(relative).name}"
    try:
        now = (bids_dir / relative).stat().st_size
    except OSError:  # a group needs no images
        return _why_renamed(relative, bids_dir)
    return f"the T1w in the dataset is another by now: {now} bytes, not {size}" if size not in (now, None) else ""


def _why_renamed(relative: str, bids_dir: Path) -> str:
    """Say that an image is no longer there, where its participant has others; a link without content is there."""
    with contextlib.suppress(OSError, BIDSError):  # as where there is no dataset
        folder = relative.split("/")[0]
        if os.path.lexists(bids_dir / relative) or not (bids_dir / folder).is_dir():
            return ""
        if others := [file.name for file in BIDSFolder(bids_dir).t1w_images(folder)]:
            return f"the T1w is no longer in the dataset, which has {listed(others, 3)} of this participant"
    return ""


def _entry(record: Any, *keys: str) -> Any:
    """Return what stands under keys within keys; None where one is not there."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record
