"""The paper's experiment: train networks under equal conditions, segment the test set with each, write the tables.

The tables are those of ``medsegmamba-evaluate compare``, which is started as a command of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from medsegmamba_bids.errors import ConfigError, ExperimentError
from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_image, load_labels, save_image
from medsegmamba_bids.inference.merge import Segmentation
from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter
from medsegmamba_bids.inference.single import conform_and_segment
from medsegmamba_bids.networks.registry import NETWORKS
from medsegmamba_bids.segmentations import HIPPOCAMPUS
from medsegmamba_bids.training.export import copy_weights, weights_info
from medsegmamba_bids.training.pairs.finder import Pair
from medsegmamba_bids.training.pairs.pair_trainer import check_groups, train_on_pairs
from medsegmamba_bids.training.processes import Processes
from medsegmamba_bids.training.start import check_network
from medsegmamba_bids.training.training_config import PairsConfig
from medsegmamba_bids.weights.files import read_info

logger = logging.getLogger(__name__)
#: What may differ between the configurations of an experiment.
_FREE = ("name", "network", "network_name", "initial", "workers", "save_every", "weights")
_FREE_WEIGHTS = ("name", "origin", "licence", "training_data", "half")


def check_conditions(configs: list[PairsConfig]) -> None:
    """Refuse configurations that do not train under equal conditions, or whose names are not their own.

    Raises
    ------
    ConfigError
        Naming the keys.
    """
    repeated = [name for name, count in Counter(config.name for config in configs).items() if count > 1]
    if repeated:
        raise ConfigError(f"several configurations are called {', '.join(repeated)}; each needs a name of its own")
    for config in configs:
        check_network(config)
        weights_info(config)
    first = configs[0]
    for config in configs[1:]:
        keys = _differing(first, config, _FREE)
        keys += [f"weights.{key}" for key in _differing(first.weights, config.weights, _FREE_WEIGHTS)]
        if keys:
            raise ConfigError(
                f"the configurations {first.name} and {config.name} differ in {', '.join(keys)}; "
                "an experiment compares networks under equal conditions"
            )


def _differing(first: object, second: object, free: tuple[str, ...]) -> list[str]:
    keys = [field.name for field in dataclasses.fields(first) if field.name not in free]
    return [key for key in keys if getattr(first, key) != getattr(second, key)]


def method_names(configs: list[PairsConfig]) -> list[str]:
    """Return what the tables call the configurations: their networks, or their own names where a network is there
    twice.
    """
    networks = [NETWORKS[config.network_name].rpartition(":")[2] for config in configs]
    return networks if len(set(networks)) == len(networks) else [config.name for config in configs]


def train_all(
    configs: list[PairsConfig], pairs: list[Pair], split: dict[str, str], out: Path, processes: Processes
) -> list[Path]:
    """Train one configuration after another, each in a folder of its name; finished trainings are not done again.

    A weights file of that name without a folder, from a training elsewhere, is taken as it is.

    Returns
    -------
    list of Path
        ``<name>.safetensors`` of every configuration.

    Raises
    ------
    ConfigError
        A weights file or a checkpoint is of another configuration.
    """
    files = []
    for config in configs:
        weights, folder = out / f"{config.name}.safetensors", out / config.name
        if weights.exists() and not folder.exists():
            _check_weights(weights, config)
            logger.info("%s was trained elsewhere and is taken as it is", weights)
        else:
            logger.info("training %s", config.name)
            best = train_on_pairs(config, pairs, split, folder, out / "pairs", processes)
            if not weights.exists() or read_info(weights).checksum != read_info(best).checksum:
                copy_weights(best, weights)
        files.append(weights)
    return files


def _check_weights(path: Path, config: PairsConfig) -> None:
    own, wanted = read_info(path), weights_info(config)
    for key in ("network", "config", "task", "labels", "input"):
        if getattr(own, key) != getattr(wanted, key):
            raise ConfigError(f"{path}: is not of the configuration {config.name}, its {key} differs; remove it")


def segment_test_set(weights: Path, pairs: list[Pair], config: PairsConfig, out: Path, device: str) -> None:
    """Segment scans with trained weights, each on its own grid: ``<scan>.nii.gz``.

    Subfields are looked for around the hippocampi of the participant's ``aseg.mgz``; where there is none, around
    those that the package's own weights find. Scans whose file is newer than the weights are left as they are.

    Raises
    ------
    WeightsError, SegmentationError, ImageError
        The weights or an image cannot be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    segmenter = Segmenter(InferenceSettings(device, config.precision))
    for pair in tqdm(pairs, desc=f"test set, {config.name}", disable=None):
        file = out / f"{pair.name}.nii.gz"
        if file.exists() and file.stat().st_mtime_ns > weights.stat().st_mtime_ns:
            continue
        image = load_image(pair.image)
        if weights_info(config).task == HIPPOCAMPUS.task:
            labels = _subfields(segmenter, pair, image, weights)
        else:
            labels = conform_and_segment(segmenter, image, weights).on_grid_of(image).aseg
        save_image(labels, image.affine, file)


