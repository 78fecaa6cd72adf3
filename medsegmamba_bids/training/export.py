"""The weights file that a training ends with."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medsegmamba_bids import __version__
from medsegmamba_bids.errors import ConfigError, WeightsError
from medsegmamba_bids.image.io import atomic_path
from medsegmamba_bids.image.labels import load_label_table, side_of
from medsegmamba_bids.records import fits, unknown_keys
from medsegmamba_bids.segmentations import of_table
from medsegmamba_bids.training.run_folder import read_checkpoint
from medsegmamba_bids.training.start import network_settings, new_network
from medsegmamba_bids.training.synthetic.tissues import load_tissue_table
from medsegmamba_bids.training.training_config import Config, SynthesisConfig, WeightsTable
from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, save_weights

_INPUT_KEYS = [f.name for f in dataclasses.fields(InputSpec)]


def weights_info(config: Config) -> WeightsInfo:
    """Return what the weights file of a configuration says of itself; the checksum is still open.

    For synthesis the name, the label table, the last patch and voxel size stand in for a missing ``[weights]``.

    Raises
    ------
    ConfigError
        A key of ``[weights]`` is out of range, or the table is missing.
    """
    table = config.weights or _default_table(config)
    if table.unweighted and not isinstance(config, SynthesisConfig):
        raise ConfigError(f"[weights] of configuration {config.name}: unweighted is only for synthesised images")
    _check_favour(table, config)
    labels = load_label_table(config.table).labels
    try:
        return WeightsInfo(
            name=table.name,
            network=config.network_name,
            config=network_settings(config, len(labels)),
            task=table.task,
            labels=tuple(labels.tolist()),
            input=InputSpec(**{key: getattr(table, key) for key in _INPUT_KEYS}),
            origin=table.origin or f"trained with medsegmamba_bids {__version__}, configuration {config.name}",
            licence=table.licence,
            training_data="; ".join(filter(None, [table.training_data, f"seed {config.seed}"])),
        )
    except WeightsError as error:
        raise ConfigError(f"[weights] of configuration {config.name}: {error}") from error


def _default_table(config: Config) -> WeightsTable:
    if not isinstance(config, SynthesisConfig):
        raise ConfigError(f"configuration {config.name}: needs a [weights] table that tells which images it is for")
    size, voxel_size = config.patch_size, sum(config.stages[-1].voxel_size) / 2
    task = of_table(config.table).task
    return WeightsTable(config.name, task, round(voxel_size, 3), size, size // 2, gaussian=True)


def write_weights(network: nn.Module, config: Config, path: Path) -> WeightsInfo:
    """Write a trained network as a weights file."""
    info, table = weights_info(config), config.weights or _default_table(config)
    shifts = _shifts(config, table)
    if shifts.any():
        network = shift_log_odds(network, shifts)
    return save_weights(network, info, path, half=table.half)


def shift_log_odds(network: nn.Module, shifts: np.ndarray) -> nn.Module:
    """Return a copy of a network whose class probabilities are multiplied by ``exp(shifts)`` (and add up to 1 again).

    The weights of the cross-entropy help rare classes to be learned at all, but draw borders in their favour, so
    that heavy classes come out too large; where borders are unsure, thin layers come out too small. Both are taken back
    without a new training.

    Parameters
    ----------
    network : torch.nn.Module
        With a last layer ``head`` that has a bias.
    shifts : float (C,)
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.head.bias += torch.from_numpy(shifts).to(network.head.bias)
    return network


def _shifts(config: Config, table: WeightsTable) -> np.ndarray:
    """Return what ``[weights]`` adds to the log odds of every class, float64 (C,)."""
    names = [side_of(name)[1] for name in load_label_table(config.table).names]
    shifts = np.array([float(table.favour.get(name, 0)) for name in names])
    if table.unweighted:
        shifts -= table.unweighted * np.log(load_tissue_table(config.table).class_weights)
    return shifts


def _check_favour(table: WeightsTable, config: Config) -> None:
    names = dict.fromkeys(side_of(name)[1] for name in load_label_table(config.table).names)
    if strange := unknown_keys(table.favour, names, "structures"):
        raise ConfigError(f"[weights] of configuration {config.name}, favour: {strange}")
    for name, shift in table.favour.items():
        if not fits(shift, float) or not math.isfinite(shift):
            raise ConfigError(f"[weights] of configuration {config.name}, favour: {name} is {shift!r}, not a number")


def copy_weights(source: Path, path: Path) -> None:
    """Copy a weights file, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def export_checkpoint(checkpoint: Path, config: Config, path: Path) -> WeightsInfo:
    """Write the weights file of a training as it stands: the average, where there is one.

    Parameters
    ----------
    checkpoint : Path
        A checkpoint, or the output folder that holds it.
    config : SynthesisConfig or PairsConfig
        The one that the training runs with; ``[weights]`` may differ.
    path : Path
        ``.safetensors`` file to write.

    Raises
    ------
    ConfigError
        The checkpoint is damaged, absent or belongs to another configuration.
    """
    checkpoint = Path(checkpoint)
    checkpoint = checkpoint / "checkpoint.pt" if checkpoint.is_dir() else checkpoint
    state = read_checkpoint(checkpoint, config.digest)
    network = new_network(config, len(load_label_table(config.table).labels))
    network.load_state_dict(state.get("average") or state["network"])
    return write_weights(network, config, path)
