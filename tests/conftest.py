"""Fixtures of all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of real images and golden outputs beside the checkout; skips where absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data are not beside this checkout")
    return SHARED.resolve()
