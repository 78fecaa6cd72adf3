"""Rows of numbers as text and back: TSV with its JSON, and FreeSurfer's ``aseg.stats``."""

from __future__ import annotations

import io
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medsegmamba_bids import __version__
from medsegmamba_bids.anatomy import CEREBRUM, FREESURFER_ONLY, OUTER_CSF
from medsegmamba_bids.errors import TableError, reason
from medsegmamba_bids.segmentations import CORRECTED, VOLUME_DEFINITIONS
from medsegmamba_bids.stats.measures import SEGMENTED_ICV, Measure
from medsegmamba_bids.stats.structures import INTENSITIES, NOT_FOUND, UNKNOWN

#: What each column of the volume table holds, in order; the JSON beside the table says the same.
COLUMNS: dict[str, dict[str, str]] = {
    "SegId": {"Description": "FreeSurfer's label of the structure"},
    "StructName": {"Description": "FreeSurfer's name of the structure"},
    "NVoxels": {"Description": "Voxels of 1 mm with this label in the conformed segmentation", "Units": "voxel"},
    "Volume_mm3": {"Description": VOLUME_DEFINITIONS[CORRECTED], "Units": "mm3"},
    "SoftVolume_mm3": {"Description": "Sum of the posterior probabilities times the voxel volume", "Units": "mm3"},
    "normMean": {"Description": "Mean intensity; bias field corrected, white matter near 110", "Units": "arbitrary"},
    "normStdDev": {"Description": "Standard deviation of the intensity", "Units": "arbitrary"},
    "normMin": {"Description": "Lowest intensity", "Units": "arbitrary"},
    "normMax": {"Description": "Highest intensity", "Units": "arbitrary"},
    "normRange": {"Description": "Highest minus lowest intensity", "Units": "arbitrary"},
    "MeanPosterior": {
        "Description": "Mean posterior probability of the label over its voxels: the network's confidence"
    },
    "Flag": {
        "Description": "What is wrong with the row",
        "Levels": {
            NOT_FOUND: "The weights know the structure, but no voxel has its label",
            UNKNOWN: "The weights do not know the structure; it has no numbers",
        },
    },
}
_DECIMALS = {"Volume_mm3": 3, "SoftVolume_mm3": 3, "MeanPosterior": 5}
_DECIMALS |= {name: 4 for name in COLUMNS if name.startswith("norm")}
MISSING = "n/a"


def to_tsv(rows: pd.DataFrame) -> str:
    """Return the text of a volume table, columns in the order of ``COLUMNS``; what is missing is ``n/a``."""
    text = pd.DataFrame({name: [_cell(name, value) for value in rows[name]] for name in COLUMNS})
    return text.to_csv(sep="\t", index=False, lineterminator="\n")


def _cell(column: str, value: Any) -> str:
    if value == "" or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if column in _DECIMALS:
        return f"{value:.{_DECIMALS[column]}f}"
    return str(value) if isinstance(value, str) else str(int(value))


def read_tsv(path: str | os.PathLike) -> pd.DataFrame:
    """Read a volume table; ``n/a`` becomes NaN, in ``Flag`` an empty text.

    Raises
    ------
    TableError
        The file cannot be read or lacks a column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        rows = pd.read_csv(io.StringIO(text), sep="\t", na_values=[MISSING], keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise TableError(f"{path}: cannot be read as a table ({reason(error)})") from error
    if absent := [name for name in COLUMNS if name not in rows]:
        raise TableError(f"{path}: not a volume table, it lacks the columns {', '.join(absent)}")
    rows["Flag"] = rows["Flag"].astype(object).fillna("")
    return rows[list(COLUMNS)]


def columns(definition: str = CORRECTED) -> dict[str, dict[str, Any]]:
    """Return ``COLUMNS``, with what the volumes of a table are (a key of ``segmentations.VOLUME_DEFINITIONS``).

    Examples
    --------
    >>> columns("voxels")["Volume_mm3"]
    {'Description': 'Number of voxels times the voxel volume', 'Units': 'mm3'}
    """
    return {**COLUMNS, "Volume_mm3": {**COLUMNS["Volume_mm3"], "Description": VOLUME_DEFINITIONS[definition]}}


def table_sidecar(
    measures: Iterable[Measure], extra: Mapping[str, Any] | None = None, definition: str = CORRECTED
) -> dict[str, Any]:
    """Return what stands in the JSON beside a volume table: its columns, measures of the brain, and what else is
    known.
    """
    listed = {
        measure.name: {
            "Description": measure.description,
            "Value": round(measure.value, 6),
            "Units": measure.unit.replace("^", ""),
        }
        for measure in measures
    }
    return {**columns(definition), **({"Measures": listed} if listed else {}), **(extra or {})}


def to_aseg_stats(
    rows: pd.DataFrame,
    measures: Sequence[Measure],
    subject: str,
    files: Mapping[str, str],
    voxel_mm3: float = 1.0,
    command: str = "medsegmamba",
) -> str:
    """Return the text of FreeSurfer's ``aseg.stats``, which ``asegstats2table`` reads beside FreeSurfer's own.

    It has the rows and measures that FreeSurfer 7 writes, in its order, so that both merge without gaps. What is not
    known (vessels, corpus callosum, holes of surfaces, structures that the weights do not know) is ``nan``, since
    ``asegstats2table`` would put 0 where a line is absent; only FreeSurfer's own labels may have it. Cerebral cortex
    and cerebral white matter are left out, as FreeSurfer leaves them out (``--excl-ctxgmwm``).

    Parameters
    ----------
    rows : pandas.DataFrame
        From ``stats.structures.structure_statistics``.
    measures : sequence of Measure
    subject : str
    files : mapping
        Of ``SegVolFile``, ``InVolFile`` and so on to names.
    voxel_mm3 : float
    command : str
        The command line.
    """
    excluded = (0, *CEREBRUM)
    kept = _as_freesurfer_lists(rows[~rows["SegId"].isin((*excluded, OUTER_CSF))])
    lines = [*_header(subject, command), *map(_measure_line, _with_unknown(measures))]
    lines += [f"# {key} {value}" for key, value in files.items()]
    lines += [f"# ExcludeSegId {' '.join(map(str, excluded))}", f"# VoxelVolume_mm3 {voxel_mm3:g}"]
    for number, entries in enumerate(_TABLE_COLUMNS, 1):
        lines += [f"# TableCol {number:2d} {entry}" for entry in entries]
    names = " ".join(entries[0].split()[1] for entries in _TABLE_COLUMNS)
    lines += [f"# NRows {len(kept)}", f"# NTableCols {len(_TABLE_COLUMNS)}", f"# ColHeaders  {names}"]
    lines += [_row_line(number, row) for number, row in enumerate(kept.to_dict("records"), 1)]
    return "\n".join(lines) + "\n"


def _as_freesurfer_lists(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with those for what only FreeSurfer knows, without numbers, in the order of the labels."""
    unknown = {label: name for label, name in FREESURFER_ONLY.items() if label not in set(rows["SegId"])}
    beside = pd.DataFrame({"SegId": list(unknown), "StructName": list(unknown.values())}, dtype=object)
    return pd.concat([rows.astype(object), beside], ignore_index=True).sort_values("SegId", kind="stable")


