"""Every command answers --help and --version at once, without importing what is slow."""

import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from medsegmamba_bids import __version__

COMMANDS = sorted(
    script.name for script in entry_points(group="console_scripts") if script.value.startswith("medsegmamba_bids.")
)
SLOW_MODULES = {"bids", "matplotlib", "nibabel", "nilearn", "nipype", "numba", "pandas", "torch"}


def run(*arguments, python_options=()):
    """Run a console script in a process of its own."""
    name, *rest = arguments
    script = Path(sys.executable).parent / name
    command = [sys.executable, *python_options, str(script), *rest]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_commands_are_installed():
    assert "medsegmamba-weights" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command):
    finished = run(command, "--version")
    assert finished.returncode == 0
    assert finished.stdout == f"{command} {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_answers_within_a_second(command, option):
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        assert run(command, option).returncode == 0
        durations.append(time.perf_counter() - start)
    assert min(durations) < 1.0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command):
    finished = run(command, "--help", python_options=["-X", "importtime"])
    assert finished.stdout.startswith("usage: ")
    lines = [line for line in finished.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert "argparse" in imported
    assert imported & SLOW_MODULES == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_named(command):
    finished = run(command, "--no-such-option")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert f"{command}: error" in finished.stderr


def test_an_interrupt_ends_with_130_and_an_error_with_1(capsys):
    from medsegmamba_bids.cli.common import user_errors
    from medsegmamba_bids.errors import ImageError

    def interrupted(argv=None):
        raise KeyboardInterrupt

    def refused(argv=None):
        raise ImageError("image.nii: not an image")

    def broken(argv=None):
        raise ValueError("operands could not be broadcast together")

    def too_large(argv=None):
        raise MemoryError("Unable to allocate 9 TiB")

    assert user_errors(too_large)() == 1
    assert capsys.readouterr().err == "error: memory ran out (Unable to allocate 9 TiB); give the command more\n"
    assert user_errors(interrupted)() == 130
    assert user_errors(refused)() == 1
    assert capsys.readouterr().err == "interrupted\nerror: image.nii: not an image\n"
    with pytest.raises(ValueError, match="broadcast"):
        user_errors(broken)()
