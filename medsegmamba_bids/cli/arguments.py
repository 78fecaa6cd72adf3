"""The form of all command lines: how they are read, what help shows, and what is said of a slip of the pen."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_SHELLS = ("bash", "zsh", "tcsh")
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, but none where the help says what happens without the option; keeps lines as written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or action.default is False or action.default == [] or action.nargs == 0
        return action.help if told or "(default:" in (action.help or "") else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join(indent + line for line in text.splitlines(keepends=True))


@dataclass(frozen=True)
class _Values:
    """The arguments that an option of several values takes: ``arguments[start:stop]``, the option before them."""

    start: int
    stop: int


class Parser(argparse.ArgumentParser):
    """The form of all commands and their subcommands.

    - Takes ``--work_dir`` for ``--work-dir``, and so on, without a second name of each option in the help.
    - An option of several values leaves the positional arguments what they need: ``--participant-label 01 02 BIDS_DIR
      OUT_DIR participant`` has two labels.
    - What is mistyped gets its nearest name, and a usage of one line.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **settings})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse what is left when names have dashes and positional arguments are set apart."""
        given = _with_dashes(list(sys.argv[1:] if args is None else args))
        places, several = self._walk(given)
        if self._commands and not given:
            self.error(f"one of {', '.join(self._commands)} is needed")
        return super().parse_known_args(self._set_apart(given, places, several), namespace)

    def format_usage(self) -> str:
        """Return one line: what must be given."""
        formatter = self._get_formatter()
        formatter.add_usage(self._short_usage(), self._actions, [])
        return formatter.format_help()

    def format_help(self) -> str:
        """Return the help, which lists options once: not in its usage too."""
        before, self.usage = self.usage, self._short_usage()
        try:
            return super().format_help()
        finally:
            self.usage = before

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and what must be given, and end with code 2."""
        more = f"{self.prog} --help says more"
        self.exit(2, f"{self.prog}: error: {message}\n{self.format_usage()}{more}\n")

    @property
    def _commands(self) -> dict[str, argparse.ArgumentParser]:
        subparsers = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((dict(action.choices) for action in subparsers), {})

    @property
    def _in_order(self) -> list[argparse.Action]:
        return [action for action in self._actions if not action.option_strings]

    def _short_usage(self) -> str:
        if self.usage:
            return self.usage
        needed = [action for action in self._actions if action.option_strings and action.required]
        options = [f"{action.option_strings[-1]} {_metavar(action)}" for action in needed]
        for group in self._mutually_exclusive_groups:
            if group.required:
                either = (f"{action.option_strings[-1]} {_metavar(action)}" for action in group._group_actions)
                options.append(f"({' | '.join(either)})")
        names = [_metavar(action) + (" ..." if action.nargs == "+" else "") for action in self._in_order]
        rest = "..." if self._commands else "[options]"
        return " ".join(["%(prog)s", *names, *options, rest])

    def _walk(self, arguments: list[str]) -> tuple[list[int], list[_Values]]:
        """Return where arguments stand that no option takes, and the values of options that take several.

        Ends the command at an option that there is not. What follows the name of a subcommand is left to that.
        """
        places, several, here = [], [], 0
        while here < len(arguments) and not (self._commands and places):
            argument, here = arguments[here], here + 1
            if argument == "--":
                places += range(here, len(arguments))
                break
            if not self._is_option(argument):
                places.append(here - 1)
                continue
            action, has_value = self._option(argument)
            if has_value:
                continue
            stop = here + self._values_of(action, arguments[here:])
            if action.nargs == "+":
                several.append(_Values(here, stop))
            here = stop
        return places, several

    def _is_option(self, argument: str) -> bool:
        name = argument.partition("=")[0]
        if name in self._option_string_actions:
            return True
        return len(name) > 1 and name[0] == "-" and " " not in name and not _NEGATIVE_NUMBER.fullmatch(name)

    def _option(self, argument: str) -> tuple[argparse.Action, bool]:
        """Return the option and whether its value, or a further option, stands in the same argument."""
        name, equals, _ = argument.partition("=")
        known = self._option_string_actions
        if name in known:
            return known[name], bool(equals)
        if argument[1] != "-" and argument[:2] in known:
            return known[argument[:2]], True
        later = [command for command, parser in self._commands.items() if name in parser._option_string_actions]
        if later:
            self.error(f"{name} is an option of {', '.join(later)}, and stands after that name")
        self.error(f"unknown option {name}{nearest(name, known)}")

    def _values_of(self, action: argparse.Action, following: list[str]) -> int:
        """Return how many of the arguments that follow an option are its values."""
        free = next((n for n, text in enumerate(following) if text == "--" or self._is_option(text)), len(following))
        wanted = {None: 1, "?": 1, "+": free, "*": free}.get(action.nargs, action.nargs)
        return min(int(wanted) if isinstance(wanted, int) else free, free)

    def _set_apart(self, arguments: list[str], places: list[int], several: list[_Values]) -> list[str]:
        """Put what positional arguments lack before the option of several values that took it.

        Only where that is certain: what would go there is a choice of theirs, or a path that is there.
        """
        wanted = self._in_order
        lacking = len(wanted) - len(places)
        if self._commands or lacking < 1 or any(action.nargs not in (None, "+") for action in wanted):
            return arguments
        for values in reversed(several):
            split = values.stop - lacking
            before = [place for place in places if place < values.start]
            order = [*before, *range(split, values.stop), *places[len(before) :]]
            if split > values.start and _fits(wanted, order, [arguments[place] for place in order], split):
                here = before[-1] + 1 if before else 0  # behind no option that would take them again
                taken = arguments[split : values.stop]
                return [*arguments[:here], *taken, *arguments[here:split], *arguments[values.stop :]]
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is no choice, with the nearest one."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        text = f"{value!r} is none of {', '.join(choices)}{nearest(str(value), choices)}"
        raise argparse.ArgumentError(action, text)


