"""Training on synthesised images: stages from coarse to fine, resumable to the same result."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medsegmamba_bids.image.io import atomic_path, load_image
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.training.config import ConfigError, SynthesisConfig
from medsegmamba_bids.training.label_maps import LabelMap, prepare_map, read_lia
from medsegmamba_bids.training.loss import segmentation_loss
from medsegmamba_bids.training.synthesis import SynthesisSettings, Synthesizer, TissueTable

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


def load_sources(config: SynthesisConfig, data_dir: Path, cache: Path, tissues: TissueTable) -> list[LabelMap]:
    """Prepares every label map of the configuration, or reads it from the cache folder."""
    atlas = read_lia(data_dir / config.atlas)[0] if config.atlas else None
    maps = []
    for source in config.sources:
        paths = sorted(data_dir.glob(source.labels))
        if not paths:
            raise ConfigError(f"no label map matches {data_dir / source.labels}")
        image = _source_image(source.image, data_dir)
        for path in tqdm(paths, desc="label maps", disable=None):
            stored = cache / f"{path.name.split('.')[0]}.npz"
            if not stored.exists():
                stored.parent.mkdir(parents=True, exist_ok=True)
                prepare_map(
                    path, tissues, atlas=atlas, image=image, stripped=source.stripped, weight=source.weight
                ).save(stored)
            maps.append(LabelMap.load(stored))
    return maps


def _source_image(name: str, data_dir: Path):
    """The real image of a source: a file, or ``mni152`` for the template that nilearn carries."""
    if name == "mni152":
        from nilearn.datasets import load_mni152_template

        return load_mni152_template(resolution=1)
    return load_image(data_dir / name) if name else None


@dataclass
class Trainer:
    """Runs a configuration's stages in a folder and keeps its checkpoint there."""

    config: SynthesisConfig
    maps: list[LabelMap]
    tissues: TissueTable
    folder: Path
    device: torch.device

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.state = self._restore()

    def run(self) -> torch.nn.Module:
        """Trains to the end of the last stage; the averaged network comes back."""
        first = 0
        for number, stage in enumerate(self.config.stages):
            if self.state["step"] < first + stage.steps:
                self._run_stage(number, first)
            first += stage.steps
        network = self._network(self.config.stages[-1].patch_size)
        network.load_state_dict(self.state["average"])
        return network.eval()

    def _restore(self) -> dict:
        if not self.checkpoint.exists():
            return {"step": 0, "digest": self.config.digest}
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["digest"] != self.config.digest:
            raise ConfigError(
                f"{self.checkpoint} belongs to another configuration: take another output folder, "
                "or the configuration that began it"
            )
        logger.info("resuming at step %d", state["step"])
        return state

    def _network(self, patch_size: int) -> torch.nn.Module:
        torch.manual_seed(self.config.seed)
        classes = len(self.tissues.table.labels)
        settings = {**self.config.network, "classes": classes, "patch_size": patch_size}
        network = build_network(self.config.network_name, settings).to(self.device)
        return network.to(memory_format=torch.channels_last_3d)

    def _run_stage(self, number: int, first: int) -> None:
        stage, config = self.config.stages[number], self.config
        network = self._network(stage.patch_size).train()
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
        if "network" in self.state:
            network.load_state_dict(self.state["network"])
            average.module.load_state_dict(self.state["average"])
            average.n_averaged.fill_(self.state["step"])
            optimizer.load_state_dict(self.state["optimizer"])
        elif config.initial:
            initial = torch.load(config.initial, weights_only=True)
            network.load_state_dict(initial)
        step = self.state["step"]
        loader = self._loader(stage, step, first + stage.steps - step)
        weights = torch.from_numpy(self.tissues.class_weights).to(self.device)
        losses, start = [], time.perf_counter()
        progress = tqdm(loader, desc=f"stage {number}", initial=step - first, total=stage.steps, disable=None)
        for image, target, accepts in progress:
            rate = self._rate(stage, step, first)
            losses.append(self._step(network, optimizer, image, target, accepts, weights, rate, step))
            average.update_parameters(network)
            step += 1
            if step % config.log_every == 0 or step == first + stage.steps:
                seconds = (time.perf_counter() - start) / len(losses)
                self._log(stage=number, step=step, loss=float(np.mean(losses)), rate=rate, seconds_per_step=seconds)
                losses, start = [], time.perf_counter()
            if step % config.save_every == 0 or step == first + stage.steps:
                self._save(step, network, average, optimizer)

    def _loader(self, stage, step: int, steps: int) -> DataLoader:
        settings = SynthesisSettings(patch_size=stage.patch_size, voxel_size=stage.voxel_size, **stage.synthesis)
        synthesizer = Synthesizer(self.maps, self.tissues, settings)
        config = self.config
        samples = _Samples(synthesizer, config.seed, step * config.batch_size, steps * config.batch_size)
        ahead = 4 if config.workers else None
        return DataLoader(samples, config.batch_size, num_workers=config.workers, prefetch_factor=ahead)

    @staticmethod
    def _rate(stage, step: int, first: int) -> float:
        high, low = stage.rate
        position = (step - first) / stage.steps
        return float(low + (high - low) * (1 + np.cos(np.pi * position)) / 2) * min(1, (step + 1) / WARM_UP_STEPS)

    def _step(self, network, optimizer, image, target, accepts, weights, rate, step) -> float:
        """One optimiser step; dropout depends on the seed and the step, so that a resumed run is the same."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        image = image.to(self.device, memory_format=torch.channels_last_3d)
        precision = getattr(torch, config.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            logits = network(image)
        samples = zip(logits.split(1), target.to(self.device).split(1), accepts.to(self.device), strict=True)
        losses = [segmentation_loss(*sample, weights, config.dice, config.cross_entropy) for sample in samples]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        return float(loss)

    def _log(self, **fields) -> None:
        with open(self.folder / "log.jsonl", "a") as stream:
            stream.write(json.dumps(fields) + "\n")

    def _save(self, step, network, average, optimizer) -> None:
        self.state = {
            "step": step,
            "digest": self.config.digest,
            "network": network.state_dict(),
            "average": average.module.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(self.state, temporary)
