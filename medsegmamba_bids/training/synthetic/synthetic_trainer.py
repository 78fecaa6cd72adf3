"""Training on synthesised images: stages from coarse to fine, resumable to the same result."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.records import unknown_keys
from medsegmamba_bids.training.learner import Learner
from medsegmamba_bids.training.loss import segmentation_loss
from medsegmamba_bids.training.run_folder import RunFolder
from medsegmamba_bids.training.start import check_network, new_network, take_initial
from medsegmamba_bids.training.synthetic.label_maps import LabelMap
from medsegmamba_bids.training.synthetic.synthesizer import SynthesisSettings, Synthesizer
from medsegmamba_bids.training.synthetic.tissues import TissueTable
from medsegmamba_bids.training.training_config import Stage, SynthesisConfig

logger = logging.getLogger(__name__)
WARM_UP_STEPS = 50


class _Samples(Dataset):
    """Step number -> sample; a step's sample depends on the seed and the step alone."""

    def __init__(self, synthesizer: Synthesizer, seed: int, first: int, steps: int) -> None:
        self.synthesizer, self.seed, self.first, self.steps = synthesizer, seed, first, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image, target, accepts = self.synthesizer.sample(self.seed, self.first + item)
        return torch.from_numpy(image)[None], torch.from_numpy(target), torch.from_numpy(accepts)


@dataclass
class Trainer:
    """Runs a configuration's stages in a folder and keeps its checkpoint there."""

    config: SynthesisConfig
    maps: list[LabelMap]
    tissues: TissueTable
    folder: Path
    device: torch.device

    def __post_init__(self) -> None:
        self.run_folder = RunFolder(self.folder, self.config.digest, "step")
        self.state = self.run_folder.restore(self.device) or {"step": 0}
        self.weights = torch.from_numpy(self.tissues.class_weights).to(self.device)

    def run(self) -> nn.Module:
        """Train to the end of the last stage; the averaged network comes back."""
        first = 0
        for number, stage in enumerate(self.config.stages):
            if self.state["step"] < first + stage.steps:
                self._run_stage(number, first)
            first += stage.steps
        self.run_folder.close()
        network = new_network(self.config, len(self.tissues.table.labels)).to(self.device)
        network.load_state_dict(self.state["average" if "average" in self.state else "network"])
        return network.eval()

    def _learner(self, patch_size: int) -> Learner:
        """Return a network as the last checkpoint left it, or a new one."""
        config = self.config
        network = new_network(config, len(self.tissues.table.labels), patch_size)
        network = network.to(self.device, memory_format=torch.channels_last_3d).train()
        if config.initial and "network" not in self.state:
            take_initial(network, config.initial, tuple(self.tissues.table.labels.tolist()))
        learner = Learner(network, self.device, config.weight_decay, config.clip, config.precision, config.ema)
        if "network" in self.state:
            learner.restore(self.state, self.state["step"])
        return learner

    def _run_stage(self, number: int, first: int) -> None:
        stage, config = self.config.stages[number], self.config
        learner = self._learner(stage.patch_size)
        step, last = self.state["step"], first + stage.steps
        losses, start, saved = [], time.perf_counter(), time.monotonic()
        loader = self._loader(stage, step, last - step)
        for batch in tqdm(loader, desc=f"stage {number}", initial=step - first, total=stage.steps, disable=None):
            rate = _rate(stage, step, first)
            losses.append(learner.step([batch], self._loss, rate, config.seed, step))
            step += 1
            if step % config.log_every == 0 or step == last:
                seconds = (time.perf_counter() - start) / len(losses)
                self.run_folder.log(
                    stage=number, step=step, loss=float(np.mean(losses)), rate=rate, seconds_per_step=seconds
                )
                losses, start = [], time.perf_counter()
            overdue = 0 < 60 * config.save_minutes < time.monotonic() - saved
            if step % config.save_every == 0 or step == last or overdue:
                self.state = {"step": step, **learner.state()}
                self.run_folder.save(self.state)
                saved = time.monotonic()

    def _loader(self, stage: Stage, step: int, steps: int) -> DataLoader:
        settings = stage_settings(stage)
        synthesizer = Synthesizer(self.maps, self.tissues, settings)
        config = self.config
        samples = _Samples(synthesizer, config.seed, step * config.batch_size, steps * config.batch_size)
        ahead = 4 if config.workers else None
        return DataLoader(samples, config.batch_size, num_workers=config.workers, prefetch_factor=ahead)

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, accepts: torch.Tensor) -> torch.Tensor:
        """Return mean over the samples, each with the classes that its own label map cannot tell apart."""
        samples = zip(logits.split(1), target.split(1), accepts, strict=True)
        dice, entropy = self.config.dice, self.config.cross_entropy
        return torch.stack([segmentation_loss(*sample, self.weights, dice, entropy) for sample in samples]).mean()


def stage_settings(stage: Stage) -> SynthesisSettings:
    """Return the random choices of a stage; raises ``ConfigError`` for a key that there is not."""
    names = {f.name for f in dataclasses.fields(SynthesisSettings)} - {"patch_size", "voxel_size"}
    if sentence := unknown_keys(stage.synthesis, sorted(names)):
        raise ConfigError(f"[stages.synthesis]: {sentence}")
    ranges = {k: tuple(v) if isinstance(v, list) else v for k, v in stage.synthesis.items()}
    return SynthesisSettings(patch_size=stage.patch_size, voxel_size=stage.voxel_size, **ranges)


def check_synthesis(config: SynthesisConfig) -> None:
    """Refuse, before any label map is read, what would fail in a later stage.

    Raises
    ------
    UserError
        A stage has an unknown key, or the network cannot be built for its patches or carried on to the next stage.
    """
    shapes = {}
    for stage in config.stages:
        stage_settings(stage)
        network = check_network(config, stage.patch_size)
        shapes[stage.patch_size] = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if any(of_patch != shapes[config.patch_size] for of_patch in shapes.values()):
        raise ConfigError(
            f"configuration {config.name}: a {config.network_name} has parameters that depend on the patch size, so "
            f"that all stages need the same, not {sorted(shapes)}"
        )


def _rate(stage: Stage, step: int, first: int) -> float:
    high, low = stage.rate
    position = (step - first) / stage.steps
    return float(low + (high - low) * (1 + np.cos(np.pi * position)) / 2) * min(1, (step + 1) / WARM_UP_STEPS)
