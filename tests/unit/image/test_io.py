import errno
import gzip
import logging
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.header import describe_orientation
from medsegmamba_bids.image.io import atomic_path, load_image, load_labels, save_image

SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, 0, 1.5, -4], [0, -1.2, 0, 5], [0, 0, 0, 1]])


@pytest.fixture
def head():
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)


@pytest.fixture
def write(tmp_path):
    """Writes an array as an image; header fields are set last, as they come."""

    def write(data, affine=AFFINE, name="head.nii.gz", **fields):
        image = nib.Nifti1Image(data, affine, dtype=data.dtype)
        path = tmp_path / name
        image.to_filename(path)
        if fields:
            _patch_header(path, fields)
        return path

    return write


def _patch_header(path, fields):
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        content = file.read()
    header = nib.Nifti1Header.from_fileobj(BytesIO(content), check=False)
    for key, value in fields.items():
        header[key] = value
    with opener(path, "wb") as file:
        file.write(header.binaryblock + content[348:])


def names(folder):
    return [path.name for path in folder.iterdir()]


def refused(path, match):
    with pytest.raises(ImageError, match=match) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


# What is read


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz", "head.mgz", "head.mgh", "HEAD.NII.GZ"])
def test_reads_the_data_as_they_are(tmp_path, head, name):
    kind = nib.MGHImage if "mg" in name else nib.Nifti1Image
    kind(head, AFFINE).to_filename(tmp_path / name)
    image = load_image(tmp_path / name)
    data = np.asarray(image.dataobj)
    np.testing.assert_array_equal(data, head)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert data.dtype == np.int16
    assert data.dtype.isnative
    assert image.get_data_dtype().newbyteorder("=") == np.int16


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (np.uint8, np.uint8),
        (np.uint16, np.uint16),
        (np.int32, np.int32),
        (np.uint32, np.int32),
        (np.int64, np.int32),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_types(write, head, stored, read):
    image = load_image(write((head // 4).astype(stored)))
    data = np.asarray(image.dataobj)
    assert data.dtype == image.get_data_dtype() == read
    np.testing.assert_array_equal(data, head // 4)


def test_integers_beyond_32_bits(write, head):
    data = head.astype(np.int64) * 10_000_000
    read = np.asarray(load_image(write(data)).dataobj)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, data, rtol=1e-6)


def test_scaled_integers_become_float32(write, head):
    data = np.asarray(load_image(write(head, scl_slope=0.5, scl_inter=10)).dataobj)
    assert data.dtype == np.float32
    np.testing.assert_array_equal(data, head * 0.5 + 10)


def test_big_endian(tmp_path, head):
    image = nib.Nifti1Image(head, AFFINE, nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "head.nii")
    data = np.asarray(load_image(tmp_path / "head.nii").dataobj)
    assert data.dtype == np.int16
    assert data.dtype.isnative
    np.testing.assert_array_equal(data, head)


def test_nifti2(tmp_path, head):
    nib.Nifti2Image(head, AFFINE).to_filename(tmp_path / "head.nii.gz")
    np.testing.assert_array_equal(load_image(tmp_path / "head.nii.gz").dataobj, head)


def test_header_is_kept(write, head):
    path = write(head, sform_code=2, qform_code=0, descrip=b"scanned")
    header = load_image(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 0)
    assert header["descrip"].item() == b"scanned"


def test_trailing_axis_is_dropped(write, head):
    image = load_image(write(head[..., None, None]))
    assert image.shape == image.header.get_data_shape() == SHAPE
    np.testing.assert_array_equal(image.dataobj, head)


# Values


def test_nan_and_infinity_become_zero(write, head, caplog):
    data = head.astype(np.float32) + 1
    data[0, 0, :3] = np.nan
    data[1, 1, :2] = np.inf, -np.inf
    read = np.asarray(load_image(write(data)).dataobj)
    expected = np.where(np.isfinite(data), data, 0)
    np.testing.assert_array_equal(read, expected)
    assert "5 voxels are NaN or infinite; they are read as 0" in caplog.text


def test_negative_voxels_are_counted(write, head, caplog):
    data = head.copy()
    data[2, 3, :2] = -3
    read = np.asarray(load_image(write(data)).dataobj)
    np.testing.assert_array_equal(read, np.maximum(data, 0))
    assert "2 voxels are negative; they are read as 0" in caplog.text


def test_standardised_image_is_shifted(write, caplog):
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    read = np.asarray(load_image(write(data)).dataobj)
    np.testing.assert_allclose(read, data - data.min(), rtol=1e-6)
    assert f"{(data < 0).sum()} voxels are negative; all intensities are shifted" in caplog.text


def test_good_image_is_silent(write, head, caplog):
    load_image(write(head))
    assert not caplog.records


@pytest.mark.parametrize("value", [0, 7, np.nan, -5])
def test_image_without_contrast(write, value):
    refused(write(np.full(SHAPE, value, np.float32)), r"every voxel is -?\d; an image with contrast is needed")


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_voxels_that_are_no_real_numbers(write, dtype):
    refused(write(np.zeros(SHAPE, dtype)), "single real numbers are needed")


# Shapes and sizes


def test_series(write, head):
    refused(write(np.stack([head] * 3, -1)), r"shape \(6, 7, 8, 3\); three axes are needed .*one volume of a series")


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (1, 6, 7), (6, 7, 1, 1)])
def test_single_slice(write, shape):
    refused(write(np.arange(42, dtype=np.int16).reshape(shape)), "three axes are needed, not a single slice")


@pytest.mark.parametrize(
    ("size", "warns"), [(1.0, False), (2.9, False), (3.0, True), (2.9999, True), (5.0, True), (6.9, True)]
)
def test_thick_slices(write, head, caplog, size, warns):
    image = load_image(write(head, np.diag([1, size, 1, 1])))
    assert image.shape == SHAPE
    assert ("volumes of small structures will not be reliable" in caplog.text) is warns


@pytest.mark.parametrize("size", [6.95, 7.0, 10.0])
def test_slices_too_thick(write, head, size):
    refused(write(head, np.diag([1, 1, size, 1])), r"its voxels are 1 x 1 x \d.* mm; at most 6.9 mm are allowed")


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.zeros((4, 4)), "zero or singular"),
        (np.diag([1.0, 0, 1, 1]), "zero or singular"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "zero or singular"),
        (np.array([[1.0, 0, 0, 0], [0, np.nan, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "not finite"),
    ],
)
def test_unusable_affine(write, head, affine, reason):
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), affine[:3], strict=True))
    refused(write(head, sform_code=1, **rows), f"its affine is {reason}, so that sizes are unknown")


