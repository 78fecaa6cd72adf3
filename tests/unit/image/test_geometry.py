import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import affine_transform, map_coordinates

from medsegmamba_bids.image.geometry import (
    conform,
    conformed_grid,
    count_outside,
    is_conformed,
    labels_to_grid,
    resample,
)
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.intensity import robust_scale

RAS, LIA = np.eye(3), np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def oblique(zooms, seed=0, degrees=10):
    """An affine (4, 4) turned about a random axis."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    turned = nib.eulerangles.angle_axis2euler(np.deg2rad(degrees), axis / np.linalg.norm(axis))
    return from_matvec(nib.eulerangles.euler2mat(*turned) @ np.diag(zooms), rng.uniform(-20, 20, 3))


def grid_points(affine, shape):
    """Positions (X, Y, Z, 3) in mm of all voxels."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def rescaled(grid, voxel_size):
    """A grid over the same volume with other, isotropic voxels; the outer faces of the first voxels coincide."""
    shape = np.ceil(np.array(grid.shape) * grid.zooms / voxel_size - 1e-6)
    scale = voxel_size / grid.zooms
    return Grid(grid.affine @ from_matvec(np.diag(scale), (scale - 1) / 2), shape)


def random_labels(shape, count, seed=0):
    """Blobs of labels 1..count on background."""
    rng = np.random.default_rng(seed)
    points = np.moveaxis(np.indices(shape), 0, -1)
    seeds = rng.uniform(0, shape, (3 * count, 3))
    nearest = np.linalg.norm(points[..., None, :] - seeds, axis=-1).argmin(-1)
    return np.where(nearest < count, nearest + 1, 0).astype(np.uint8)


def noise(shape):
    """Labels 2 to 2035 and background without any order."""
    return np.random.default_rng(0).choice(np.array([0, 2, 3, 41, 1035, 2035], np.uint16), shape)


# Conforming


@pytest.mark.parametrize("seed", range(3))
def test_conformed_grid_keeps_the_centre(seed):
    shape = tuple(np.random.default_rng(seed).integers(20, 400, 3))
    affine = oblique((0.7, 1.1, 2.0), seed)
    out = conformed_grid(Grid(affine, shape)).affine
    np.testing.assert_array_equal(out[:3, :3], LIA)
    assert nib.aff2axcodes(out) == ("L", "I", "A")
    np.testing.assert_allclose(apply_affine(out, (128, 128, 128)), apply_affine(affine, np.array(shape) / 2))


@pytest.fixture(scope="module")
def ramp():
    """An image whose intensity is a linear function of the position, and the function."""

    def intensity(points):
        return points @ [0.8, -0.5, 1.1] + 125

    affine, shape = oblique((2.0, 1.7, 2.2)), (40, 44, 36)
    centre = apply_affine(affine, np.array(shape) / 2)
    affine[:3, 3] -= centre
    return nib.Nifti1Image(intensity(grid_points(affine, shape)).astype(np.float32), affine), intensity


@pytest.fixture(scope="module")
def conformed_ramp(ramp):
    return conform(ramp[0])


def test_conforming_moves_values_to_their_places(ramp, conformed_ramp):
    image, intensity = ramp
    offset, factor = robust_scale(np.asarray(image.dataobj))
    some = np.moveaxis(np.mgrid[100:150:3, 100:150:3, 100:150:3], 0, -1)
    points = apply_affine(conformed_ramp.affine, some)
    indices = apply_affine(np.linalg.inv(image.affine), points)
    inside = ((indices > 0) & (indices < np.array(image.shape) - 1)).all(-1)
    assert inside.mean() > 0.9
    expected = np.clip((intensity(points) - offset) * factor, 0, 255)
    found = np.asarray(conformed_ramp.dataobj)[100:150:3, 100:150:3, 100:150:3]
    assert np.abs(found - expected)[inside].max() <= 0.51


def test_conformed_image(ramp, conformed_ramp):
    image, _ = ramp
    data = np.asarray(conformed_ramp.dataobj)
    assert data.shape == (256, 256, 256)
    assert data.dtype == conformed_ramp.get_data_dtype() == np.uint8
    assert is_conformed(conformed_ramp)
    assert not is_conformed(image)
    assert data.max() == 255
    indices = apply_affine(np.linalg.inv(image.affine) @ conformed_ramp.affine, np.argwhere(data))
    assert indices.min() > -1e-3
    assert (indices.max(0) < np.array(image.shape) - 1 + 1e-3).all()


