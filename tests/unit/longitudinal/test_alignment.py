"""Visits in the middle: whichever comes first, however they lie, with less in view, of another head."""

import itertools
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.interfaces.visit_steps import _lacking_notes
from medsegmamba_bids.longitudinal.alignment import Visit, align, common_masks, common_view
from medsegmamba_bids.longitudinal.class_files import PosteriorFolder
from medsegmamba_bids.longitudinal.fusion import fuse
from medsegmamba_bids.longitudinal.images import into_midspace, median_image

LIA = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
RADII = np.array([24.0, 30, 22])
# Label -> centre in mm and radius; the rest of the brain is white matter, left and right.
PLACES = {
    17: ((-11, -8, -6), 5),
    53: ((11, -8, -6), 5),
    4: ((-6, 2, 8), 6),
    43: ((6, 2, 8), 6),
    12: ((-13, 8, 2), 5),
    51: ((13, 8, 2), 5),
    16: ((0, -12, -14), 6),
}
BRIGHT = {0: 8, 2: 110, 41: 110, 17: 72, 53: 72, 4: 25, 43: 25, 12: 80, 51: 80, 16: 95}


def look(points):
    """Labels of a made head at points (mm)."""
    inside = np.linalg.norm(points / RADII, axis=-1) < 1
    labels = np.where(inside, np.where(points[..., 0] < 0, 2, 41), 0)
    for label, (centre, radius) in PLACES.items():
        labels[np.linalg.norm(points - np.array(centre), axis=-1) < radius] = label
    return labels


def rigid(angles, shift):
    return nib.affines.from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), shift)


def seen(grid, motion, seed):
    """Intensities and labels of the head, moved (or stretched), on a grid."""
    places = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    labels = look(nib.affines.apply_affine(np.linalg.inv(motion), places)).reshape(grid.shape)
    lookup = np.zeros(max(BRIGHT) + 1)
    lookup[list(BRIGHT)] = list(BRIGHT.values())
    noise = np.random.default_rng(seed).normal(0, 2, grid.shape)
    return np.clip(lookup[labels] + noise, 0, 255).astype(np.uint8), labels


def centred(axes, zoom, shape):
    linear = np.array(axes, float) * zoom
    return Grid(nib.affines.from_matvec(linear, -linear @ ((np.array(shape) - 1) / 2)), shape)


UNMOVED = np.eye(4)
CONFORMED = centred(LIA, 1.0, (72, 72, 84))


def make_visit(folder, name, motion=UNMOVED, seed=0, native=CONFORMED):
    """Files of a visit as the processing of a T1w by itself leaves them."""
    data, labels = seen(CONFORMED, motion, seed)
    own, _ = seen(native, motion, seed)
    paths = {key: folder / f"{name}_{key}.nii.gz" for key in ("native", "conformed", "labels", "mask")}
    save_image(own, native.affine, paths["native"])
    save_image(data, CONFORMED.affine, paths["conformed"])
    save_image(labels, CONFORMED.affine, paths["labels"], np.int16)
    save_image(labels > 0, CONFORMED.affine, paths["mask"], np.uint8)
    return Visit(name, *paths.values())


MOTIONS = {"a": np.eye(4), "b": rigid((4, -3, 5), (3, -2, 2)), "c": rigid((-2, 5, -3), (-2, 1, 3))}
NATIVE = {
    "a": CONFORMED,
    "b": centred(np.eye(3), 1.2, (64, 72, 60)),
    "c": centred([[0, 0, 1], [-1, 0, 0], [0, 1, 0]], 0.9, (92, 80, 84)),
}


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """One head three times, moved, the T1w in other orientations and voxels."""
    folder = tmp_path_factory.mktemp("visits")
    return [make_visit(folder, name, motion, seed, NATIVE[name]) for seed, (name, motion) in enumerate(MOTIONS.items())]


@pytest.fixture(scope="module")
def alignment(visits):
    return align(visits)


