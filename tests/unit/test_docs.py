"""The documentation says what is true: commands can be parsed, sentences are produced, links lead somewhere."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medsegmamba_bids

ROOT = Path(__file__).parents[2]
PACKAGE = Path(medsegmamba_bids.__file__).parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
#: Command -> module with its parser; setup.py installs the same (below).
PARSERS = {
    "medsegmamba": "cli.parser",
    "medsegmamba-evaluate": "cli.evaluate",
    "medsegmamba-segment": "cli.segment",
    "medsegmamba-slurm": "cli.slurm",
    "medsegmamba-stats": "cli.stats",
    "medsegmamba-train": "cli.train",
    "medsegmamba-weights": "cli.weights",
}
IMAGE = re.compile(r"medsegmamba(-cpu)?(:[\w.-]+)?|\S*medsegmamba(-cpu)?\.sif")


def blocks(text):
    """The lines of code blocks; those that a backslash continues are joined."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("", "console", "shell", "bash", "sh"):
            yield from block.replace("\\\n", " ").splitlines()


def inside_container(words):
    """The command that ``docker run`` or ``apptainer run`` starts."""
    at = next(i for i, word in enumerate(words) if i > 1 and words[i - 1] != "--entrypoint" and IMAGE.fullmatch(word))
    if "--entrypoint" in words[:at]:
        return [words[words.index("--entrypoint") + 1], *words[at + 1 :]]
    return words[at + 1 :] if words[1] == "exec" else ["medsegmamba", *words[at + 1 :]]


def commands(line):
    """The package's commands in a line of a code block, as words."""
    if not re.search(r"medsegmamba|-m ", line):
        return []
    words = shlex.split(line, comments=True)
    if words[:1] and words[0] in ("docker", "podman", "apptainer", "singularity") and words[1] in ("run", "exec"):
        words = inside_container(words)
    if "-m" in words[:4] or "torchrun" in words[:1]:
        at = words.index("-m")
        return [words[at + 1 :]] if words[at + 1].startswith("medsegmamba_bids") else []
    words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
    return [words] if words and Path(words[0]).name in PARSERS else []


def documented():
    for page in PAGES:
        for line in blocks(page.read_text(encoding="utf-8")):
            for words in commands(line):
                yield pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:100])


def parser_of(program):
    module = PARSERS.get(Path(program).name) or program.removeprefix("medsegmamba_bids").lstrip(".") or "cli.parser"
    return importlib.import_module(f"medsegmamba_bids.{module}").build_parser()


@pytest.mark.parametrize("words", list(documented()))
def test_a_command_can_be_parsed(words, capsys):
    program, *arguments = words
    if Path(program).name == "medsegmamba-slurm" and "--" in arguments:
        arguments = arguments[: arguments.index("--")]  # what follows is for sbatch
    try:
        parser_of(program).parse_args(arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code  # 0 of --help and --version
    assert code == 0, capsys.readouterr().err


def test_the_documents_have_commands_of_every_kind():
    kinds = {Path(param.values[0][0]).name for param in documented()}
    assert {"medsegmamba", "medsegmamba-segment", "medsegmamba-train", "medsegmamba-weights"} <= kinds
    assert "medsegmamba_bids.cli.demo" in kinds


def test_every_installed_command_has_a_parser_here():
    text = (ROOT / "setup.py").read_text()
    assert set(re.findall(r'"(medsegmamba[\w-]*)=medsegmamba_bids', text)) <= PARSERS.keys()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("medsegmamba A B group  # a comment", [["medsegmamba", "A", "B", "group"]]),
        (".venv/bin/medsegmamba --version", [[".venv/bin/medsegmamba", "--version"]]),
        ("docker run -v '/a b:/d' medsegmamba /d /o group", [["medsegmamba", "/d", "/o", "group"]]),
        ("docker run --entrypoint medsegmamba-weights medsegmamba list", [["medsegmamba-weights", "list"]]),
        ("apptainer exec x/medsegmamba.sif medsegmamba-weights list", [["medsegmamba-weights", "list"]]),
        ("OMP_NUM_THREADS=1 medsegmamba-weights list", [["medsegmamba-weights", "list"]]),
        ("python -m medsegmamba_bids.cli.demo demo", [["medsegmamba_bids.cli.demo", "demo"]]),
        ("pip install medsegmamba_bids", []),
        ("docker build -t medsegmamba .", []),
    ],
)
def test_commands_are_found_in_lines(line, expected):
    assert commands(line) == expected


