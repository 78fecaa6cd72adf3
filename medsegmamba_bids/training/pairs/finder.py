"""Images and their label images, found in FreeSurfer subjects folders or BIDS datasets. Nothing is read here."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.datasets.places import Parts, derivative_labels, subject_folders, subject_labels
from medsegmamba_bids.datasets.scan_names import ScanName, parse_name
from medsegmamba_bids.errors import PairError
from medsegmamba_bids.segmentations import of_table
from medsegmamba_bids.training.training_config import PairsConfig

logger = logging.getLogger(__name__)


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
    labels: Parts


def find_freesurfer_pairs(subjects_dir: Path, config: PairsConfig, participants: list[str]) -> list[Pair]:
    """Return pairs of the participants' subjects: ``sub-01``, ``01``, ``sub-01_ses-1``, ``sub-01.long.base``, ...

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
    for folder in subject_folders(subjects_dir):
        participant = known.get(re.split(r"[_.]", folder.name.removeprefix("sub-"))[0])
        participant = known.get(folder.name, participant)  # names may hold "_" themselves
        if participant:
            pairs.append(_freesurfer_pair(folder, participant, config))
    return pairs


def _freesurfer_pair(folder: Path, participant: str, config: PairsConfig) -> Pair:
    image = folder / "mri" / config.image
    if not image.is_file():
        raise PairError(f"{image}: no such file; which image of a subject is used stands in the configuration (image)")
    labels = subject_labels(folder / "mri", config.table)
    if labels is None:
        raise PairError(f"{folder / 'mri' / of_table(config.table).files[0][0][0]}: no such file")
    return Pair(folder.name, participant, image, labels)


def find_bids_pairs(
    bids_dir: Path, derivatives: list[Path], config: PairsConfig, participants: list[str]
) -> list[Pair]:
    """Return pairs of raw T1-weighted images and ``*_seg-<segmentation>*_dseg`` images of derivatives on their grid.

    Of several derivatives the first that has labels for an image counts, and there those without ``space-`` come
    first.

    Raises
    ------
    PairError, DatasetError
        A folder is no dataset, or a scan has several label images that are equally good.
    """
    for folder in (bids_dir, *derivatives):
        if not (Path(folder) / "dataset_description.json").is_file():
            raise PairError(f"{folder}: no BIDS dataset, it has no dataset_description.json")
    labels = _native_labels(derivatives, config)
    dataset = BIDSFolder(Path(bids_dir))
    known = {f"sub-{label}" for label in dataset.participants}
    folders = [name for name in sorted(participants) if name in known]
    pairs = []
    for file in dataset.t1w_images(*folders) if folders else ():
        own = labels.get(parse_name(file.prefix))
        if file.derived:
            continue
        if own is None:
            prefix = config.segmentation or of_table(config.table).short
            logger.warning("%s: has no seg-%s*_dseg image and is left out", file.path, prefix)
        else:
            pairs.append(Pair(file.prefix, f"sub-{file.entities['sub']}", file.path, own))
    return pairs


def _native_labels(derivatives: list[Path], config: PairsConfig) -> dict[ScanName, Parts]:
    """Return label images on the raw images' grid."""
    native: dict[ScanName, Parts] = {}
    for folder in derivatives:
        scans, notes = derivative_labels(Path(folder), config.table, config.segmentation)
        for note in notes:
            logger.warning("%s", note)
        for name, files in scans.items():
            on_grid = [parts for parts in files.choices if "_space-conform" not in parts[0][0].name]
            if on_grid:
                native.setdefault(name, on_grid[0])
    return native
