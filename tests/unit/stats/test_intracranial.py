import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from medsegmamba_bids.stats import intracranial
from medsegmamba_bids.stats.intracranial import (
    MNI152,
    MNI305,
    PLAUSIBLE_MM3,
    Template,
    estimate_etiv,
    find_template,
    nilearn_template,
    register_affine,
    to_xfm,
)

# From the head to the template: a head that is larger, tilted by some degrees, sheared and moved.
AFFINE = np.array([[0.92, 0.08, -0.03, 3.0], [-0.09, 0.88, 0.06, -15.0], [0.02, -0.05, 1.04, 8.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def brain():
    """nilearn's template at 2 mm, which is enough and eight times faster."""
    image = nib.load(nilearn_template())
    data = ndimage.uniform_filter(image.get_fdata(dtype=np.float32), 2)[1::2, 1::2, 1::2]
    data[data < 0.02 * data.max()] = 0
    return data, image.affine @ nib.affines.from_matvec(np.diag([2.0, 2, 2]), [0.5, 0.5, 0.5])


@pytest.fixture(scope="module")
def found(brain):
    data, affine = brain
    return register_affine(data, np.linalg.inv(AFFINE) @ affine, data, affine)


# Registration


def test_volume_of_a_transformed_copy(brain, found):
    assert np.linalg.det(found[:3, :3]) == pytest.approx(np.linalg.det(AFFINE[:3, :3]), rel=0.01)


def test_points_of_a_transformed_copy(brain, found):
    data, affine = brain
    points = apply_affine(np.linalg.inv(AFFINE) @ affine, np.argwhere(data > 0)[::500])
    apart = np.linalg.norm(apply_affine(found, points) - apply_affine(AFFINE, points), axis=1)
    assert apart.max() < 1.5
    assert np.median(apart) < 0.6


def test_other_voxels_and_axes_give_the_same(brain, found):
    """The head on a grid of its own: other sizes of voxels, axes in another order, other brightness."""
    data, affine = brain
    grid = nib.affines.from_matvec(np.array([[0, 0, 2.2], [-2.5, 0, 0], [0, -1.8, 0]]), [-105, 110, 110])
    there = np.linalg.inv(np.linalg.inv(AFFINE) @ affine) @ grid
    head = ndimage.affine_transform(data, there[:3, :3], there[:3, 3], (88, 120, 96), order=1)
    other = register_affine(head * 13, grid, data, affine)
    assert np.linalg.det(other[:3, :3]) == pytest.approx(np.linalg.det(AFFINE[:3, :3]), rel=0.01)


def test_same_on_any_number_of_threads(brain, found):
    data, affine = brain
    again = register_affine(data, np.linalg.inv(AFFINE) @ affine, data, affine, threads=2)
    np.testing.assert_array_equal(again, found)


def test_empty_surroundings_make_no_difference(brain, found):
    data, affine = brain
    # Beyond 16 mm of background nothing is looked at.
    once, more = (np.pad(data, n) for n in (10, 25))
    first, second = (
        register_affine(
            padded, np.linalg.inv(AFFINE) @ affine @ nib.affines.from_matvec(np.eye(3), [-n] * 3), data, affine
        )
        for padded, n in ((once, 10), (more, 25))
    )
    np.testing.assert_allclose(first, second, atol=1e-9)


def test_nothing_to_register(brain):
    data, affine = brain
    with pytest.raises(ValueError, match="0 everywhere"):
        register_affine(np.zeros((20, 20, 20)), np.eye(4), data, affine)


# Volume


def test_etiv_of_a_transformed_copy(found):
    template = Template("x", nilearn_template(), MNI152[1], True, "")
    # The head is larger than the template by 1 / det.
    expected = MNI152[1] / np.linalg.det(AFFINE[:3, :3])
    assert expected > MNI152[1]
    assert estimate_etiv(found, template) == pytest.approx(expected, rel=0.01)


def test_a_mirrored_head_has_a_volume_too():
    template = Template("x", nilearn_template(), 1000.0, True, "")
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


def test_the_constant_of_nilearns_template_is_its_volume():
    image = nib.load(nilearn_template())
    voxels = np.count_nonzero(np.asanyarray(image.dataobj) > 0)
    assert MNI152[1] == voxels * abs(np.linalg.det(image.affine[:3, :3]))


def test_the_constant_of_mni305():
    assert MNI305[:2] == ("MNI305", 1_948_106.0)


def test_mni305_is_used_where_it_was_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    path = tmp_path / "tpl-MNI305" / "tpl-MNI305_T1w.nii.gz"
    path.parent.mkdir()
    path.touch()
    empty = find_template()
    assert (empty.name, empty.volume, empty.stripped) == ("MNI152NLin2009aSym", 1_886_539.0, True)
    assert empty.path.is_file()
    path.write_bytes(b"an image")
    fetched = find_template()
    assert fetched == Template("MNI305", path, 1_948_106.0, False, "FreeSurfer's constant for MNI305")


def test_the_template_is_looked_for_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".cache/templateflow/tpl-MNI305/tpl-MNI305_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an image")
    assert find_template().path == path


def test_nilearn_without_its_template(tmp_path, monkeypatch):
    class Spec:
        origin = str(tmp_path / "nilearn" / "__init__.py")

    monkeypatch.setattr(intracranial, "find_spec", lambda name: Spec)
    with pytest.raises(FileNotFoundError, match="nilearn's MNI152 template is not there; install nilearn anew"):
        nilearn_template()


# A real brain


def test_a_real_brain_has_a_plausible_volume(shared):
    """About half a minute at 1 mm on a busy machine, so at 2 mm here."""
    template = find_template()
    if not template.stripped:
        pytest.skip("the template shows a whole head")
    image = nib.load(shared / "data/reference/brain_a_T1w.nii.gz")
    labels = np.asanyarray(nib.load(shared / "data/reference/brain_a_aseg.nii.gz").dataobj)
    fixed = nib.load(template.path)
    scale = np.diag([2.0, 2, 2, 1])
    transform = register_affine(
        image.get_fdata(dtype=np.float32)[::2, ::2, ::2],
        image.affine @ scale,
        fixed.get_fdata(dtype=np.float32)[::2, ::2, ::2],
        fixed.affine @ scale,
    )
    etiv = estimate_etiv(transform, template)
    assert PLAUSIBLE_MM3[0] < etiv < PLAUSIBLE_MM3[1]
    assert 0.65 < np.count_nonzero(labels) / etiv < 0.95