def test_visits_in_other_orientations_lie_on_each_other(alignment, visits):
    border = RADII * np.concatenate([np.eye(3), -np.eye(3)])
    middles = [
        nib.affines.apply_affine(matrix @ MOTIONS[visit.name], border)
        for matrix, visit in zip(alignment.transforms, visits, strict=True)
    ]
    for here, there in itertools.combinations(middles, 2):
        assert np.linalg.norm(here - there, axis=1).max() < 0.25
    assert min(alignment.overlaps) > 0.95


def test_the_order_of_visits_does_not_matter(alignment, visits):
    other = align(visits[::-1])
    np.testing.assert_array_equal(other.transforms[::-1], alignment.transforms)
    np.testing.assert_array_equal(other.grid.affine, alignment.grid.affine)
    assert other.overlaps[::-1] == alignment.overlaps


def test_equal_visits_lie_exactly_alike(tmp_path, visits):
    again = make_visit(tmp_path, "again", MOTIONS["b"], 1, NATIVE["b"])
    first, second = align([visits[1], again]).transforms
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, np.eye(4), atol=1e-12)


def test_another_persons_visit_is_named(tmp_path, visits):
    stranger = make_visit(tmp_path, "stranger", np.diag([0.75, 0.7, 0.75, 1]))
    with pytest.raises(ImageError, match=r"does not show the same head as the other visits: .*are the sessions of one"):
        align([visits[0], stranger])


def test_a_visit_that_shows_less_is_named(tmp_path, visits):
    # The upper end of the brain, which is 22 mm high, beyond 17 mm: the cap of an ellipsoid.
    short = centred(np.eye(3), 1.0, (72, 72, 64))
    cut = Grid(short.affine, (72, 72, 49))
    visit = make_visit(tmp_path, "short", MOTIONS["a"], 7, cut)
    pair = [visits[0], visit]
    both = align(pair)
    brain, white = common_masks(pair, both)
    view, lacking = common_view(pair, both, brain)
    top = cut.to_world(np.array([[0, 0, 48.5]]))[0, 2]
    share = (22 - top) ** 2 * (2 * 22 + top) / (4 * 22**3)
    assert lacking == pytest.approx([0, share], abs=0.01)
    assert not view.all()
    assert 0 < white.sum() < brain.sum()
    with pytest.raises(ImageError, match=r"short lacks \d+ % of the brain, which lies outside its field of view"):
        _lacking_notes(["whole", "short"], [0.0, 0.09])
    (note,) = _lacking_notes(["whole", "short"], lacking)
    assert note.startswith(f"short lacks {100 * lacking[1]:.1f} % of the brain")


def test_what_not_all_visits_show_is_empty_in_all():
    grid = Grid(np.eye(4), (6, 6, 6))
    view = np.ones(grid.shape, bool)
    view[4:] = False
    moved = into_midspace(np.full(grid.shape, 50, np.int16), grid, grid, view)
    assert not moved[4:].any()
    assert moved[:4].min() >= 0


def peak_of(call):
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_twelve_visits_take_no_more_memory_than_two(tmp_path):
    shape = (32, 32, 128)
    rng = np.random.default_rng(0)
    folders, paths = [], []
    for number in range(12):
        paths.append(tmp_path / f"{number}.nii")
        save_image(rng.integers(0, 200, shape), np.eye(4), paths[-1], np.uint8)
        with PosteriorFolder(tmp_path / str(number)) as out:
            share = rng.random(shape, np.float32)
            for index, values in enumerate((share, 1 - share)):
                out(index, Box.whole(shape), values)
        folders.append(PosteriorFolder.of(out.path))
    two, twelve = (peak_of(lambda n=n: fuse(folders[0], folders[:n])) for n in (2, 12))
    assert twelve < 1.05 * two
    # A slab of 16 planes of each image, whatever their number of planes.
    in_memory = 12 * np.prod(shape) * 4
    assert peak_of(lambda: median_image(paths)) < in_memory / 2
