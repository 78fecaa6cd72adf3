"""What changed at the scanner between visits, so that a change of volumes may not be one of the brain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsegmamba_bids.anatomy import CORTEX, WHITE_MATTER

_NAMES = (
    "Manufacturer", "ManufacturersModelName", "DeviceSerialNumber", "SoftwareVersions", "ReceiveCoilName",
    "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "PulseSequenceType", "SequenceName",
)  # fmt: skip
_NUMBERS = ("MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle")
_SAME = 0.02  # of a number: what rounding does
_SAME_VOXEL = 0.05
#: Ratio of gray to white matter's brightness, by which visits may differ.
SAME_CONTRAST = 0.05


@dataclass(frozen=True)
class Protocol:
    """How a visit was scanned.

    Attributes
    ----------
    name : str
        Of the visit.
    zooms : tuple of float
        Edges of a voxel, mm, sorted.
    sidecar : mapping
        What the JSON beside the image says.
    contrast : float
        Mean intensity of the cortex in parts of white matter's; NaN where it is not known.
    """

    name: str
    zooms: tuple[float, ...]
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    contrast: float = float("nan")


def read_sidecar(image: Path) -> dict[str, Any]:
    """Return what the JSON beside an image says; empty where there is none that can be read."""
    try:
        entries = json.loads(image.with_name(f"{image.name.split('.')[0]}.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def contrast_of(table: pd.DataFrame) -> float:
    """Return the cortex's mean intensity in parts of white matter's, from a volume table; NaN without either."""
    rows = table.set_index("SegId")
    means = [
        np.average(known["normMean"], weights=known["NVoxels"])
        for labels in (CORTEX, WHITE_MATTER)
        if len(known := rows[rows.index.isin(labels) & rows["normMean"].notna() & (rows["NVoxels"] > 0)])
    ]
    return float(means[0] / means[1]) if len(means) == 2 and means[1] > 0 else float("nan")


def differences(visits: Sequence[Protocol]) -> list[str]:
    """Say what differs between a visit and the first one, a sentence for each visit that does.

    Examples
    --------
    >>> before = Protocol("ses-a", (1.0, 1.0, 1.0))
    >>> differences([before, Protocol("ses-b", (1.0, 1.0, 1.2))])
    ['ses-b was scanned in another way than ses-a: voxels 1 x 1 x 1.2 mm, not 1 x 1 x 1']
    """
    first, *others = visits
    told = []
    for other in others:
        if parts := [*_voxels(first, other), *_entries(first, other), *_contrast(first, other)]:
            told.append(f"{other.name} was scanned in another way than {first.name}: {'; '.join(parts)}")
    return told


def _voxels(first: Protocol, other: Protocol) -> list[str]:
    if np.allclose(first.zooms, other.zooms, rtol=_SAME_VOXEL):
        return []
    here, before = (" x ".join(f"{side:.3g}" for side in visit.zooms) for visit in (other, first))
    return [f"voxels {here} mm, not {before}"]


def _entries(first: Protocol, other: Protocol) -> list[str]:
    told = []
    for name in (*_NAMES, *_NUMBERS):
        before, now = first.sidecar.get(name), other.sidecar.get(name)
        if before is None or now is None or before == now:
            continue
        if name in _NUMBERS and _close(before, now):
            continue
        told.append(f"{name} {now}, not {before}")
    return told


def _close(before: Any, now: Any) -> bool:
    try:
        return bool(np.isclose(float(before), float(now), rtol=_SAME))
    except (TypeError, ValueError):
        return False


def _contrast(first: Protocol, other: Protocol) -> list[str]:
    if not abs(other.contrast - first.contrast) > SAME_CONTRAST:
        return []
    return [f"cortex has {other.contrast:.2f} of white matter's brightness, not {first.contrast:.2f}"]
