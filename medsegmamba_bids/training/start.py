"""The network that a training begins with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.training.training_config import Config
from medsegmamba_bids.weights.files import find_weights, load_weights

logger = logging.getLogger(__name__)


def network_settings(config: Config, classes: int, patch_size: int | None = None) -> dict:
    """Return arguments that rebuild a configuration's network."""
    return {**config.network, "classes": classes, "patch_size": patch_size or config.patch_size}


def check_network(config: Config, patch_size: int | None = None) -> nn.Module:
    """Refuse a network that cannot be built or whose ``initial`` weights are not there; takes no memory.

    Returns
    -------
    torch.nn.Module
        The network without values (on torch's device ``meta``).

    Raises
    ------
    UserError
        With the reason.
    """
    if config.initial:
        find_weights(config.initial)
    classes = len(load_label_table(config.table).labels)
    with torch.device("meta"):
        return build_network(config.network_name, network_settings(config, classes, patch_size))


def new_network(config: Config, classes: int, patch_size: int | None = None) -> nn.Module:
    """Return a configuration's network with random weights that its seed decides, on the CPU.

    Raises
    ------
    NetworkError
        There is no such network, or it cannot be built from these settings.
    """
    torch.manual_seed(config.seed)
    return build_network(config.network_name, network_settings(config, classes, patch_size))


def take_initial(network: nn.Module, path_or_name: str, labels: Sequence[int]) -> int:
    """Copy the tensors of a weights file that have a namesake of equal shape in the network.

    The last layer's rows are taken label by label, so that a network for one class more starts as the other ends.

    What is taken and what is not is logged, so that a head for other classes is no surprise.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    path_or_name : str
        A weights file, or the name of weights.
    labels : sequence of int (C,)
        FreeSurfer label of each of the network's classes.

    Returns
    -------
    int
        How many were taken.

    Raises
    ------
    WeightsError
        The file is absent or damaged.
    ConfigError
        No tensor fits.
    """
    source, info = load_weights(path_or_name)
    given, own = source.state_dict(), network.state_dict()
    given |= _last_layer_by_label(given, own, info.labels, labels)
    taken = [name for name, tensor in own.items() if name in given and given[name].shape == tensor.shape]
    if not taken:
        raise ConfigError(f"{path_or_name}: {info.name} has no tensor in common with this network")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    left = sorted(own.keys() - set(taken))
    logger.info(
        "%d of %d tensors are taken from %s; new: %s", len(taken), len(own), info.name, ", ".join(left) or "none"
    )
    return len(taken)


def _last_layer_by_label(
    given: dict[str, torch.Tensor], own: dict[str, torch.Tensor], source: Sequence[int], wanted: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return the last layer's rows in the order of the wanted labels; a label without one starts as the background
    does.

    Empty where the two have the same labels or none in common but the background.
    """
    if tuple(source) == tuple(wanted) or not set(source) & set(wanted) - {0}:
        return {}
    rows = [source.index(label) if label in source else 0 for label in wanted]
    names = [name for name in ("head.weight", "head.bias") if name in given and name in own]
    return {name: given[name][rows] for name in names}