def test_conforming_twice_changes_nothing(conformed_ramp):
    again = conform(conformed_ramp)
    assert np.shares_memory(np.asarray(again.dataobj), np.asarray(conformed_ramp.dataobj))
    np.testing.assert_array_equal(again.affine, conformed_ramp.affine)


def low(top, dtype):
    """A head of values up to ``top``."""
    data = np.zeros((30, 30, 30), dtype)
    data[5:25, 5:25, 5:25] = np.random.default_rng(0).integers(top // 3, top + 1, (20, 20, 20))
    return data


@pytest.mark.parametrize("top", [50, 150, 200, 255])
def test_the_range_decides_what_is_rescaled_and_not_the_type(top):
    outs = [
        np.asarray(conform(nib.Nifti1Image(low(top, dtype), np.eye(4))).dataobj)
        for dtype in (np.uint8, np.int16, np.uint16, np.float32)
    ]
    assert [out.max() for out in outs[1:]] == [255] * 3
    if top < 180:
        np.testing.assert_array_equal(outs[0], outs[1])
    else:  # bright enough as it is
        assert np.array_equal(np.bincount(outs[0].ravel())[1:], np.bincount(low(top, np.uint8).ravel())[1:])


@pytest.mark.parametrize(("top", "expected"), [(130, 130), (50, 255)])
def test_bytes_on_the_conformed_grid_are_left_alone_unless_they_are_dark(top, expected):
    data = np.pad(low(top, np.uint8), [(0, 226)] * 3)
    affine = conformed_grid(Grid(np.eye(4), (256, 256, 256))).affine
    out = np.asarray(conform(nib.Nifti1Image(data, affine)).dataobj)
    assert out.max() == expected
    if top == expected:
        np.testing.assert_array_equal(out, data)
    else:
        as_int16 = conform(nib.Nifti1Image(data.astype(np.int16), affine))
        np.testing.assert_array_equal(out, as_int16.dataobj)


def test_lowest_intensity_becomes_the_surroundings():
    data = np.full((20, 20, 20), 1000, np.int16)
    data[8:12, 8:12, 8:12] = 3000
    out = np.asarray(conform(nib.Nifti1Image(data, np.eye(4))).dataobj)
    assert (out == 255).sum() == 64
    assert (out == 0).sum() == 256**3 - 64


@pytest.mark.parametrize("name", ["sub-04", "sub-03", "sub-02"])
def test_real_head_is_conformed_as_another_tool_does(shared, name):
    folder = shared / "data/bids"
    ours = conform(nib.load(folder / f"{name}/anat/{name}_T1w.nii.gz"))
    name_of_theirs = {"sub-04": "sub-03"}.get(name, name)
    theirs = nib.load(folder / f"{name_of_theirs}/anat/{name_of_theirs}_T1w.nii.gz")
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    difference = np.abs(np.asarray(ours.dataobj).astype(np.int16) - np.asarray(theirs.dataobj))
    assert difference.max() <= (name == "sub-04")
    # Their affine is rounded to single precision, which decides ties: 2670 voxels when this was written.
    assert np.count_nonzero(difference) < (5000 if name == "sub-04" else 1)


# What does not fit


@pytest.mark.parametrize("seed", range(4))
def test_voxels_outside_are_counted(seed):
    rng = np.random.default_rng(seed)
    affine, to_affine = oblique((1.3, 0.9, 1.1), seed), oblique((1.0, 1.2, 1.4), seed + 10)
    shape, to_shape = (20, 22, 24), (18, 20, 16)
    data = rng.normal(size=shape)
    there = apply_affine(np.linalg.inv(to_affine) @ affine, np.moveaxis(np.indices(shape), 0, -1))
    outside = ((there < -0.5) | (there > np.array(to_shape) - 0.5)).any(-1)
    expected = np.count_nonzero(outside & (data > 0.3))
    assert 0 < expected == count_outside(data, 0.3, Grid(affine, shape), Grid(to_affine, to_shape))


def test_long_field_of_view_warns_of_signal_outside(caplog):
    data = np.zeros((8, 8, 150), np.float32)
    data[:, :, 30:120] = 500
    data[3, 4, [0, 1, 2, 147]] = 300  # z = -150, -148, -146 and 144 mm from the centre
    data[5, 5, :] += 20  # noise, which may be lost
    conform(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])))
    assert "4 voxels with signal (0.00 litres) lie outside the conformed cube of 256 mm" in caplog.text


