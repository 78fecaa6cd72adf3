"""The folder of a training: its checkpoint, its log (JSON lines) and TensorBoard's files."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.io import atomic_path

logger = logging.getLogger(__name__)


class RunFolder:
    """Writes whole checkpoints or none, and a log without gaps or repetitions.

    Parameters
    ----------
    path : Path
        Created if absent.
    digest : str
        Of the configuration; a checkpoint of another one is refused.
    key : str
        Entry of the log's lines that counts upwards: ``step`` or ``epoch``.
    writes : bool
        Only one of several processes writes.
    """

    def __init__(self, path: Path, digest: str, key: str, writes: bool = True) -> None:
        self.path, self.digest, self.key, self.writes = Path(path), digest, key, writes
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoint, self.log_path = self.path / "checkpoint.pt", self.path / "log.jsonl"
        self._board: Any = None

    def restore(self, device: torch.device | str = "cpu") -> dict | None:
        """Return the last checkpoint, or None; later lines of the log are dropped.

        Raises
        ------
        ConfigError
            The checkpoint is damaged or belongs to another configuration.
        """
        if not self.checkpoint.exists():
            return None
        state = read_checkpoint(self.checkpoint, self.digest, device)
        logger.info("resuming at %s %d", self.key, state[self.key])
        self._drop_lines(state[self.key])
        return state

    def save(self, state: dict) -> None:
        """Replace the checkpoint."""
        if self.writes:
            with atomic_path(self.checkpoint) as temporary:
                torch.save({**state, "digest": self.digest}, temporary)

    def log(self, **fields: Any) -> None:
        """Append a line to the log and, where TensorBoard is installed, its numbers to TensorBoard's files."""
        if not self.writes:
            return
        with self.log_path.open("a") as stream:
            stream.write(json.dumps(fields) + "\n")
        board = self._tensorboard()
        for name, value in fields.items():
            if board and name != self.key and isinstance(value, (int, float)):
                board.add_scalar(name, value, fields[self.key])

    def close(self) -> None:
        """Complete TensorBoard's files."""
        if self._board:
            self._board.close()

    def _tensorboard(self) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(self.path / "tensorboard")
            except ImportError:
                logger.info("no TensorBoard logs: it is not installed (pip install medsegmamba_bids[train])")
                self._board = False
        return self._board

    def _drop_lines(self, last: int) -> None:
        """Drop lines beyond the checkpoint, which will be written again."""
        if not self.writes or not self.log_path.exists():
            return
        lines = self.log_path.read_text().splitlines()
        kept = [line for line in lines if line and json.loads(line)[self.key] <= last]
        with atomic_path(self.log_path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))


def read_checkpoint(path: Path, digest: str, device: torch.device | str = "cpu") -> dict:
    """Return a checkpoint that belongs to the configuration of this digest.

    Raises
    ------
    ConfigError
        It cannot be read, or is that of another network or configuration.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: is no checkpoint, or a damaged one ({_first_line(error)})") from error
    if not isinstance(state, dict) or state.get("digest") != digest:
        raise ConfigError(
            f"{path} belongs to another configuration: take another output folder, or the configuration that began it, "
            "with the same --initial and --leave-out"
        )
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