def test_unusable_affine_of_mgz(tmp_path, head):
    nib.MGHImage(head, AFFINE).to_filename(tmp_path / "head.mgh")
    content = bytearray((tmp_path / "head.mgh").read_bytes())
    content[30:42] = np.zeros(3, ">f4").tobytes()  # the voxel sizes
    (tmp_path / "head.mgh").write_bytes(content)
    refused(tmp_path / "head.mgh", "cannot be read|zero or singular")


# Files


def test_missing_file(tmp_path):
    refused(tmp_path / "head.nii.gz", "no such file")


def test_broken_link(tmp_path):
    path = tmp_path / "head.nii.gz"
    path.symlink_to("../.git/annex/objects/gone")
    refused(path, f"a link whose target is not there; .*`datalad get {path}`")


@pytest.mark.parametrize("pointer", [False, True])
def test_what_fetches_a_file_is_a_command_also_where_names_have_spaces(tmp_path, pointer):
    path = tmp_path / "a study" / "head.nii.gz"
    path.parent.mkdir()
    path.write_text("/annex/objects/MD5E-s1--abc.nii.gz\n") if pointer else path.symlink_to("gone")
    refused(path, f"`datalad get '{path}'`")


def test_link_to_an_image(tmp_path, write, head):
    (tmp_path / "link.nii.gz").symlink_to(write(head))
    np.testing.assert_array_equal(load_image(tmp_path / "link.nii.gz").dataobj, head)


