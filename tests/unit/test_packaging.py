"""What is built and published: the wheel, the source distribution, the pinned versions."""

import hashlib
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from medsegmamba_bids import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "medsegmamba_bids"
NOT_PUBLISHED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.partial")
PARTS = (
    "README.md",
    "LICENSE",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "CHANGES.md",
    "constraints.txt",
    "Makefile",
)
FOLDERS = ("medsegmamba_bids", "tests", "docs")


def package_files():
    """Every file that a user needs, relative to the checkout."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix not in (".pyc", ".partial")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The checkout's files that matter, without what lies around in it."""
    root = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=NOT_PUBLISHED)
    for name in PARTS:
        shutil.copy(ROOT / name, root / name)
    state = root / "training_state"
    state.mkdir()
    (state / "base-aseg.safetensors").write_bytes(b"weights of a training that goes on")
    stale = root / "medsegmamba_bids" / "data" / "__pycache__"
    stale.mkdir()
    (stale / "names.pyc").write_bytes(b"compiled")
    return root


def build(kind, source, folder):
    """Build with the setuptools that is installed: no network, nothing isolated."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return folder / finished.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, unpacked, and its metadata folder."""
    folder = tmp_path_factory.mktemp("wheel")
    path = build("wheel", source, folder)
    assert path.name == f"medsegmamba_bids-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked", folder / "unpacked" / f"medsegmamba_bids-{__version__}.dist-info"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    unpacked, info = wheel
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in held if not name.startswith(info.name)} == package_files()


def test_states_of_trainings_are_small_and_said_how_to_go_on():
    """They are in the repository until the training ends, so a clone must stay small."""
    for path in (ROOT / "training_state").glob("*.safetensors"):
        assert path.stat().st_size < 15e6
        assert path.name in (ROOT / "training_state" / "README.md").read_text()


def test_the_wheel_holds_weights_and_templates_byte_by_byte(wheel):
    data = {name for name in package_files() if "/data/" in name and not name.endswith(".py")}
    assert sum(name.endswith(".safetensors") for name in data) >= 2
    assert "medsegmamba_bids/data/report/participant.html.jinja" in data
    for name in sorted(data):
        assert digest(wheel[0] / name) == digest(ROOT / name), name


def test_the_wheel_says_version_licence_and_requirements(wheel):
    text = (wheel[1] / "METADATA").read_text(encoding="utf-8")
    assert f"\nVersion: {__version__}\n" in text
    assert "\nRequires-Python: >=3.10\n" in text
    assert "\nRequires-Dist: torch>=2.4\n" in text
    assert (wheel[1] / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_commands_of_the_wheel_exist(wheel):
    lines = (wheel[1] / "entry_points.txt").read_text().splitlines()
    commands = [line.split(" = ") for line in lines if " = " in line]
    assert len(commands) >= 4
    for name, value in commands:
        assert callable(EntryPoint(name, value, "console_scripts").load()), name


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(wheel[0])!r})\n"
        "import medsegmamba_bids\n"
        "from medsegmamba_bids.image.labels import load_label_table\n"
        "from medsegmamba_bids.weights.folders import default_weights\n"
        "print(medsegmamba_bids.__file__, len(load_label_table('aseg_brain').labels), default_weights('aseg'))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, labels, weights = finished.stdout.split()
    assert file == str(wheel[0] / "medsegmamba_bids" / "__init__.py")
    assert int(labels) == 36
    assert Path(weights).parent == wheel[0] / "medsegmamba_bids" / "data" / "weights"


def test_the_source_distribution_holds_tests_and_pins(source, tmp_path):
    path = build("sdist", source, tmp_path)
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() <= held
    wanted = {"LICENSE", "README.md", "constraints.txt", "setup.py", "tests/conftest.py", "docs/training.md"}
    assert wanted <= held
    assert not [name for name in held if name.endswith(".pyc") or "__pycache__" in name]
    assert not [name for name in held if name.startswith("training_state")]


def requirements():
    """The requirements of setup.py, extras included, by what it hands to setuptools."""
    with pytest.MonkeyPatch.context() as patch:
        handed = {}
        patch.setattr("setuptools.setup", lambda **arguments: handed.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    extras = [text for group in handed["extras_require"].values() for text in group]
    return [Requirement(text) for text in sorted({*handed["install_requires"], *extras})]


def pins():
    """Pinned versions by name, those that hold for this Python."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        pin.name.lower(): str(pin.specifier).removeprefix("==")
        for pin in found
        if pin.marker is None or pin.marker.evaluate()
    }


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    pinned = pins()
    wanted = [one for one in requirements() if one.marker is None or one.marker.evaluate()]
    assert len(wanted) > 20
    for requirement in wanted:
        version = Version(pinned[requirement.name.lower()])
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} but {version}"


def test_every_line_of_the_constraints_pins_one_version():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    names = [re.match(r"[a-z0-9-]+==[\w.+]+(; python_version (>=|<) '3\.\d+')?$", line) for line in lines]
    assert [line for line, match in zip(lines, names, strict=True) if match is None] == []
    plain = [line.split("==")[0] for line in lines if ";" not in line]
    assert len(plain) == len(set(plain))


def test_the_version_stands_in_one_place():
    written = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    candidates = ["setup.py", "pyproject.toml", "Dockerfile", "Singularity.def", "mkdocs.yml", "Makefile"]
    paths = [ROOT / name for name in candidates if (ROOT / name).is_file()]
    paths += [ROOT / name for name in package_files() if name.endswith(".py")]
    assert [path.relative_to(ROOT).as_posix() for path in paths if written.search(path.read_text())] == [
        "medsegmamba_bids/__init__.py"
    ]


def test_the_citation_and_the_newest_changes_are_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(), re.MULTILINE)
    assert heading.group(1) == __version__


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def workflow_steps(path):
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [(name, step) for name, job in jobs.items() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_scripts_of_a_workflow_are_sound(path):
    steps = workflow_steps(path)
    assert all(("uses" in step) != ("run" in step) for _, step in steps)
    for name, step in steps:
        if script := step.get("run"):
            script = re.sub(r"\$\{\{.*?\}\}", "filled-in", script)
            finished = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
            assert finished.returncode == 0, f"{name}: {finished.stderr}"


def test_the_workflows_run_what_is_there():
    yaml = pytest.importorskip("yaml")
    assert [path.name for path in WORKFLOWS] == ["release.yml", "tests.yml"]
    jobs = yaml.safe_load(WORKFLOWS[1].read_text())["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    text = "\n".join(step.get("run", "") for path in WORKFLOWS for _, step in workflow_steps(path))
    for name in (".ci/run", "tests/containers", "constraints.txt", "CHANGES.md", "Dockerfile"):
        assert name in text
        assert (ROOT / name).exists()


def test_every_need_of_a_job_is_a_job():
    yaml = pytest.importorskip("yaml")
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        assert {job["needs"] for job in workflow["jobs"].values() if "needs" in job} <= workflow["jobs"].keys()


def test_zenodo_is_told_what_the_citation_says():
    import json

    root = Path(__file__).parents[2]
    zenodo, citation = json.loads((root / ".zenodo.json").read_text()), (root / "CITATION.cff").read_text()
    assert f"license: {zenodo['license']}" in citation
    assert all(f"- name: {creator['name']}" in citation for creator in zenodo["creators"])
    assert zenodo["related_identifiers"][0]["identifier"].removeprefix("arXiv:") in citation
