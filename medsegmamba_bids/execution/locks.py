"""Locks between runs: the operating system frees them when a process ends, however it ends.

Not the package filelock: it leaves its files behind, cannot say who holds one, and fails on NFS without a lock service
(ENOLCK), where a run here goes on with a warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
from pathlib import Path
from typing import TextIO

from medsegmamba_bids.errors import LockError, reason

logger = logging.getLogger(__name__)


class FileLock:
    """A lock that this process holds until it is released; without a file it locks nothing.

    Parameters
    ----------
    path : Path
    file : text file or None
        Open and locked.
    """

    def __init__(self, path: Path, file: TextIO | None) -> None:
        self.path, self._file = path, file

    def release(self) -> None:
        """Delete the file and let others have the lock."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # another user's, in a folder of theirs
                self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def try_lock(path: Path) -> FileLock | None:
    """Take a lock, or return None where another process has it.

    A file system without locks is warned of, and taken as if nobody else were there.

    Raises
    ------
    LockError
        The file can neither be made nor opened.
    """
    while True:
        file = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError as error:
            file.close()
            logger.warning("%s: cannot be locked (%s); do not start two runs at once here", path.parent, error.strerror)
            return FileLock(path, None)
        if _is_still_there(file, path):
            with contextlib.suppress(OSError):  # it is another user's, or the disk is full: it is locked all the same
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
            return FileLock(path, file)
        file.close()  # who had it has deleted it meanwhile


def _open(path: Path) -> TextIO:
    """Open a lock file to write into it; another user's, which a killed run has left, to read it: that is enough."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            return path.open(encoding="utf-8")
        raise LockError(
            f"{path}: cannot be locked ({reason(error)}), so that another run could be at it; delete it if none is, "
            "or name folders that can be written"
        ) from error


def _is_still_there(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def owner_of(*paths: Path) -> str:
    """Say who holds one of some locks, as far as that is known."""
    for path in paths:
        with contextlib.suppress(OSError):
            if owner := path.read_text(encoding="utf-8"):
                return owner
    return "another process"