def test_long_field_of_view_of_noise_is_silent(caplog):
    data = np.full((8, 8, 150), 5, np.int16)
    data[:, :, 30:120] = 500
    conform(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])))
    assert not caplog.records


# Resampling


@pytest.mark.parametrize("seed", range(3))
def test_resampling_agrees_with_coordinates_one_by_one(seed):
    data = np.random.default_rng(seed).random((12, 14, 10)).astype(np.float32)
    affine, to_affine, to_shape = oblique((1.2, 0.8, 1.5), seed), oblique((1.0, 0.9, 1.3), seed + 5), (11, 13, 12)
    to_affine[:3, 3] += apply_affine(affine, (6, 7, 5)) - apply_affine(to_affine, (5, 6, 6))
    coordinates = apply_affine(np.linalg.inv(affine), grid_points(to_affine, to_shape))
    expected = map_coordinates(data, np.moveaxis(coordinates, -1, 0), order=1, cval=-3)
    found = resample(data, Grid(affine, data.shape), Grid(to_affine, to_shape), fill=-3)
    assert found.dtype == np.float32
    assert (found > -3).mean() > 0.2
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("matrix", [RAS, LIA, np.array([[0, -1.0, 0], [0, 0, 1], [1, 0, 0]])])
def test_reordered_axes_are_exact(matrix):
    data = np.random.default_rng(0).integers(0, 30000, (7, 8, 9)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([1.5, 2, 0.7, 1]))
    turned = image.as_reoriented(nib.orientations.io_orientation(np.linalg.inv(from_matvec(matrix))))
    found = resample(data, Grid.of(image), Grid.of(turned))
    np.testing.assert_allclose(found, turned.dataobj, rtol=1e-5)
    back = resample(found, Grid.of(turned), Grid.of(image))
    np.testing.assert_allclose(back, data, rtol=1e-5)


