"""Nothing of the package is there for tests alone, or for nobody."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(find_spec("vulture") is None, reason="vulture is not installed (extra test)")


def vulture(*paths):
    line = [sys.executable, "-m", "vulture", "--config", str(ROOT / "pyproject.toml"), *paths]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_package_uses_what_it_has():
    finished = vulture()
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stdout


def test_what_nothing_uses_is_found(tmp_path):
    (tmp_path / "module.py").write_text("def forgotten():\n    return 1\n\n\ndef used():\n    return used\n")
    assert "unused function 'forgotten'" in vulture(str(tmp_path)).stdout
