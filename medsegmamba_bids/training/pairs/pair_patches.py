"""Pairs made ready for training: checked, conformed, cropped, kept in a cache folder; patches of them."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from medsegmamba_bids.datasets.label_images import foreign_labels, lies_on, read_parts
from medsegmamba_bids.errors import PairError
from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import atomic_path, load_image
from medsegmamba_bids.image.labels import LabelTable, join_brain_labels
from medsegmamba_bids.inference.segmenter import HIPPOCAMPUS_SIDE
from medsegmamba_bids.segmentations import of_table
from medsegmamba_bids.training.pairs.finder import Pair
from medsegmamba_bids.training.processes import Processes
from medsegmamba_bids.training.training_config import PairsConfig

CORTEX = 3
_VERSION = 3


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """One scan, conformed and cropped to where patches lie.

    Attributes
    ----------
    name : str
    image : uint8 (X, Y, Z), LIA, 1 mm
    target : uint8 (X, Y, Z), class indices
    """

    name: str
    image: np.ndarray
    target: np.ndarray

    def patches(self, size: int, per_axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return patches side by side, evenly spread: images float32 (N, 1, P, P, P), 0..1, and classes uint8 (N, P,
        P, P).
        """
        boxes = patch_boxes(self.image.shape, size, per_axis)
        images = np.stack([self.image[box] for box in boxes])[:, None].astype(np.float32) / np.float32(255)
        return torch.from_numpy(images), torch.from_numpy(np.stack([self.target[box] for box in boxes]))


def patch_boxes(shape: tuple[int, ...], size: int, per_axis: int) -> list[tuple[slice, ...]]:
    """Return ``per_axis`` cubes an axis from one end of the volume to the other; one alone lies in the middle.

    Examples
    --------
    >>> [box[0].start for box in patch_boxes((100, 96, 96), 96, 3)][::9]
    [0, 2, 4]
    """
    spread = [0.5] if per_axis == 1 else np.linspace(0, 1, per_axis)
    starts = [[round(share * (side - size)) for share in spread] for side in shape]
    return [tuple(slice(start, start + size) for start in corner) for corner in itertools.product(*starts)]


def prepare_pairs(
    pairs: list[Pair], config: PairsConfig, table: LabelTable, cache: Path, processes: Processes
) -> list[Path]:
    """Check all pairs before any training and store them prepared; the files of the cache come back.

    Several processes share the work.

    Raises
    ------
    PairError, ImageError
        The first pair that cannot be used, with its file.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stored = [cache / f"{pair.name}-{_cache_key(pair, config)[:12]}.npz" for pair in pairs]
    todo = [(pair, path) for pair, path in zip(pairs, stored, strict=True) if not path.exists()]
    processes.wait()  # all have looked before any writes
    for pair, path in tqdm(todo[processes.rank :: processes.world], desc="pairs", disable=processes.hide_bars):
        prepared = prepare_pair(pair, config, table)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, name=pair.name, image=prepared.image, target=prepared.target)
    processes.wait()
    return stored


def load_pair(path: Path) -> PreparedPair:
    """Read what :func:`prepare_pairs` stored."""
    with np.load(path) as stored:
        return PreparedPair(str(stored["name"]), stored["image"], stored["target"])


def _cache_key(pair: Pair, config: PairsConfig) -> str:
    """Return the checksum of all that a prepared pair depends on; files count by path, size and time of change."""
    files = [pair.image, *(path for path, _ in pair.labels)]
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    parts = (_VERSION, stamps, config.table, config.background, config.patch_size, config.patches_per_axis)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def prepare_pair(pair: Pair, config: PairsConfig, table: LabelTable) -> PreparedPair:
    """Read, check and conform a pair.

    Raises
    ------
    PairError
        The grids differ, a label is not in the table, or no class is there.
    """
    image = load_image(pair.image)
    labels = merged_labels(pair, image)
    if CORTEX in table.labels:  # before they are resampled: parcels that share a voxel lose it one by one
        labels = join_brain_labels(labels)
    conformed = conform(image)
    labels = labels_to_grid(labels, Grid.of(image), Grid.of(conformed))
    classes = class_indices(labels, config, table, pair)
    box = _box(labels, classes, config)
    data = np.asarray(conformed.dataobj)[box]
    return PreparedPair(pair.name, np.ascontiguousarray(data), np.ascontiguousarray(classes[box]))


def merged_labels(pair: Pair, image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """Return the label images of a pair as one, uint16 (X, Y, Z) on the grid of its image.

    Raises
    ------
    ImageError, DatasetError
        A label image cannot be read.
    PairError
        It has another grid than the image.
    """
    labels = read_parts(pair.labels)
    if labels.data.shape != image.shape:
        raise PairError(f"{labels.path}: has {labels.data.shape} voxels, but its image {pair.image} has {image.shape}")
    if not lies_on(labels.grid, Grid.of(image)):
        apart = labels.grid.distance(Grid.of(image))
        raise PairError(
            f"{labels.path}: lies up to {apart:.1f} mm from its image {pair.image}; both must share one grid"
        )
    return labels.data


def class_indices(labels: np.ndarray, config: PairsConfig, table: LabelTable, pair: Pair) -> np.ndarray:
    """Return the class of every voxel, uint8; raises ``PairError`` for labels that are neither classes nor
    background.
    """
    background = of_table(config.table).beside if config.background is None else config.background
    files = ", ".join(str(path) for path, _ in pair.labels)
    if foreign := foreign_labels(labels, table, background):
        raise PairError(
            f"{files}: the labels {foreign} are neither classes of the table {config.table} nor named as background"
        )
    present = np.arange(int(labels.max()) + 1)
    classes = table.to_indices(present).astype(np.uint8)[labels]
    if not classes.any():
        raise PairError(f"{files}: none of the classes of the table {config.table} is there")
    return classes


def _box(labels: np.ndarray, classes: np.ndarray, config: PairsConfig) -> Box:
    """Return where patches lie: around all labels, one patch around the middle of the classes, or where subfields
    are.
    """
    if config.patches_per_axis > 1 and not config.subfields:
        return Box.around(labels).at_least(config.patch_size, labels.shape)
    centres = [(side.start + side.stop) // 2 for side in Box.around(classes)]
    point = Box(slice(centre, centre) for centre in centres)
    side = max(HIPPOCAMPUS_SIDE, config.patch_size) if config.subfields else config.patch_size
    return point.at_least(side, labels.shape)


class ScanPatches(Dataset):
    """The patches of one scan after another, in a given order."""

    def __init__(self, files: list[Path], order: list[int], config: PairsConfig) -> None:
        self.files, self.order, self.config = files, order, config

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = load_pair(self.files[self.order[item]])
        return pair.patches(self.config.patch_size, self.config.patches_per_axis)
