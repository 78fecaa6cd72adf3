"""One family of errors: what a user can mend is told apart from a fault of the program."""

import ast
import builtins
import errno
import pickle
from pathlib import Path

import pytest

import medsegmamba_bids
from medsegmamba_bids import errors
from medsegmamba_bids.cli.common import sentence_of
from medsegmamba_bids.image.io import atomic_path
from medsegmamba_bids.report.crashes import last_error

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


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    path = tmp_path / "a.nii.gz"

    def fill_up():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:
        fill_up()
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
    assert sentence_of(caught.value) == f"{path}: No space left on device"
    assert last_error(f"OSError: {caught.value}") == f"{path}: No space left on device"


def test_a_folder_that_is_not_there_names_the_file_and_not_its_temporary_name(tmp_path):
    path = tmp_path / "absent" / "a.tsv"
    with pytest.raises(FileNotFoundError) as caught, atomic_path(path) as temporary:
        temporary.write_text("")
    assert sentence_of(caught.value) == f"{path}: No such file or directory"


def test_what_cannot_be_read_keeps_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.tsv"):
        (tmp_path / "source").read_text()
    assert sentence_of(caught.value) == f"{tmp_path / 'source'}: No such file or directory"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(13, "Permission denied", "a", None, "b"), "a -> b: Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("the cable is out"), "the cable is out"),
        (errors.ImageError("a.nii: empty"), "a.nii: empty"),
    ],
)
def test_sentences(error, sentence):
    assert sentence_of(error) == sentence
