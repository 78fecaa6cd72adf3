"""Training on pairs of images and FreeSurfer labels, the paper's recipe (section 2.4); resumable to the same result."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils.data import DataLoader
from tqdm import tqdm

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.labels import LabelTable, load_label_table
from medsegmamba_bids.training.export import write_weights
from medsegmamba_bids.training.learner import Batch, Learner
from medsegmamba_bids.training.loss import segmentation_loss
from medsegmamba_bids.training.pairs.finder import Pair
from medsegmamba_bids.training.pairs.pair_patches import ScanPatches, load_pair, prepare_pairs
from medsegmamba_bids.training.pairs.validation import dice_of_scan
from medsegmamba_bids.training.processes import Processes
from medsegmamba_bids.training.run_folder import RunFolder
from medsegmamba_bids.training.start import new_network, take_initial
from medsegmamba_bids.training.training_config import PairsConfig

logger = logging.getLogger(__name__)
#: Limits of a class's weight in the cross-entropy.
_WEIGHT_RANGE = (0.1, 10.0)


@dataclass
class PairTrainer:
    """Runs the epochs of a configuration in a folder; keeps its checkpoint and the best weights there.

    Parameters
    ----------
    config : PairsConfig
    table : LabelTable
    train, validation : list of Path
        Prepared pairs.
    folder : Path
    processes : Processes
        With several, each takes its share of the scans and a step is over as many scans as processes.
    """

    config: PairsConfig
    table: LabelTable
    train: list[Path]
    validation: list[Path]
    folder: Path
    processes: Processes

    def __post_init__(self) -> None:
        config, device = self.config, self.processes.device
        self.run_folder = RunFolder(self.folder, config.digest, "epoch", writes=self.processes.first)
        state = self.run_folder.restore(device)
        self.learner = self._learner(fresh=state is None)
        rates = (config.restart_epochs, config.restart_factor, config.rate_low)
        self.schedule = CosineAnnealingWarmRestarts(self.learner.optimizer, *rates)
        self.weights = torch.from_numpy(class_weights(self.train, len(self.table.labels))).to(device)
        self.progress = {"epoch": 0, "scan": 0, "losses": [], "best": -1.0, "world": self.processes.world}
        if state is not None:
            self._resume(state)

    @property
    def best(self) -> Path:
        """Weights file of the epoch with the highest validation Dice."""
        return self.folder / "best.safetensors"

    def run(self) -> Path:
        """Train to the end of the last epoch; the file with the best weights comes back."""
        while self.progress["epoch"] < self.config.epochs:
            self._run_epoch()
        self.run_folder.close()
        self.processes.wait()
        return self.best

    def _learner(self, fresh: bool) -> Learner:
        config, device = self.config, self.processes.device
        network = new_network(config, len(self.table.labels))
        if fresh and config.initial:
            take_initial(network, config.initial, tuple(self.table.labels.tolist()))
        network = network.to(device, memory_format=torch.channels_last_3d).train()
        learner = Learner(
            network,
            device,
            config.weight_decay,
            config.clip,
            config.precision,
            config.ema,
            distributed=self.processes.many,
        )
        for group in learner.optimizer.param_groups:
            group["lr"] = config.rate
        return learner

    def _resume(self, state: dict) -> None:
        self.progress = {key: state[key] for key in self.progress}
        if self.progress["world"] != self.processes.world:
            raise ConfigError(
                f"{self.run_folder.checkpoint}: was begun with {self.progress['world']} processes, not "
                f"{self.processes.world}; another number would give another result"
            )
        self.learner.restore(state, self._step_number)

    @property
    def _steps(self) -> int:
        """Steps of an epoch: each process takes a scan."""
        return -(-len(self.train) // self.processes.world)

    @property
    def _step_number(self) -> int:
        return self.progress["epoch"] * self._steps + self.progress["scan"]

    def _order(self, epoch: int) -> list[int]:
        """Return scans of an epoch that this process takes; the first ones are repeated where scans do not go round."""
        world, scans = self.processes.world, len(self.train)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(scans)
        return np.resize(order, self._steps * world)[self.processes.rank :: world].tolist()

    def _run_epoch(self) -> None:
        epoch, start = self.progress["epoch"], time.perf_counter()
        rest = self._order(epoch)[self.progress["scan"] :]
        samples = ScanPatches(self.train, rest, self.config)
        ahead = 2 if self.config.workers else None
        loader = DataLoader(samples, batch_size=None, num_workers=self.config.workers, prefetch_factor=ahead)
        done = self.progress["scan"]
        bar = {"initial": done, "total": self._steps, "disable": self.processes.hide_bars}
        for patches in tqdm(loader, desc=f"epoch {epoch + 1}", **bar):
            self._take_step(patches)
            if self.progress["scan"] % self.config.save_every == 0 and self.progress["scan"] < self._steps:
                self._save()
        self._finish_epoch(start)

    def _take_step(self, patches: Batch) -> None:
        """Take one optimiser step on all patches of a scan."""
        config, step = self.config, self._step_number
        self.schedule.step(step / self._steps)
        rate = float(self.learner.optimizer.param_groups[0]["lr"])
        batches = list(zip(*(tensor.split(1) for tensor in patches), strict=True))
        seed_step = step * self.processes.world + self.processes.rank
        loss = self.learner.step(batches, self._loss, rate, config.seed, seed_step)
        self.progress["losses"] = [*self.progress["losses"], loss]
        self.progress["scan"] += 1

    def _loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return Dice, and in the first epoch weighted cross-entropy (section 2.4)."""
        entropy = 1.0 if self.progress["epoch"] < self.config.entropy_epochs else 0.0
        accepts = torch.eye(len(self.weights), dtype=torch.bool, device=logits.device)
        return segmentation_loss(logits, target, accepts, self.weights, 1.0, entropy)

    def _finish_epoch(self, start: float) -> None:
        """Validate, keep the best weights, write the log's line and the checkpoint."""
        losses, scans = self.processes.total([sum(self.progress["losses"]), len(self.progress["losses"])])
        rate = self.learner.optimizer.param_groups[0]["lr"]
        structures = self._validate()
        dice = float(np.mean(list(structures.values())))
        self.progress.update(epoch=self.progress["epoch"] + 1, scan=0, losses=[])
        if dice > self.progress["best"]:
            self.progress["best"] = dice
            self._write_best()
        seconds = time.perf_counter() - start
        fields = {"loss": losses / scans, "rate": rate, "validation_dice": dice, "best": self.progress["best"]}
        self.run_folder.log(epoch=self.progress["epoch"], **fields, seconds=seconds, dice=structures)
        logger.info("epoch %d: loss %.4f, validation Dice %.4f", self.progress["epoch"], losses / scans, dice)
        self._save()

    def _validate(self) -> dict[str, float]:
        """Return mean Dice of every structure over the validation scans in which it occurs."""
        network = self.learner.result.eval()
        sums, counts = np.zeros(len(self.table.labels)), np.zeros(len(self.table.labels))
        for path in self.validation[self.processes.rank :: self.processes.world]:
            dice = dice_of_scan(network, load_pair(path), self.config, len(sums), self.processes.device)
            sums += np.nan_to_num(dice)
            counts += ~np.isnan(dice)
        self.learner.network.train()
        totals = np.array(self.processes.total([*sums, *counts]))
        sums, counts = np.split(totals, 2)
        names = self.table.names
        return {names[i]: float(sums[i] / counts[i]) for i in range(1, len(sums)) if counts[i]}

    def _write_best(self) -> None:
        if self.processes.first:
            write_weights(self.learner.result, self.config, self.best)

    def _save(self) -> None:
        self.run_folder.save({**self.progress, **self.learner.state()})


