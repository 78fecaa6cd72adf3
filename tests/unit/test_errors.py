"""One family of errors: what a user can mend is told apart from a fault of the program."""

import ast
import builtins
import pickle
from pathlib import Path

import pytest

import medsegmamba_bids
from medsegmamba_bids import errors
from medsegmamba_bids.execution.crashes import last_error

OURS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
BUILT_IN = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}


def test_every_class_of_errors_is_a_user_error_and_lives_in_one_module():
    root = Path(medsegmamba_bids.__file__).parent
    homes = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split(".")[-1] in BUILT_IN | {kind.__name__ for kind in OURS} for base in node.bases)
    }
    assert homes == {"errors.py"}
    assert all(issubclass(kind, errors.UserError) for kind in OURS)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_it_comes_whole_out_of_another_process_and_out_of_a_crash_file(kind):
    error = pickle.loads(pickle.dumps(kind("a.nii: the file is empty")))
    assert type(error) is kind
    assert str(error) == "a.nii: the file is empty"
    assert last_error(f"Traceback\n{kind.__module__}.{kind.__name__}: {error}\n\n") == "a.nii: the file is empty"


def test_a_fault_of_the_program_keeps_its_kind_in_a_crash():
    assert last_error("ValueError: operands could not be broadcast") == "ValueError: operands could not be broadcast"
    assert last_error("other.errors.ImageError: no") == "other.errors.ImageError: no"
