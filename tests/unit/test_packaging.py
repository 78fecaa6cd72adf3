"""What is built and published: the wheel, the source distribution, the pinned versions."""

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from importlib.util import find_spec
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
FOLDERS = ("medsegmamba_bids", "tests", "docs", "boutiques", "conda.recipe")


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
    variables = {name: value for name, value in os.environ.items() if name != "MEDSEGMAMBA_SOURCE"}
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=variables, capture_output=True, text=True, check=False
    )
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
    wanted |= {"boutiques/medsegmamba.json", "conda.recipe/recipe.yaml"}
    assert wanted <= held
    assert not [name for name in held if name.endswith(".pyc") or "__pycache__" in name]
    assert not [name for name in held if name.startswith("training_state")]


@pytest.mark.skipif(find_spec("twine") is None, reason="twine is not installed (extra release)")
def test_twine_finds_nothing_to_say(source, tmp_path):
    built = [build(kind, source, tmp_path) for kind in ("wheel", "sdist")]
    command = [sys.executable, "-m", "twine", "check", "--strict", *built]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout.count("PASSED")) == (0, 2), finished.stdout


LINKS = re.compile(r"\[[^\]]+\]\(([^)]+)\)")


def test_the_description_on_an_index_has_links_that_lead_somewhere(monkeypatch):
    monkeypatch.delenv("MEDSEGMAMBA_SOURCE", raising=False)
    readme, alone = (ROOT / "README.md").read_text(), handed_to_setuptools()
    relative = [target for target in LINKS.findall(readme) if "://" not in target]
    assert len(relative) >= 10
    assert all((ROOT / target).exists() for target in relative)
    assert [target for target in LINKS.findall(alone["long_description"]) if "://" not in target] == []
    assert "see LICENSE. The authors' weights" in alone["long_description"]
    assert alone["project_urls"].keys() == {"Paper"}
    source = "https://example.org/lab/medsegmamba/blob/v1"
    monkeypatch.setenv("MEDSEGMAMBA_SOURCE", source)
    released = handed_to_setuptools()
    expected = [target if "://" in target else f"{source}/{target}" for target in LINKS.findall(readme)]
    assert LINKS.findall(released["long_description"]) == expected
    assert released["project_urls"]["Source"] == source


def test_the_release_names_where_its_files_can_be_read():
    yaml = pytest.importorskip("yaml")
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    source = release["jobs"]["build"]["env"]["MEDSEGMAMBA_SOURCE"]
    values = {"server_url": "https://github.com", "repository": "lab/name", "ref_name": "v1"}
    filled = re.sub(r"\$\{\{ github\.(\w+) \}\}", lambda match: values[match[1]], source)
    assert filled == "https://github.com/lab/name/blob/v1"


def handed_to_setuptools():
    """What setup.py hands to setuptools."""
    with pytest.MonkeyPatch.context() as patch:
        handed = {}
        patch.setattr("setuptools.setup", lambda **arguments: handed.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return handed


#: What conda-forge calls otherwise.
CONDA_NAMES = {"torch": "pytorch", "isal": "python-isal", "matplotlib": "matplotlib-base"}


def conda_recipe():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "conda.recipe" / "recipe.yaml").read_text()
    filled = re.sub(r"\$\{\{ (\w+) \}\}", lambda match: yaml.safe_load(text)["context"][match[1]], text)
    return yaml.safe_load(filled)


def test_the_conda_recipe_asks_for_what_setup_py_asks_for():
    recipe, handed = conda_recipe(), handed_to_setuptools()
    wanted = [Requirement(text) for text in handed["install_requires"]]
    names = {text.name: CONDA_NAMES.get(text.name.lower(), text.name.lower()) for text in wanted}
    expected = [f"python {handed['python_requires']}", *(f"{names[one.name]} {one.specifier}" for one in wanted)]
    assert sorted(recipe["requirements"]["run"]) == sorted(expected)
    assert recipe["requirements"]["host"][0] == f"python {handed['python_requires'].removeprefix('>=')}.*"


def test_the_conda_recipe_makes_the_same_commands_of_the_same_version():
    recipe, handed = conda_recipe(), handed_to_setuptools()
    commands = [entry.replace(" ", "") for entry in recipe["build"]["python"]["entry_points"]]
    assert commands == handed["entry_points"]["console_scripts"]
    assert recipe["package"] == {"name": handed["name"].replace("_", "-"), "version": __version__}
    assert recipe["about"]["license"] == handed["license"]
    assert recipe["about"]["summary"] == handed["description"]
    assert (ROOT / "conda.recipe" / recipe["source"]["path"] / recipe["about"]["license_file"]).is_file()


def requirements():
    """The requirements of setup.py, extras included, by what it hands to setuptools."""
    handed = handed_to_setuptools()
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
    zenodo, citation = json.loads((ROOT / ".zenodo.json").read_text()), (ROOT / "CITATION.cff").read_text()
    assert {"title", "upload_type", "description", "license", "creators"} <= zenodo.keys()
    assert zenodo["upload_type"] == "software"
    assert f"license: {zenodo['license']}" in citation
    assert all(f"- name: {creator['name']}" in citation for creator in zenodo["creators"])
    assert zenodo["related_identifiers"][0]["identifier"].removeprefix("arXiv:") in citation
