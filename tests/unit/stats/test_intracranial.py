from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.stats import intracranial
from medsegmamba_bids.stats.intracranial import (
    PLAUSIBLE_MM3,
    Template,
    estimate_etiv,
    find_template,
    head_around,
    nilearn_template,
    register_affine,
    shows_skull,
    similarity_from_labels,
    to_xfm,
)

# From the head to the template: a head that is larger, tilted by some degrees, sheared and moved.
AFFINE = np.array([[0.92, 0.08, -0.03, 3.0], [-0.09, 0.88, 0.06, -15.0], [0.02, -0.05, 1.04, 8.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def head():
    """The template, and structures as small cubes where they lie in it.

    As a head it is 0 where a real one goes on, which costs the last percent of its volume.
    """
    image = nib.load(find_template().path)
    data, affine = image.get_fdata(dtype=np.float32), image.affine
    places = pd.read_csv(data_path("template/centroids.tsv"), sep="\t")
    labels = np.zeros(data.shape, np.uint16)
    for label, *place in places.itertuples(index=False):
        voxel = np.rint(apply_affine(np.linalg.inv(affine), place)).astype(int)
        labels[tuple(slice(v - 2, v + 3) for v in voxel)] = label
    return data, labels, affine


@pytest.fixture(scope="module")
def start(head):
    """As if the brain were some percent smaller, and tilted, in its skull: what labels alone say."""
    return nib.affines.from_matvec(np.diag([1.05, 0.94, 1.06]), [2, -3, 2]) @ AFFINE


@pytest.fixture(scope="module")
def found(head, start):
    data, _, affine = head
    return register_affine(data, np.linalg.inv(AFFINE) @ affine, data, affine, start)


# Registration


def test_volume_of_a_transformed_copy(start, found):
    expected = np.linalg.det(AFFINE[:3, :3])
    assert abs(np.linalg.det(start[:3, :3]) / expected - 1) > 0.04
    assert np.linalg.det(found[:3, :3]) == pytest.approx(expected, rel=0.02)


def test_points_of_a_transformed_copy(head, found):
    data, _, affine = head
    points = apply_affine(np.linalg.inv(AFFINE) @ affine, np.argwhere(data > 0)[::500])
    apart = np.linalg.norm(apply_affine(found, points) - apply_affine(AFFINE, points), axis=1)
    assert apart.max() < 2
    assert np.median(apart) < 0.7


def test_other_voxels_and_axes_give_the_same(head, start, found):
    """The head on a grid of its own: other sizes of voxels, axes in another order, other brightness."""
    data, _, affine = head
    grid = nib.affines.from_matvec(np.array([[0, 0, 1.1], [-1.2, 0, 0], [0, -0.9, 0]]), [-105, 130, 110])
    there = np.linalg.inv(np.linalg.inv(AFFINE) @ affine) @ grid
    moved = ndimage.affine_transform(data, there[:3, :3], there[:3, 3], (210, 230, 190), order=1)
    other = register_affine(moved * 13, grid, data, affine, start)
    assert np.linalg.det(other[:3, :3]) == pytest.approx(np.linalg.det(AFFINE[:3, :3]), rel=0.02)


def test_same_on_any_number_of_threads(head, start, found):
    data, _, affine = head
    again = register_affine(data, np.linalg.inv(AFFINE) @ affine, data, affine, start, threads=2)
    np.testing.assert_array_equal(again, found)


def test_nothing_to_register(head):
    data, _, affine = head
    with pytest.raises(ImageError, match="0 everywhere"):
        register_affine(np.zeros((20, 20, 20)), np.eye(4), data, affine, np.eye(4))


# Where the head lies, and whether there is one


def test_labels_tell_where_the_head_lies(head):
    """A head that is larger by an eighth, turned by 9 and 5 degrees and moved."""
    _, labels, affine = head
    turned = Rotation.from_euler("zx", (9, 5), degrees=True).as_matrix() * 0.89
    expected = from_matvec(turned, (3.0, -15.0, 8.0))
    found = similarity_from_labels(labels, np.linalg.inv(expected) @ affine)
    points = apply_affine(np.linalg.inv(expected), [[0, 0, 0], [40, -60, 30], [-30, 20, 50]])
    np.testing.assert_allclose(apply_affine(found, points), apply_affine(expected, points), atol=1.0)


def test_a_brain_that_is_stretched_in_the_middle_stretches_no_start(head):
    """Wide ventricles push thalami, pallida and what is around them apart; the start keeps every angle."""
    _, labels, affine = head
    wide = np.linalg.inv(from_matvec(np.diag((0.7, 0.9, 1.1)))) @ affine
    matrix = similarity_from_labels(labels, wide)[:3, :3]
    scales = np.linalg.svd(matrix, compute_uv=False)
    assert np.linalg.det(matrix) > 0
    np.testing.assert_allclose(scales, scales.mean(), rtol=1e-6)
    assert 0.75 < scales.mean() < 1.05


def test_too_few_labels_tell_nothing(head):
    labels = head[1].copy()
    labels[~np.isin(labels, (10, 49, 16, 4, 43, 17, 53))] = 0
    assert similarity_from_labels(labels, np.eye(4)) is None


def test_a_skull_is_seen_where_there_is_one():
    side = np.arange(128) - 64
    radius = np.sqrt(side[:, None, None] ** 2 + side[:, None] ** 2 + side**2)
    brain = radius < 40
    whole = np.select([radius < 40, radius < 46, radius < 58], [110, 8, 90], 3)
    assert shows_skull(whole, brain)
    assert not shows_skull(np.where(radius < 42, whole, 0), brain)
    assert shows_skull(whole[::3, ::3, ::3], brain[::3, ::3, ::3], voxel_mm=3.0)
    assert not shows_skull(whole, np.zeros_like(brain))


# Volume


def test_etiv_of_a_transformed_copy(found):
    # The head is larger than the template by 1 / det.
    expected = find_template().volume / np.linalg.det(AFFINE[:3, :3])
    assert expected > find_template().volume
    assert estimate_etiv(found, find_template()) == pytest.approx(expected, rel=0.02)


def test_a_mirrored_head_has_a_volume_too():
    template = Template("x", nilearn_template(), 1000.0, "")
    assert estimate_etiv(np.diag([-2.0, 1, 1, 1]), template) == 500


def test_plausible_volumes():
    low, high = PLAUSIBLE_MM3
    assert low < 1_100_000 < 2_000_000 < high  # small and large adults
    assert high < 2_200_000


def test_transform_as_text():
    text = to_xfm(AFFINE)
    assert text.endswith("\n")
    np.testing.assert_allclose([[float(value) for value in row.split()] for row in text.splitlines()], AFFINE)


# Templates


def test_one_template_on_every_machine(tmp_path, monkeypatch):
    """What lies in the machine's cache makes no difference."""
    path = tmp_path / "tpl-MNI305" / "tpl-MNI305_T1w.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"an image")
    before = find_template()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    assert find_template() == before
    assert before.path.is_relative_to(Path(str(data_path("template"))))
    assert "MIT licence" in (before.path.parent / "NOTICE.txt").read_text()


def test_nilearn_without_its_template(tmp_path, monkeypatch):
    class Spec:
        origin = str(tmp_path / "nilearn" / "__init__.py")

    monkeypatch.setattr(intracranial, "find_spec", lambda name: Spec)
    with pytest.raises(FileNotFoundError, match="nilearn's MNI152 template is not there; install nilearn anew"):
        nilearn_template()


# A real head


def test_a_real_head_has_a_plausible_volume(shared):
    image = nib.load(shared / "data/bids/sub-02/anat/sub-02_T1w.nii.gz")
    labels = np.asanyarray(nib.load(shared / "data/reference/head_sub-02_aseg.nii.gz").dataobj)
    data, brain = np.asanyarray(image.dataobj), labels > 0
    assert shows_skull(data, brain)
    assert not shows_skull(np.where(brain, data, 0), brain)
    template = find_template()
    fixed = nib.load(template.path)
    box, start = head_around(brain), similarity_from_labels(labels.astype(int), image.affine)
    transform = register_affine(
        data[box], box.shift(image.affine), fixed.get_fdata(dtype=np.float32), fixed.affine, start
    )
    etiv = estimate_etiv(transform, template)
    assert PLAUSIBLE_MM3[0] < etiv < PLAUSIBLE_MM3[1]
    assert 0.72 < np.count_nonzero(brain) / etiv < 0.92
