import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.image.intensity import (
    correct_bias_field,
    normalize_white_matter,
    rescale_uint8,
    robust_scale,
    white_matter_peak,
    without_negative,
)


def limit_from_the_top(data):
    """The intensity that becomes 255, found by walking down the histogram as FreeSurfer does."""
    low, width = data.min(), (data.max() - data.min()) / 1000
    bins = np.minimum(((data - low) / width).astype(int), 999).ravel()
    counts = np.bincount(bins, minlength=1000)
    wanted = int((1 - 0.999) * np.count_nonzero(data))
    passed, current = 0, 999
    while passed < wanted and current > 0:
        passed += counts[current]
        current -= 1
    return low + current * width


@pytest.mark.parametrize("seed", range(4))
def test_robust_scale_walks_down_the_histogram(seed):
    data = np.random.default_rng(seed).gamma(2, 150, (30, 31, 32))
    data[:8] = 0
    offset, factor = robust_scale(data)
    assert offset == 0
    assert 255 / factor == pytest.approx(limit_from_the_top(data), rel=1e-9)


def test_robust_scale_of_integers():
    data = np.random.default_rng(1).integers(0, 4001, (40, 40, 40)).astype(np.int16)
    offset, factor = robust_scale(data)
    assert (offset, 255 / factor) == (0, pytest.approx(limit_from_the_top(data.astype(float))))


def test_robust_scale_starts_at_the_lowest_value():
    data = np.linspace(100, 300, 20_000).reshape(20, 20, 50)
    offset, factor = robust_scale(data)
    assert offset == 100
    assert 100 + 255 / factor == pytest.approx(299.6, abs=0.01)  # the top two bins of 0.2 are left out


def test_robust_scale_withstands_extreme_voxels():
    data = np.random.default_rng(0).uniform(50, 100, (50, 50, 50))
    data[0, 0, :3] = 1e7
    offset, factor = robust_scale(data)
    assert rescale_uint8(np.array([99.9]), offset, factor) == 255
    assert 249 <= rescale_uint8(np.array([99.0]), offset, factor)[0] <= 251


def test_robust_scale_of_a_constant():
    assert robust_scale(np.full((3, 3, 3), 7)) == (7.0, 1.0)


def test_rescale_rounds_and_cuts_off():
    scaled = rescale_uint8(np.array([9, 10, 10.3, 10.8, 137.4, 138, 999]), 10, 2)
    assert scaled.dtype == np.uint8
    assert scaled.tolist() == [0, 0, 1, 2, 255, 255, 255]


def test_positive_data_stay_the_same_array():
    data = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    settled, note = without_negative(data)
    assert settled is data
    assert note == ""


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_few_negative_voxels_become_zero(dtype):
    data = np.full((10, 10, 10), 100, dtype)
    data[0, 0, :4] = -200
    settled, note = without_negative(data)
    assert settled.dtype == dtype
    assert settled[0, 0, :4].tolist() == [0] * 4
    assert settled.sum() == 100 * 996
    assert note == "4 voxels are negative; they are read as 0"
    assert data[0, 0, 0] == -200


def test_one_huge_negative_voxel_becomes_zero():
    data = np.full((30, 30, 30), 200, np.int16)
    data[3, 3, 3] = -32768
    settled, _ = without_negative(data)
    assert (settled.min(), settled.max()) == (0, 200)


def test_signed_intensities_are_shifted():
    data = np.array([-1000, -500, 0, 3000, 30, 20], np.int16).reshape(1, 2, 3)
    settled, note = without_negative(data)
    assert settled.dtype == np.int32
    assert settled.ravel().tolist() == [0, 500, 1000, 4000, 1030, 1020]
    assert note == "2 voxels are negative; all intensities are shifted by 1000"


def test_background_of_a_standardised_brain_stays_zero():
    brain = np.random.default_rng(0).normal(0, 1, (10, 20, 20)).astype(np.float32)
    data = np.concatenate([np.zeros_like(brain), brain])
    settled, note = without_negative(data)
    assert not settled[:10].any()
    np.testing.assert_allclose(settled[10:], brain - brain.min())
    assert "the background of zeros excepted" in note