def written(node):
    """The text of a literal, with … for what is filled in; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


@cache
def literals():
    return list(_literals())


def _literals():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if text := written(node):
                yield text


def quoted():
    """The sentences of the page of errors: the terms that it explains."""
    return re.findall(r"^`(.+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)


def says(literal, sentence):
    """Whether a literal's text gives the sentence; … stands for anything on both sides, percent forms as well."""
    plain = re.sub(r"%(\.\d)?[sdfr]|`…`|'…'", "…", literal)
    sentence = re.sub(r"`…`|'…'", "…", sentence)
    parts = [part for part in sentence.split("…") if part]
    at = [plain.find(part) for part in parts]
    return -1 not in at and at == sorted(at)


PYTHONS_OWN = {"No usable temporary directory found in …"}


@pytest.mark.parametrize("sentence", [one for one in quoted() if one not in PYTHONS_OWN])
def test_a_sentence_of_the_errors_is_in_the_source(sentence):
    assert max(map(len, sentence.split("…"))) >= 10, "too little is quoted to be sure"
    assert any(says(literal, sentence) for literal in literals())


def test_sentences_are_compared_in_order():
    literal = written(ast.parse('f"{path}: no such file (--image); it {must}"', mode="eval").body)
    assert literal == "…: no such file (--image); it …"
    assert says(literal, "…: no such file …")
    assert not says(literal, "…: it … no such file")
    assert not says(literal, "…: no such folder")
    assert len(quoted()) > 20


def test_python_s_own_sentence_is_its_own():
    code = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null']; tempfile.gettempdir()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert next(iter(PYTHONS_OWN)).partition("…")[0] in finished.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_option_that_is_named_exists():
    known = set()
    for module in {*PARSERS.values(), "cli.demo"}:
        parser = importlib.import_module(f"medsegmamba_bids.{module}").build_parser()
        known |= {name for one in all_parsers(parser) for action in one._actions for name in action.option_strings}
    foreign = {
        "--cleanenv",
        "--containall",
        "--entrypoint",
        "--env",
        "--extra-index-url",
        "--gpus",
        "--nv",
        "--read-only",
    }
    foreign |= {"--tmpfs", "--user", "--build-arg"}
    for name in ("installation.md", "first-run.md", "outputs.md", "weights.md", "faq.md"):
        prose = re.sub(r"^```.*?^```", "", (ROOT / "docs" / name).read_text(), flags=re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", prose))
        assert named - known - foreign == set(), name


def all_parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from all_parsers(one)


def test_the_version_of_pytorch_is_the_pinned_one():
    named = re.findall(r"torch==([\d.]+)\+cpu", (ROOT / "docs" / "installation.md").read_text())
    assert named == re.findall(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed (extra docs)")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    finished = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 6
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="((?:https?:)?//[^"]+)"', page.read_text())
        assert loaded == [], page


def test_the_rooms_stand_in_the_order_of_their_imports():
    rules = runpy.run_path(str(ROOT / "tests" / "test_imports.py"))["MAY_IMPORT"]
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert set(rooms) == rules.keys() - {"__init__", "__main__"}
    for number, room in enumerate(rooms):
        assert rules[room] - {room} <= set(rooms[:number]), room


def test_modules_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w/]+(?:\.py|\.json|/))`", text)
    assert len(names) > 15
    assert [name for name in names if not any((folder / name).exists() for folder in (ROOT, PACKAGE, *ROOMS))] == []


ROOMS = [folder for folder in PACKAGE.iterdir() if folder.is_dir()]


def test_the_demonstration_says_that_its_image_is_stripped(tmp_path):
    """It is: what is not 0 has the size of a brain, not of a head."""
    from medsegmamba_bids.cli.demo import build_parser, make_dataset

    make_dataset(tmp_path)
    image = nib.load(tmp_path / "sub-mni152" / "anat" / "sub-mni152_T1w.nii.gz")
    litres = np.count_nonzero(image.dataobj) * np.prod(image.header.get_zooms()[:3]) / 1e6
    assert 1.6 < litres < 2.1
    demo_line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("make demo"))
    said = demo_line, (ROOT / "docs" / "first-run.md").read_text(), (tmp_path / "README").read_text()
    assert all("stripped" in text for text in (*said, build_parser().description))
