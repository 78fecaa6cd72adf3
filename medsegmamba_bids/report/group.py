"""The group level: tables of all participants, and ``group.html``. Reads derivatives only."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import GroupError
from medsegmamba_bids.image.io import write_text
from medsegmamba_bids.longitudinal.change import COLUMNS as VISIT_COLUMNS
from medsegmamba_bids.longitudinal.change import SLOPE_COLUMNS
from medsegmamba_bids.longitudinal.change import to_tsv as changes_to_tsv
from medsegmamba_bids.ownership import is_ours
from medsegmamba_bids.report.gather import Gathered, check_template, check_weights, gather, keep_one_version, rate
from medsegmamba_bids.report.group_page import group_page
from medsegmamba_bids.report.group_tables import long_table, provenance_of, to_tsv, wide_sidecar, wide_table
from medsegmamba_bids.report.old_results import old_results
from medsegmamba_bids.report.thresholds import load_thresholds
from medsegmamba_bids.report.visit_tables import VisitsOfGroup, visits_of_group
from medsegmamba_bids.segmentations import SEGMENTATIONS, of_name
from medsegmamba_bids.stats.tables import columns

logger = logging.getLogger(__name__)

_NOTHING_LEFT = "nothing is left to write into it"
#: Options that choose images of a dataset; participants are chosen here, too.
_SELECTIONS = {"session_label": "--session-label", "run_label": "--run-id", "bids_filter_file": "--bids-filter-file"}


def write_group(config: RunConfig) -> int:
    """Gather the volumes of all participants into tables and a page.

    The raw dataset may be absent; ``participants.tsv`` is taken from it, else from the output folder.

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    int
        1 where something could not be read and was left out, else 0. Participants that were never processed are
        listed, but are no failure, nor are results that may be older than the last run.

    Raises
    ------
    GroupError
        There is nothing to gather, or nothing is left, or volumes were made with different weights, or intracranial
        volumes with different templates.
    TableError
        The ratings cannot be used.
    """
    page = config.output_dir / "group.html"
    if not is_ours(page):
        raise GroupError(f"{page}: is not a page of medsegmamba_bids and is not replaced; move it")
    if config.exclude_discarded and config.ratings is None:
        raise GroupError("--exclude-discarded needs --ratings, which says what to discard")
    _tell_unused(config)
    rule = load_thresholds(config.quality_thresholds)["outliers"]
    results = gather(
        config.output_dir, _participants_file(config), config.participant_label, config.exclude_participant_label
    )
    if config.ratings is not None:
        rate(results, config.ratings, config.exclude_discarded)
    for segmentation in results.tables:
        if not config.allow_mixed_weights:
            check_weights(results, segmentation)
        if not config.allow_mixed_versions:
            keep_one_version(results, segmentation)
        check_template(results, segmentation)
    visits = _gather_visits(results, config)  # before anything is written: all JSONs name what failed here too
    results.old = old_results(results, visits, config)
    for segmentation in results.tables:
        if results.tables[segmentation]:
            _write_tables(results, segmentation, rule, config)
        else:
            _tell_old(_NOTHING_LEFT, _table_path(config, segmentation), _table_path(config, segmentation, "long"))
    _write_visits(visits, results, config)
    _write(group_page(results, config.output_dir, rule, visits), page)
    _tell(results)
    return int(bool(results.failed))


def _tell_unused(config: RunConfig) -> None:
    """Name options that choose images, of which the group level takes all that have results."""
    if chosen := [option for name, option in _SELECTIONS.items() if getattr(config, name)]:
        logger.warning(
            "%s selects images at the participant level only; the tables hold all that have results", ", ".join(chosen)
        )


def _participants_file(config: RunConfig) -> Path | None:
    for folder in (config.bids_dir, config.output_dir):
        if os.path.lexists(folder / "participants.tsv"):  # a link without its target is named, not passed over
            return folder / "participants.tsv"
    return None


def _write_tables(results: Gathered, segmentation: str, rule: dict[str, Any], config: RunConfig) -> None:
    path = _table_path(config, segmentation)
    table = wide_table(results, segmentation, rule)
    _write(to_tsv(table), path)
    _write_json(wide_sidecar(results, segmentation, table, rule), path.with_suffix(".json"))
    path = _table_path(config, segmentation, "long")
    if not config.group_long:
        _tell_old("it is written with --group-long only", path)
        return
    _write(to_tsv(long_table(results, segmentation)), path)
    z = {"robust_z": {"Description": "Robust z of Volume_mm3 within the structure, over all rows"}}
    _write_json(
        {**columns(of_name(segmentation).volumes), **z, **provenance_of(results, segmentation)},
        path.with_suffix(".json"),
    )


def _gather_visits(results: Gathered, config: RunConfig) -> dict[str, VisitsOfGroup]:
    """Return tables of visits that were processed together, by segmentation, where there are any."""
    found = {kind.name: visits_of_group(config, kind, results) for kind in SEGMENTATIONS}
    return {name: visits for name, visits in found.items() if visits is not None}


def _write_visits(visits: dict[str, VisitsOfGroup], results: Gathered, config: RunConfig) -> None:
    for kind in SEGMENTATIONS:
        if (found := visits.get(kind.name)) is None:
            paths = (_table_path(config, kind.name, name) for name in ("longitudinal", "visits", "slopes"))
            _tell_old(_NOTHING_LEFT, *paths)
            continue
        for name, table, sidecar in (
            ("longitudinal", found.long, VISIT_COLUMNS),
            ("visits", found.wide, {}),
            ("slopes", found.slopes, SLOPE_COLUMNS),
        ):
            path = _table_path(config, kind.name, name)
            _write(changes_to_tsv(table), path)
            told = {**provenance_of(results, kind.name, found.tables), "LeftOut": results.left_out[kind.name]}
            _write_json({**sidecar, **told}, path.with_suffix(".json"))


def _table_path(config: RunConfig, segmentation: str, desc: str = "") -> Path:
    return config.output_dir / f"group_seg-{segmentation}{desc and f'_desc-{desc}'}_stats.tsv"


def _tell_old(why: str, *paths: Path) -> None:
    """Name tables that an earlier run wrote and this one does not: they may hold what is left out now."""
    for path in paths:
        if path.exists():
            logger.warning("%s: is of an earlier run, and %s; remove it", path, why)


def _write(text: str, path: Path) -> None:
    write_text(path, text)


def _write_json(entries: dict[str, Any], path: Path) -> None:
    _write(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", path)


def _tell(results: Gathered) -> None:
    """Name what is not in the tables."""
    for name, reason in results.failed.items():
        logger.warning("%s: %s", name, reason)
    for name, reason in results.old.items():
        logger.warning("%s: its results are taken, but may be old: %s", name, reason)
    if results.discarded:
        logger.warning("left out as --ratings says: %s", ", ".join(results.discarded))
    for name, reason in {name: why for part in results.left_out.values() for name, why in part.items()}.items():
        logger.warning("of the tables of visits: %s is left out: %s", name, reason)
    if results.missing:
        some = ", ".join(results.missing[:20]) + (" …" if len(results.missing) > 20 else "")
        logger.warning("not processed: %d of participants.tsv or of those asked for (%s)", len(results.missing), some)
    if results.unlisted:
        some = ", ".join(results.unlisted[:20]) + (" …" if len(results.unlisted) > 20 else "")
        logger.warning("not in participants.tsv: %d of those with results (%s)", len(results.unlisted), some)
