"""Unpacking gzip files with ISA-L, several times as fast as zlib; the checksum is always compared."""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip_lib, isal_zlib

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.file_checks import GZIP

logger = logging.getLogger(__name__)

_GZIP_MEMBER = 16 + zlib.MAX_WBITS
_CHUNK = 1 << 16  # may unpack to a thousand times as much
_PART = 1 << 20  # bytes unpacked at a time: they stay in the processor's cache until they are copied
_LARGEST_GUESS = 1 << 30
_MOST_DENSE = 1032  # times that deflate makes anything smaller, at most


def unpacked(path: Path) -> np.ndarray:
    """Return what a file holds in compressed form, uint8 (bytes,).

    Bytes behind the compressed data, which gzip itself leaves out, are left out with a warning.

    Raises
    ------
    ImageError
        The file is truncated or corrupt.
    """
    rest, at = path.read_bytes(), 0
    with _damage_said(path):
        _check_magic(rest)
        out = np.empty(_guessed_size(rest), np.uint8)
        while True:
            member = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
            for part in _parts(member, rest):
                if at + len(part) > len(out):
                    out = _longer(out, at, len(part))
                out[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
            rest = member.unused_data.lstrip(b"\0")
            if not rest.startswith(GZIP):
                break
    _warn(path, len(rest))
    return out[:at]


def _longer(array: np.ndarray, used: int, more: int) -> np.ndarray:
    """Return an array that has room for more, and the same content as far as it is used."""
    longer = np.empty(len(array) + max(len(array), more), np.uint8)
    longer[:used] = array[:used]
    return longer


def _check_magic(start: bytes) -> None:
    if not start.startswith(GZIP):
        raise zlib.error("it does not begin as gzip files do")


def _parts(member: igzip_lib.IgzipDecompressor, content: bytes) -> Iterator[bytes]:
    """Unpack a gzip member to its end."""
    yield member.decompress(content, _PART)
    while not member.eof:
        part = member.decompress(b"", _PART)
        if not part and not member.eof:
            raise EOFError
        yield part


def _guessed_size(content: bytes) -> int:
    """Return what the file's end says; where it is no end, or there are several members, it may say anything."""
    said = int.from_bytes(content[-4:], "little")
    return min(said, _MOST_DENSE * len(content), _LARGEST_GUESS)


def check_gzip(path: Path) -> bool:
    """Unpack a file once to its end and keep nothing of it, as nibabel does not read the checksum there.

    By zlib: piece by piece, ISA-L loses its way in headers that have a checksum of their own.

    Returns
    -------
    bool
        Whether bytes follow the compressed data, on which Python's gzip fails; they are warned of.

    Raises
    ------
    ImageError
        As `unpacked`.
    """
    with _damage_said(path):
        behind = _bytes_behind(path)
    _warn(path, behind)
    return behind > 0


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise ImageError(f"{path}: the compressed file is truncated; copy it again") from error
    except (zlib.error, isal_zlib.error) as error:
        raise ImageError(f"{path}: the compressed file is corrupt ({error}); copy it again") from error


def _warn(path: Path, behind: int) -> None:
    if behind:
        logger.warning("%s: %d bytes behind the compressed data are left out", path, behind)


def _bytes_behind(path: Path) -> int:
    """Unpack a file and count the bytes that follow its last gzip member; zeros there are padding.

    Raises
    ------
    EOFError, zlib.error
        The file ends too early, or is no gzip or damaged.
    """
    with path.open("rb") as file:
        rest = file.read(len(GZIP))
        _check_magic(rest)
        while rest.startswith(GZIP):
            rest = _after_member(file, rest)
        return len(rest) + sum(len(more) for more in iter(lambda: file.read(_CHUNK), b""))


def _after_member(file: BinaryIO, start: bytes) -> bytes:
    """Unpack a gzip member, whose first bytes may have been read; return what was read beyond it without zeros."""
    member = zlib.decompressobj(_GZIP_MEMBER)
    member.decompress(start)
    while not member.eof:
        chunk = file.read(_CHUNK)
        if not chunk:
            raise EOFError
        member.decompress(chunk)
    rest = member.unused_data.lstrip(b"\0")
    while len(rest) < len(GZIP) and (more := file.read(_CHUNK)):
        rest = (rest + more).lstrip(b"\0")
    return rest


class ArrayFile(io.RawIOBase):
    """An array of bytes to be read as a file; `io.BytesIO` would copy it."""

    def __init__(self, content: np.ndarray) -> None:
        super().__init__()
        self._content, self._at = content, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; return it."""
        self._at = (0, self._at, len(self._content))[whence] + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer as far as the content goes; return the number of bytes."""
        part = self._content[self._at : self._at + len(buffer)]
        memoryview(buffer)[: len(part)] = part.data
        self._at += len(part)
        return len(part)
