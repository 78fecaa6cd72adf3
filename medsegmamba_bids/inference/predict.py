"""Class probabilities of a volume from a network that sees patches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from medsegmamba_bids.devices import check_precision
from medsegmamba_bids.errors import SegmentationError
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.inference.patches import PatchAverage, PatchGrid, Position
from medsegmamba_bids.networks.kernels.selective_scan import BEST, available_backends, forced_backend, scan_backend

logger = logging.getLogger(__name__)

AUTOCAST_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")

#: Called with the number of patches done and of all patches.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """Class probabilities within a box of a volume; everywhere else is background.

    Attributes
    ----------
    probabilities : torch.Tensor (C, x, y, z)
        float32, or float16 with a half accumulator; on the device where they were accumulated.
    box : tuple of slice
        Where they lie in the volume.
    device : torch.device
        Where the network ran in the end.
    patches : int
        How many patches the network saw.
    notes : list of str
        What was done otherwise than asked for, a sentence each.
    """

    probabilities: torch.Tensor
    box: Box
    device: torch.device
    patches: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Patching:
    """How patches cover a volume, and how what the network says about them is averaged.

    Attributes
    ----------
    patch_size, step : int
        Side of the patches and distance between neighbours, voxels.
    gaussian : bool
        Weight the middle of a patch more.
    mirror : int (C,) or None
        Class of the same structure on the other side. If given, the network also sees each patch flipped along
        axis 0, and the probabilities, sides exchanged back, are averaged.
    plain : bool
        The network sees the patches as they are; without it ``mirror`` must be given.
    """

    patch_size: int
    step: int
    gaussian: bool = False
    mirror: Sequence[int] | np.ndarray | None = None
    plain: bool = True


@dataclass(frozen=True)
class Resources:
    """What a network runs on; the result depends on the precision and the accumulator only, and little.

    Attributes
    ----------
    device : torch.device or str
    precision : {"float32", "bfloat16", "float16"}
        What the network computes in (autocast); float16 on GPUs only.
    batch_size : int
        Patches that the network sees at once.
    half_accumulator : bool
        Keep the mean in float16.
    low_memory : bool
        Begin with what needs the least memory on the device: patches one by one, the mean on the CPU;
        in the end the network leaves the device.
    progress : callable or None
        Called with patches done and all patches, first with 0.
    """

    device: torch.device | str = "cpu"
    precision: str = "float32"
    batch_size: int = 1
    half_accumulator: bool = False
    low_memory: bool = False
    progress: Progress | None = None

    def plan(self) -> _Plan:
        """Return how patches are run at first."""
        device = torch.device(self.device)
        if self.low_memory:
            return _Plan(1, device, CPU, self.precision)
        return _Plan(int(self.batch_size), device, device, self.precision)


def predict_volume(
    network: nn.Module,
    volume: np.ndarray,
    n_classes: int,
    patching: Patching,
    resources: Resources | None = None,
    box: Box | None = None,
) -> Prediction:
    """Average a network's class probabilities over the overlapping patches of a volume.

    Patches without a non-zero voxel are skipped; what no patch covers is background. If a device
    runs out of memory the batch is halved, then the mean is kept on the CPU, then the network runs
    on the CPU; each step is logged and noted. The result does not depend on the batch size. The
    number of threads is left as it is. The network is moved to the device and left there, but for
    ``low_memory``.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; ``network.probabilities`` maps float32 (B, 1, P, P, P) to class
        probabilities (B, C, P, P, P).
    volume : float32 (X, Y, Z)
        Intensities as the network expects them.
    n_classes : int
    patching : Patching
    resources : Resources, optional
        One patch at a time on the CPU by default.
    box : tuple of slice, optional
        What to segment; by default the box of the non-zero voxels. It is widened to a patch where
        the volume goes that far.

    Returns
    -------
    Prediction

    Raises
    ------
    SegmentationError
        If an option is out of range, or the network's output is not finite.
    """
    resources = resources or Resources()
    plan = resources.plan()
    _check(volume, plan, patching, n_classes)
    box = Box(box or Box.around(volume) or Box.whole(volume.shape))
    box = box.at_least(patching.patch_size, volume.shape)
    inside = torch.from_numpy(np.ascontiguousarray(volume[box], dtype=np.float32))
    grid = PatchGrid(tuple(inside.shape), patching.patch_size, patching.step, patching.gaussian)
    padded = grid.pad(inside)
    positions = grid.occupied(padded)
    if not positions:
        background = torch.zeros((n_classes, 1, 1, 1))
        background[0] = 1
        return Prediction(background.expand(-1, *grid.shape), box, plan.run_on)
    run = _Run(network, padded, grid, n_classes, patching, resources)
    mean = run.over(positions)
    if resources.low_memory:
        network.to(CPU)
    _check_finite(mean.mean, run.plan.precision)
    return Prediction(mean.result(), box, run.plan.run_on, len(positions), run.notes)


def _check_finite(probabilities: torch.Tensor, precision: str) -> None:
    """Refuse NaN and infinity, a class at a time: they spread to the class's sum."""
    if not all(bool(channel.sum(dtype=torch.float32).isfinite()) for channel in probabilities):
        advice = "" if precision == "float32" else f" in {precision}; use float32"
        raise SegmentationError(f"the network gave probabilities that are not finite{advice}")