def test_unlocked_annex_file(tmp_path):
    path = tmp_path / "head.nii.gz"
    path.write_text("/annex/objects/MD5E-s123--abc.nii.gz\n")
    refused(path, "only a pointer of git-annex, its content is missing; fetch it with `datalad get")


@pytest.mark.parametrize("name", ["head.img", "head.txt", "head.gz", "head"])
def test_wrong_extension(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    refused(tmp_path / name, r"not an image file; allowed are \.nii, \.nii\.gz, \.mgz, \.mgh")


def test_folder(tmp_path):
    (tmp_path / "head.nii").mkdir()
    refused(tmp_path / "head.nii", "not an image file")


def test_empty_file(tmp_path):
    (tmp_path / "head.nii").touch()
    refused(tmp_path / "head.nii", "the file is empty")


@pytest.mark.parametrize("share", [0.03, 0.3, 0.99])
def test_truncated_gzip(write, head, share):
    path = write(head)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "the compressed file is truncated; copy it again")


@pytest.mark.parametrize("place", [0, 100, -200, -6])
def test_corrupt_gzip(write, head, place):
    path = write(head)
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    refused(path, "the compressed file is corrupt .*copy it again|truncated")


def test_plain_file_named_gz(tmp_path, write, head):
    write(head, name="plain.nii").rename(tmp_path / "head.nii.gz")
    refused(tmp_path / "head.nii.gz", r"is not compressed; give it a name that ends in \.nii$")


@pytest.mark.parametrize("name", ["head.nii", "head.mgh"])
@pytest.mark.parametrize("length", [20, 200, 500])
def test_truncated_plain_file(tmp_path, head, name, length):
    path = tmp_path / name
    (nib.MGHImage if name.endswith("mgh") else nib.Nifti1Image)(head, AFFINE).to_filename(path)
    path.write_bytes(path.read_bytes()[:length])
    refused(path, "cannot be read, it is truncated, corrupt or no image")


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz", "head.mgz", "head.mgh"])
def test_garbage(tmp_path, name):
    content = np.random.default_rng(0).bytes(4000)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("z") else content)
    refused(path, "cannot be read, it is truncated, corrupt or no image")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, -6, 7, 8, 1, 1, 1, 1]}, "cannot be read"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "cannot be read"),
        ({"datatype": 999}, "data code 999"),
        ({"vox_offset": 1e7}, "could the file be damaged"),
        ({"sform_code": 0, "quatern_b": 1, "quatern_c": 1}, "its orientation is unknown"),
        ({"sform_code": 0, "pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]}, "its affine is not finite"),
        ({"sform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, r"zero or singular \(voxels of 0 x 1 x 1 mm\)"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 1, 0, 1, 1, 1, 1]}, "zero or singular"),
    ],
)
def test_damaged_header(write, head, fields, reason):
    refused(write(head, **{"qform_code": 1, **fields}), reason)


@pytest.mark.parametrize("fields", [{"pixdim": [0, 1, 1, 1, 1, 1, 1, 1]}, {"pixdim": [1, -1, 1, 1, 1, 1, 1, 1]}])
def test_sloppy_header_is_read_as_nibabel_does(write, head, fields):
    path = write(head, sform_code=0, qform_code=1, **fields)
    image = load_image(path)
    np.testing.assert_array_equal(image.dataobj, head)
    np.testing.assert_array_equal(image.affine, nib.load(path).affine)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_nan_around_a_standardised_brain_is_dark(write, share):
    """Less of it than makes a background was shifted with the brain: as bright as its mean."""
    data = np.random.default_rng(0).normal(0, 1, (20, 20, 20)).astype(np.float32)
    data[: round(20 * share)] = np.nan
    loaded = np.asarray(load_image(write(data)).dataobj)
    outside = np.isnan(data)
    assert (loaded[outside] == 0).all()
    np.testing.assert_allclose(loaded[~outside], data[~outside] - data[~outside].min(), rtol=1e-6)


# Orientation


def two_orientations(sform_code, qform_code, shift=0.0):
    image = nib.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4))
    image.set_sform(np.eye(4), sform_code)
    moved = np.eye(4)
    moved[0, 3] = shift
    image.set_qform(moved, qform_code)
    return image


