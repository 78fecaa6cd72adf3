"""Nodes by themselves, on small arrays."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.interfaces.brain_masks import GivenMask, NonzeroMask
from medsegmamba_bids.interfaces.conform import Conform
from medsegmamba_bids.interfaces.native import ToNative
from medsegmamba_bids.interfaces.normalize import Normalize
from medsegmamba_bids.interfaces.posteriors import PosteriorFile
from medsegmamba_bids.interfaces.sink import copy_new, write_new
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec

AFFINE = np.diag([1.0, 1, 1, 1])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(data, name, affine=AFFINE):
    return str(save_image(data, affine, name))


def block(side=12, low=3, high=9, value=1, dtype=np.uint8):
    data = np.zeros((side,) * 3, dtype)
    data[(slice(low, high),) * 3] = value
    return data


def data_of(path):
    return np.asanyarray(nib.load(path).dataobj)


def test_a_record_says_what_it_took_and_warned_of():
    class Warns(StepInterface):
        input_spec, output_spec = StepInputSpec, StepOutputSpec

        def run_step(self, folder):
            logging.getLogger("medsegmamba_bids.image").warning("%s: odd", "/data/sub-01/a.nii")
            return {"notes": ["/data/sub-01/b.nii is odd too"], "details": {"Device": "cpu"}}

    record = Warns().run().outputs.record
    assert record["Notes"] == ["a.nii: odd", "/data/sub-01/b.nii is odd too"]
    assert record["Device"] == "cpu"
    assert 0 <= record["Seconds"] < 60
    assert 0.01 < record["PeakMemoryGB"] < 100


def test_a_given_mask_is_brought_to_the_grid():
    coarse = block(60, 10, 30)
    affine = nib.affines.from_matvec(np.diag([2.0, 2, 2]), [0.5, 0.5, 0.5])  # the same faces
    reference = saved(block(120, 10, 70), "conformed.nii.gz")
    out = GivenMask(in_file=saved(coarse, "m.nii.gz", affine), reference=reference).run().outputs.out_file
    mask, expected = data_of(out), block(120, 20, 60)
    assert mask[20:60, 21:59, 21:59].all()
    assert not mask[expected == 0].any()  # interpolation rounds the corners, no more
    assert mask.sum() >= 0.7 * expected.sum()


def test_a_mask_elsewhere_is_refused():
    far = nib.affines.from_matvec(np.eye(3), [500, 0, 0])
    brain = block(60, 5, 50)
    node = GivenMask(in_file=saved(brain, "m.nii.gz", far), reference=saved(brain, "conformed.nii.gz"))
    with pytest.raises(ImageError, match="is it in another space"):
        node.run()


@pytest.mark.parametrize(("shift", "good"), [(0, True), (15, True), (35, False)])
def test_most_of_a_mask_must_lie_in_the_head(shift, good):
    moved = nib.affines.from_matvec(np.eye(3), [shift, 0, 0])  # of 45 mm
    brain = block(60, 5, 50)
    node = GivenMask(in_file=saved(brain, "m.nii.gz", moved), reference=saved(brain, "conformed.nii.gz"))
    if good:
        expected = np.zeros_like(brain)
        expected[5 + shift : min(50 + shift, 60), 5:50, 5:50] = 1
        assert np.array_equal(data_of(node.run().outputs.out_file), expected)
    else:
        with pytest.raises(ImageError, match="only 50 % of this brain mask lie in the head of the T1w"):
            node.run()


def test_a_stripped_image_is_its_own_mask_and_a_head_is_refused():
    hollow = block()
    hollow[5, 5, 5] = 0
    out = NonzeroMask(in_file=saved(hollow, "brain.nii.gz")).run().outputs.out_file
    assert np.array_equal(data_of(out), block())
    head = saved(block(side=14), "head.nii.gz", np.diag([1.0, 1, 1, 1]))
    big = saved(np.ones((140, 140, 130), np.uint8), "big.nii.gz")
    assert NonzeroMask(in_file=head).run().outputs.out_file
    with pytest.raises(ImageError, match="--brain-mask"):
        NonzeroMask(in_file=big).run()


def test_nothing_to_normalise_is_a_note():
    image = block(value=90)
    node = Normalize(in_file=saved(image, "t1w.nii.gz"), mask_file=saved(block(value=0), "mask.nii.gz"))
    outputs = node.run().outputs
    assert np.array_equal(data_of(outputs.out_file), image)
    assert outputs.record["Notes"] == ["no brain was found: intensities are not normalised"]


def test_white_matter_is_at_110():
    labels = block(24, 4, 20, 2)
    image = np.where(labels, 60, 0).astype(np.uint8)
    files = {"in_file": saved(image, "t.nii.gz"), "mask_file": saved(labels, "m.nii.gz")}
    out = Normalize(**files, labels_file=saved(labels, "l.nii.gz")).run().outputs.out_file
    assert np.median(data_of(out)[labels > 0]) == pytest.approx(110, rel=1e-4)
    no_white_matter = saved(np.where(labels, 0, 2).astype(np.uint8), "wrong.nii.gz")
    out = Normalize(**files, labels_file=no_white_matter).run().outputs.out_file
    assert np.median(data_of(out)[labels > 0]) == pytest.approx(110, rel=0.1)  # by the histogram instead


def test_labels_go_back():
    native = nib.affines.from_matvec(np.diag([2.0, 2, 2]), [0.5, 0.5, 0.5])
    node = ToNative(
        in_file=saved(block(12, 2, 6, 17), "l.nii.gz"), native_affine=native.tolist(), native_shape=[6, 6, 6]
    )
    out = nib.load(node.run().outputs.out_file)
    assert np.array_equal(out.dataobj, block(6, 1, 3, 17))
    np.testing.assert_array_equal(out.affine, native)


def test_posteriors_are_written_a_class_at_a_time(folder):
    path = folder / "p.nii.gz"
    box = (slice(1, 3),) * 3
    values = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 2, 2)
    with PosteriorFile(path, Grid(AFFINE, (4, 4, 4)), 3) as posteriors:
        posteriors(0, box, 1 - values)
        posteriors(1, box, values)
    found = nib.load(path).get_fdata()
    assert found.shape == (4, 4, 4, 3)
    np.testing.assert_allclose(found[1:3, 1:3, 1:3, 1], values, atol=0.002)
    np.testing.assert_allclose(found.sum(-1), 1, atol=0.004)
    assert not found[..., 2].any()


def test_posteriors_out_of_order_leave_no_file(folder):
    with (
        pytest.raises(ValueError, match="class 1 came where class 0"),
        PosteriorFile(folder / "p.nii.gz", Grid(AFFINE, (4, 4, 4)), 3) as posteriors,
    ):
        posteriors(1, (slice(0, 0),) * 3, np.zeros((0, 0, 0)))
    assert list(folder.iterdir()) == []


def test_only_what_is_new_is_written(folder):
    assert write_new("text", folder / "a" / "one.txt")
    assert not write_new("text", folder / "a" / "one.txt")
    assert copy_new(folder / "a" / "one.txt", folder / "b" / "two.txt")
    assert not copy_new(folder / "a" / "one.txt", folder / "b" / "two.txt")
    assert write_new("other", folder / "b" / "two.txt")
    assert (folder / "b" / "two.txt").read_text() == "other"


@pytest.mark.parametrize(("filled", "stripped"), [(100, True), (140, False)])
def test_the_sidecar_says_whether_the_t1w_came_stripped(filled, stripped):
    data = np.zeros((160, 160, 160), np.float32)  # 1.0 and 2.7 litres
    data[:filled, :filled, :filled] = 1 + np.arange(filled)
    results = Conform(in_file=saved(data, "T1w.nii.gz"))
    outputs = results.run().outputs
    assert json.loads(Path(outputs.sidecar_file).read_text()) == {"SkullStripped": stripped}
