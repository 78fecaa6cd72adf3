"""The authors' PyTorch checkpoints: read without running anything in them, and converted.

A checkpoint is what ``torch.save(network.state_dict())`` wrote, perhaps within a dictionary of a
training run and perhaps from ``DataParallel``. It does not say what network it belongs to; that
follows from the names and shapes of its tensors.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegmamba_bids.errors import NetworkError, WeightsError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.segmentations import SEGMENTATIONS, of_task
from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, check_tensors, save_weights
from medsegmamba_bids.weights.folders import (
    AUTHORS_REPOSITORY,
    SUFFIX,
    TABSURFER_REPOSITORY,
    embedded_weights,
    weights_folder,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL_PREFIX = "module."
# The published pipelines: 1 mm, skull-stripped and normalised by FreeSurfer, patches averaged
# uniformly; MedSegMamba's script steps by a third of a patch, TABSurfer's by a sixth.
_AUTHORS_INPUT = InputSpec(voxel_size=1.0, skull_stripped=True, intensity="freesurfer")


def import_checkpoint(
    checkpoint: str | os.PathLike,
    task: str,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a checkpoint of the authors into a weights file in the user's folder.

    Parameters
    ----------
    checkpoint : path-like
        The authors' ``.pt`` file, of MedSegMamba or TABSurfer.
    task : {"aseg", "hippocampus"}
        What it was trained for.
    name : str, optional
        What the weights are called from now on; by default the checkpoint's file name.
    overwrite : bool
        Replace weights of the same name.

    Returns
    -------
    Path
        The weights file.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything but tensors, is not one of the known networks, or
        does not have the classes of the task.
    """
    checkpoint = Path(checkpoint)
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.stem).strip("-._")
    target = _free_place(name, overwrite)
    state = read_checkpoint(checkpoint)
    kind = _recognise(state)
    network, config = _rebuild(state, kind, task, checkpoint)
    patch = config["patch_size"]
    info = WeightsInfo(
        name=name,
        network=kind.network,
        config=config,
        task=task,
        labels=tuple(load_label_table(of_task(task).published).labels.tolist()),
        input=replace(_AUTHORS_INPUT, patch_size=patch, step=patch // 3),
        origin=f"{checkpoint.name}, imported from a checkpoint of {kind.repository}",
        licence=f"unknown, see {kind.repository}",
        training_data="not stated in the checkpoint",
    )
    save_weights(network, info, target)
    return target


def _free_place(name: str, overwrite: bool) -> Path:
    if name in {path.stem for path in embedded_weights()}:
        raise WeightsError(f"{name}: the package brings weights of this name; choose another")
    target = weights_folder() / f"{name}{SUFFIX}"
    if target.exists() and not overwrite:
        raise WeightsError(f"{target}: exists already; choose another name or overwrite it")
    return target


def read_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch checkpoint; code in it is never run.

    Parameters
    ----------
    path : path-like
        A ``state_dict``, plain or within a dictionary (``state_dict``, ``model_state_dict`` or
        ``model``); names may begin with ``module.``.

    Returns
    -------
    dict of str to torch.Tensor
        On the CPU, without wrappers and prefixes; floating-point tensors as float32.

    Raises
    ------
    WeightsError
        If the file is absent, damaged, holds anything but tensors, or values that are not finite.
    """
    path = Path(path)
    content = _load_without_code(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if key in content), content)
    state = _named_tensors(content, path)
    if all(key.startswith(_PARALLEL_PREFIX) for key in state):
        state = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in state.items()}
    for key, value in state.items():
        if not bool(value.isfinite().all()):
            raise WeightsError(f"{path}: {key} has values that are not finite")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _load_without_code(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"holds more than tensors ({named[1]})" if named else "is no plain state_dict"
        raise WeightsError(
            f"{path}: {reason}, or is damaged; nothing in it was run. Only a state_dict can be imported"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).split(". ")[0] if isinstance(error, RuntimeError) else "no archive"
        raise WeightsError(f"{path}: truncated, damaged, or not a PyTorch checkpoint ({reason})") from error


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds {type(content).__name__}, not a dictionary of tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: its entry {key!r} is no tensor; it is not a state_dict")
    return dict(content)


def infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the configuration of a MedSegMamba off the authors' names and shapes.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        The authors' state_dict.

    Returns
    -------
    dict
        The arguments of :class:`~medsegmamba_bids.networks.medsegmamba.MedSegMamba`.

    Raises
    ------
    KeyError
        If a name that every MedSegMamba has is absent.
    """
    first_block = "bottleneck.blocks.0.self_attention"
    encoder = ["Conv1.conv.0", *(f"downconv{i}.down.1.conv.0" for i in (1, 2, 3))]
    blocks = {key.split(".")[2] for key in state if key.startswith("bottleneck.blocks.")}
    steps = state[f"{first_block}.scans.index_flat"].numel()
    return {
        "channels": [state[f"{layer}.weight"].shape[0] for layer in encoder],
        "bottleneck": state["expand.weight"].shape[0],
        "state": state[f"{first_block}.A_logs"].shape[1],
        "blocks": len(blocks),
        "classes": state["Conv_1x1.weight"].shape[0],
        # The scan runs over a grid of an eighth of the patch's edge.
        "patch_size": 8 * round(steps ** (1 / 3)),
    }


@dataclass(frozen=True)
class _Kind:
    """A network whose authors' checkpoints can be imported.

    Attributes
    ----------
    network, title : str
        In the registry, and for people.
    repository : str
    infer_config, rename : callable
        The authors' state_dict -> the network's arguments; -> the same under our names.
    """

    network: str
    title: str
    repository: str
    infer_config: Callable[[dict[str, Tensor]], dict[str, Any]]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _recognise(state: Mapping[str, Tensor]) -> _Kind:
    """Return whose checkpoint it is: a transformer's positions are TABSurfer's."""
    from medsegmamba_bids.networks import medsegmamba, tabsurfer

    if tabsurfer.POSITIONS in state:
        functions = (tabsurfer.infer_config, tabsurfer.from_authors_state_dict)
        return _Kind("tabsurfer", "TABSurfer", TABSURFER_REPOSITORY, *functions)
    return _Kind("medsegmamba", "MedSegMamba", AUTHORS_REPOSITORY, infer_config, medsegmamba.from_authors_state_dict)


def _rebuild(state: dict[str, Tensor], kind: _Kind, task: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a checkpoint and give it the checkpoint's weights."""
    try:
        config = kind.infer_config(state)
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path}: not a {kind.title}, it lacks {error}") from error
    _check_classes(config["classes"], task, path)
    try:
        network = build_network(kind.network, config)
        renamed = kind.rename(state)
    except (NetworkError, RuntimeError) as error:
        raise WeightsError(f"{path}: does not fit a {kind.title}: {error}") from error
    check_tensors({key: tuple(value.shape) for key, value in renamed.items()}, network, path)
    network.load_state_dict(renamed)
    return network, config


def _check_classes(classes: int, task: str, path: Path) -> None:
    counts = {kind.task: len(load_label_table(kind.published).labels) for kind in SEGMENTATIONS}
    if task not in counts:
        raise WeightsError(f"the task is {task!r}; known are {', '.join(counts)}")
    if classes != counts[task]:
        fitting = [name for name, count in counts.items() if count == classes]
        hint = f"; it fits --task {fitting[0]}" if fitting else ""
        raise WeightsError(f"{path}: has {classes} classes, the task {task} has {counts[task]}{hint}")
