"""What is no image, or not quite, and what is said of it."""

import gzip
import logging

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.header import describe_orientation
from medsegmamba_bids.image.io import load_image, load_labels
from medsegmamba_bids.image.masks import load_mask

AFFINE = np.array([[-1.0, 0, 0, 3], [0, 0, 1.5, -4], [0, -1.2, 0, 5], [0, 0, 0, 1]])
READERS = [load_image, load_labels, load_mask]


@pytest.fixture
def head():
    return np.random.default_rng(0).integers(0, 1000, (6, 7, 8)).astype(np.int16)


def saved(data, path):
    kind = nib.MGHImage if ".mg" in path.name else nib.Nifti1Image
    kind(data, AFFINE).to_filename(path)
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "only a pointer of Git LFS; .*git lfs"),
        (
            b"/annex/objects/MD5E-s1--0.nii.gz\n",
            "only a pointer of git-annex, its content is missing; fetch",
        ),
        (b"../../.git/annex/objects/aa/bb/MD5E-s1--0/MD5E-s1--0.nii.gz", "only a pointer of git-annex"),
        (b".git/annex/objects/aa/bb/MD5E-s1--0/MD5E-s1--0.nii.gz", "only a pointer of git-annex"),
        (
            b"..\\..\\.git\\annex\\objects\\aa\\bb\\MD5E-s1--0\r\n",
            "git-annex, its content is missing; fetch it with",
        ),
        (b"\xef\xbb\xbf\\annex\\objects\\MD5E-s1--0.nii.gz\r\n", "only a pointer of git-annex"),
        (b"/annex/objects/MD5E-s1--0.nii.gz\r\n", "only a pointer of git-annex"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "notes that macOS keeps beside a file"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"BZh91AY&SY" + bytes(100), "compressed with bzip2"),
        (b"\xfd7zXZ\x00" + bytes(100), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "compressed with zstd"),
        (b"\n<!doctype html><title>Sign in</title>", "a web page"),
        (b"<HTML><body>404", "a web page"),
        (bytes(128) + b"DICM" + bytes(500), "a DICOM file; convert it to NIfTI"),
        (b"", "the file is empty"),
    ],
)
@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz", "head.mgz"])
def test_files_that_are_something_else(tmp_path, read, content, said, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=said) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "named", "ending"),
    [
        ("a.nii.gz", "head.nii", ".nii.gz"),
        ("a.mgz", "head.mgh", ".mgz"),
        ("a.nii", "head.nii.gz", ".nii"),
        ("a.mgh", "head.mgz", ".mgh"),
    ],
)
def test_compression_that_the_name_denies(tmp_path, head, made, named, ending):
    saved(head, tmp_path / made).rename(tmp_path / named)
    with pytest.raises(ImageError, match=rf"give it a name that ends in {ending}$"):
        load_image(tmp_path / named)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("name", ["head.nii.gz", "head.mgz"])
@pytest.mark.parametrize("tail", [b"\n", b"junk", b"\0\0\nmore" * 20_000, b"\x1f"])
def test_bytes_behind_the_compressed_data_are_left_out(tmp_path, caplog, name, tail, dtype):
    head = np.random.default_rng(0).integers(0, 200, (30, 31, 32)).astype(dtype)
    path = saved(head.astype(np.float32) if "mgz" in name and dtype == np.float64 else head, tmp_path / name)
    path.write_bytes(path.read_bytes() + tail)
    np.testing.assert_array_equal(load_image(path).dataobj, head)
    assert f"{len(tail.lstrip(bytes(1)))} bytes behind the compressed data are left out" in caplog.text


def test_padding_and_several_members_are_gzip_like_any(tmp_path, head, caplog):
    raw = saved(head, tmp_path / "plain.nii").read_bytes()
    (tmp_path / "head.nii.gz").write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]) + bytes(5000))
    np.testing.assert_array_equal(load_image(tmp_path / "head.nii.gz").dataobj, head)
    assert not caplog.records


def test_a_damaged_second_member(tmp_path, head):
    raw = saved(head, tmp_path / "plain.nii").read_bytes()
    broken = bytearray(gzip.compress(raw[400:]))
    broken[-6] ^= 0xFF
    (tmp_path / "head.nii.gz").write_bytes(gzip.compress(raw[:400]) + bytes(broken))
    with pytest.raises(ImageError, match="the compressed file is corrupt"):
        load_image(tmp_path / "head.nii.gz")


