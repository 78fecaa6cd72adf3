"""Tests of built images. Run by hand: see README.md beside this file; nothing is collected otherwise."""

import os
import shlex
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

IMAGE, SIF, FOLDER = (f"MEDSEGMAMBA_TEST_{name}" for name in ("IMAGE", "SIF", "FOLDER"))
ASKED = [name for name in (IMAGE, SIF, FOLDER) if os.environ.get(name)]
if not ASKED:
    collect_ignore_glob = ["test_*.py"]


@dataclass(frozen=True)
class Container:
    """How to run a command in an image: without network, with a root that is read-only.

    ``binds`` are folders by the path that they get; ``user`` is "uid:gid" or None for the image's own.
    """

    image: str
    binds: tuple = ()
    user: str | None = None
    variables: tuple = ()
    options: tuple = ()

    def having(self, **changes):
        return replace(self, **changes)

    def run(self, *command, timeout=120):
        """Run a command; the process with its output, whatever its exit code."""
        line = [*self.line(), *map(str, command)]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout)

    def python(self, code):
        finished = self.run("python3", "-c", code)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()


class Oci(Container):
    """docker or podman."""

    def engine(self):
        return shlex.split(os.environ.get("MEDSEGMAMBA_TEST_ENGINE", "docker"))

    def line(self):
        line = [*self.engine(), "run", "--rm", "--network", "none", "--read-only", *self.options]
        # podman gives a read-only container a folder /tmp of its own, docker does not.
        line += ["--tmpfs", "/tmp"] if self.engine()[0] == "docker" and "--tmpfs" not in self.options else []
        line += shlex.split(os.environ.get("MEDSEGMAMBA_TEST_ENGINE_OPTIONS", ""))
        line += [f"--volume={source}:{target}" for source, target in self.binds]
        line += [f"--env={name}={value}" for name, value in self.variables]
        line += [f"--user={self.user}"] if self.user else []
        return [*line, "--entrypoint", "", self.image]


class Apptainer(Container):
    """apptainer or singularity: always the calling user."""

    def line(self, action="exec"):
        line = shlex.split(os.environ.get("MEDSEGMAMBA_TEST_APPTAINER", "apptainer"))
        line += [action, "--containall", "--net", "--network", "none"]
        variables = dict(self.variables)
        home = variables.pop("HOME", None)  # not to be set as others are
        for source, target in self.binds:
            line += ["--home" if target == home else "--bind", f"{source}:{target}"]
        line += ["--no-home"] if home == "/nonexistent" else []
        line += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        return [*line, *self.options, self.image]


class Charliecloud(Container):
    """ch-run, on the image's files in a folder; host's network and environment."""

    def line(self):
        line = ["env", "HOME=/nonexistent", "USER=nobody", "ch-run", "--set-env"]
        line += [f"--bind={source}:{target}" for source, target in self.binds]
        line += [f"--set-env={name}={value}" for name, value in self.variables]
        line += [f"--uid={self.user.split(':')[0]}", f"--gid={self.user.split(':')[1]}"] if self.user else []
        return [*line, *self.options, self.image, "--"]


KINDS = {IMAGE: Oci, SIF: Apptainer, FOLDER: Charliecloud}


@pytest.fixture(params=ASKED, ids=lambda name: name.removeprefix("MEDSEGMAMBA_TEST_").lower())
def container(request):
    """Each of the images that were named."""
    return KINDS[request.param](os.environ[request.param])


@pytest.fixture
def oci(container):
    """The image for docker or podman; skips others."""
    if not isinstance(container, Oci):
        pytest.skip("of docker and podman only")
    return container


@pytest.fixture
def sif(container):
    """The image for apptainer or singularity; skips others."""
    if not isinstance(container, Apptainer):
        pytest.skip("of apptainer and singularity only")
    return container


@pytest.fixture
def open_folder(tmp_path):
    """A folder with spaces in its name that any user may write, and may reach from outside."""
    folder = tmp_path / "a folder" / "of results"
    folder.mkdir(parents=True)
    for path in (folder, *folder.parents):
        if path.is_relative_to(tmp_path.parents[1]):
            path.chmod(0o777 if path == folder else 0o755)
    return folder


@pytest.fixture
def pinned():
    """The versions of constraints.txt by name; where a name has two, that of newer Pythons."""
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if "==" in line and "version <" not in line]
    return dict(pairs)


@pytest.fixture
def small_image(open_folder):
    """A folder with image.nii.gz, an image with contrast."""
    data = np.zeros((40, 40, 40), np.int16)
    data[10:30, 10:30, 10:30] = 500
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])), open_folder / "image.nii.gz")
    return open_folder