def _metavar(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))


def _fits(positionals: list[argparse.Action], places: list[int], texts: list[str], taken: int) -> bool:
    """Return whether texts are certainly meant as positional arguments; the first in doubt is at ``taken``."""
    pairs = list(zip(positionals, texts, strict=False))
    if chosen := [text in action.choices for action, text in pairs if action.choices]:
        return all(chosen)
    action, text = pairs[places.index(taken)]
    return action.type is not Path or Path(text).exists()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question after the name that was meant, to be put behind a sentence; empty where none is near.

    Examples
    --------
    >>> nearest("--particpant-label", ["--participant-label", "--run-id"])
    '; did you mean --participant-label?'
    >>> nearest("--part", ["--participant-label", "--run-id"])
    '; did you mean --participant-label?'
    >>> nearest("--fast", ["--participant-label", "--run-id"])
    ''
    """
    names = sorted(known)
    longer = [other for other in names if len(name) > 3 and other.startswith(name)]
    bare = {other.lstrip("-"): other for other in names}  # dashes make all options alike
    found = longer or [bare[near] for near in difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.7)]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _with_dashes(arguments: list[str]) -> list[str]:
    """Return arguments with dashes in the names of options; values, and what follows ``--``, stay as they are."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [_dashed(argument) for argument in arguments[:end]] + arguments[end:]


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    is_name = name.startswith("--") and " " not in name
    return name.replace("_", "-") + equals + value if is_name else argument


class _PrintCompletion(argparse.Action):
    """Prints the completion script of a shell; shtab is imported for that alone."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        import shtab

        for action in _actions_of(parser):
            if action.type is Path:
                action.complete = shtab.DIRECTORY if "DIR" in _metavar(action) else shtab.FILE
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions_of(command)


def add_print_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option that prints a completion script."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=_SHELLS,
        default=argparse.SUPPRESS,
        metavar="SHELL",
        help="print what makes the Tab key complete this command in bash, zsh or tcsh, and exit (default: not)",
    )
