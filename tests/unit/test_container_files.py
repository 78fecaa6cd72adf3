"""Dockerfile and Singularity.def agree with each other and with the pins; images themselves: tests/containers."""

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.execution.dataset_files import dataset_description

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEFINITION = (ROOT / "Singularity.def").read_text()
INSTALL = ROOT / "containers" / "install.sh"


def pin(name):
    return re.search(rf"^{name}==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)


def images(text):
    return set(re.findall(r"=(nvidia/cuda:\S+)$", text, re.MULTILINE))


def apt_packages(text):
    found = re.findall(r"apt-get install -y --no-install-recommends ([a-z0-9 -]+)", text)
    return [line.split() for line in found]


def test_both_start_from_the_same_images():
    assert len(images(DOCKERFILE)) == 2
    assert images(DOCKERFILE) == images(DEFINITION)


def test_the_images_have_the_cuda_of_the_pinned_torch():
    major_minor = ".".join(pin("cuda-toolkit").split(".")[:2])
    assert all(re.search(rf"cuda:{re.escape(major_minor)}\.\d+-(devel|base)-", image) for image in images(DOCKERFILE))


def test_both_install_the_same_packages_by_the_same_script():
    assert apt_packages(DOCKERFILE) == apt_packages(DEFINITION)
    assert len(apt_packages(DOCKERFILE)) == 4
    for text in (DOCKERFILE, DEFINITION):
        assert len(re.findall(r"sh containers/install\.sh", text)) == 1


def test_both_set_the_same_variables():
    block = re.search(r"^ENV (.*?)[^\\]$", DOCKERFILE, re.MULTILINE | re.DOTALL).group(0)
    docker = dict(re.findall(r"([A-Z_]+)=(\S+)", block))
    singularity = dict(re.findall(r"^    export ([A-Z_]+)=(\S+)$", DEFINITION.split("%environment")[1], re.MULTILINE))
    docker["MEDSEGMAMBA_CONTAINER"] = singularity["MEDSEGMAMBA_CONTAINER"]  # a build argument there
    singularity.pop("PATH", None), docker.pop("PATH", None)
    assert docker == singularity
    assert docker["PYTHONNOUSERSITE"] == "1"


def test_docker_runs_the_app_as_nobody_special():
    assert re.search(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE).group(1) != "0"
    assert 'ENTRYPOINT ["medsegmamba"]' in DOCKERFILE


def test_the_definition_has_every_section():
    sections = set(re.findall(r"^%([a-z]+)", DEFINITION, re.MULTILINE))
    assert {"arguments", "environment", "files", "help", "labels", "post", "runscript", "test"} <= sections


def ignored(name):
    """What .dockerignore says of a file: the last pattern that fits counts."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        fits = fnmatch.fnmatch(name, pattern.removeprefix("**/")) or name == pattern or name.startswith(f"{pattern}/")
        fits = fits or (pattern.startswith("**/") and any(fnmatch.fnmatch(p, pattern[3:]) for p in name.split("/")))
        if line and not line.startswith("#") and fits:
            out = not line.startswith("!")
    return out


def test_docker_is_given_what_singularity_is_and_no_more():
    files = DEFINITION.split("%files\n")[1].split("\n\n")[0]
    named = [line.split()[0] for line in files.splitlines()]
    assert len(named) == 8
    assert [name for name in named if ignored(name) or not (ROOT / name).exists()] == []
    shown = {path.name for path in ROOT.iterdir() if not ignored(path.name)}
    assert shown == set(named)
    assert not ignored("medsegmamba_bids/data/weights/embedded-aseg3.safetensors")
    assert ignored("medsegmamba_bids/cli/__pycache__/main.cpython-311.pyc")
    assert ignored("medsegmamba_bids/data/half.partial")


def test_the_script_is_sound_and_refuses_unknown_variants(tmp_path):
    assert subprocess.run(["sh", "-n", INSTALL], check=False).returncode == 0
    finished = subprocess.run(["sh", INSTALL, "tpu"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (1, "the variant is 'tpu'; allowed are cuda, cpu\n")
    finished = subprocess.run(["sh", INSTALL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "usage: sh containers/install.sh cuda|cpu" in finished.stderr


@pytest.mark.parametrize("name", ["torch", "mamba-ssm"])
def test_the_script_reads_the_pins(name):
    function = re.search(r"^pin\(\) \{\n.*?^\}", INSTALL.read_text(), re.MULTILINE | re.DOTALL).group(0)
    finished = subprocess.run(
        ["sh", "-c", f"{function}\npin {name}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout == pin(name) + "\n"


def test_what_the_script_installs_is_pinned():
    for name in ("einops", "ninja", "packaging", "setuptools", "transformers", "wheel", "causal-conv1d", "mamba-ssm"):
        assert re.search(rf"\b{name}\b", INSTALL.read_text()), name
        assert pin(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"MEDSEGMAMBA_CONTAINER": "lab/medsegmamba:1"}, {"Type": "docker", "Tag": "lab/medsegmamba:1"}),
        (
            {"MEDSEGMAMBA_CONTAINER": "medsegmamba", "APPTAINER_CONTAINER": "/x.sif"},
            {"Type": "singularity", "Tag": "medsegmamba"},
        ),
        ({"SINGULARITY_CONTAINER": "/other.sif"}, None),
    ],
)
def test_results_say_which_container_made_them(variables, expected, monkeypatch, tmp_path):
    for name in ("MEDSEGMAMBA_CONTAINER", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = RunConfig(tmp_path / "bids", tmp_path / "out")
    assert dataset_description(config)["GeneratedBy"][0].get("Container") == expected


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed (extra release)")
def test_hadolint_has_nothing_to_say():
    finished = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "")