@pytest.mark.parametrize(
    ("codes", "shift", "said"),
    [
        ((1, 1), 0.0, ""),
        ((1, 1), 0.05, ""),
        ((1, 2), 4.0, "sform and qform disagree by up to 4.0 mm; the sform is used"),
        ((2, 0), 4.0, ""),
        ((0, 1), 4.0, ""),
        ((0, 0), 0.0, "neither sform nor qform is set: the orientation, left and right included, is a guess"),
    ],
)
def test_orientation_is_described(codes, shift, said):
    assert describe_orientation(two_orientations(*codes, shift)) == said


def test_flip_about_the_centre_is_noticed():
    image = two_orientations(1, 1)
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 9
    image.set_qform(flipped, 1)
    assert "disagree by up to 9.0 mm" in describe_orientation(image)


def test_sform_wins_where_its_code_is_set(tmp_path, head):
    image = nib.Nifti1Image(head, AFFINE)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    image.to_filename(tmp_path / "head.nii")
    np.testing.assert_array_equal(load_image(tmp_path / "head.nii").affine, np.diag([2.0, 2, 2, 1]))


def test_a_sform_of_other_sizes_than_the_header_is_noticed():
    """Volumes were eight times what programs find that go by the header's sizes, without a word."""
    image = nib.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4))
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    said = "voxels are 1 x 1 x 1 mm by the header and 2 x 2 x 2 mm by its sform; the sform is used"
    assert describe_orientation(image) == said
    image.set_sform(np.diag([1.0001, 1, 1, 1]), 1)
    assert describe_orientation(image) == ""


def test_qform_is_used_without_sform(write, head):
    path = write(head)
    image = nib.load(path)
    image.set_qform(AFFINE, 1)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 0)
    image.to_filename(path.with_name("q.nii"))
    np.testing.assert_allclose(load_image(path.with_name("q.nii")).affine, AFFINE, atol=1e-5)


def test_mgz_has_one_orientation(head):
    assert describe_orientation(nib.MGHImage(head, AFFINE)) == ""


# Writing


def test_sheared_axes_have_no_qform(tmp_path, head):
    """A qform, which cannot be sheared, lay beside the sform (12 mm in 64 voxels), and some programs prefer it."""
    sheared = AFFINE @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for affine, code in ((sheared, 0), (AFFINE, 2)):
        image = nib.load(save_image(head, affine, tmp_path / "head.nii.gz", code=2))
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        assert (image.header["sform_code"], image.header["qform_code"]) == (2, code)
        assert describe_orientation(image) == ""


@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz", "labels.mgz"])
def test_what_is_written_comes_back(tmp_path, name):
    labels = np.random.default_rng(0).integers(0, 2227, SHAPE).astype(np.uint16)
    path = save_image(labels, AFFINE, tmp_path / "deep" / name)
    image = nib.load(path)
    np.testing.assert_array_equal(image.dataobj, labels)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    expected = np.int32 if name.endswith("mgz") else np.uint16
    assert image.get_data_dtype().newbyteorder("=") == expected
    assert names(path.parent) == [name]


def test_both_codes_are_set(tmp_path, head):
    header = nib.load(save_image(head, AFFINE, tmp_path / "head.nii.gz")).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(
    ("given", "asked", "stored"),
    [
        (np.int64, None, np.int32),
        (bool, None, np.uint8),
        (np.float64, np.float32, np.float32),
        (np.float16, None, np.float32),
        (np.int32, np.uint8, np.uint8),
    ],
)
def test_types_on_disk(tmp_path, given, asked, stored):
    data = (np.arange(8).reshape(2, 2, 2) % 2).astype(given)
    image = nib.load(save_image(data, np.eye(4), tmp_path / "a.nii.gz", asked))
    assert image.get_data_dtype() == stored
    np.testing.assert_array_equal(image.dataobj, data)


def test_four_axes(tmp_path):
    data = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(nib.load(save_image(data, AFFINE, tmp_path / "p.nii.gz")).dataobj, data)


def test_same_data_make_the_same_file(tmp_path, head):
    first = save_image(head, AFFINE, tmp_path / "a.nii.gz").read_bytes()
    assert save_image(head, AFFINE, tmp_path / "b.nii.gz").read_bytes() == first


