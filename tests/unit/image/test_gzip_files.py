"""Unpacked is what Python's gzip unpacks, whatever the end of the file says; damage is never overlooked."""

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.gzip_files import check_gzip, unpacked
from medsegmamba_bids.image.io import load_as_is

AFFINE = np.array([[-1.0, 0, 0, 3], [0, 0, 1.5, -4], [0, -1.2, 0, 5], [0, 0, 0, 1]])
NOISE = np.random.default_rng(0).bytes(3_000_000)  # three parts, and more than the first guess of several members


def members(*contents):
    return b"".join(gzip.compress(content, 1) for content in contents)


def with_long_header(content):
    """A member whose header names and describes the file and has a checksum of its own (flags 2, 8 and 16)."""
    header = bytes([0x1F, 0x8B, 8, 2 | 8 | 16, 0, 0, 0, 0, 0, 255]) + b"a file.nii\0" + b"what it is\0"
    deflate = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    body = deflate.compress(content) + deflate.flush()
    ends = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") + body + ends


@pytest.mark.parametrize(
    "packed",
    [
        members(NOISE),
        with_long_header(NOISE[:100_000]) * 2,
        members(b""),
        members(bytes(5_000_000)),
        members(NOISE, b"a", NOISE[:1_500_000]),
        members(b"a", bytes(3_000_000)) + bytes(500),
        gzip.compress(NOISE[:1000], 9, mtime=7),
    ],
    ids=["noise", "header", "nothing", "zeros", "members", "padding", "small"],
)
def test_the_content_is_that_of_gzip(tmp_path, packed):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed)
    found = unpacked(path)
    assert found.tobytes() == gzip.decompress(packed)
    assert found.flags.writeable
    assert check_gzip(path) is False


@pytest.mark.parametrize("read", [unpacked, check_gzip])
@pytest.mark.parametrize("place", [0, 2, 1000, -7, -3])
def test_a_changed_byte_is_noticed(tmp_path, read, place):
    """In the magic, the method, the data, the checksum and the size."""
    packed = bytearray(members(NOISE[:20_000]))
    packed[place] ^= 0x55
    (tmp_path / "a.nii.gz").write_bytes(packed)
    with pytest.raises(
        ImageError, match=r"a\.nii\.gz: the compressed file is (corrupt \(.+\)|truncated); copy it again$"
    ):
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        load_as_is(tmp_path / name)


@pytest.mark.parametrize("read", [unpacked, check_gzip])
def test_what_is_no_gzip_file_is_no_truncated_one(tmp_path, read):
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"corrupt \(it does not begin as gzip files do"):
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("read", [unpacked, check_gzip])
@pytest.mark.parametrize("length", [5, 12, 10_000, -9, -8, -1])
def test_a_missing_end_is_noticed(tmp_path, read, length):
    (tmp_path / "a.nii.gz").write_bytes(members(NOISE[:20_000])[:length])
    with pytest.raises(ImageError, match="the compressed file is truncated; copy it again"):
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "b.nii.gz", "a.mgz", "a.nii"])
@pytest.mark.parametrize(
    ("dtype", "slope"), [(np.uint8, None), (np.int16, None), (np.float32, None), (np.int16, (2.5, -3.0))]
)
def test_images_of_our_own_are_as_nibabel_reads_them(tmp_path, name, dtype, slope):
    kind = {"a.mgz": nib.MGHImage, "b.nii.gz": nib.Nifti2Image}.get(name, nib.Nifti1Image)
    image = kind(np.random.default_rng(0).integers(0, 200, (6, 7, 8)).astype(dtype), AFFINE)
    if slope and kind is not nib.MGHImage:
        image.header.set_slope_inter(*slope)
    image.to_filename(tmp_path / name)
    found, expected = load_as_is(tmp_path / name), nib.load(tmp_path / name)
    data = np.asanyarray(found.dataobj)
    np.testing.assert_array_equal(data, np.asanyarray(expected.dataobj), strict=True)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert type(found) is kind
    assert data.strides == np.asanyarray(expected.dataobj).strides


def test_a_checksum_of_our_own_files_is_compared(tmp_path):
    """nibabel itself reads this file without a word."""
    path = tmp_path / "a.nii.gz"
    nib.Nifti1Image(np.ones((40, 30, 20), np.uint8), AFFINE).to_filename(path)
    packed = bytearray(path.read_bytes())
    packed[-5] ^= 1
    path.write_bytes(packed)
    assert np.asarray(nib.load(path).dataobj).all()
    with pytest.raises(ImageError, match="the compressed file is corrupt"):
        load_as_is(path)
