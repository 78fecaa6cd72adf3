"""What a scan is called by BIDS, FreeSurfer, SynthSeg and in plain files, so that one finds the other."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What derivatives add to a scan's name; all other entities tell scans of a participant apart.
_DERIVED = ("space", "seg", "desc", "res", "den", "label", "atlas", "hemi", "from", "to", "mode")
_BIDS = re.compile(r"sub-(?P<participant>[^_]+)(?P<entities>(?:_[A-Za-z]+-[^_]+)*)(?:_[A-Za-z0-9]+)*")
_ADDED = re.compile(r"_(T1w|aseg|dseg|seg|labels?|synthseg|prediction|pred|segmentation)$")
_NUMBERED = ("run", "echo")


@dataclass(frozen=True, order=True)
class ScanName:
    """A participant and what tells its scans apart.

    Attributes
    ----------
    participant : str
        Without ``sub-``.
    entities : tuple of pairs of str
        Such as ``("ses", "1")`` and ``("run", "2")``, sorted.
    shown : str
        As the files spell it; two names that differ in this alone are equal.
    """

    participant: str
    entities: tuple[tuple[str, str], ...] = ()
    shown: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScanName) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return self.shown

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What two names of a scan share."""
        return self.participant, self.entities

    @property
    def session(self) -> str:
        """The session's label, empty where there is none."""
        return dict(self.entities).get("ses", "")

    @property
    def shown_participant(self) -> str:
        """The participant as the files spell it."""
        return f"sub-{self.participant}" if self.shown.startswith("sub-") else self.participant

    def fits(self, other: ScanName) -> bool:
        """Return whether both may be one scan: one participant, and no entity that has two values."""
        ours, theirs = dict(self.entities), dict(other.entities)
        return self.participant == other.participant and all(
            ours[entity] == theirs[entity] for entity in ours.keys() & theirs.keys()
        )


def parse_name(name: str) -> ScanName:
    """Return the scan that a file's or folder's name speaks of; the name is without extension.

    Names that are not BIDS' are a participant's as a whole, without what tools add at their end.

    Examples
    --------
    >>> parse_name("sub-01_ses-a_run-02_space-conform_seg-aseg_desc-medsegmamba_dseg")
    ScanName(participant='01', entities=(('run', '2'), ('ses', 'a')), shown='sub-01_ses-a_run-2')
    >>> parse_name("sub-01_ses-a.long.sub-01").key == parse_name("sub-01_ses-a_T1w_synthseg").key
    True
    >>> parse_name("OAS1_0001_MR1_aseg").participant
    'OAS1_0001_MR1'
    """
    name = name.split(".long.")[0]
    match = _BIDS.fullmatch(name)
    if not match:
        while (shorter := _ADDED.sub("", name)) != name and shorter:
            name = shorter
        return ScanName(name, (), name)
    pairs = [part.split("-", 1) for part in match["entities"].split("_") if part]
    kept = [(key, _number(value) if key in _NUMBERED else value) for key, value in pairs if key not in _DERIVED]
    return scan_name(match["participant"], kept)


def scan_name(participant: str, entities: list[tuple[str, str]]) -> ScanName:
    """Return a name in BIDS' form from its parts, shown in their order."""
    shown = "_".join(f"{key}-{value}" for key, value in [("sub", participant), *entities])
    return ScanName(participant, tuple(sorted(entities)), shown)


def _number(value: str) -> str:
    return value.lstrip("0") or "0" if value.isdigit() else value


def listed(names: object, most: int = 8) -> str:
    """Return some names in a sentence, and how many more there are.

    Examples
    --------
    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = [str(name) for name in names]
    rest = len(names) - most
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:most])} and {rest} more"
