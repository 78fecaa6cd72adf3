"""The report of a participant, ``sub-X.html``, and its table of quality flags. Reads derivatives only."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from medsegmamba_bids import __version__
from medsegmamba_bids.anatomy import CEREBRUM
from medsegmamba_bids.errors import ImageError, ReportError, TableError
from medsegmamba_bids.image.io import atomic_path, write_text
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.ownership import is_ours
from medsegmamba_bids.report import provenance
from medsegmamba_bids.report.derivatives import Scan, scans_of, viewer_commands
from medsegmamba_bids.report.drawn import load_pictures
from medsegmamba_bids.report.methods import methods_text, references
from medsegmamba_bids.report.neighbours import neighbour_links, page_of, subjects_with_pages
from medsegmamba_bids.report.pictures import Pictures, detail_of, draw_pictures
from medsegmamba_bids.report.quality import (
    COLUMNS,
    Flag,
    QualityInputs,
    checks_in_words,
    flags_path,
    flags_to_tsv,
    load_thresholds,
    quality_flags,
    stray_shares,
    verdict,
)
from medsegmamba_bids.report.trajectories import changes_between_visits
from medsegmamba_bids.report.viewer import viewer_page, viewer_path
from medsegmamba_bids.report.volume_rows import paired_rows, plot_rows
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, SEGMENTATIONS, of_name
from medsegmamba_bids.viz import slices, surfaces
from medsegmamba_bids.viz.encoding import dashes_of, line_colors_of
from medsegmamba_bids.viz.templates import render, to_script

logger = logging.getLogger(__name__)


@dataclass
class Results:
    """What was read of a T1w's results.

    Attributes
    ----------
    scan : Scan
    tables, sidecars : dict
        By segmentation.
    labels, entropies : dict
        By segmentation, RAS+ order.
    t1w : nibabel image or None
    brain : array or None
    measures : dict of str to float
    problems : list of str
        What could not be read, a sentence each.
    """

    scan: Scan
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    entropies: dict[str, np.ndarray] = field(default_factory=dict)
    t1w: nib.spatialimages.SpatialImage | None = None
    brain: np.ndarray | None = None
    measures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @cached_property
    def apart(self) -> dict[str, dict[int, float]]:
        """Shares of voxels that lie apart, by segmentation and label."""
        return {name: stray_shares(labels) for name, labels in self.labels.items()}

    def attempt(self, read: Any, *arguments: Any) -> Any:
        """Call a reader; keep its complaint and return None where it fails."""
        try:
            return read(*arguments)
        except (TableError, ImageError) as error:
            text = str(error).replace(f"{self.scan.root}/", "")
            if text not in self.problems:
                self.problems.append(text)
                logger.warning("%s", text)
            return None


def write_report(
    output_dir: Path,
    subject: str,
    thresholds: Path | None = None,
    drawn: Sequence[Path] = (),
    viewers: Sequence[Path] = (),
) -> Path:
    """Write ``sub-X.html``, the participant's table of quality flags, and small pictures for the group's page.

    Parameters
    ----------
    output_dir : Path
        Folder of the results.
    subject : str
        Participant's label without ``sub-``.
    thresholds : Path, optional
        Of the quality flags, in place of the package's.
    drawn : sequence of Path
        Pictures that were drawn ahead, as `drawn.save_pictures` keeps them; others are drawn from the results.
    viewers : sequence of Path
        Viewers that were made ahead, by the names that they are to have; others are made from the results.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ReportError
        The participant has no results, or the page of another tool is in the way.
    ThresholdError
        The file of thresholds cannot be used.
    """
    output_dir = Path(output_dir)
    path = page_of(output_dir, subject)
    if not is_ours(path):
        raise ReportError(f"{path}: is not a page of medsegmamba_bids and is not replaced; move it")
    limits = load_thresholds(thresholds)
    scans = scans_of(output_dir, subject)
    if not scans:
        raise ReportError(f"{output_dir / f'sub-{subject}'}: there are no results to report")
    ahead, pages = load_pictures(drawn, len(scans)), {path.name: path for path in viewers}
    sections, flags = [], []
    for scan in scans:
        pictures, page = ahead.get(scan.prefix), pages.get(viewer_path(scan).name)
        results = read_results(scan, to_draw=pictures is None or page is None)
        raised = quality_flags(_quality_inputs(results), limits)
        flags += raised
        pictures = _pictures(results, len(scans), pictures)
        sections.append(_section(results, raised, limits, pictures, _viewer(results, page)))
    write_flags(output_dir, subject, flags, limits)
    page = render(
        "participant.html.jinja",
        subject=subject,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        sections=sections,
        changes=changes_between_visits(output_dir, subject),
        flag_count=len(flags),
        checks=checks_in_words(limits),
        neighbours=neighbour_links(subject, subjects_with_pages(output_dir)),
        names=to_script(_names()),
        outlines=_outline_styles(),
        entropy_range=slices.ENTROPY_RANGE,
        entropy_colors=slices.entropy_colors(5),
        smallest_piece=surfaces.SMALLEST_PIECE,
        references=references(),
    )
    _write(page, path)
    return path


def _names() -> dict[int, str]:
    """Return the name of each label that a page may show."""
    tables = [load_label_table(kind.widest) for kind in SEGMENTATIONS]
    return {int(label): name for table in tables for label, name in zip(table.labels, table.names, strict=True)}


def _outline_styles() -> dict[int, dict[str, str]]:
    """Return colour and dashes of each label's outline."""
    tables = [kind.widest for kind in SEGMENTATIONS]
    return {
        label: {"color": color, "dashes": dashes_of(table)[label]}
        for table in tables
        for label, color in line_colors_of(table).items()
    }