# Geometry


def patched(path, place, content):
    """Write bytes into an uncompressed or compressed file."""
    packed = path.name.endswith("z")
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    raw[place : place + len(content)] = content
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["head.mgz", "head.mgh"])
def test_mgh_files_without_geometry_are_refused(tmp_path, head, name, read):
    path = patched(saved(head, tmp_path / name), 28, b"\0\0")
    with pytest.raises(ImageError, match=r"has no geometry \(its goodRASFlag is 0\)"):
        read(path)


def test_mgh_files_need_no_footer(tmp_path, head):
    path = saved(head, tmp_path / "head.mgh")
    path.write_bytes(path.read_bytes()[: 284 + head.nbytes])
    image = load_image(path)
    np.testing.assert_array_equal(image.dataobj, head)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("unit", "name", "factor"), [(1, "metres", 1000), (3, "micrometres", 0.001)])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (0, 0)])
def test_units_are_converted(tmp_path, head, caplog, unit, name, factor, codes, kind):
    affine = np.diag([1 / factor] * 3 + [1]) @ AFFINE
    images = []
    for place, stored, code in (("converted.nii.gz", affine, unit), ("mm.nii.gz", AFFINE, 2)):
        image = kind(head, stored)
        image.set_sform(stored, codes[0])
        image.set_qform(stored, codes[1])
        image.header.set_xyzt_units(code, 8)
        image.to_filename(tmp_path / place)
        images.append(load_image(tmp_path / place))
    converted, expected = images
    np.testing.assert_allclose(converted.affine, expected.affine, rtol=1e-5, atol=1e-5)
    assert converted.header.get_xyzt_units() == ("mm", "sec")
    for key in ("sform_code", "qform_code"):
        assert converted.header[key] == expected.header[key]
    np.testing.assert_allclose(converted.header.get_zooms(), (1, 1.2, 1.5), rtol=1e-5)
    said = f"converted.nii.gz: its header is in {name}; converted to mm, its voxels are 1 x 1.2 x 1.5 mm"
    assert [record.getMessage().split("/")[-1] for record in caplog.records] == [said]


@pytest.mark.parametrize(("unit", "name"), [(1, "metres"), (3, "micrometres")])
def test_units_that_cannot_be_are_mm(tmp_path, head, caplog, unit, name):
    image = nib.Nifti1Image(head, AFFINE)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "head.nii")
    np.testing.assert_allclose(load_image(tmp_path / "head.nii").affine, AFFINE)
    assert f"its header says {name}, but its voxels can only be of 1 x 1.2 x 1.5 mm" in caplog.text


@pytest.mark.parametrize("unit", [0, 2, 5])
def test_tiny_voxels_are_refused_where_nothing_says_metres(tmp_path, head, unit):
    image = nib.Nifti1Image(head, np.diag([0.001, 0.001, 0.001, 1]))
    image.header["xyzt_units"] = unit
    image.to_filename(tmp_path / "head.nii")
    with pytest.raises(ImageError, match=r"its voxels are 0\.001 x 0\.001 x 0\.001 mm; at least 0\.1 mm are allowed"):
        load_image(tmp_path / "head.nii")


@pytest.mark.parametrize(("size", "good"), [(0.1, True), (0.09, False)])
def test_the_finest_voxels(tmp_path, head, size, good):
    nib.Nifti1Image(head, np.diag([1, size, 1, 1])).to_filename(tmp_path / "head.nii")
    if good:
        assert load_image(tmp_path / "head.nii").affine[1, 1] == pytest.approx(size)
    else:
        with pytest.raises(ImageError, match=r"at least 0\.1 mm"):
            load_image(tmp_path / "head.nii")


