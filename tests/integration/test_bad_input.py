"""A dataset in which each participant is wrong in a way of its own: the others are finished, and each is told why."""

import gzip
import itertools
import json
from contextlib import redirect_stdout
from io import StringIO

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.cli.main import main
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.stats.tables import read_tsv

from .conftest import AFFINE, make_brain


def t1w(bids, subject, extension=".nii.gz"):
    return bids / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w{extension}"


def save(data, affine=AFFINE):
    """Makes what writes this image in the place of a participant's."""
    return lambda path: nib.Nifti1Image(data, affine).to_filename(path)


def zero_affine(path):
    content = bytearray(nib.Nifti1Image(BRAIN, AFFINE).to_bytes())
    content[280:328] = bytes(48)  # the three rows of the sform
    path.write_bytes(gzip.compress(content))


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def link(path):
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone")


def rename(path):
    path.rename(path.with_name(path.name.replace(".nii.gz", ".img")))


pytestmark = pytest.mark.slow  # three whole runs

BRAIN = make_brain(1)
FAILED = {
    "4D": (save(np.stack([BRAIN] * 2, -1)), "three axes are needed (take one volume of a series, or average it)"),
    "2D": (save(BRAIN[:, :, 14]), "three axes are needed, not a single slice"),
    "constant": (save(np.full((20, 20, 20), 7, np.int16)), "every voxel is 7; an image with contrast is needed"),
    "nothing": (save(np.full((20, 20, 20), np.nan, np.float32)), "every voxel is 0; an image with contrast is needed"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "the compressed file is truncated"),
    "corrupt": (corrupt, "the compressed file is corrupt"),
    "zero": (zero_affine, "its affine is zero or singular"),
    "thick": (save(BRAIN, np.diag([1.0, 1, 7, 1])), "its voxels are 1 x 1 x 7 mm; at most 6.9 mm are allowed"),
    "link": (link, "fetch it with `datalad get "),
}
SKIPPED = {
    "absent": (lambda path: path.unlink(), "it has no T1w image"),
    "extension": (rename, ".img"),
}


def odd(path):
    """Everything that can be settled, in one image."""
    data = BRAIN[..., None].astype(np.float32)
    data[0, 0, 0] = np.nan
    data[0, 0, 1] = np.inf
    data[0, 0, 2:5] = -3
    image = nib.Nifti1Image(data, AFFINE)
    moved = AFFINE.copy()
    moved[2, 3] += 10
    image.set_sform(AFFINE, 1)
    image.set_qform(moved, 1)
    image.to_filename(path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text("{")


def long(path):
    """Nearly 300 mm from head to chest."""
    body = np.concatenate([np.full((28, 28, 60), 500, np.int16), BRAIN], 2)
    nib.Nifti1Image(body, np.diag([3.0, 3.0, 3.4, 1])).to_filename(path)


NOTED = {
    "odd": (
        odd,
        [
            "2 voxels are NaN or infinite; they are read as 0",
            "3 voxels are negative; they are read as 0",
            "sform and qform disagree by up to 10.0 mm; the sform is used",
            "sub-odd_T1w.json is not valid JSON",
        ],
    ),
    "long": (long, ["lie outside the conformed cube of 256 mm and are left out"]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights, dataset):
    """Folder of the results, exit code, the table as one line, and sidecars by participant."""
    root = tmp_path_factory.mktemp("bad")
    names = ["good", *FAILED, *SKIPPED, *NOTED]
    bids = dataset(root / "bids", [f"sub-{name}" for name in names])
    for name, (spoil, _) in (FAILED | SKIPPED | NOTED).items():
        spoil(t1w(bids, name))
    (root / "linear.json").write_text('{"plugin": "Linear"}')
    options = ["--use-plugin", root / "linear.json", "--nprocs", 1, "--device", "cpu", "-w", root / "work"]
    options += ["--aseg-weights", weights["aseg"], "--hippocampus-weights", "none"]
    with redirect_stdout(StringIO()) as printed:
        code = main([str(bids), str(root / "out"), "participant", *map(str, options)])
    return root / "out", code, printed.getvalue()


def part_of(table, name):
    """The lines of the table about a participant, as one; those that go on are indented."""
    lines = table.splitlines()
    (first,) = [place for place, line in enumerate(lines) if line.startswith((f"sub-{name} ", f"sub-{name}_"))]
    rest = itertools.takewhile(lambda line: line.startswith(" "), lines[first + 1 :])
    return " ".join(" ".join([lines[first], *rest]).split())


def sidecar(out, name):
    return json.loads((out / output_name(f"sub-{name}", "aseg_stats", ".json")).read_text())


def test_exit_code_and_sums(finished):
    _, code, table = finished
    assert code == 1
    assert f"{len(FAILED)} failed, {len(SKIPPED)} skipped" in table


@pytest.mark.parametrize("name", FAILED)
def test_why_it_failed(finished, name):
    out, _, table = finished
    line = part_of(table, name)
    assert "failed" in line
    assert FAILED[name][1] in line
    assert str(t1w(out.parent / "bids", name)) in line
    assert not list((out / f"sub-{name}").rglob("*.nii.gz"))


@pytest.mark.parametrize("name", SKIPPED)
def test_why_it_was_skipped(finished, name):
    out, _, table = finished
    line = part_of(table, name)
    assert "skipped" in line
    assert SKIPPED[name][1] in line
    assert not (out / f"sub-{name}" / "anat").exists()


@pytest.mark.parametrize("name", ["good", *NOTED])
def test_the_others_are_finished(finished, name):
    out, _, table = finished
    assert "failed" not in part_of(table, name)
    rows = read_tsv(out / output_name(f"sub-{name}", "aseg_stats"))
    assert rows["NVoxels"].sum() > 1000
    native = nib.load(out / output_name(f"sub-{name}", "aseg"))
    given = nib.load(t1w(out.parent / "bids", name))
    assert native.shape == given.shape[:3]
    np.testing.assert_allclose(native.affine, given.affine, atol=1e-4)


@pytest.mark.parametrize("name", NOTED)
def test_what_was_settled_is_noted(finished, name):
    out, _, _ = finished
    notes = " / ".join(sidecar(out, name)["Notes"])
    for sentence in NOTED[name][1]:
        assert sentence in notes


def test_what_was_settled_is_nothing_for_a_good_image(finished):
    out, _, _ = finished
    notes = " / ".join(sidecar(out, "good")["Notes"])
    assert not any(sentence in notes for _, sentences in NOTED.values() for sentence in sentences)


def test_nothing_is_half_written(finished):
    out, _, _ = finished
    assert not list(out.rglob("*.part*"))
    for path in out.rglob("*.nii.gz"):
        assert np.asanyarray(nib.load(path).dataobj).size
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
