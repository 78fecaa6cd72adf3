"""What all commands share: the parser's form, logging, and how an error reaches the user."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.cli.arguments import Parser, add_print_completion
from medsegmamba_bids.cli.surroundings import prepare
from medsegmamba_bids.errors import ImageError, UserError, reason

Main = Callable[[list[str] | None], int]

_PACKAGE = "medsegmamba_bids"
_TERMINAL = "medsegmamba-terminal"


def make_parser(prog: str, description: str, **settings: Any) -> Parser:
    """Return a command's parser, with ``--version`` and ``--print-completion``.

    Parameters
    ----------
    prog : str
        Name of the command.
    description : str
        What it does, in a sentence or two.
    **settings
        Further ones of :class:`argparse.ArgumentParser`.
    """
    parser = Parser(prog=prog, description=description, **settings)
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    add_print_completion(parser)
    return parser


def add_command(
    commands: argparse._SubParsersAction, name: str, text: str, run: Callable[..., Any], more: str = ""
) -> Parser:
    """Add a subcommand that ``run`` carries out; more than its one line is told by its own help."""
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
    command.set_defaults(run=run)
    return command


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``-v``: once for what is being done, twice for details."""
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say what is being done (-vv: with details)",
    )


def check_tables(tables: Iterable[Path | None], others: Iterable[Path | None]) -> None:
    """Refuse, before any work, tables that would replace an image or each other, or have no folder to lie in.

    Parameters
    ----------
    tables : iterable of Path or None
        Texts that the command writes; None where one was not asked for.
    others : iterable of Path or None
        What else it reads and writes.

    Raises
    ------
    ImageError
        Naming the file.
    """
    from medsegmamba_bids.image.file_checks import READABLE

    taken = {path.resolve() for path in others if path}
    for path in filter(None, tables):
        if path.resolve() in taken:
            raise ImageError(f"{path}: another file of this command has this name too; name another for the table")
        if path.name.lower().endswith(READABLE):
            raise ImageError(f"{path}: is the name of an image, and tables are text; such as {path.stem}.tsv")
        if not path.resolve().parent.is_dir():
            raise ImageError(f"{path}: its folder {path.parent} does not exist; make it first")
        taken.add(path.resolve())


def set_up_logging(verbosity: int, form: str = "%(levelname)s: %(message)s") -> logging.Handler:
    """Send the package's log records to standard error, from warnings (0) to debugging (2 and more).

    Returns
    -------
    logging.Handler
        What shows them, in place of an earlier command's in the same process.
    """
    logging.raiseExceptions = False  # a full disk or a closed terminal must not fill the output with tracebacks
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    package = logging.getLogger(_PACKAGE)
    for handler in list(package.handlers):
        if handler.name == _TERMINAL:
            package.removeHandler(handler)
    shown = logging.StreamHandler(sys.stderr)
    shown.name = _TERMINAL
    shown.setLevel(level)
    shown.setFormatter(logging.Formatter(form))
    package.addHandler(shown)
    package.setLevel(level)
    return shown


def user_errors(main: Main) -> Main:
    """Turn what a user can mend into one sentence and exit code 1, an interrupt into 130.

    Those are the package's own errors and the system's; anything else, a ValueError of numpy too, is a fault of the
    program and keeps its traceback. A reader of the output who is gone (``| head``) ends the command with 141.
    """

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        try:
            prepare()
            try:
                return main(argv)
            finally:
                sys.stdout.flush()
        except (UserError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                return 128 + signal.SIGPIPE
            logging.getLogger(__name__).debug("where it happened", exc_info=True)
            print(f"error: {sentence_of(error)}", file=sys.stderr)
            return 1
        except MemoryError as error:
            print(f"error: memory ran out ({reason(error)}); give the command more", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return guarded


def _reader_is_gone() -> bool:
    """Return whether nobody reads standard output any more; nothing is written to it then, on leaving either."""
    number = sys.__stdout__.fileno()
    poll = select.poll()
    poll.register(number, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return gone


def sentence_of(error: UserError | OSError) -> str:
    """Return what a user reads of an error: its file first, the system's number not at all.

    Examples
    --------
    >>> sentence_of(FileNotFoundError(2, "No such file or directory", "a.nii"))
    'a.nii: No such file or directory'
    """
    if isinstance(error, UserError):
        return str(error)
    if error.filename is None and isinstance(error, FileNotFoundError) and not _folder_is_there():
        return f"{os.environ.get('PWD', '.')}: the folder that the command was started in is gone; change to another"
    files = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    return ": ".join([" -> ".join(files), reason(error)] if files else [reason(error)])


def _folder_is_there() -> bool:
    try:
        return bool(Path.cwd())
    except OSError:
        return False