def _check(volume: np.ndarray, plan: _Plan, patching: Patching, n_classes: int) -> None:
    if volume.ndim != 3:
        raise ValueError(f"a volume of shape {volume.shape}: three axes are needed")
    if plan.batch_size < 1:
        raise SegmentationError(f"batch size {plan.batch_size}: must be 1 or more")
    if patching.mirror is None and not patching.plain:
        raise ValueError("a network that sees neither the patches nor their mirror images")
    if patching.mirror is not None and sorted(patching.mirror) != list(range(n_classes)):
        raise ValueError(f"mirror must hold each of the {n_classes} classes once")
    check_precision(plan.precision, plan.run_on.type)


@dataclass(frozen=True)
class _Plan:
    """How patches are run; changed when a device runs out of memory."""

    batch_size: int
    run_on: torch.device
    accumulate_on: torch.device
    precision: str

    def with_less_memory(self) -> tuple[_Plan | None, str]:
        """Return the next plan to try and a sentence about it; None if nothing is left to try."""
        if self.batch_size > 1:
            half = self.batch_size // 2
            return replace(self, batch_size=half), f"batches of {half} instead of {self.batch_size}"
        if self.accumulate_on != CPU:
            return replace(self, accumulate_on=CPU), "the probabilities are kept on the CPU"
        if self.run_on != CPU:
            # float16 stays on the GPU: there is no sense in it on a CPU.
            precision = "float32" if self.precision == "float16" else self.precision
            plan = replace(self, run_on=CPU, precision=precision)
            return plan, f"the network runs on the CPU, in {precision}"
        return None, ""


class _Run:
    """One volume under way: the plan as it stands, and the mean so far."""

    def __init__(
        self,
        network: nn.Module,
        padded: torch.Tensor,
        grid: PatchGrid,
        n_classes: int,
        patching: Patching,
        resources: Resources,
    ) -> None:
        self.network, self.padded, self.grid = network, padded, grid
        self.plan, self.resources = resources.plan(), resources
        self.device, self.other_scan = self.plan.run_on, False
        self.n_classes = n_classes
        self.plain = patching.plain
        self.mirror = None if patching.mirror is None else torch.as_tensor(np.asarray(patching.mirror))
        self.mean: PatchAverage | None = None
        self.done = 0
        self.notes: list[str] = []

    def over(self, positions: list[Position]) -> PatchAverage:
        """Run the patches, giving way where memory ends; no patch is counted twice."""
        report = self.resources.progress or (lambda done, total: None)
        placed = None
        while self.done < len(positions):
            report(self.done, len(positions))
            try:
                if placed != self.plan:
                    self._place()
                    placed = self.plan
                self._take_in(positions[self.done : self.done + self.plan.batch_size])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._give_way(error)
        report(self.done, len(positions))
        return self.mean

    def _take_in(self, batch: list[Position]) -> None:
        for position, probabilities in zip(batch, self._infer(batch), strict=True):
            self.mean.add(position, probabilities)
            self.done += 1

    def _place(self) -> None:
        """Bring network, volume and mean to where the plan wants them."""
        self.network.to(self.plan.run_on)
        if self.plan.run_on.type == "cuda":
            weights_channels_last(self.network)
        self.padded = self.padded.to(self.plan.run_on)
        if self.mean is None:
            where = self.plan.accumulate_on
            self.mean = PatchAverage(self.grid, self.n_classes, where, self.resources.half_accumulator)
        self.mean.to(self.plan.accumulate_on)

    def _infer(self, batch: list[Position]) -> torch.Tensor:
        """Return probabilities (B, C, P, P, P) of the patches at some positions."""
        patches = torch.stack([self.padded[self.grid.box(position)] for position in batch])[:, None]
        device = self.plan.run_on
        dtype = AUTOCAST_TYPES[self.plan.precision]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.other_scan:
                stack.enter_context(scan_backend(BEST))
            if dtype is not None:
                stack.enter_context(torch.autocast(device.type, dtype))
            elif device.type == "cuda":  # TF32 keeps 10 bits: float32 must mean float32
                exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
                stack.enter_context(torch.backends.cudnn.flags(**exact))
            return self._probabilities(patches)

    def _probabilities(self, patches: torch.Tensor) -> torch.Tensor:
        if self.mirror is None:
            return self.network.probabilities(patches)
        flipped = self.network.probabilities(patches.flip(2)).flip(2)[:, self.mirror.to(patches.device)]
        return (self.network.probabilities(patches) + flipped) / 2 if self.plain else flipped

    def _give_way(self, error: Exception) -> None:
        """Take the next plan that needs less memory; raises the error if there is none."""
        plan, what = self.plan.with_less_memory()
        if plan is None:
            raise error
        forced = forced_backend()
        if forced and plan.run_on != self.device and forced not in available_backends(plan.run_on):
            self.other_scan = True
            what += f", without scan backend {forced!r}, which does not work there"
        note = f"{self.plan.run_on} ran out of memory: {what}"
        logger.warning(note)
        self.notes.append(note)
        self.plan = plan


def weights_channels_last(network: nn.Module) -> None:
    """Lay 3D convolutions' weights out as cuDNN wants them for channels-last activations; once, not at every call."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ended; not all of them are torch.OutOfMemoryError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(s in text for s in ("out of memory", "alloc_failed", "can't allocate memory"))