def test_extension_that_is_not_written(tmp_path, head):
    with pytest.raises(ImageError, match=r"head.img: cannot be written; allowed are \.nii, \.nii\.gz, \.mgz"):
        save_image(head, AFFINE, tmp_path / "head.img")


def test_full_disk_leaves_the_old_file(tmp_path, head, monkeypatch):
    path = save_image(head, AFFINE, tmp_path / "head.nii.gz")
    before = path.read_bytes()

    def fail(self, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", fail)
    with pytest.raises(OSError, match="No space left"):
        save_image(head + 1, AFFINE, path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["head.nii.gz"]


@pytest.mark.parametrize("name", ["table.tsv", "head.nii.gz", "noextension"])
def test_atomic_path_appears_at_the_end(tmp_path, name):
    path = tmp_path / name
    with atomic_path(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.endswith("".join(path.suffixes))
    assert path.read_text() == "done"
    assert names(tmp_path) == [name]


def test_atomic_path_after_an_interruption(tmp_path):
    def interrupted():
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_atomic_path_of_two_at_once(tmp_path):
    path = tmp_path / "a.json"
    with atomic_path(path) as one, atomic_path(path) as two:
        one.write_text("one")
        two.write_text("two")
        assert one != two
    assert path.read_text() == "one"  # the outer block ends last


def test_real_head_is_read_silently(shared, caplog):
    with caplog.at_level(logging.WARNING):
        image = load_image(shared / "data/bids/sub-04/anat/sub-04_T1w.nii.gz")
    assert image.shape == (188, 256, 190)
    assert np.asarray(image.dataobj).dtype == np.uint8
    assert not caplog.records
    assert describe_orientation(image) == ""


def test_coarse_real_head_is_read_with_a_warning(shared, caplog):
    image = load_image(shared / "data/bids/sub-05/anat/sub-05_T1w.nii.gz")
    assert image.shape == (86, 86, 86)
    assert "its voxels are 3 x 3 x 3 mm" in caplog.text


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_labels_of_any_type_are_whole_numbers(write, kind):
    labels = np.zeros(SHAPE, kind)
    labels[2, 3] = 77
    image = load_labels(write(labels))
    assert np.asarray(image.dataobj).dtype == np.uint16
    assert np.array_equal(np.asarray(image.dataobj), labels)
    assert np.allclose(image.affine, AFFINE)


def test_empty_labels_are_read_and_mgz_too(write, tmp_path):
    assert not np.asarray(load_labels(write(np.zeros(SHAPE, np.uint8))).dataobj).any()
    save_image(np.full(SHAPE, 2226, np.int32), AFFINE, tmp_path / "labels.mgz")
    assert (np.asarray(load_labels(tmp_path / "labels.mgz").dataobj) == 2226).all()


@pytest.mark.parametrize("value", [0.5, -1, 70000, np.nan, np.inf])
def test_what_is_no_label_image_is_refused(write, value):
    data = np.zeros(SHAPE, np.float32)
    data[1, 1, 1] = value
    with pytest.raises(ImageError, match=r"head\.nii\.gz: its values are not whole numbers from 0 to 65535"):
        load_labels(write(data))


def test_a_compressed_image_is_what_nibabel_writes(tmp_path):
    """The same bytes once unpacked, from the same input the same file, and no larger than by zlib's quickest level."""
    data = np.zeros((40, 50, 60), np.float32)
    data[10:30, 10:30, 10:30] = np.random.default_rng(0).random((20, 20, 20))
    affine = np.diag([1.0, 2, 3, 1])
    files = [save_image(data, affine, tmp_path / name, code=2) for name in ("one.nii.gz", "two.nii.gz", "plain.nii")]
    content = files[0].read_bytes()
    assert content == files[1].read_bytes()
    assert gzip.decompress(content) == files[2].read_bytes()
    assert len(content) < 1.02 * len(gzip.compress(files[2].read_bytes(), 1))
    np.testing.assert_array_equal(nib.load(files[0]).get_fdata(), data)