def _write(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def write_flags(output_dir: Path, subject: str, flags: list[Flag], limits: dict[str, Any]) -> Path:
    """Write a participant's table of flags and its JSON, which holds the thresholds; return the table's path."""
    path = flags_path(output_dir, subject)
    _write(flags_to_tsv(flags), path)
    sidecar = {**COLUMNS, "Thresholds": limits}
    _write(json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n", path.with_suffix(".json"))
    return path


def read_results(scan: Scan, to_draw: bool = True) -> Results:
    """Read what there is of a T1w's results; what cannot be read is kept as a problem.

    Parameters
    ----------
    scan : Scan
    to_draw : bool
        Whether pictures are to be drawn of it: images that nothing else needs are left out if not.
    """
    results = Results(scan)
    if to_draw:
        results.t1w = results.attempt(scan.image, "conformed")
        results.brain = _array(results.attempt(scan.image, "conformed_mask"))
    shape = None if results.t1w is None else results.t1w.shape
    for kind in SEGMENTATIONS:
        table = results.attempt(scan.table, kind.name)
        if table is not None:
            results.tables[kind.name] = table
            results.sidecars[kind.name] = results.attempt(scan.sidecar, kind.name) or {}
        entropy = [(results.entropies, kind.entropy)] if to_draw else []
        for store, product in ((results.labels, kind.conformed), *entropy):
            data = _array(results.attempt(scan.image, product))
            if data is not None and (shape is None or data.shape == shape):
                store[kind.name] = data
            elif data is not None:
                results.problems.append(f"{scan.path(product).name}: its grid is not that of the conformed T1w")
    results.measures = results.attempt(scan.measures) or {}
    if not results.tables:
        results.problems.append("there is no table of volumes; the log of the run may say why")
    return results


def _array(image: nib.spatialimages.SpatialImage | None) -> np.ndarray | None:
    if image is None:
        return None
    data = np.asarray(image.dataobj)
    return data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data


def _quality_inputs(results: Results) -> QualityInputs:
    """Return what the checks ask for; border and voxel sizes are those of the T1w's own grid."""
    scan = results.scan
    own = results.attempt(scan.image, "mask") or results.attempt(scan.image, ASEG.native)
    return QualityInputs(
        scan.prefix,
        results.tables,
        results.labels,
        results.measures,
        _array(own),
        None if own is None else tuple(map(float, own.header.get_zooms()[:3])),
        results.apart,
    )


def _section(
    results: Results, flags: list[Flag], limits: dict[str, Any], pictures: Pictures | None, viewer: str
) -> dict[str, Any]:
    """Return what the template shows of a T1w."""
    weights = {name: provenance.weights_of(sidecar, name) for name, sidecar in results.sidecars.items()}
    hippocampus = weights.get(HIPPOCAMPUS.name)
    return {
        "name": results.scan.prefix,
        "flags": flags,
        "verdict": verdict(flags),
        "viewer": viewer,
        "links": _links(results.scan),
        "commands": _commands(results.scan),
        "rated": _rated(results.scan),
        "problems": results.problems,
        "notes": list(
            dict.fromkeys(note for sidecar in results.sidecars.values() for note in provenance.notes_of(sidecar))
        ),
        "atlas_note": provenance.ATLAS_NOTE if hippocampus and hippocampus.from_atlas else "",
        "pictures": pictures,
        "segmentations": [_volumes(results, name, flags, limits) for name in results.tables],
        "measures": _measures(results),
        "weights": [(of_name(name).title, described) for name, described in weights.items()],
        "runs": [_run(of_name(name).title, sidecar) for name, sidecar in results.sidecars.items() if sidecar],
        "versions": results.sidecars.get(ASEG.name, {}).get("Versions", {}),
        "template": results.sidecars.get(ASEG.name, {}).get("Template", {}),
        "methods": _methods(results, weights),
    }


def _pictures(results: Results, scans: int, ahead: Pictures | None) -> Pictures | None:
    """Return pictures, drawn unless that was done, and write the small one for the group's page."""
    if ahead is None and results.t1w is None:
        return None
    pictures = ahead or draw_pictures(results.t1w, results.labels, results.entropies, results.brain, detail_of(scans))
    path = thumbnail_path(results.scan)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(pictures.thumbnail)
    return pictures


def _viewer(results: Results, ahead: Path | None) -> str:
    """Write the viewer of a T1w, made unless that was done.

    Returns its path beside the page, empty where there is nothing to be seen.
    """
    if ahead is None and results.t1w is None:
        return ""
    path = viewer_path(results.scan)
    if ahead is None:
        data = np.asarray(results.t1w.dataobj)
        arrays = (results.labels, results.entropies, results.brain)
        _write(viewer_page(results.scan.prefix, data, results.t1w.affine, *arrays), path)
    else:
        _write(ahead.read_text(encoding="utf-8"), path)
    return path.relative_to(results.scan.root).as_posix()


def _links(scan: Scan) -> list[tuple[str, str]]:
    """Return titles and places, from the page's folder, of the files that there are."""
    titles = {"conformed": "T1w, conformed", "conformed_mask": "Brain mask, conformed"}
    for kind in SEGMENTATIONS:
        titles |= {
            kind.native: f"{kind.title}: labels on the T1w's own grid",
            kind.conformed: f"{kind.title}: labels, conformed",
            kind.entropy: f"{kind.title}: uncertainty",
            kind.stats: f"{kind.title}: table of volumes",
        }
    paths = [(title, scan.path(product)) for product, title in titles.items()]
    logs = sorted((scan.root / "logs").glob("*/medsegmamba.log"))
    paths += [("Log of the latest run", logs[-1])] if logs else []
    return [(title, path.relative_to(scan.root).as_posix()) for title, path in paths if path.is_file()]


def _commands(scan: Scan) -> dict[str, str]:
    """Return commands that open the conformed T1w with its labels, by program, as they are typed in ``scan.root``."""
    return viewer_commands(scan, Path())


def _rated(scan: Scan) -> dict[str, str]:
    """Return what names a T1w in a table of ratings."""
    entities = scan.entities
    session = f"ses-{entities['ses']}" if "ses" in entities else ""
    return {
        "participant": f"sub-{entities['sub']}",
        "session": session,
        "run": entities.get("run", ""),
        "scan": f"{scan.prefix}_T1w",
    }


def thumbnail_path(scan: Scan) -> Path:
    """Return where the small picture of a T1w lies."""
    return scan.root / f"sub-{scan.entities['sub']}" / "figures" / f"{scan.prefix}_desc-thumbnail_T1w.jpg"


def _volumes(results: Results, segmentation: str, flags: list[Flag], limits: dict[str, Any]) -> dict[str, Any]:
    rows = paired_rows(results.tables[segmentation], segmentation, flags)
    ranges = limits["volumes"]["ranges"] if segmentation == ASEG.name else {}
    return {
        "title": of_name(segmentation).title,
        "definition": provenance.volume_definition_of(results.sidecars.get(segmentation, {})),
        "apart": results.apart.get(segmentation, {}),
        "rows": rows,
        "plot": plot_rows(rows, ranges),
        "has_ranges": bool(ranges),
        "range_source": limits["volumes"]["source"],
    }


def _measures(results: Results) -> list[dict[str, Any]]:
    entries = results.sidecars.get(ASEG.name, {}).get("Measures", {})
    return [
        {
            "name": name,
            "text": entries[name].get("Description", ""),
            "value": value,
            "unit": entries[name].get("Units", ""),
        }
        for name, value in results.measures.items()
    ]


def _run(title: str, sidecar: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {
            "name": step.get("Name", ""),
            "seconds": step.get("Seconds"),
            "memory": step.get("PeakMemoryGB"),
            "details": list(provenance.details(step)),
        }
        for step in provenance.steps_of(sidecar)
    ]
    seconds, memory = provenance.total_seconds(sidecar), provenance.peak_memory_gb(sidecar)
    return {"title": title, "steps": steps, "seconds": seconds, "memory": memory}


def _methods(results: Results, weights: dict[str, provenance.Weights]) -> str:
    sidecar = results.sidecars.get(ASEG.name, {})
    table = results.tables.get(ASEG.name)
    cerebrum = table is not None and bool(table.loc[table["SegId"].isin(CEREBRUM), "NVoxels"].notna().any())
    template = sidecar.get("Template", {}).get("Name", "")
    version = provenance.version_of(sidecar) or __version__
    return methods_text(weights.get(ASEG.name), weights.get(HIPPOCAMPUS.name), template, cerebrum, version)