@pytest.mark.parametrize("values", [(np.nan, 0, 0), (1, 1, 1), (0, np.inf, 0)])
def test_a_qform_that_cannot_be_read_does_not_matter_beside_a_good_sform(tmp_path, head, values):
    from medsegmamba_bids.image.geometry import conform
    from medsegmamba_bids.image.header import describe_orientation, orientation_code

    image = nib.Nifti1Image(head, AFFINE)
    image.set_sform(AFFINE, 4)
    image.set_qform(AFFINE, 1)
    image.to_filename(tmp_path / "head.nii")
    path = patched(tmp_path / "head.nii", 256, np.array(values, "<f4").tobytes())
    read = load_image(path)
    np.testing.assert_allclose(read.affine, AFFINE)
    assert describe_orientation(read) == "the qform cannot be read; the sform is used"
    assert orientation_code(read) == 4
    np.testing.assert_allclose(conform(read).affine, conform(nib.Nifti1Image(head, AFFINE)).affine, atol=1e-5)


@pytest.mark.parametrize("values", [(np.nan, 0, 0), (1, 1, 1)])
def test_without_an_sform_it_is_refused(tmp_path, head, values):
    image = nib.Nifti1Image(head, AFFINE)
    image.set_sform(None, 0)
    image.set_qform(AFFINE, 1)
    image.to_filename(tmp_path / "head.nii")
    path = patched(tmp_path / "head.nii", 256, np.array(values, "<f4").tobytes())
    with pytest.raises(ImageError, match=str(path)):
        load_image(path)


@pytest.mark.parametrize(("slope", "inter"), [(0, 0), (np.nan, 0), (np.inf, 5), (1, 0), (0, np.nan), (np.nan, np.nan)])
def test_slopes_that_mean_nothing(tmp_path, head, caplog, slope, inter):
    path = patched(saved(head, tmp_path / "head.nii"), 112, np.array([slope, inter], "<f4").tobytes())
    caplog.set_level(logging.WARNING)
    data = np.asarray(load_image(path).dataobj)
    assert data.dtype == np.int16
    np.testing.assert_array_equal(data, head)


@pytest.fixture(params=[nib.Nifti1Image, nib.Nifti2Image], ids=["nifti1", "nifti2"])
def nifti(request, tmp_path, head):
    """A NIfTI file with qform alone, and a function that sets fields of its header as they are."""
    kind = request.param
    image = kind(head, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_qform(image.affine, 1)
    image.set_sform(None, 0)
    names = kind.header_class.template_dtype.fields

    def having(name="head.nii", **fields):
        raw = bytearray(image.to_bytes())
        for field, value in fields.items():
            dtype, place = names[field][:2]
            content = np.array(value, dtype.base).tobytes()
            raw[place : place + len(content)] = content
        path = tmp_path / name
        path.write_bytes(gzip.compress(bytes(raw)) if name.endswith("gz") else bytes(raw))
        return path

    having.pair = {348: b"ni1", 540: b"ni2"}[kind.header_class.sizeof_hdr]
    return having


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz"])
def test_headers_are_not_read_as_voxels(nifti, read, name):
    """nibabel gave 348 as the first voxel: the header's own size."""
    magic = nifti.pair.decode()
    said = rf"voxels would begin at byte 0, within its header \(its magic is '{magic}', that of a header"
    with pytest.raises(ImageError, match=said):
        read(nifti(name, magic=nifti.pair, vox_offset=0))
    with pytest.raises(ImageError, match=r"voxels would begin at byte 0, within its header$"):
        read(nifti(name, vox_offset=0))


def test_the_magic_of_a_pair_alone_does_no_harm(nifti, head):
    np.testing.assert_array_equal(load_image(nifti(magic=nifti.pair)).dataobj, head)


def test_a_qform_that_is_no_rotation(nifti, head, caplog):
    long = {"quatern_b": 0.9, "quatern_c": 0.9, "quatern_d": 0.9}
    with pytest.raises(ImageError, match=r"no sform, and the quaternion of its qform has a length of 1\.56, more"):
        load_image(nifti(**long))
    read = load_image(nifti(quatern_b=1.0))  # half a turn
    np.testing.assert_allclose(read.affine[:3, :3], np.diag([2.0, -2.0, -2.0]), atol=1e-6)
    with_sform = nifti(**long, sform_code=1, srow_x=[3, 0, 0, 0], srow_y=[0, 3, 0, 0], srow_z=[0, 0, 3, 0])
    np.testing.assert_array_equal(load_image(with_sform).dataobj, head)
    assert describe_orientation(nib.load(with_sform)) == "the qform cannot be read; the sform is used"
