"""Headers and values at random: an image is refused in one sentence that names its file, or read as nibabel reads it.

``FUZZ=20`` in the environment tries 20 times as many inputs, and others in each run.
"""

import gzip
import logging
import math
import os
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image import geometry
from medsegmamba_bids.image.header import describe_orientation, orientation_code
from medsegmamba_bids.image.intensity import robust_scale
from medsegmamba_bids.image.io import load_image, load_labels
from medsegmamba_bids.image.masks import load_mask

LONGER = os.environ.get("FUZZ")
RUN = settings(
    max_examples=400 * int(LONGER or 1),
    derandomize=LONGER is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SIDE = 12  # of the conformed grid here: 256^3 voxels would take a second each
KINDS = {
    "a.nii": nib.Nifti1Image,
    "a.nii.gz": nib.Nifti1Image,
    "b.nii": nib.Nifti2Image,
    "a.mgh": nib.MGHImage,
    "a.mgz": nib.MGHImage,
}
TYPES = {
    nib.Nifti1Image: ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8"],
    nib.Nifti2Image: ["u1", "i2", "u4", "f4", "f8"],
    nib.MGHImage: ["u1", "i2", "i4", "f4"],
}
UNITS = {1: 1000.0, 3: 0.001}
NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, -1, -2, 10, 16, 64, 100, 255, 348, 352, 353, 1000, 32767, -32768]
REALS = [0.0, -0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 1.5, -1.0, 2.0, 6.9, 7.0, 1e3, 1e-6, 1e10, 3e38, math.nan, math.inf]
# What says where voxels lie and what they are is changed more often than the rest.
LIKELY = {
    "nifti": (
        *("dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "intent_code", "magic"),
        *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "sizeof_hdr"),
        *("srow_x", "srow_y", "srow_z"),
    ),
    "mgh": ("version", "dims", "type", "goodRASFlag", "delta", "Mdc", "Pxyz_c"),
}


@st.composite
def images(draw):
    """A file's name, its content, and bytes behind what is compressed."""
    name = draw(st.sampled_from(sorted(KINDS)))
    kind = KINDS[name]
    shape = draw(st.tuples(*[st.integers(2, 5)] * 3)) + draw(st.sampled_from([(), (), (), (1,), (1, 1), (2,)]))
    if kind is nib.MGHImage and shape[3:] != (2,):
        shape = shape[:3]
    data = draw(values(shape, np.dtype(draw(st.sampled_from(TYPES[kind])))))
    affine = draw(affines())
    image = kind(data, affine, dtype=data.dtype) if kind is not nib.MGHImage else kind(data, affine)
    if kind is not nib.MGHImage:
        image.set_sform(affine, draw(st.sampled_from([0, 1, 2, 4])))
        image.set_qform(affine, draw(st.sampled_from([0, 1, 3])))
        image.header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 2, 2, 3, 10]))
    content = bytearray(image.to_bytes())
    for _ in range(draw(st.integers(0, 4))):
        spoil(draw, content, kind.header_class.template_dtype, ">" if kind is nib.MGHImage else "<")
    content = bytes(content)[: draw(st.sampled_from([None, None, None, None, -1, 400]))]
    if name.endswith("z"):
        content = gzip.compress(content, 1)
    return name, content, draw(st.sampled_from([b"", b"", b"\n", bytes(9)])) if name.endswith("z") else b""


@st.composite
def values(draw, shape, dtype):
    """An array of one of several kinds: noise, labels, a mask, extremes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1, 2, 50, 200, 3000, 1e6]))
    data = rng.random(shape) * size + draw(st.sampled_from([0, 0, 0, -size / 2, 1000]))
    if draw(st.booleans()):
        data = np.rint(data)
    if dtype.kind in "iu":
        span = np.iinfo(dtype)
        data = data.clip(float(span.min), float(span.max) / 2)
    data = data.astype(dtype)
    if dtype.kind in "fc" and draw(st.booleans()):
        data.flat[:2] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
    return data


@st.composite
def affines(draw):
    """Voxels of some size, turned about all axes."""
    sizes = draw(st.tuples(*[st.sampled_from([0.05, 0.5, 1.0, 1.2, 3.0, 6.5, 8.0, 0.001])] * 3))
    angles = draw(st.tuples(*[st.sampled_from([0.0, 0.3, -1.0, 1.5])] * 3))
    shift = draw(st.tuples(*[st.sampled_from([0.0, -90.0, 127.5])] * 3))
    flip = draw(st.sampled_from([1, -1]))
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(*angles) @ np.diag([flip * sizes[0], *sizes[1:]]), shift)


def spoil(draw, content, layout, order):
    """Writes a number into a field of a header."""
    likely = LIKELY["mgh" if "dims" in layout.names else "nifti"]
    field = draw(st.sampled_from(likely) if draw(st.integers(0, 4)) else st.sampled_from(layout.names))
    kind, offset = layout.fields[field][:2]
    base = kind.base.newbyteorder(order)
    count = max(1, kind.itemsize // base.itemsize)
    place = offset + base.itemsize * draw(st.integers(0, count - 1))
    if base.kind == "S":
        new = draw(st.binary(min_size=base.itemsize, max_size=base.itemsize))
    elif base.kind == "f":
        new = np.array(draw(st.sampled_from(REALS) | st.floats(-10, 10)), base).tobytes()
    else:
        span = np.iinfo(base)
        number = draw(st.sampled_from(NUMBERS) | st.integers(-10, 40))
        new = np.array(min(max(number, span.min), span.max), base).tobytes()
    content[place : place + len(new)] = new


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module", autouse=True)
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "CONFORMED_SIDE", SIDE)
        patch.setattr(geometry, "_CONFORMED_SHAPE", (SIDE,) * 3)
        patch.setattr(logging.getLogger("nibabel.global"), "disabled", True)
        yield


def read(load, path):
    """The image; None where it is refused, which is checked."""
    refusal = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(path)
    except ImageError as error:
        refusal = str(error)
    assert refusal.startswith(f"{path}: ")
    assert "\n" not in refusal
    assert len(refusal) > len(str(path)) + 15
    return None


def by_nibabel(path):
    """Values (X, Y, Z) in double precision and affine, as nibabel reads them, and its header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nib.load(path)
        data = np.asanyarray(image.dataobj).astype(np.float64)
    while data.ndim > 3:
        assert data.shape[-1] == 1
        data = data[..., 0]
    return data, image.affine, image.header