@pytest.fixture(scope="module")
def shaded_head():
    """A ball of white matter in a shell of grey matter, and the same under a smooth field."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    clean = np.where(radius < 0.6, 110.0, np.where(radius < 0.9, 70.0, 0.0))
    clean[clean > 0] += np.random.default_rng(0).normal(0, 1, int((clean > 0).sum()))
    field = np.exp(0.5 * x - 0.4 * y**2)
    return clean, clean * field, radius < 0.9


def spread(data, clean):
    inside = data[clean > 100]
    return inside.std() / inside.mean()


@pytest.fixture(scope="module")
def corrected(shaded_head):
    _, shaded, mask = shaded_head
    return correct_bias_field(shaded, mask, threads=1, shrink=2)


def test_bias_field_is_removed(shaded_head, corrected):
    clean, shaded, _ = shaded_head
    assert corrected.dtype == np.float32
    assert spread(shaded, clean) > 0.1
    assert spread(corrected, clean) < 0.03


def test_bias_correction_keeps_brightness_and_background(shaded_head, corrected):
    _, shaded, mask = shaded_head
    logarithm = np.log(corrected[mask] / shaded[mask])
    assert abs(logarithm.mean()) < 1e-3
    assert not corrected[shaded == 0].any()


def test_bias_correction_is_the_same_on_any_threads_and_in_any_order_of_memory(shaded_head, corrected):
    _, shaded, mask = shaded_head
    before = shaded.copy()
    turned, turned_mask = np.asfortranarray(shaded), np.asfortranarray(mask)  # as nibabel reads images
    found = correct_bias_field(turned, turned_mask, threads=3, shrink=2)
    np.testing.assert_array_equal(found, corrected)
    assert found.flags.f_contiguous
    np.testing.assert_array_equal(turned, before)


def test_the_field_is_n4s_own_at_its_voxels_and_no_worse_between_them(shaded_head, corrected):
    """The reference evaluates N4's splines at every voxel; ITK stretches them over the finer grid's whole extent."""
    import SimpleITK as sitk

    clean, shaded, mask = shaded_head
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfWorkUnits(8)
    method.SetMaximumNumberOfIterations([50, 50, 30, 20])
    method.SetConvergenceThreshold(0.001)
    inside = mask & (shaded > 0)
    every_second = (slice(1, None, 2),) * 3
    coarse = sitk.GetImageFromArray(shaded[every_second].astype(np.float32))
    method.Execute(coarse, sitk.GetImageFromArray(inside[every_second].astype(np.uint8)))
    field = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(coarse))
    there = inside[every_second]
    found = np.log(shaded[every_second][there] / corrected[every_second][there])
    # The mean over all voxels is taken off, not that over every second.
    np.testing.assert_allclose(found - found.mean(), field[there] - field[there].mean(), atol=1e-4)
    whole = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(sitk.GetImageFromArray(shaded.astype(np.float32))))
    assert spread(corrected, clean) <= spread(shaded / np.exp(whole), clean) + 1e-4


def test_bias_correction_needs_a_brain():
    data = np.ones((8, 8, 8))
    with pytest.raises(ValueError, match="the mask is empty"):
        correct_bias_field(data, np.zeros(data.shape, bool))
    with pytest.raises(ValueError, match=r"mask of shape \(4, 4, 4\) for an image of shape \(8, 8, 8\)"):
        correct_bias_field(data, np.ones((4, 4, 4), bool))


def test_white_matter_is_put_at_110():
    data = np.array([0, 40, 50, 60, 80, 400], np.int16).reshape(1, 2, 3)
    mask = (data > 45) & (data < 85)
    normalized = normalize_white_matter(data, mask)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.ravel(), [0, 73.333, 91.667, 110, 146.667, 255], atol=1e-3)
    np.testing.assert_array_equal(normalize_white_matter(data, 60.0), normalized)


@pytest.mark.parametrize("white_matter", [np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool), 0.0, np.nan])
def test_white_matter_that_is_missing(white_matter):
    with pytest.raises(ValueError, match="no white matter was found"):
        normalize_white_matter(np.zeros((2, 2, 2)), white_matter)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.65])
def test_white_matter_peak_is_the_brightest(share):
    rng = np.random.default_rng(0)
    size = 40_000
    white = int(size * share)
    data = np.concatenate(
        [rng.normal(30, 8, size // 10), rng.normal(75, 7, size - white), rng.normal(105, 5, white), np.full(50, 250)]
    )
    assert white_matter_peak(data, np.ones(len(data), bool)) == pytest.approx(105, abs=2)


def test_white_matter_peak_needs_a_brain():
    with pytest.raises(ValueError, match="the brain is empty"):
        white_matter_peak(np.zeros((3, 3, 3)), np.ones((3, 3, 3), bool))


def test_white_matter_peak_of_a_real_brain(shared):
    data = np.asarray(nib.load(shared / "data/reference/brain_a_T1w.nii.gz").dataobj)
    labels = np.asarray(nib.load(shared / "data/reference/brain_a_aseg.nii.gz").dataobj)
    median = np.median(data[np.isin(labels, (2, 41))])
    assert white_matter_peak(data, labels > 0) == pytest.approx(median, abs=4)


def test_a_shaded_head_is_normalised(shaded_head):
    """Bias field, peak and scaling together, as a run does them: white matter at 110, grey matter in proportion."""
    clean, shaded, mask = shaded_head
    corrected = correct_bias_field(shaded * 3.7, mask)
    normalized = normalize_white_matter(corrected, white_matter_peak(corrected, mask))
    white, grey = normalized[clean > 100], normalized[(clean > 50) & (clean < 90)]
    assert np.median(white) == pytest.approx(110, abs=2)
    assert np.median(grey) == pytest.approx(70, abs=4)
    assert white.std() < 5


def test_shifting_does_not_overflow():
    data = np.array([-1_100_000_000, 0, 1, 2_000_000_000], np.int32)
    shifted, _ = without_negative(data)
    np.testing.assert_allclose(shifted, [0, 1.1e9, 1.1e9, 3.1e9], rtol=1e-6)
