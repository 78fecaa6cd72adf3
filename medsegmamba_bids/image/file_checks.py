"""What a file is before it is read as an image: pointers, compression, damage; and writing in one go."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsegmamba_bids.errors import ImageError

logger = logging.getLogger(__name__)

READABLE = (".nii", ".nii.gz", ".mgz", ".mgh")
WRITABLE = (".nii", ".nii.gz", ".mgz")
_COMPRESSED = {".nii.gz": ".nii", ".mgz": ".mgh"}
GZIP = b"\x1f\x8b"  # how such files begin
# An annexed file that is not here: its key, or, where links cannot be made (Windows), what the link would point to.
_ANNEX = re.compile(rb"(\xef\xbb\xbf)?([/\\]annex[/\\]objects[/\\]|(\.\.?[/\\])*\.git[/\\]annex[/\\]objects[/\\])")
#: First bytes of files that are no images, and what they are.
_OTHERS = (
    (b"version https://git-lfs.github.com", "only a pointer of Git LFS; fetch the file with `git lfs pull`"),
    (b"\x00\x05\x16\x07", "notes that macOS keeps beside a file (its name starts with ._), not the image; remove it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"BZh", "compressed with bzip2; unpack it"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it"),
    (b"<!DOCTYPE", "a web page, perhaps of a download that failed; fetch the image again"),
    (b"<html", "a web page, perhaps of a download that failed; fetch the image again"),
)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``.

    It replaces ``path`` when the block ends well and vanishes when not, so that nobody sees half a file.
    Its name is random: jobs on several machines may write into one folder.
    """
    path = Path(path)
    suffix = suffix_of(path, (*READABLE, path.suffix))
    stem = path.name[: len(path.name) - len(suffix)]
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}.part{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:  # a full disk names no file, others the temporary one
        if error.filename is None or str(temporary) in (str(error.filename), str(error.filename2)):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # what went wrong is told, not this
            temporary.unlink(missing_ok=True)


def suffix_of(path: Path, allowed: tuple[str, ...] = READABLE) -> str:
    """Return the longest of the allowed endings that a file's name has, in any case; empty where it has none."""
    return max((s for s in allowed if path.name.lower().endswith(s.lower())), key=len, default="")


def is_compressed(path: Path) -> bool:
    """Return whether a file's name says that it is compressed."""
    return suffix_of(path) in _COMPRESSED


def check_file(path: Path) -> None:
    """Refuse what cannot be an image, from its name and its first bytes; `gzip_files` looks into what is compressed.

    Raises
    ------
    ImageError
        One sentence that names the file and says what it is.
    """
    if path.is_symlink() and not path.exists():
        raise ImageError(
            f"{path}: a link whose target is not there; in a DataLad dataset fetch it with {_fetching(path)}"
        )
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    suffix = suffix_of(path)
    if not path.is_file() or not suffix:
        raise ImageError(f"{path}: not an image file; allowed are {', '.join(READABLE)}")
    try:
        with path.open("rb") as file:
            start = file.read(348)
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from error
    _check_start(start, path)
    if suffix in _COMPRESSED:
        if _is_plain_image(start):
            raise ImageError(f"{path}: is not compressed; give it a name that ends in {_COMPRESSED[suffix]}")
    elif start.startswith(GZIP):
        ending = {plain: packed for packed, plain in _COMPRESSED.items()}[suffix]
        raise ImageError(f"{path}: is compressed with gzip; give it a name that ends in {ending}")


def _fetching(path: Path) -> str:
    """Return the command that fetches a file of a DataLad dataset, as it may be pasted."""
    return f"`datalad get {shlex.quote(str(path))}`"


def _check_start(start: bytes, path: Path) -> None:
    if not start:
        raise ImageError(f"{path}: the file is empty")
    if _ANNEX.match(start):
        raise ImageError(
            f"{path}: only a pointer of git-annex, its content is missing; fetch it with {_fetching(path)}"
        )
    for first, what in _OTHERS:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(first.lower()):
            raise ImageError(f"{path}: {what}")
    if start[128:132] == b"DICM":
        raise ImageError(f"{path}: a DICOM file; convert it to NIfTI, for instance with dcm2niix")


def _is_plain_image(start: bytes) -> bool:
    """Return whether bytes begin an image that is not compressed: sizes of NIfTI headers, the version of MGH files."""
    return start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c", b"\0\0\0\x01")
