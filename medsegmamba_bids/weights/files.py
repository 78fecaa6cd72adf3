"""Weights files: one safetensors file from which a network can be rebuilt and checked.

The tensors lie under the names of the network's ``state_dict``; what the file says of itself is
described in :mod:`medsegmamba_bids.weights.info`, where files are looked for in
:mod:`medsegmamba_bids.weights.folders`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegmamba_bids.errors import WeightsError
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.weights.folders import default_weights, find_weights, resolve_weights
from medsegmamba_bids.weights.info import METADATA_KEY, InputSpec, WeightsFile, WeightsInfo, read_info

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

__all__ = [
    "InputSpec",
    "WeightsError",
    "WeightsInfo",
    "default_weights",
    "find_weights",
    "load_weights",
    "read_info",
    "save_weights",
    "verify_weights",
]


def save_weights(network: nn.Module, info: WeightsInfo, path: str | os.PathLike, half: bool = False) -> WeightsInfo:
    """Write a network and its description to one safetensors file.

    Parameters
    ----------
    network : torch.nn.Module
        What ``build_network(info.network, info.config)`` makes, with any weights.
    info : WeightsInfo
        Its description; the checksum is filled in.
    path : path-like
        Where to write; an existing file is replaced, all at once.
    half : bool
        Store float32 tensors as float16, in half the space; they are loaded as float32.

    Returns
    -------
    WeightsInfo
        The description as written.

    Raises
    ------
    WeightsError
        If the network is not the one that the description tells, or a weight is not finite.
    """
    from safetensors.numpy import save

    from medsegmamba_bids.image.io import atomic_path

    path = Path(path)
    arrays = {key: _to_array(value, half) for key, value in network.state_dict().items()}
    shapes = {key: array.shape for key, array in arrays.items()}
    check_tensors(shapes, build_network(info.network, info.config), path)
    _check_finite(arrays, path)
    info = replace(info, checksum=_checksum(arrays.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, metadata={METADATA_KEY: info.to_json()}))  # save_file hides it from others
    return info


def _to_array(tensor: Any, half: bool) -> np.ndarray:
    import numpy as np

    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    with np.errstate(over="ignore"):  # becomes infinite, which is refused later
        return array.astype(np.float16) if half and array.dtype == np.float32 else array


def _check_finite(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Refuse NaN, infinity, and what float16 cannot hold."""
    import numpy as np

    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: not written, {key} has values that are not finite")


def _checksum(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return SHA-256 over names, types, shapes and bytes of arrays, whatever order they come in."""
    digests = sorted(_array_digest(key, array) for key, array in arrays)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _array_digest(key: str, array: np.ndarray) -> str:
    data = hashlib.sha256(array.reshape(-1).view("uint8")).hexdigest()
    return f"{key} {array.dtype.str} {array.shape} {data}"


def load_weights(weights: str | os.PathLike | WeightsFile, device: Any = "cpu") -> tuple[nn.Module, WeightsInfo]:
    """Rebuild the network of a weights file, ready for inference.

    Parameters
    ----------
    weights : path-like or WeightsFile
        A weights file, or the name of one that is embedded or in the user's folder; or what `resolve_weights` found.
    device : str or torch.device
        Where the network goes.

    Returns
    -------
    network : torch.nn.Module
        In float32 and in evaluation mode.
    info : WeightsInfo
        What the file says of itself.

    Raises
    ------
    WeightsError
        If the file is not found, is damaged, or does not hold the network that it describes.
    """
    file = weights if isinstance(weights, WeightsFile) else resolve_weights(weights)
    path, info = file.path, file.info
    try:
        network = build_network(info.network, info.config)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its {info.network} cannot be built: {error}") from error
    check_tensors(file.shapes, network, path)
    if _fill(network, path) != info.checksum:
        raise WeightsError(f"{path}: damaged, its tensors do not match its checksum")
    return network.to(device).eval(), info


def check_tensors(shapes: Mapping[str, tuple[int, ...]], network: nn.Module, path: Path) -> None:
    """Compare the names and shapes of tensors with those of a network, before any is copied.

    Raises
    ------
    WeightsError
        Naming ``path`` and what is missing, surplus, or of another shape.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    kind = type(network).__name__
    if missing := sorted(expected.keys() - shapes.keys()):
        raise WeightsError(f"{path}: not this {kind}, it lacks {_some(missing)}")
    if extra := sorted(shapes.keys() - expected.keys()):
        raise WeightsError(f"{path}: not this {kind}, it has unknown {_some(extra)}")
    for key, shape in expected.items():
        if shape != tuple(shapes[key]):
            raise WeightsError(f"{path}: not this {kind}, {key} has shape {list(shapes[key])} instead of {list(shape)}")


def _some(keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{', '.join(keys[:shown])}{more}"


def _fill(network: nn.Module, path: Path) -> str:
    """Copy the tensors of a file into a network, one at a time; return their checksum."""
    import torch

    state = network.state_dict()

    def copied() -> Iterable[tuple[str, np.ndarray]]:
        for key, array in _arrays(path):
            state[key].copy_(torch.from_numpy(array))
            yield key, array

    with torch.no_grad():
        return _checksum(copied())


def _arrays(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    """Yield name and array of each tensor of a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                yield key, file.get_tensor(key)
    except (SafetensorError, TypeError) as error:
        raise WeightsError(f"{path}: its tensors cannot be read ({error})") from error


def verify_weights(path: str | os.PathLike) -> WeightsInfo:
    """Load a weights file completely, checking all that can be checked.

    Raises
    ------
    WeightsError
        As :func:`load_weights`, and if a weight is not finite.
    """
    path = Path(path)
    _, info = load_weights(path)
    _check_finite(dict(_arrays(path)), path)
    return info
