"""Threads that wait for each other leave the processors to those that compute."""

import os
import subprocess
import sys

import pytest

COMMAND = """
import os, sys
from medsegmamba_bids.cli import common
@common.user_errors
def main(argv):
    assert not {"numba", "torch"} & sys.modules.keys(), "they read the settings when they are imported"
    print(os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"])
    return 0
sys.exit(main([]))
"""


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE 0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 0")])
def test_a_command_asks_for_it_before_any_library_is_there_to_be_told(given, policy):
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    found = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env=plain | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == policy
