"""One optimiser step and what a checkpoint keeps of it: shared by both kinds of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

#: A batch: images (B, 1, P, P, P) and whatever the loss needs besides.
Batch = Sequence[torch.Tensor]
#: Network output and the rest of the batch -> a scalar.
Loss = Callable[..., torch.Tensor]

_SEED_STRIDE = 1_000_003


@dataclass
class Learner:
    """A network in training, its optimiser (AdamW) and the moving average of its weights.

    Parameters
    ----------
    network : torch.nn.Module
        On ``device``, in training mode.
    device : torch.device
    weight_decay, clip : float
        Of AdamW; largest norm of the gradient.
    precision : {"float32", "bfloat16"}
        What the network computes in (autocast).
    ema : float
        Decay of the exponential average; 0 keeps none.
    distributed : bool
        Average the gradients over the processes of torch.distributed.
    """

    network: nn.Module
    device: torch.device
    weight_decay: float
    clip: float
    precision: str
    ema: float
    distributed: bool = False
    average: AveragedModel | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.ema:
            self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(self.ema))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=self.weight_decay)
        self._forward = nn.parallel.DistributedDataParallel(self.network) if self.distributed else self.network

    @property
    def result(self) -> nn.Module:
        """The network to use: the average, where there is one."""
        return self.average.module if self.average else self.network

    def step(self, batches: Sequence[Batch], loss: Loss, rate: float, seed: int, step: int) -> float:
        """Take one optimiser step on the mean of the batches' gradients; the mean loss comes back.

        Dropout depends on the seed and the step, so that a resumed run is the same.
        """
        torch.manual_seed(seed * _SEED_STRIDE + step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, batch in enumerate(batches, 1):
            with self._synchronised(number == len(batches)):
                total += self._backward(batch, loss, len(batches))
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.network)
        return total / len(batches)

    def _backward(self, batch: Batch, loss: Loss, batches: int) -> float:
        image, *rest = batch
        image = image.to(self.device, memory_format=torch.channels_last_3d)
        dtype = getattr(torch, self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits = self._forward(image)
        value = loss(logits, *(tensor.to(self.device) for tensor in rest))
        (value / batches).backward()
        return float(value.detach())

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Exchange gradients between processes once a step, after the last batch."""
        return self._forward.no_sync() if self.distributed and not last else nullcontext()

    def state(self) -> dict[str, dict]:
        """Return what a checkpoint keeps: of the network, its average and the optimiser."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.average:
            state["average"] = self.average.module.state_dict()
        return state

    def restore(self, state: dict, step: int) -> None:
        """Take back what :meth:`state` gave after ``step`` steps."""
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
            self.average.n_averaged.fill_(step)
        self.optimizer.load_state_dict(state["optimizer"])