def settled(data, found):
    """What values without NaN and negative ones can be: zeros there, or all shifted, zeros of a background excepted."""
    with np.errstate(over="ignore"):
        data = np.where(np.isfinite(data.astype(np.float32)), data, 0)
    low = data.min()
    shifted = data - low
    choices = [data] if low >= 0 else [np.maximum(data, 0), shifted, np.where(data == 0, 0, shifted)]
    tolerance = 1e-5 * max(np.abs(data).max(), 1e-30)
    (match, *_) = [one for one in choices if np.abs(one - found).max() <= tolerance] or [None]
    assert match is not None
    return match


def in_mm(affine, header):
    """nibabel's affine in the header's units, where sizes of 0.1 to 6.9 mm come of that."""
    if not isinstance(header, nib.Nifti1Header):
        return affine
    factor = UNITS.get(int(header["xyzt_units"]) % 8, 1.0)
    scaled = np.diag([factor] * 3 + [1.0]) @ affine
    sizes = nib.affines.voxel_sizes(scaled)
    return scaled if sizes.min() > 0.099 and sizes.max() < 6.92 else affine


@RUN
@given(images())
def test_heads(folder, drawn):
    name, content, behind = drawn
    path, clean = folder / name, folder / f"clean_{name}"
    path.write_bytes(content + behind)
    clean.write_bytes(content)
    image = read(load_image, path)
    if image is None:
        return
    data, affine, header = by_nibabel(clean)
    found = np.asarray(image.dataobj, np.float64)
    expected = settled(data, found)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.min() < found.max()
    affine = in_mm(affine, header)
    np.testing.assert_allclose(image.affine, affine, rtol=1e-4, atol=1e-4 * np.abs(affine).max())
    sizes = nib.affines.voxel_sizes(image.affine)
    assert 0.099 < sizes.min() <= sizes.max() < 6.92
    assert "nan" not in describe_orientation(image)
    assert orientation_code(image) in range(1, 6)
    check_conformed(image, expected)


def check_conformed(image, expected):
    """Conformed values are those of linear interpolation, one point at a time."""
    conformed = geometry.conform(image)
    np.testing.assert_array_equal(conformed.affine[:3, :3], [[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    centre = nib.affines.apply_affine(image.affine, np.array(expected.shape) / 2)
    np.testing.assert_allclose(nib.affines.apply_affine(conformed.affine, [SIDE / 2] * 3), centre, rtol=1e-5, atol=1e-4)
    out = np.asarray(conformed.dataobj).astype(float)
    raw = np.asarray(image.dataobj)
    offset, factor = robust_scale(raw)
    if raw.dtype == np.uint8 and offset + 255 / factor >= 180:
        offset, factor = 0.0, 1.0
    points = np.linalg.inv(image.affine) @ conformed.affine
    places = points[:3, :3] @ np.indices(out.shape).reshape(3, -1) + points[:3, 3:]
    last = np.array(expected.shape)[:, None] - 1
    inside = ((places > 1e-3) & (places < last - 1e-3)).all(0)
    there = map_coordinates(expected, places[:, inside], order=1)
    wanted = ((there - offset) * factor).clip(0, 255)
    assert not inside.any() or np.abs(out.reshape(-1)[inside] - wanted).max() <= 1.01
    outside = ((places < -1e-3) | (places > last + 1e-3)).any(0)
    assert not out.reshape(-1)[outside].any()


@RUN
@given(images())
def test_labels_and_masks(folder, drawn):
    name, content, behind = drawn
    path, clean = folder / name, folder / f"clean_{name}"
    path.write_bytes(content + behind)
    clean.write_bytes(content)
    labels, mask = read(load_labels, path), read(load_mask, path)
    if labels is not None:
        data, affine, header = by_nibabel(clean)
        np.testing.assert_array_equal(labels.dataobj, data.astype(np.float32))  # what doubles hold beyond is lost
        assert np.asarray(labels.dataobj).dtype == np.uint16
        np.testing.assert_allclose(labels.affine, in_mm(affine, header), rtol=1e-4, atol=1e-3)
    if mask is not None:  # of 125 voxels at most: none is as large as a brain
        pytest.fail(f"a brain mask of {np.count_nonzero(mask.dataobj)} voxels was taken")
