"""Images and their label images, found in FreeSurfer subjects folders or BIDS datasets. Nothing is read here."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsegmamba_bids.errors import PairError
from medsegmamba_bids.segmentations import of_table
from medsegmamba_bids.training.training_config import PairsConfig

if TYPE_CHECKING:
    from bids.layout import BIDSImageFile, BIDSLayout

logger = logging.getLogger(__name__)

#: The label image in ``mri/`` of a FreeSurfer subject, and what is added to its labels.
#: Entities in which a label image and its T1-weighted image agree.
_ENTITIES = ("subject", "session", "acquisition", "ceagent", "reconstruction", "run", "echo", "part")


@dataclass(frozen=True)
class Pair:
    """An image and its labels.

    Attributes
    ----------
    name : str, unique
    participant : str, ``sub-…``
    image : Path
    labels : label images, each with what is added to its labels; the first that is not 0 counts
    """

    name: str
    participant: str
    image: Path
    labels: tuple[tuple[Path, int], ...]


def find_freesurfer_pairs(subjects_dir: Path, config: PairsConfig, participants: list[str]) -> list[Pair]:
    """Pairs of the participants' subjects: ``sub-01``, ``01``, ``sub-01_ses-1``, ``sub-01.long.base``, ...

    Raises
    ------
    PairError
        There is no such folder, or a subject lacks a file.
    """
    subjects_dir = Path(subjects_dir)
    if not subjects_dir.is_dir():
        raise PairError(f"{subjects_dir}: no such folder of FreeSurfer subjects")
    known = {participant.removeprefix("sub-"): participant for participant in participants}
    pairs = []
    for folder in sorted(path for path in subjects_dir.iterdir() if (path / "mri").is_dir()):
        participant = known.get(re.split(r"[_.]", folder.name.removeprefix("sub-"))[0])
        participant = known.get(folder.name, participant)  # names may hold "_" themselves
        if participant:
            pairs.append(_freesurfer_pair(folder, participant, config))
    return pairs


def _freesurfer_pair(folder: Path, participant: str, config: PairsConfig) -> Pair:
    image = folder / "mri" / config.image
    if not image.is_file():
        raise PairError(f"{image}: no such file; which image of a subject is used stands in the configuration (image)")
    wanted = of_table(config.table).files[0]
    return Pair(folder.name, participant, image, tuple((_one(folder / "mri", name), add) for name, add in wanted))


def _one(folder: Path, pattern: str) -> Path:
    """The latest version of a file."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise PairError(f"{folder / pattern}: no such file")
    return found[-1]


def find_bids_pairs(
    bids_dir: Path, derivatives: list[Path], config: PairsConfig, participants: list[str]
) -> list[Pair]:
    """Pairs of raw T1-weighted images and ``*_seg-<segmentation>*_dseg`` images of derivatives on their grid.

    Of several label images for one image, those without ``space-`` come first, then the first by name.

    Raises
    ------
    PairError
        A dataset cannot be read, or nothing was found.
    """
    layout = _layout(Path(bids_dir), [Path(folder) for folder in derivatives])
    subjects = [participant.removeprefix("sub-") for participant in participants]
    images = layout.get(
        scope="raw", suffix="T1w", extension=[".nii", ".nii.gz"], subject=subjects, return_type="object"
    )
    prefix = config.segmentation or of_table(config.table).short
    labels = _label_images(layout, prefix, subjects)
    pairs = []
    for image in images:
        matching = [label for label in labels if _same_scan(label, image)]
        if matching:
            name = Path(image.path).name.split(".")[0].removesuffix("_T1w")
            participant = f"sub-{image.entities['subject']}"
            pairs.append(Pair(name, participant, Path(image.path), ((Path(matching[0].path), 0),)))
        else:
            logger.warning("%s: has no seg-%s*_dseg image and is left out", image.path, prefix)
    return pairs


def _layout(bids_dir: Path, derivatives: list[Path]) -> BIDSLayout:
    from bids.exceptions import BIDSDerivativesValidationError, BIDSValidationError
    from bids.layout import BIDSLayout

    for folder in (bids_dir, *derivatives):
        if not (folder / "dataset_description.json").is_file():
            raise PairError(f"{folder}: no BIDS dataset, it has no dataset_description.json")
    try:
        return BIDSLayout(bids_dir, validate=False, derivatives=[str(folder) for folder in derivatives])
    except (BIDSValidationError, BIDSDerivativesValidationError, OSError, ValueError) as error:
        raise PairError(f"{bids_dir}: cannot be read as a BIDS dataset ({error})") from error


def _label_images(layout: BIDSLayout, prefix: str, subjects: list[str]) -> list[BIDSImageFile]:
    found = layout.get(
        scope="derivatives", suffix="dseg", extension=[".nii", ".nii.gz"], subject=subjects, return_type="object"
    )
    found = [label for label in found if str(label.entities.get("segmentation", "")).startswith(prefix)]
    native = [label for label in found if label.entities.get("space") in (None, "orig", "T1w")]
    return sorted(native, key=lambda label: (label.entities.get("space") is not None, Path(label.path).name))


def _same_scan(label: BIDSImageFile, image: BIDSImageFile) -> bool:
    return all(label.entities.get(key) == image.entities.get(key) for key in _ENTITIES)
