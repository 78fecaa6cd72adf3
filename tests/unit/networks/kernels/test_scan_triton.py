"""The Triton kernels without a GPU: right by Triton's interpreter, and they compile, without spilling registers."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not find_spec("triton"), reason="no triton (comes with CUDA torch; pip install triton, 1 GB, adds it)"
)

SCRIPT = Path(__file__).with_name("triton_without_gpu.py")
ROUNDED = 5e-4  # gradients of float16 inputs are rounded to float16


def results_of(mode):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "MEDSEGMAMBA_"))}
    done = subprocess.run([sys.executable, SCRIPT, mode], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted():
    return results_of("interpret")


@pytest.fixture(scope="module")
def compiled():
    return results_of("compile")


@pytest.mark.parametrize(
    "case",
    [
        "few states, two blocks of channels, the last not full",
        "more chunks than one, the last not full",
        "many states, no power of two",
        "extremes",
    ],
)
def test_outputs_and_gradients_are_the_references(interpreted, case):
    errors = interpreted[case]
    assert errors.pop("finite", True)
    assert sorted(errors) == ["bias", "log_rates", "mixed", "out", "skip", "steps", "u"]
    assert all(error < 3e-6 for error in errors.values()), errors


@pytest.mark.parametrize("case", ["published states, bfloat16", "float16"])
def test_inputs_of_half_precision_are_scanned_in_float32(interpreted, case):
    errors = interpreted[case]
    assert all(errors[name] < 3e-6 for name in ("out", "steps", "log_rates", "bias")), errors
    assert all(errors[name] < ROUNDED for name in ("u", "mixed", "skip")), errors


def test_a_single_path_without_bias_and_skip(interpreted):
    assert interpreted["bare"]["out"] < 1e-5


def test_a_sample_gives_the_same_bits_alone_among_others_and_again(interpreted):
    assert interpreted["samples are apart"] == {"alone": True, "again": True}


def test_group_norm_with_relu_in_place(interpreted):
    for dtype, tolerance in (("torch.float32", 1e-6), ("torch.float16", 1e-3)):
        found = interpreted["group norm"][dtype]
        assert found["error"] < tolerance, dtype
        assert found["in_place"]
        assert found["alone"]


def test_kernels_compile_without_spilling_registers(compiled):
    assert len(compiled) == 18
    assert [name for name, code in compiled.items() if code["spilled"]] == []


def test_published_scan_leaves_room_for_16_warps_on_a_multiprocessor(compiled):
    assert compiled["forward, sm_90, 64 states"]["registers"] <= 128  # of 65536, 32 threads each


def test_no_exponential_is_computed_twice(compiled):
    """One for each state of a thread and one for the step size (see ``_UNSPECIALISED``)."""
    for name, code in compiled.items():
        if name.startswith("forward, "):
            assert code["exponentials"] == code["states_in_thread"] + 1, name
