"""Commands run where neither the package's folder nor the user's home can be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medsegmamba_bids.cli import common, surroundings

PACKAGE = Path(common.__file__).parents[1]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """No folder of caches is set, and temporary files go into the test's own folder."""
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(surroundings.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(surroundings.atexit, "register", lambda *arguments, **options: None)
    yield os.environ
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        os.environ.pop(name, None)


@pytest.mark.parametrize("writable", ["package", "home"])
def test_nothing_changes_where_one_of_them_can_be_written(environment, monkeypatch, tmp_path, writable):
    usable = {"package": PACKAGE, "home": tmp_path / "cache"}[writable]
    monkeypatch.setattr(surroundings, "_can_write", lambda folder: folder == usable)
    surroundings.provide_caches()
    assert "NUMBA_CACHE_DIR" not in environment
    assert "MPLCONFIGDIR" not in environment


def test_a_folder_is_made_where_none_can_be_written(environment, monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings, "_can_write", lambda folder: False)
    surroundings.provide_caches()
    folder = Path(environment["NUMBA_CACHE_DIR"])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert environment["MPLCONFIGDIR"] == environment["TRITON_CACHE_DIR"] == str(folder)
    surroundings.provide_caches()
    assert environment["NUMBA_CACHE_DIR"] == str(folder)


def test_what_the_user_names_stays(environment, monkeypatch):
    environment["NUMBA_CACHE_DIR"] = "/somewhere"
    monkeypatch.setattr(surroundings, "_can_write", lambda folder: False)
    surroundings.provide_caches()
    assert environment["NUMBA_CACHE_DIR"] == "/somewhere"


def test_the_folder_goes_when_the_command_ends(tmp_path):
    code = (
        "import os, sys; from medsegmamba_bids.cli import common, surroundings\n"
        "surroundings._can_write = lambda folder: False\n"
        "@common.user_errors\n"
        "def main(argv):\n"
        "    print(os.environ['NUMBA_CACHE_DIR'])\n"
        "    return os.path.isdir(os.environ['NUMBA_CACHE_DIR'])\n"
        "sys.exit(main([]))"
    )
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1, finished.stderr  # True: it was there
    assert Path(finished.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_judged_by_what_is(tmp_path):
    assert surroundings._can_write(tmp_path / "not" / "there")
    (tmp_path / "file").touch(mode=0o644)
    assert not surroundings._can_write(tmp_path / "file")
    assert not surroundings._can_write(tmp_path / "file" / "new")
