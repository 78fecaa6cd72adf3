"""The processes that torchrun starts, one for each GPU; with one alone nothing here waits or adds."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed

from medsegmamba_bids.devices import device_name


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def hide_bars(self) -> bool | None:
        """For tqdm: only the first process shows progress, and that only in a terminal."""
        return None if self.first else True

    def total(self, values: list[float]) -> list[float]:
        """Return sums over all processes."""
        if not self.many:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.many:
            torch.distributed.barrier()


def join_processes(device: str) -> Processes:
    """Join the group that ``torchrun`` describes in the environment; without it there is one process.

    Parameters
    ----------
    device : str
        As ``choose_device`` takes it. Under torchrun, "auto" and "cuda" mean the GPU of the local rank.
    """
    from medsegmamba_bids.inference.device import choose_device

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes(0, 1, choose_device(device))
    device = device_name(device)
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(torch.distributed.get_rank(), world, chosen)


def leave_processes() -> None:
    """End the group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
