"""Quality flags: what a person should look at, with value and limit. Flags never drop data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from medsegmamba_bids.anatomy import HIPPOCAMPI, SUBFIELDS_FROM, TISSUES
from medsegmamba_bids.errors import ThresholdError, reason
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.labels import side_of
from medsegmamba_bids.report.thresholds import load_thresholds
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.stats.contrast import tissue_ratio
from medsegmamba_bids.stats.structures import UNKNOWN

_MANY, _MANY_MISSING = 8, 5  # flags, and structures not found, from which the image itself is in doubt


@dataclass(frozen=True)
class Flag:
    """Something to look at.

    Attributes
    ----------
    scan : str
        The T1w's name without ``_T1w`` and extension.
    segmentation : str
        Name of a segmentation, or empty where it is about the image.
    check : str
        Name in the file of thresholds.
    structure : str
        Empty where it is about the whole image.
    value : float
    threshold : str
        What was allowed, such as ``>= 0.6``.
    unit : str
    message : str
        A sentence for people.
    """

    scan: str
    segmentation: str
    check: str
    structure: str
    value: float
    threshold: str
    unit: str
    message: str


#: What each column of the flags' table holds.
COLUMNS = {
    "scan": {"Description": "Name of the T1w, without suffix and extension"},
    "segmentation": {"Description": "Which segmentation the flag is about; n/a where it is about the image"},
    "check": {"Description": "Name of the check; the thresholds say what it does"},
    "structure": {"Description": "Structure that is flagged, if any"},
    "value": {"Description": "What was measured, in the column 'unit'"},
    "threshold": {"Description": "What would not have been flagged"},
    "unit": {"Description": "Unit of value and threshold"},
    "message": {"Description": "The same as a sentence"},
}


@dataclass(frozen=True)
class QualityInputs:
    """What is known of a T1w; whatever is None or empty is not checked.

    Attributes
    ----------
    scan : str
        The T1w's name without ``_T1w`` and extension.
    tables : dict of str to pandas.DataFrame
        Volume tables by segmentation.
    labels : dict of str to int (X, Y, Z)
        Conformed segmentations, FreeSurfer labels.
    measures : dict of str to float
        Of the whole brain.
    brain : (X, Y, Z), optional
        Non-zero in the brain, on the T1w's own grid.
    zooms : tuple of float, optional
        Edges of the T1w's voxels, mm.
    apart : dict of str to dict of int to float
        `stray_shares` by segmentation; found in ``labels`` where they are not given.
    """

    scan: str
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    brain: np.ndarray | None = None
    zooms: tuple[float, ...] | None = None
    apart: dict[str, dict[int, float]] = field(default_factory=dict)


def asymmetry(left: float, right: float) -> float:
    """Return left minus right, divided by their mean; NaN where both are 0 or one is missing.

    Examples
    --------
    >>> asymmetry(3.0, 1.0)
    1.0
    """
    mean = (left + right) / 2
    return (left - right) / mean if mean else math.nan


def quality_flags(inputs: QualityInputs, thresholds: dict[str, Any] | None = None) -> list[Flag]:
    """Find what a person should look at.

    Does not judge whether a segmentation is right, and drops nothing.

    Parameters
    ----------
    inputs : QualityInputs
    thresholds : dict, optional
        From :func:`load_thresholds`.

    Examples
    --------
    >>> quality_flags(QualityInputs("sub-01", zooms=(1.0, 1.0, 2.0)))[0].message
    'voxels are 2 mm (at most 1.5 mm)'
    """
    limits = thresholds or load_thresholds()
    flags = [*_image_flags(inputs, limits["checks"])]
    for segmentation, table in inputs.tables.items():
        known = table[table["Flag"] != UNKNOWN]
        apart = inputs.apart.get(segmentation)
        if apart is None:
            apart = stray_shares(inputs.labels[segmentation]) if segmentation in inputs.labels else {}
        flags += _structure_flags(inputs.scan, segmentation, known, apart, limits)
        flags += _side_flags(inputs.scan, segmentation, known, limits["checks"]["asymmetry"])
    return flags


def _image_flags(inputs: QualityInputs, checks: dict[str, Any]) -> Iterator[Flag]:
    """Yield flags about the whole image."""
    values: dict[str, tuple[float, str]] = {}
    if inputs.zooms is not None:
        values["voxel_size"] = (float(max(inputs.zooms)), "voxels are {}")
    if inputs.brain is not None and inputs.zooms is not None:
        values["border"] = (border_area(inputs.brain, inputs.zooms), "{} of brain lie on the image's border")
    if ASEG.name in inputs.tables:
        table = inputs.tables[ASEG.name]
        values["contrast"] = (contrast(table), "white and gray matter have a contrast of {}")
        values["t1_weighting"] = (
            white_to_gray(table),
            "does not look T1-weighted: the intensity of white matter divided by that of gray matter is {}",
        )
    etiv, inside = inputs.measures.get("eTIV", math.nan), inputs.measures.get("sbTIV", math.nan)
    values["etiv"] = (etiv, "the estimated total intracranial volume is {}")
    if inside > 0:
        values["etiv_ratio"] = (etiv / inside, "eTIV is {} of the intracranial volume from the segmentation")
    for check, (value, text) in values.items():
        yield from _judge(_Subject(inputs.scan, "", check), value, checks[check], text)
    yield from _overlap_flags(inputs, checks["hippocampus_overlap"])


def _overlap_flags(inputs: QualityInputs, entry: dict[str, Any]) -> Iterator[Flag]:
    aseg, subfields = inputs.labels.get(ASEG.name), inputs.labels.get(HIPPOCAMPUS.name)
    if aseg is None or subfields is None or aseg.shape != subfields.shape:
        return
    box = Box.around(subfields) or Box.empty()
    subfields = subfields[box]
    for label, side in HIPPOCAMPI.items():
        first = SUBFIELDS_FROM[label]
        whole, parts = aseg == label, (subfields > first) & (subfields < first + 1000)
        together = np.count_nonzero(whole) + np.count_nonzero(parts)
        if not together:
            continue
        dice = 2 * np.count_nonzero(whole[box] & parts) / together
        text = f"the {side} subfields overlap with the whole hippocampus by {{}}"
        name = f"{side.capitalize()}-Hippocampus"
        yield from _judge(_Subject(inputs.scan, HIPPOCAMPUS.name, "hippocampus_overlap", name), dice, entry, text)


def _structure_flags(
    scan: str, segmentation: str, table: pd.DataFrame, apart: dict[int, float], limits: dict[str, Any]
) -> Iterator[Flag]:
    """Yield flags about single structures."""
    checks, ranges = limits["checks"], limits["volumes"]["ranges"]
    for row in table.to_dict("records"):
        name = row["StructName"]
        _, plain = side_of(name)
        values = {
            "missing": (row["NVoxels"], f"{name} has {{}}"),
            "pieces": (apart.get(row["SegId"], math.nan), f"{name}: {{}} of its voxels lie apart"),
            "confidence": (row["MeanPosterior"], f"{name} has a mean posterior of {{}}"),
        }
        for check, (value, text) in values.items():
            yield from _judge(_Subject(scan, segmentation, check, name), value, checks[check], text)
        if plain in ranges and row["NVoxels"] > 0:
            entry = {**checks["volume"], "range": ranges[plain]}
            yield from _judge(
                _Subject(scan, segmentation, "volume", name), row["Volume_mm3"], entry, f"{name} has {{}}"
            )


def _side_flags(scan: str, segmentation: str, table: pd.DataFrame, entry: dict[str, Any]) -> Iterator[Flag]:
    volumes = dict(zip(table["StructName"], table["Volume_mm3"], strict=True))
    for name, left in volumes.items():
        side, plain = side_of(name)
        right = volumes.get(f"Right-{plain}", math.nan)
        if side != "left" or not (left > 0 and right > 0):
            continue  # an empty side is flagged as missing
        value = abs(asymmetry(left, right))
        text = f"left and right {plain} differ by {{}}"
        yield from _judge(_Subject(scan, segmentation, "asymmetry", plain), value, entry, text)


@dataclass(frozen=True)
class _Subject:
    """What a value is about; a flag begins with the same."""

    scan: str
    segmentation: str
    check: str
    structure: str = ""


def _judge(subject: _Subject, value: float, entry: dict[str, Any], text: str) -> Iterator[Flag]:
    """Yield a flag where a value is out of its limits; a missing value is not judged."""
    _, plain = side_of(subject.structure)
    if math.isnan(value) or plain in entry.get("except", ()):
        return
    unit = entry["unit"]
    if entry["sense"] == "within":
        low, high = entry["range"]
        good, threshold, allowed = low <= value <= high, f"{low:g} to {high:g}", f"{_show(low)} to {_show(high, unit)}"
    else:
        limit = entry.get("limits", {}).get(plain, entry["limit"])
        at_least = entry["sense"] == "at least"
        good = value >= limit if at_least else value <= limit
        threshold = f"{'>=' if at_least else '<='} {limit:g}"
        allowed = f"{entry['sense']} {_show(limit, unit)}"
    if not good:
        message = f"{text.format(_show(value, unit))} ({allowed})"
        yield Flag(**asdict(subject), value=float(value), threshold=threshold, unit=unit, message=message)


def _show(value: float, unit: str = "") -> str:
    """Return a number for people: ``1,234 mm3``, ``35 %``."""
    if unit == "share" or unit == "ratio":
        return f"{100 * value:.0f} %" if unit == "share" else f"{value:.2f}"
    if unit == "voxel":
        return f"{value:.0f} voxel{'' if value == 1 else 's'}"
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {unit}".replace("probability", "").replace("Dice", "(Dice)").strip()


def stray_shares(labels: np.ndarray) -> dict[int, float]:
    """Return the share of each label's voxels that lie outside its largest connected piece (26 neighbours).

    Examples
    --------
    >>> stray_shares(np.array([[[5, 5, 5, 0, 5]]]))
    {5: 0.25}
    """
    shares = {}
    structure = np.ones((3, 3, 3), bool)
    box = Box.around(labels)
    if box is None:
        return shares
    inside = np.ascontiguousarray(labels[box], np.int32)
    for number, part in enumerate(ndimage.find_objects(inside), 1):
        if part is None:
            continue
        mask = inside[part] == number
        pieces, count = ndimage.label(mask, structure)
        sizes = np.bincount(pieces[mask], minlength=count + 1)[1:]
        shares[number] = float(1 - sizes.max() / sizes.sum())
    return shares


def border_area(brain: np.ndarray, zooms: tuple[float, ...]) -> float:
    """Return the area in mm2 of the brain on the six outermost planes of an image.

    Examples
    --------
    >>> border_area(np.pad(np.ones((3, 3, 3)), [(0, 1), (1, 1), (1, 1)]), (1.0, 2.0, 2.0))
    36.0
    """
    area = 0.0
    for axis in range(3):
        face = float(np.prod([zoom for other, zoom in enumerate(zooms[:3]) if other != axis]))
        for end in (0, -1):
            area += face * np.count_nonzero(brain[(slice(None),) * axis + (end,)])
    return float(area)


def contrast(table: pd.DataFrame) -> float:
    """Return the contrast to noise of white and gray matter from a volume table; NaN where the labels are absent."""
    rows = table.set_index("SegId")
    for white, gray in TISSUES:
        if not all(label in rows.index and rows.loc[label, "NVoxels"] > 1 for label in (*white, *gray)):
            continue
        means = [rows.loc[list(labels), "normMean"].mean() for labels in (white, gray)]
        noise = math.sqrt((rows.loc[[*white, *gray], "normStdDev"] ** 2).mean())
        return abs(means[0] - means[1]) / noise if noise else math.nan
    return math.nan


def white_to_gray(table: pd.DataFrame) -> float:
    """Return mean intensity of white matter divided by that of gray matter from a volume table; NaN where either is
    absent.
    """
    rows = table.set_index("SegId")

    def mean(pair: tuple[int, int]) -> float:
        known = all(label in rows.index and rows.loc[label, "NVoxels"] > 1 for label in pair)
        return rows.loc[list(pair), "normMean"].mean() if known else math.nan

    return tissue_ratio(mean)


def verdict(flags: list[Flag]) -> str:
    """Return a sentence about a T1w where so much is wrong that single flags say little; else an empty text.

    Parameters
    ----------
    flags : list of Flag
        Of one T1w.
    """
    missing = sum(flag.check == "missing" for flag in flags)
    weighting = any(flag.check == "t1_weighting" for flag in flags)
    if len(flags) < _MANY or not (missing >= _MANY_MISSING or weighting):
        return ""
    reasons = [f"{missing} structure{'s' * (missing > 1)} not found"] * (missing > 0)
    reasons += ["white matter is not brighter than gray matter"] * weighting
    reasons.append(f"{len(flags)} flags in all")
    return f"this does not look like a T1w of an adult brain: {', '.join(reasons)}"


def checks_in_words(limits: dict[str, Any]) -> list[dict[str, str]]:
    """Return what is checked: the check as a text, what is allowed, and the source of the limits."""
    words = []
    for entry in limits["checks"].values():
        unit = entry["unit"]
        if "range" in entry:
            allowed = f"{_show(entry['range'][0])} to {_show(entry['range'][1], unit)} allowed"
        elif "limit" in entry:
            allowed = f"{entry['sense']} {_show(entry['limit'], unit)}"
            allowed += ", other limits for some structures" * bool(entry.get("limits"))
        else:
            allowed = "see the volumes"
        source = entry.get("source", limits["volumes"]["source"])
        words.append({"text": entry["text"], "allowed": allowed, "source": f"Source: {source}"})
    return words


def flags_to_tsv(flags: list[Flag]) -> str:
    """Return the text of a table of flags; only its header where there are none."""
    rows = pd.DataFrame([asdict(flag) for flag in flags], columns=list(COLUMNS))
    rows["value"] = [f"{value:.6g}" for value in rows["value"]]
    return rows.replace("", "n/a").to_csv(sep="\t", index=False, lineterminator="\n")


def flags_path(output_dir: Path, subject: str) -> Path:
    """Return where a participant's table of flags lies."""
    return output_dir / f"sub-{subject}" / f"sub-{subject}_desc-quality_stats.tsv"


def read_flags(output_dir: Path, subject: str) -> pd.DataFrame:
    """Return a participant's flags, a row each; empty where there is no table.

    Raises
    ------
    ThresholdError
        The file cannot be read.
    """
    path = flags_path(output_dir, subject)
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        rows = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype={"scan": str})
        texts = {"segmentation": object, "structure": object}
        return rows[list(COLUMNS)].astype(texts).fillna(dict.fromkeys(texts, ""))
    except (OSError, ValueError, KeyError) as error:
        raise ThresholdError(f"{path}: cannot be read as a table of quality flags ({reason(error)})") from error


def flag_messages(output_dir: Path, subject: str) -> dict[str, list[str]]:
    """Return a participant's flags as sentences, by the T1w's name, a verdict first where there is one; none where the
    table is absent or damaged.
    """
    try:
        rows = read_flags(output_dir, subject)
    except ThresholdError:
        return {}
    messages = {}
    for scan, part in rows.groupby("scan", sort=False):
        first = verdict([Flag(**row) for row in part.to_dict("records")])
        messages[str(scan)] = [first] * bool(first) + part["message"].tolist()
    return messages
