"""Files at the root of the output: what the dataset is, label tables, what validators leave alone."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import bidsignore
from medsegmamba_bids.errors import ConfigError, reason
from medsegmamba_bids.execution.work_folders import remove_old_halves
from medsegmamba_bids.image.color_tables import COLOR_TABLES
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.ownership import TOOL, URL, is_ours
from medsegmamba_bids.report.methods import citation_text
from medsegmamba_bids.report.run_records import read_record
from medsegmamba_bids.segmentations import SEGMENTATIONS
from medsegmamba_bids.workflows.dataset_links import dataset_links

logger = logging.getLogger(__name__)

_NAME = "MedSegMamba - segmentation of subcortical structures and hippocampal subfields"
_BIDS_VERSION = "1.10.0"
# BIDS itself says what "index" is.
_TABLE_COLUMNS = {
    "name": {"Description": "FreeSurfer's name of the structure"},
    "abbreviation": {"Description": "Short name"},
    "color": {"Description": "Colour of FreeSurfer's table, hexadecimal"},
}


def write_dataset_files(config: RunConfig) -> None:
    """Write the files at the root of the output folder that are not there yet, or differ; tidy up what killed runs
    left of them. A ``README.md`` that is there stays: someone may have gone on writing it.

    Raises
    ------
    ConfigError
        ``.bidsignore`` is no UTF-8.
    """
    root = config.output_dir
    remove_old_halves(config)
    write_new(
        json.dumps(dataset_description(config), indent=2, ensure_ascii=False) + "\n", root / "dataset_description.json"
    )
    write_new(_ignored(root / ".bidsignore"), root / ".bidsignore")
    for path, text, stays in (
        (root / "README.md", _readme(), True),
        (root / "logs" / "CITATION.md", citation_text(), False),
    ):
        if not is_ours(path):
            logger.warning("%s: is not of this package and is left as it is", path)
        elif not (stays and path.exists()):
            write_new(text, path)
    for kind in SEGMENTATIONS:
        labels = load_label_table(kind.widest)
        for ending, form in COLOR_TABLES.items():
            write_new(form(labels), root / f"seg-{kind.name}{ending}")
        table = labels.table
        table = table.assign(index=table["label"])[["index", *_TABLE_COLUMNS]]
        write_new(table.to_csv(sep="\t", index=False, lineterminator="\n"), root / kind.table_file)
        sidecar = json.dumps(_TABLE_COLUMNS, indent=2) + "\n"
        write_new(sidecar, (root / kind.table_file).with_suffix(".json"))


def _ignored(path: Path) -> str:
    """Return lines of ``.bidsignore``: those that are there, which may be the user's, and ours."""
    try:
        there = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read ({reason(error)}); save it as UTF-8") from error
    return "\n".join(dict.fromkeys([*there, *bidsignore()])) + "\n"


def dataset_description(config: RunConfig) -> dict[str, Any]:
    """Return the content of ``dataset_description.json``, which names the datasets of earlier runs too.

    What others have written there, such as authors, a name or other makers, stays.
    """
    before = read_record(config.output_dir / "dataset_description.json")
    links = dataset_links(config)
    made_by: dict[str, Any] = {"Name": TOOL, "Version": __version__, "CodeURL": URL}
    if tag := os.environ.get("MEDSEGMAMBA_CONTAINER"):
        inside = any(name in os.environ for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"))
        made_by["Container"] = {"Type": "singularity" if inside else "docker", "Tag": tag}
    makers, sources = _listed(before, "GeneratedBy"), _listed(before, "SourceDatasets")
    told = next((maker for maker in makers if maker.get("Name") == TOOL), {})
    known = [source.get("URL") for source in sources]
    ours = {
        "Name": before.get("Name") or _NAME,
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [*(maker for maker in makers if maker.get("Name") != TOOL), told | made_by],
        "SourceDatasets": [*sources, *({"URL": link} for link in links.values() if link not in known)],
        "DatasetLinks": links,
    }
    return ours | {key: value for key, value in before.items() if key not in ours}


def _listed(description: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the entries of a list of a description; nothing where it is no list."""
    entries = description.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _readme() -> str:
    return (
        "# Derivatives of medsegmamba_bids\n\n"
        "Segmentations and volumes of T1-weighted images; one result per T1w. `logs/CITATION.md` says how they were\n"
        "made and what to cite, `sub-*.html` are the reports, `*_stats.tsv` the volumes.\n"
        "This is research software, not a medical device.\n"
    )