def _subfields(segmenter: Segmenter, pair: Pair, image: nib.spatialimages.SpatialImage, weights: Path) -> np.ndarray:
    conformed = conform(image)
    aseg = pair.image.with_name("aseg.mgz")
    if aseg.is_file():
        given = load_labels(aseg)
        around = labels_to_grid(np.asanyarray(given.dataobj), Grid.of(given), Grid.of(conformed))
    else:
        around = segmenter.segment(conformed).labels
    subfields: Segmentation = segmenter.segment_hippocampus(conformed, around, weights)
    return labels_to_grid(subfields.labels, subfields.grid, Grid.of(image))


@dataclasses.dataclass(frozen=True)
class Tables:
    """What the trained networks' segmentations are compared with.

    Attributes
    ----------
    reference : Path
        Labels that count as right.
    methods : tuple of str
        Other segmentations, ``NAME=PLACE`` each.
    participants : Path or None
        Table that says who is of which dataset.
    dataset_column : str
        Its column with the dataset.
    """

    reference: Path
    methods: tuple[str, ...] = ()
    participants: Path | None = None
    dataset_column: str = "dataset"


def evaluation_arguments(tables: Tables, configs: list[PairsConfig], out: Path) -> list[str]:
    """Return arguments of ``medsegmamba-evaluate`` that compare the test sets."""
    arguments = ["compare", "--reference", str(tables.reference), "--table", configs[0].table]
    for name, config in zip(method_names(configs), configs, strict=True):
        arguments += ["--method", f"{name}={test_folder(out, config)}"]
    for method in tables.methods:
        arguments += ["--method", method]
    if tables.participants:
        arguments += ["--participants", str(tables.participants), "--dataset-column", tables.dataset_column]
    return [*arguments, "--out", str(out / f"tables-{configs[0].table}")]


def test_folder(out: Path, config: PairsConfig) -> Path:
    """Return where the segmentations of a configuration's test set are."""
    return out / "test" / config.name


def write_tables(arguments: list[str]) -> None:
    """Run ``medsegmamba-evaluate``.

    Raises
    ------
    ExperimentError
        It did not succeed; it has said why.
    """
    command = [sys.executable, "-m", "medsegmamba_bids.cli.evaluate", *arguments]
    logger.info("medsegmamba-evaluate %s", " ".join(arguments))
    if subprocess.run(command, check=False).returncode:
        raise ExperimentError("the comparison was not complete, see above")


def run_experiment(
    configs: list[PairsConfig],
    pairs: list[Pair],
    split: dict[str, str],
    out: Path,
    tables: Tables,
    processes: Processes,
) -> None:
    """Train, segment and compare; what is there already is not done again.

    Raises
    ------
    ConfigError, ExperimentError
        The test set is empty, there are several processes, or the comparison did not succeed.
    """
    if processes.many:
        raise ExperimentError(
            "an experiment runs in one process; train with torchrun and 'pairs' in other folders, put the weights at "
            f"{out}/NAME.safetensors, and run the experiment without torchrun"
        )
    test = check_groups(pairs, split)["test"]
    if not test:
        raise ConfigError("the split leaves the test set empty: none of its participants has a scan here")
    weights = train_all(configs, pairs, split, out, processes)
    for config, file in zip(configs, weights, strict=True):
        segment_test_set(file, test, config, test_folder(out, config), str(processes.device))
    write_tables(evaluation_arguments(tables, configs, out))
