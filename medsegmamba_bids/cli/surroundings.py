"""What every command sees to before it starts: streams that never fail, and folders that libraries rely on."""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import sys
import tempfile
from pathlib import Path

from medsegmamba_bids.errors import ConfigError

#: Bytes of a temporary folder's path; sockets of processes have 107, of which they add up to 34 themselves.
_LONGEST = 70
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare() -> None:
    """See to all of it."""
    os.environ["MPLBACKEND"] = "agg"  # pictures go into files; others may be named there that are not installed
    open_streams()
    provide_user()
    shorten_temporary_folder()
    provide_caches()
    wait_passively()


def open_streams() -> None:
    """Have standard streams that are there, and say what the terminal cannot show in another way."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file would get its number, and be written into
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # as standard streams are: processes count on them
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (for the whole command)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def provide_user() -> None:
    """Give a user without an entry in the system's list a name and a home, which libraries ask for."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _own_folder()
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user{os.getuid()}"


def shorten_temporary_folder() -> None:
    """Reach a temporary folder of a long path by a short one: sockets have no room for it.

    Raises
    ------
    ConfigError
        There is no place for a short one.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST:
        return
    for place in filter(_can_write, map(Path, _SHORT_FOLDERS)):
        short = tempfile.mkdtemp(prefix="msm-", dir=place)
        atexit.register(shutil.rmtree, short, ignore_errors=True)
        link = Path(short, "t")
        link.symlink_to(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(link)
        return
    raise ConfigError(
        f"{folder}: the temporary folder's path is too long for sockets; set TMPDIR to one of at most {_LONGEST} bytes"
    )


def wait_passively() -> None:
    """Have threads that wait for each other sleep, in this process and all that it starts.

    OpenMP's threads spin by default. Where others use the processors as well, the ones that compute then wait for the
    ones that wait. Libraries read this when they are first imported, which is later; what the user set stays.
    """
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0")):
        os.environ.setdefault(name, value)


def provide_caches() -> None:
    """Give numba and others a folder to write in where they would find none, as in a container of any user.

    numba keeps compiled code beside the package or in the user's cache, and refuses to import where it can write to
    neither. The folder goes when the command ends.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if "NUMBA_CACHE_DIR" in os.environ or any(map(_can_write, (Path(__file__).parents[1], cache))):
        return
    folder = _own_folder()
    os.environ["NUMBA_CACHE_DIR"] = folder
    for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        os.environ.setdefault(name, folder)


def _own_folder() -> str:
    folder = tempfile.mkdtemp(prefix="medsegmamba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _can_write(folder: Path) -> bool:
    """Return whether files can be made in a folder, or the folder itself where it does not exist."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)
