"""What the JSON beside a table says of how it was made. Read leniently: an entry may be absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medsegmamba_bids.segmentations import of_name

ATLAS_NOTE = (
    "The hippocampal subfields come from atlas-propagated weights: they were trained on subfields of one atlas painted "
    "into hippocampi, not on subfields that FreeSurfer or a person found. They are an anatomical prior, not "
    "FreeSurfer's subfields, and differences between people in single subfields must not be interpreted."
)


@dataclass(frozen=True)
class Weights:
    """Which weights segmented.

    Attributes
    ----------
    name, checksum, origin, fingerprint : str
        Empty where they are not known.
    """

    name: str = ""
    checksum: str = ""
    origin: str = ""
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """What tells weights apart: tensors and settings, or less where no more is known."""
        return self.fingerprint or self.checksum or self.name

    @property
    def label(self) -> str:
        """Name and beginning of the checksum."""
        short = f" ({self.checksum[:12]})" if self.checksum else ""
        return f"{self.name or 'unknown weights'}{short}"

    @property
    def from_atlas(self) -> bool:
        """Whether they were trained on labels propagated from an atlas."""
        return "atlas-propagated" in self.origin.lower()


def steps_of(sidecar: dict[str, Any]) -> list[dict[str, Any]]:
    """Return records of the steps of a run, in order."""
    steps = sidecar.get("Steps")
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def weights_of(sidecar: dict[str, Any], segmentation: str) -> Weights:
    """Return weights of a segmentation (``aseg`` or ``hippoFS60``).

    Examples
    --------
    >>> sidecar = {"Steps": [{"Name": "aseg", "Weights": {"Name": "embedded", "Checksum": "ab12"}}]}
    >>> weights_of(sidecar, "aseg").label
    'embedded (ab12)'
    """
    named = [step.get("Weights") for step in steps_of(sidecar) if step.get("Name") == of_name(segmentation).task]
    for entry in [*named, sidecar.get("Weights")]:
        if isinstance(entry, dict):
            return Weights(*(str(entry.get(key) or "") for key in ("Name", "Checksum", "Origin", "Fingerprint")))
    return Weights()


def version_of(sidecar: dict[str, Any]) -> str:
    """Return the version of this package that made a table; empty where it is not known."""
    versions = sidecar.get("Versions")
    return str(versions.get("medsegmamba_bids", "")) if isinstance(versions, dict) else ""


def notes_of(sidecar: dict[str, Any]) -> list[str]:
    """Return what the run warned of, a sentence each."""
    notes = sidecar.get("Notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def volume_definition_of(sidecar: dict[str, Any]) -> str:
    """Return what the volumes of a table are, in words; empty where it is not known.

    Examples
    --------
    >>> volume_definition_of({"Volume_mm3": {"Description": "Number of voxels times the voxel volume"}})
    'Number of voxels times the voxel volume'
    """
    column = sidecar.get("Volume_mm3")
    return str(column.get("Description") or "") if isinstance(column, dict) else ""


def total_seconds(sidecar: dict[str, Any]) -> float:
    """Return seconds of all steps."""
    return sum(_number(step.get("Seconds")) for step in steps_of(sidecar))


def peak_memory_gb(sidecar: dict[str, Any]) -> float:
    """Return the most memory that a process of a step held, GB; 0 where it is not known."""
    return max((_number(step.get("PeakMemoryGB")) for step in steps_of(sidecar)), default=0.0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def details(step: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a step's record says besides name, time and memory, entry by entry.

    Examples
    --------
    >>> list(details({"Name": "aseg", "Seconds": 3, "Weights": {"Name": "embedded"}, "StepSize": 32}))
    [('Weights Name', 'embedded'), ('StepSize', '32')]
    """
    for key, value in step.items():
        if key in ("Name", "Seconds", "PeakMemoryGB", "Notes"):
            continue
        if isinstance(value, dict):
            yield from ((f"{key} {inner}", str(entry)) for inner, entry in value.items() if entry not in ("", None))
        elif value not in ("", None, [], {}):
            yield key, str(value)