@pytest.mark.parametrize("zooms", [(1, 1, 1), (0.8, 0.8, 0.8), (0.9, 1.2, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_outermost_voxels_stay_wherever_an_image_lies(zooms, seed):
    """Rounding put their centres 1e-14 beyond the image, and a plane of a head that reaches so far was lost."""
    origin = np.random.default_rng(seed).uniform(-150, 150, 3)
    grid = Grid(from_matvec(RAS @ np.diag(zooms), origin), (40, 40, 40))
    there = conformed_grid(grid)
    at = apply_affine(grid.to_voxels_of(there), [[0, 0, 0], [39, 39, 39]])
    sides = [np.floor(high + 1e-6) - np.ceil(low - 1e-6) + 1 for low, high in np.sort(at, axis=0).T]
    moved = resample(np.full(grid.shape, 100, np.uint8), grid, there)
    assert np.count_nonzero(moved > 99.9) == np.prod(sides)
    assert np.isin(moved, (0, 100)).all()


def test_resampling_does_not_change_its_input():
    data = np.random.default_rng(0).random((5, 6, 7))
    before = data.copy()
    resample(data, Grid(np.eye(4), data.shape), Grid(np.diag([2.0, 2, 2, 1]), (2, 2, 2)))
    np.testing.assert_array_equal(data, before)


# Labels


def labels_by_one_hot(labels, affine, to_affine, to_shape):
    """All classes at once: shares of every label and the background, the largest wins, ties go to labels."""
    coordinates = np.moveaxis(apply_affine(np.linalg.inv(affine), grid_points(to_affine, to_shape)), -1, 0)
    shares = [
        map_coordinates((labels == label).astype(float), coordinates, order=1, mode="grid-constant", cval=label == 0)
        for label in range(labels.max() + 1)
    ]
    shares[0] = shares[0] - 1e-6
    winner = np.argmax(shares, 0)
    runner_up, best = np.sort(shares, 0)[-2:]
    return winner, best - runner_up > 1e-5


@pytest.mark.parametrize(
    ("affine", "to_affine", "to_shape"),
    [
        (oblique((1.2, 1.0, 1.1), 0), oblique((0.8, 0.9, 1.3), 1), (22, 24, 16)),
        (np.diag([1.0, 1, 1, 1]), np.diag([0.7, 0.7, 0.7, 1]), (24, 26, 20)),
        (np.diag([1.0, 1, 1, 1]), np.diag([2.0, 1.5, 1.1, 1]), (8, 12, 14)),
        (np.diag([1.0, 1, 1, 1]), from_matvec(0.9 * LIA, [14, 1, 13]), (15, 14, 16)),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_labels_are_those_of_the_largest_share(affine, to_affine, to_shape, seed):
    labels = random_labels((16, 18, 14), 6, seed)
    to_affine = to_affine.copy()
    if not np.allclose(to_affine[:3, :3], np.diag(np.diag(to_affine)[:3])):
        middle = apply_affine(to_affine, np.array(to_shape) / 2)
        to_affine[:3, 3] += apply_affine(affine, (8, 9, 7)) - middle
    expected, clear = labels_by_one_hot(labels, affine, to_affine, to_shape)
    found = labels_to_grid(labels, Grid(affine, labels.shape), Grid(to_affine, to_shape))
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == set(range(7))
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear])


def labels_one_after_the_other(labels, grid, to_grid):
    """Each label's mask interpolated by SciPy in float32; ties included, what the compiled loop must give."""
    matrix = to_grid.to_voxels_of(grid)
    winner, (best, total) = np.zeros(to_grid.shape, labels.dtype), np.zeros((2, *to_grid.shape), np.float32)
    for label in np.unique(labels[labels > 0]):
        mask, share = (labels == label).astype(np.float32), np.zeros(to_grid.shape, np.float32)
        linear, offset = matrix[:3, :3], matrix[:3, 3]
        affine_transform(mask, linear, offset, to_grid.shape, share, order=1, mode="grid-constant", prefilter=False)
        total += share
        better = share > best
        best[better], winner[better] = share[better], label
    winner[best < 1 - total] = 0
    return winner


def about(middle, affine, shape):
    """A grid whose middle lies at a point."""
    moved = affine.copy()
    moved[:3, 3] += middle - apply_affine(affine, (np.array(shape) - 1) / 2)
    return Grid(moved, shape)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("labels", [random_labels((16, 18, 14), 6), noise((16, 18, 14))], ids=["blobs", "noise"])
@pytest.mark.parametrize(
    ("to_affine", "to_shape"),
    [
        (np.diag([0.5, 0.5, 0.5, 1]), (40, 40, 40)),  # ties at a third of the voxels
        (np.eye(4), (17, 21, 13)),  # ties at all of them
        (np.diag([0.67, 0.7, 0.67, 1]), (24, 26, 20)),
        (np.diag([3.0, 3, 3, 1]), (8, 8, 8)),
        (from_matvec(0.9 * LIA), (20, 24, 14)),
        (from_matvec(np.array([[0, -1.1, 0], [0, 0, 1], [0.8, 0, 0]])), (20, 24, 14)),
        (oblique((0.8, 0.9, 1.3), 1), (22, 24, 16)),
        (oblique((1.0, 1.0, 1.0), 2, 45), (20, 20, 20)),
        (oblique((2.0, 0.5, 1.0), 3, 80), (9, 40, 20)),
    ],
)
def test_labels_are_those_of_one_label_after_the_other(labels, to_affine, to_shape, order):
    grid = Grid(np.eye(4), labels.shape)
    to_grid = about((7.5, 8.5, 6.5), to_affine, to_shape)
    found = labels_to_grid(np.array(labels, order=order), grid, to_grid)
    np.testing.assert_array_equal(found, labels_one_after_the_other(labels, grid, to_grid))
    assert found.dtype == labels.dtype
    assert found.flags[f"{order}_CONTIGUOUS"]


@pytest.mark.parametrize("shift", [0, 2e-4])
def test_labels_on_their_own_grid_are_untouched(shift):
    labels = np.random.default_rng(0).integers(0, 2300, (9, 8, 7)).astype(np.uint16)
    affine = oblique((1.0, 1.1, 1.2))
    moved = affine + from_matvec(np.zeros((3, 3)), [shift] * 3)
    out = labels_to_grid(labels, Grid(affine, labels.shape), Grid(moved, labels.shape))
    np.testing.assert_array_equal(out, labels)
    assert out is not labels


def test_labels_in_another_orientation_are_untouched():
    labels = np.random.default_rng(0).integers(0, 5, (9, 8, 7)).astype(np.uint16)
    image = nib.Nifti1Image(labels, from_matvec(LIA, [100, -80, 90]))
    turned = nib.as_closest_canonical(image)
    out = labels_to_grid(labels, Grid.of(image), Grid.of(turned))
    np.testing.assert_array_equal(out, turned.dataobj)
    np.testing.assert_array_equal(labels_to_grid(out, Grid.of(turned), Grid.of(image)), labels)


def test_labels_survive_a_finer_grid_and_back():
    labels = random_labels((16, 16, 16), 8)
    grid = Grid(np.eye(4), labels.shape)
    fine = rescaled(grid, 1 / 3)  # every third voxel lies on an old one
    there = labels_to_grid(labels, grid, fine)
    np.testing.assert_array_equal(there[1::3, 1::3, 1::3], labels)
    np.testing.assert_array_equal(labels_to_grid(there, fine, grid), labels)


def test_label_at_the_border_fills_its_voxels_and_no_more():
    labels = np.full((4, 4, 4), 17, np.uint16)
    fine = from_matvec(np.eye(3) / 4, np.full(3, -1.375))  # 1 mm more than the field of view on each side
    out = labels_to_grid(labels, Grid(np.eye(4), labels.shape), Grid(fine, (24, 24, 24)))
    np.testing.assert_array_equal(np.unique(np.argwhere(out[:, 12, 12])), np.arange(4, 20))
    assert out[12, 12, 12] == 17
    assert out.max() == 17


def test_volumes_are_kept():
    radius = np.linalg.norm(np.moveaxis(np.indices((40, 40, 40)), 0, -1) - 19.3, axis=-1)
    labels = np.where(radius < 8, 2, np.where(radius < 14, 1, 0)).astype(np.uint8)
    to_affine = oblique((0.8, 1.1, 0.9), 3)
    to_affine[:3, 3] += 19.3 - apply_affine(to_affine, (25, 20, 23))
    out = labels_to_grid(labels, Grid(np.eye(4), labels.shape), Grid(to_affine, (50, 40, 46)))
    voxel = np.linalg.det(to_affine[:3, :3])
    for label in (1, 2):
        assert (out == label).sum() * voxel == pytest.approx((labels == label).sum(), rel=0.01)


def test_labels_outside_the_new_grid_are_dropped():
    labels = np.zeros((10, 10, 10), np.uint16)
    labels[0, 0, 0], labels[9, 9, 9] = 2203, 2204
    grid = Grid(np.eye(4), labels.shape)
    out = labels_to_grid(labels, grid, Grid(from_matvec(np.eye(3), [5, 5, 5]), (10, 10, 10)))
    assert np.argwhere(out).tolist() == [[4, 4, 4]]
    assert out[4, 4, 4] == 2204
    far = labels_to_grid(labels, grid, Grid(from_matvec(np.eye(3), [50, 0, 0]), (3, 4, 5)))
    assert far.shape == (3, 4, 5)
    assert not far.any()


def test_no_labels():
    coarse = Grid(np.diag([2.0, 2, 2, 1]), (2, 2, 2))
    out = labels_to_grid(np.zeros((3, 3, 3), np.uint16), Grid(np.eye(4), (3, 3, 3)), coarse)
    assert out.dtype == np.uint16
    assert not out.any()


def test_equal_shares_go_to_the_smaller_label():
    labels = np.array([5, 3, 0, 3, 4, 4], np.uint8).reshape(1, 1, 6)
    between = Grid(from_matvec(np.eye(3), [0, 0, 0.5]), (1, 1, 5))
    assert labels_to_grid(labels, Grid(np.eye(4), labels.shape), between).ravel().tolist() == [3, 3, 3, 3, 4]


def test_real_labels_come_back_from_another_grid(shared):
    image = nib.load(shared / "data/reference/head_sub-05_aseg.nii.gz")
    labels = np.asarray(image.dataobj).astype(np.uint16)
    fine = rescaled(Grid.of(image), 1.0)
    assert fine.shape == tuple(3 * n for n in image.shape)
    target = fine.cut(Box(slice(3 * s.start, 3 * s.stop) for s in Box.around(labels, 1)))
    there = labels_to_grid(labels, Grid.of(image), target)
    back = labels_to_grid(there, target, Grid.of(image))
    assert (back == labels)[labels > 0].mean() > 0.99