def train_on_pairs(
    config: PairsConfig, pairs: list[Pair], split: dict[str, str], out: Path, cache: Path, processes: Processes
) -> Path:
    """Check and prepare the pairs of a split, then train; the weights file of the best epoch comes back.

    Parameters
    ----------
    config : PairsConfig
    pairs : list of Pair
    split : dict of str to str
        Set of every participant.
    out, cache : Path
        Folders of the training, and of prepared pairs, which several trainings may share.
    processes : Processes

    Raises
    ------
    ConfigError, PairError, ImageError
        A set is empty, or a pair cannot be used.
    """
    groups, table = check_groups(pairs, split), load_label_table(config.table)
    files = {name: prepare_pairs(groups[name], config, table, cache, processes) for name in ("train", "validation")}
    return PairTrainer(config, table, files["train"], files["validation"], out, processes).run()


def class_weights(files: list[Path], classes: int) -> np.ndarray:
    """Return the median frequency over frequency of every class in the training scans, float32 (C,), within limits.

    The paper does not give the weights of its cross-entropy; this is a common choice.
    """
    counts = np.zeros(classes)
    for path in files:
        counts += np.bincount(load_pair(path).target.ravel(), minlength=classes)
    frequency = np.where(counts > 0, counts, np.nan)
    weights = np.nanmedian(frequency) / frequency
    return np.clip(np.nan_to_num(weights, nan=1.0), *_WEIGHT_RANGE).astype(np.float32)


def check_groups(pairs: list[Pair], split: dict[str, str]) -> dict[str, list[Pair]]:
    """Return pairs of every set.

    Raises
    ------
    ConfigError
        Training or validation is left without a scan, or two pairs share a name.
    """
    repeated = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if repeated:
        raise ConfigError(f"the scans {repeated} are there more than once")
    groups = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        groups[split[pair.participant]].append(pair)
    for name in ("train", "validation"):
        if not groups[name]:
            raise ConfigError(f"the split leaves the {name} set empty: none of its participants has a scan here")
    absent = sorted(set(split) - {pair.participant for pair in pairs})
    if absent:
        logger.warning("%d participants of the split have no scan here: %s", len(absent), ", ".join(absent[:5]))
    logger.info("scans: %s", ", ".join(f"{len(group)} {name}" for name, group in groups.items()))
    return groups
