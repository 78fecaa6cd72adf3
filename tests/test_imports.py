"""The rules of who may import whom; they keep commands quick and the layers apart."""

import ast
from pathlib import Path

import pytest

import medsegmamba_bids

PACKAGE = "medsegmamba_bids"
ROOT = Path(medsegmamba_bids.__file__).parent

# Subpackage or top-level module -> what of this package it may import, besides itself.
MAY_IMPORT = {
    "__init__": {"api"},
    "anatomy": set(),
    "data": set(),
    "ownership": set(),
    "errors": set(),
    "devices": {"errors"},
    "records": {"errors"},
    "config": {"data", "ownership"},
    "image": {"anatomy", "data"},
    "segmentations": {"anatomy", "data", "image"},
    "datasets": {"anatomy", "data", "image", "segmentations"},
    "networks": {"data", "image"},
    "weights": {"anatomy", "data", "image", "networks", "segmentations"},
    "stats": {"anatomy", "data", "image", "segmentations"},
    "inference": {"anatomy", "data", "image", "networks", "segmentations", "weights"},
    "viz": {"data", "image"},
    "report": {"anatomy", "config", "data", "datasets", "image", "segmentations", "stats", "viz", "ownership"},
    "bids": {"config", "data", "datasets", "image"},
    "longitudinal": {"anatomy", "data", "datasets", "image", "segmentations", "stats"},
}
MAY_IMPORT["report"] |= {"longitudinal"}
MAY_IMPORT["interfaces"] = MAY_IMPORT["report"] | MAY_IMPORT["inference"] | {"inference", "report"}
MAY_IMPORT["workflows"] = MAY_IMPORT["interfaces"] | {"bids", "interfaces"}
MAY_IMPORT["execution"] = MAY_IMPORT["workflows"] | {"workflows"}
MAY_IMPORT["training"] = MAY_IMPORT["inference"] | {"datasets", "inference", "stats"}
MAY_IMPORT["evaluation"] = MAY_IMPORT["training"] | {"viz"}
MAY_IMPORT["api"] = {"anatomy", "data", "evaluation", "image", "inference", "segmentations", "stats"}
MAY_IMPORT["cli"] = MAY_IMPORT["execution"] | MAY_IMPORT["evaluation"] | {"api", "evaluation", "execution", "training"}
MAY_IMPORT["__main__"] = {"cli"}
for _name in MAY_IMPORT.keys() - {"__init__", "anatomy", "data", "devices", "errors", "records"}:
    MAY_IMPORT[_name] |= {"devices", "errors", "records"}

# Third-party package -> the subpackages that know it at all.
MAY_KNOW = {
    "argparse": {"cli"},
    "templateflow": {"datasets"},
    "bids": {"bids"},
    "nipype": {"cli", "execution", "interfaces", "workflows"},
    "torch": {"cli", "evaluation", "inference", "interfaces", "networks", "training", "weights"},
}
# Slow to import: only inside functions, so that --help answers and graphs are built without them.
ONLY_IN_FUNCTIONS = {"cli": {"nipype", "torch"}, "interfaces": {"torch"}}


def subpackage_of(path):
    """``medsegmamba_bids/image/io.py`` -> ``image``; ``.../config.py`` -> ``config``."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_modules(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        # "from package import sub" imports package.sub where that is a module.
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def executed_nodes(node, inside_functions):
    """Walk the nodes that run on import and, if asked, those that run on a call."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions:
            continue
        yield child
        yield from executed_nodes(child, inside_functions)


def imports(source, inside_functions=True):
    tree = ast.parse(source)
    nodes = executed_nodes(tree, inside_functions)
    return [module for node in nodes for module in imported_modules(node)]


def violations(source, subpackage):
    """Sentences about what ``source``, as a part of ``subpackage``, must not import."""
    found = []
    for module in imports(source):
        top, *rest = module.split(".")
        if top == PACKAGE and rest[0] in MAY_IMPORT.keys() - MAY_IMPORT[subpackage] - {subpackage}:
            found.append(f"{subpackage} must not import {module}")
        if top in MAY_KNOW and subpackage not in MAY_KNOW[top]:
            found.append(f"{subpackage} must not know {top}")
    slow = ONLY_IN_FUNCTIONS.get(subpackage, set())
    for module in imports(source, inside_functions=False):
        if module.split(".")[0] in slow:
            found.append(f"{subpackage} must import {module} inside a function")
    return found


def source_files():
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_rules(path):
    assert violations(path.read_text(), subpackage_of(path)) == []


def test_every_subpackage_has_a_rule():
    assert {subpackage_of(path) for path in source_files()} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("layer", ["training", "evaluation", "cli"])
def test_nobody_imports_the_top(layer):
    users = {name for name, allowed in MAY_IMPORT.items() if layer in allowed}
    assert users <= {"__main__", "api", "cli"}


@pytest.mark.parametrize(
    ("source", "subpackage"),
    [
        ("from medsegmamba_bids.weights import files", "image"),
        ("from medsegmamba_bids import cli", "training"),
        ("def late():\n    import medsegmamba_bids.training.loss", "inference"),
        ("import torch", "cli"),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "interfaces"),
        ("def late():\n    import nipype", "networks"),
        ("from bids import BIDSLayout", "workflows"),
        ("import torch", "stats"),
    ],
)
def test_a_breach_is_found(source, subpackage):
    assert len(violations(source, subpackage)) == 1


@pytest.mark.parametrize(
    ("source", "subpackage"),
    [
        ("def late():\n    import torch", "cli"),
        ("if TYPE_CHECKING:\n    import torch", "interfaces"),
        ("from medsegmamba_bids import __version__", "image"),
        ("from medsegmamba_bids.image.io import load_image", "networks"),
    ],
)
def test_what_is_allowed_passes(source, subpackage):
    assert violations(source, subpackage) == []


def test_no_two_modules_have_the_same_name():
    names = [path.name for path in source_files() if path.name != "__init__.py"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
