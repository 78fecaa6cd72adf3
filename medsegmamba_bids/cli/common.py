"""What all commands share: the parser's form, logging, and how an error reaches the user."""

from __future__ import annotations

import argparse
import atexit
import functools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from medsegmamba_bids import __version__
from medsegmamba_bids.errors import UserError

Main = Callable[[list[str] | None], int]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, but none where the help says what happens without the option."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with ``--version`` and the default values in its help.

    Parameters
    ----------
    prog : str
        Name of the command.
    description : str
        What it does, in a sentence or two.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return parser


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``-v``: once for what is being done, twice for details."""
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say what is being done (-vv: with details)",
    )


def set_up_logging(verbosity: int) -> None:
    """Send log records to standard error, from warnings (0) to debugging (2 and more)."""
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(level=levels[min(verbosity, 2)], format="%(levelname)s: %(message)s", stream=sys.stderr)


def user_errors(main: Main) -> Main:
    """Turn what a user can mend into one sentence and exit code 1, an interrupt into 130.

    Those are the package's own errors and the system's; anything else, a ValueError of numpy too, is a fault of the
    program and keeps its traceback.
    """

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        try:
            provide_caches()
            return main(argv)
        except (UserError, OSError) as error:
            logging.getLogger(__name__).debug("where it happened", exc_info=True)
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return guarded


def provide_caches() -> None:
    """Give numba and others a folder to write in where they would find none, as in a container of any user.

    numba keeps compiled code beside the package or in the user's cache, and refuses to import where it can write to
    neither. The folder goes when the command ends.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if "NUMBA_CACHE_DIR" in os.environ or any(map(_can_write, (Path(__file__).parents[1], cache))):
        return
    folder = tempfile.mkdtemp(prefix="medsegmamba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        os.environ.setdefault(name, folder)


def _can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where it does not exist."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)
