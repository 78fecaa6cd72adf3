"""What a weights file says of itself, read without torch and without touching the tensors.

A weights file is a safetensors file. Its metadata holds one JSON text, under the key
``medsegmamba``, with what is needed to rebuild the network and to feed it: a :class:`WeightsInfo`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medsegmamba_bids.anatomy import covers_brain
from medsegmamba_bids.errors import WeightsError
from medsegmamba_bids.networks.registry import NETWORKS, OF_ONE_PATCH_SIZE
from medsegmamba_bids.records import build, parse_json, wrong_types
from medsegmamba_bids.segmentations import HIPPOCAMPUS, TASKS

METADATA_KEY = "medsegmamba"
INTENSITIES = ("conformed", "freesurfer")
# Entries of a WeightsInfo that decide no result.
_FOR_PEOPLE = ("name", "origin", "licence", "training_data")
# Entries that came when weights had been released, and what is as if they were not there: those weights stay the same.
_LATER = {"deep_voxel_size": None, "deep_patch_size": None, "follow_intensities": 0.0}

# A longer header than this is a damaged length field, not a description.
_LARGEST_HEADER = 100_000_000
# What torch.save writes: a zip archive, or formerly a pickle. Read as a length both are huge.
_CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80\x02")


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of the images that it is given, and how its patches are laid.

    Attributes
    ----------
    voxel_size : float
        Edge of the isotropic voxels, mm.
    patch_size, step : int
        Edge of a patch and distance between neighbouring patches, voxels.
    skull_stripped : bool
        True if everything but the brain must be zero.
    intensity : {"conformed", "freesurfer"}
        "conformed": robustly rescaled to 0..255 and divided by 255. "freesurfer": normalised so
        that white matter lies near 110, and divided by 255.
    gaussian : bool
        Weight a patch's centre more than its border when patches are averaged.
    mirror : bool
        Average with the prediction for the mirrored image.
    mirror_voxel_size : float or None
        Edge of the voxels in which the mirrored image is seen, mm; None is that of the image itself.
    deep_voxel_size : float or None
        Edge of the voxels in which a patch around the deep structures is seen once more (with ``mirror``, mirrored as
        well), mm; what is seen there counts as much as each of the other views. None is not at all.
    deep_patch_size : int
        Edge of that patch, voxels.
    follow_aseg : float
        Of subfields: how closely their outer border follows the hippocampi of aseg, log odds a mm; 0 is not at all.
    follow_intensities : float
        How much a voxel's intensity counts where the network is unsure between tissues, 0 (not at all) to 1.
    """

    voxel_size: float = 1.0
    patch_size: int = 96
    step: int = 32
    skull_stripped: bool = False
    intensity: str = "conformed"
    gaussian: bool = False
    mirror: bool = False
    mirror_voxel_size: float | None = None
    deep_voxel_size: float | None = None
    deep_patch_size: int = 96
    follow_aseg: float = 0.0
    follow_intensities: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self)
        if not self.voxel_size > 0:
            raise WeightsError(f"its voxel size is {self.voxel_size} mm; it must be positive")
        if self.mirror_voxel_size is not None and not (self.mirror and self.mirror_voxel_size > 0):
            raise WeightsError(
                f"its mirror voxel size is {self.mirror_voxel_size} mm; it must be positive, and mirror be true"
            )
        if self.deep_voxel_size is not None and not self.deep_voxel_size > 0:
            raise WeightsError(f"its deep voxel size is {self.deep_voxel_size} mm; it must be positive")
        if not 0 <= self.follow_aseg < math.inf:
            raise WeightsError(f"its follow_aseg is {self.follow_aseg}; it must be a number from 0 up")
        if not 0 <= self.follow_intensities <= 1:
            raise WeightsError(f"its follow_intensities is {self.follow_intensities}; it must lie in 0..1")
        for name, size in (("patch size", self.patch_size), ("deep patch size", self.deep_patch_size)):
            if size < 8 or size % 8:
                raise WeightsError(f"its {name} is {size}; it must be a multiple of 8")
        if not 1 <= self.step <= self.patch_size:
            raise WeightsError(f"its step is {self.step}; it must lie in 1..{self.patch_size}")
        _check_choice("intensity convention", self.intensity, INTENSITIES)


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself.

    Attributes
    ----------
    name : str
        What the file is called in commands and reports.
    network, config : str, dict
        Name in the registry of networks, and the arguments that rebuild it.
    task : {"aseg", "hippocampus"}
        What is segmented.
    labels : tuple of int
        The FreeSurfer label of each class, in the order of the network's outputs.
    input : InputSpec
        What the network expects.
    origin, licence, training_data : str
        Where the weights come from, for people.
    checksum : str
        SHA-256 of the tensors as stored; filled in by :func:`save_weights`.
    """

    name: str
    network: str
    config: dict[str, Any]
    task: str
    labels: tuple[int, ...]
    input: InputSpec = field(default_factory=InputSpec)
    origin: str = ""
    licence: str = ""
    training_data: str = ""
    checksum: str = ""

    def __post_init__(self) -> None:
        _check_fields(self)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise WeightsError(f"its name is {self.name!r}; a name is made of letters, digits, '.', '_' and '-'")
        _check_choice("network", self.network, tuple(NETWORKS))
        _check_choice("task", self.task, TASKS)
        object.__setattr__(self, "labels", tuple(int(label) for label in self.labels))
        if len(set(self.labels)) != len(self.labels):
            raise WeightsError("its class table names a label twice")
        classes = self.config.get("classes", len(self.labels))
        if classes != len(self.labels):
            raise WeightsError(f"its network has {classes} classes but its class table {len(self.labels)}")
        if self.task == HIPPOCAMPUS.task and (self.input.deep_voxel_size or self.input.follow_intensities):
            raise WeightsError("deep_voxel_size and follow_intensities are for structures of the whole brain")
        built_for = self.config.get("patch_size", self.input.patch_size)
        sizes = {self.input.patch_size, *([self.input.deep_patch_size] if self.input.deep_voxel_size else [])}
        if self.network in OF_ONE_PATCH_SIZE and sizes != {built_for}:
            other = (sizes - {built_for}).pop()
            raise WeightsError(f"its patch size is {other}, but its {self.network} takes patches of {built_for} alone")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides results: the tensors, by their checksum, and what is done with them.

        The same tensors with another distance of patches, say, are not the same weights.
        """
        deciding = {key: value for key, value in asdict(self).items() if key not in _FOR_PEOPLE}
        used = deciding["input"]
        if used["deep_voxel_size"] is None:
            used["deep_patch_size"] = None
        for key in [key for key, without in _LATER.items() if used[key] == without]:
            del used[key]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def provenance(self) -> dict[str, str]:
        """Return what the JSON beside results says of the weights."""
        return {"Name": self.name, "Checksum": self.checksum, "Fingerprint": self.fingerprint}

    def to_json(self) -> str:
        """Return the JSON text that :meth:`from_json` reads."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WeightsInfo:
        """Read the JSON text that :meth:`to_json` wrote.

        Raises
        ------
        WeightsError
            If the text is not JSON, lacks an entry or holds one that is not allowed.
        """
        try:
            entries = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"its description cannot be read ({error})") from error
        where = "its description cannot be read"
        if isinstance(entries, dict) and "input" in entries:
            entries = {**entries, "input": build(InputSpec, entries["input"], f"{where}, input", WeightsError)}
        return build(cls, entries, where, WeightsError)


def _check_fields(record: InputSpec | WeightsInfo) -> None:
    """Refuse entries of the wrong type: the text may come from anywhere."""
    for name, value, wanted in wrong_types(record):
        raise WeightsError(f"its entry {name!r} is {value!r}; it must be {wanted}")


def _check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise WeightsError(f"its {what} is {value!r}; known are {', '.join(allowed)}")


@dataclass(frozen=True)
class WeightsFile:
    """A weights file and what its header says, read once and passed on.

    Attributes
    ----------
    path : Path
    info : WeightsInfo
    shapes : dict of str to tuple of int
        Of the tensors.
    """

    path: Path
    info: WeightsInfo
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def makes_mask(self) -> bool:
        """Whether its classes cover the whole brain."""
        return covers_brain(self.info.labels)

    @property
    def takes_heads(self) -> bool:
        """Whether it takes a conformed head as it is."""
        return not self.info.input.skull_stripped and self.info.input.intensity == "conformed"


def read_info(path: str | os.PathLike) -> WeightsInfo:
    """Read what a weights file says of itself, see `read_weights_file`."""
    return read_weights_file(path).info


def read_weights_file(path: str | os.PathLike) -> WeightsFile:
    """Read the header of a weights file; fast, the tensors stay on the disk.

    Parameters
    ----------
    path : path-like
        A ``.safetensors`` file written by :func:`save_weights`.

    Raises
    ------
    WeightsError
        If the file is absent, truncated, or not a weights file of this package.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path}: a safetensors file, but without this package's description of the network; "
            "it was not written by medsegmamba_bids"
        )
    try:
        info = WeightsInfo.from_json(metadata[METADATA_KEY])
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return WeightsFile(path, info, {name: tuple(entry["shape"]) for name, entry in header.items()})


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file, after checking the file's length against it.

    The format is an 8-byte little-endian length, the header, then the tensors' bytes.

    Raises
    ------
    WeightsError
        If the file is absent, truncated, or no safetensors file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LARGEST_HEADER:
            if start.startswith(_CHECKPOINT_STARTS):
                raise WeightsError(
                    f"{path}: a PyTorch checkpoint, not a weights file; convert it first: "
                    f"medsegmamba-weights import FILE --task {'|'.join(TASKS)}"
                )
            raise WeightsError(f"{path}: not a safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise WeightsError(f"{path}: truncated within its header")
    try:
        header = json.loads(text)
        expected = 8 + length + _end_of_tensors(header)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise WeightsError(f"{path}: not a safetensors file ({error})") from error
    size = path.stat().st_size
    if size != expected:
        state = "truncated" if size < expected else "followed by other data"
        raise WeightsError(f"{path}: {state}, it has {size} bytes instead of {expected}")
    return header


def _end_of_tensors(header: dict[str, Any]) -> int:
    """Return bytes after the header that tensors take; raises various errors where the header is not safetensors'
    form.
    """
    metadata = header.get("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("its metadata are no texts")
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    if not all(isinstance(end, int) and end >= 0 for end in ends):
        raise TypeError("its offsets are no whole numbers")
    return max(ends, default=0)