#: Measures that FreeSurfer 7 writes and ``asegstats2table`` reads, by name, with key and unit where they are others.
_FREESURFER_MEASURES = (
    *(("BrainSegVol", "BrainSeg"), ("BrainSegVolNotVent", "BrainSegNotVent"), ("VentricleChoroidVol",) * 2),
    *(("lhCortexVol", "lhCortex"), ("rhCortexVol", "rhCortex"), ("CortexVol", "Cortex")),
    ("lhCerebralWhiteMatterVol", "lhCerebralWhiteMatter"),
    ("rhCerebralWhiteMatterVol", "rhCerebralWhiteMatter"),
    ("CerebralWhiteMatterVol", "CerebralWhiteMatter"),
    *(("SubCortGrayVol", "SubCortGray"), ("TotalGrayVol", "TotalGray"), ("SupraTentorialVol", "SupraTentorial")),
    *(("SupraTentorialVolNotVent", "SupraTentorialNotVent"), ("MaskVol", "Mask")),
    *(("BrainSegVol-to-eTIV",) * 2, ("MaskVol-to-eTIV",) * 2),
    *(("lhSurfaceHoles",) * 2, ("rhSurfaceHoles",) * 2, ("SurfaceHoles",) * 2),
    ("eTIV", "EstimatedTotalIntraCranialVol"),
)
_UNITLESS = ("to-eTIV", "SurfaceHoles")


def _with_unknown(measures: Sequence[Measure]) -> list[Measure]:
    """Return measures in FreeSurfer's order, ``nan`` for those that are not known; then those that are only ours."""
    known = {measure.name: measure for measure in measures}
    ordered = [
        known.pop(name, None)
        or Measure(key, name, "not measured", math.nan, "unitless" if name.endswith(_UNITLESS) else "mm^3")
        for name, key in _FREESURFER_MEASURES
    ]
    return ordered + list(known.values())


def _column(name: str, field: str, unit: str) -> tuple[str, str, str]:
    return f"ColHeader {name}", f"FieldName {field}", f"Units     {unit}"


_TABLE_COLUMNS = (
    _column("Index", "Index", "NA"),
    _column("SegId", "Segmentation Id", "NA"),
    _column("NVoxels", "Number of Voxels", "unitless"),
    _column("Volume_mm3", "Volume", "mm^3"),
    _column("StructName", "Structure Name", "NA"),
    *(_column(f"norm{what}", f"Intensity norm{what}", "MR") for what in ("Mean", "StdDev", "Min", "Max", "Range")),
)


def _header(subject: str, command: str) -> list[str]:
    return [
        "# Title Segmentation Statistics",
        "#",
        "# generating_program medsegmamba",
        f"# cvs_version {__version__}",
        f"# cmdline {command}",
        f"# sysname  {platform.system()}",
        "# hostname unknown",  # names of machines and users do not belong in shared results
        f"# machine  {platform.machine()}",
        "# user     unknown",
        "# anatomy_type volume",
        "#",
        "# SUBJECTS_DIR .",
        f"# subjectname {subject}",
    ]


def _measure_line(measure: Measure) -> str:
    text = measure.description.replace(",", ";")
    # samseg and asegstats2table call the intracranial volume of a segmentation so.
    name = "sTIV" if measure.key == SEGMENTED_ICV[0] else measure.name
    return f"# Measure {measure.key}, {name}, {text}, {measure.value:.6f}, {measure.unit}"


def _row_line(number: int, row: Mapping[str, Any]) -> str:
    # A structure without voxels has intensities of 0 in FreeSurfer's file.
    fill = 0.0 if row["NVoxels"] == 0 else math.nan
    numbers = " ".join(f"{fill if math.isnan(row[name]) else row[name]:10.4f}" for name in INTENSITIES)
    voxels, volume = f"{row['NVoxels']:8.0f}", f"{row['Volume_mm3']:10.1f}"
    return f"{number:3d} {row['SegId']:3d}  {voxels} {volume}  {row['StructName']:<30s} {numbers}"


def read_measures(sidecar: Mapping[str, Any]) -> dict[str, float]:
    """Return measures by name from the JSON beside a volume table."""
    return {name: float(entry["Value"]) for name, entry in sidecar.get("Measures", {}).items()}
