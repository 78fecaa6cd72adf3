"""Brain masks of others: the voxels that are meant, and masks that no brain has."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.masks import check_within_head, load_mask

SHAPE, AFFINE = (40, 44, 36), np.diag([4.0, 4, 4, 1])


@pytest.fixture(scope="module")
def brain():
    """An ellipsoid of 1.2 litres."""
    points = np.moveaxis(np.indices(SHAPE), 0, -1) - [20, 22, 18]
    return ((points / [15, 17, 13.5]) ** 2).sum(-1) < 1.3


@pytest.fixture
def write(tmp_path):
    def write(data, affine=AFFINE, name="mask.nii.gz"):
        kind = nib.MGHImage if ".mg" in name else nib.Nifti1Image
        kind(data, affine).to_filename(tmp_path / name)
        return tmp_path / name

    return write


def noise(size):
    return np.random.default_rng(0).normal(0, size, SHAPE)


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.mgz"])
@pytest.mark.parametrize(
    "change",
    [
        lambda brain: brain.astype(np.uint8),
        lambda brain: 255 * brain.astype(np.uint8),
        lambda brain: brain.astype(np.float32),
        lambda brain: (brain + noise(1e-15)).astype(np.float32),  # a resampling's rounding
        lambda brain: (brain + noise(0.02)).astype(np.float32),
        lambda brain: (255 * brain + noise(3)).astype(np.float32),
        lambda brain: (255 * brain + noise(3)).clip(-20, 280).astype(np.int16),
        lambda brain: np.where(brain, 0.96, np.nan).astype(np.float32),
        lambda brain: np.where(brain, np.where(noise(1) > 0, 2, 41), 0).astype(np.int16),  # labels
        lambda brain: np.where(brain, np.random.default_rng(0).choice([2, 3, 41, 42, 53], SHAPE), 0).astype(np.uint8),
        lambda brain: np.where(brain, 1 + np.digitize(noise(1), [-1, 1]), 0).astype(np.uint8),  # tissues
        lambda brain: np.where(brain, 900 + noise(300).clip(-850, 2000), 0).astype(np.float32),  # a stripped image
        lambda brain: np.where(brain, 100 + noise(30).clip(-95, 150), 0).astype(np.uint8),
    ],
)
def test_the_same_brain_in_many_ways(write, brain, change, name):
    image = load_mask(write(change(brain), name=name))
    assert np.asarray(image.dataobj).dtype == np.uint8
    np.testing.assert_array_equal(image.dataobj, brain)
    np.testing.assert_allclose(image.affine, AFFINE)


@pytest.mark.parametrize("level", [1, 255, 3000])
@pytest.mark.parametrize("order", [1, 3])
def test_resampled_masks_keep_their_volume(write, brain, order, level):
    fine = ndimage.zoom(level * brain.astype(np.float32), 2, order=order, grid_mode=True, mode="grid-constant")
    assert fine.max() > level or order == 1  # a spline overshoots
    moved = load_mask(write(fine, np.diag([2.0, 2, 2, 1])))
    assert np.count_nonzero(moved.dataobj) / 8 == pytest.approx(brain.sum(), rel=0.01)
    rounded = load_mask(write(np.rint(fine * 255 / level).astype(np.int16), np.diag([2.0, 2, 2, 1])))
    assert np.mean(np.asarray(rounded.dataobj) != np.asarray(moved.dataobj)) < 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda brain: 1 - brain.astype(np.uint8), None),  # inverted: 2.8 litres
        (lambda brain: np.ones(SHAPE, np.uint8), r"holds 4\.06 litres"),
        (lambda brain: np.zeros(SHAPE, np.uint8), "empty"),
        (lambda brain: -brain.astype(np.int8), "empty"),
        (lambda brain: np.where(brain, 1, -1).astype(np.int8), "has values down to -1"),
        (lambda brain: np.where(brain, np.where(noise(1) > 0, 2, -2), 0).astype(np.int16), "signed labels"),
        (
            lambda brain: ndimage.distance_transform_edt(brain) - ndimage.distance_transform_edt(~brain),
            "distances and signed labels are no masks",
        ),
        (lambda brain: (np.indices(SHAPE).sum(0) == 20).astype(np.uint8), r"litres, which no brain has"),
        (lambda brain: np.where(brain, 0.5 + noise(0.3).clip(-0.45, 0.5), 0).astype(np.float32), "intensities"),
    ],
)
def test_what_no_brain_mask_has(write, brain, change, said):
    data = change(brain)
    path = write(data.astype(np.float32) if data.dtype == np.float64 else data)
    with pytest.raises(
        ImageError, match=said or r"holds 2\.\d\d litres, which no brain has .*is it inverted"
    ) as caught:
        load_mask(path)
    assert str(path) in str(caught.value)


def test_masks_must_lie_in_the_head():
    head = np.zeros((10, 10, 10), bool)
    head[:5] = True
    for first, good in ((0, True), (2, True), (3, False), (5, False)):
        mask = np.zeros((10, 10, 10), np.uint8)
        mask[first : first + 5] = 1
        if good:
            check_within_head(mask, head, "m.nii")
        else:
            with pytest.raises(ImageError, match=rf"m.nii: only {100 - 20 * first} % of this brain mask"):
                check_within_head(mask, head, "m.nii")
    with pytest.raises(ImageError, match="empty where the T1w is"):
        check_within_head(np.zeros_like(mask), head, "m.nii")
