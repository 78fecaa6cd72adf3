"""Reading and writing images, with errors that say what is wrong and what is allowed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.file_checks import WRITABLE, atomic_path, check_file, is_compressed, suffix_of
from medsegmamba_bids.image.gzip_files import ArrayFile, check_gzip, unpacked
from medsegmamba_bids.image.header import check_nifti, describe_orientation, placed
from medsegmamba_bids.image.intensity import without_negative

logger = logging.getLogger(__name__)

Image = nib.spatialimages.SpatialImage
_NIFTI2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # the size of its header, in either byte order


def load_image(path: str | os.PathLike) -> Image:
    """Read an image of a head as three-dimensional, finite data without negative values.

    A trailing axis of length 1 is dropped. NaN and infinite voxels become 0, negative values are settled by
    `image.intensity.without_negative`; both are logged as warnings with their number,
    and so are voxels of 3 mm or more. The orientation is nibabel's: the sform where its code is above 0, else
    the qform (see `describe_orientation`).

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.mgz`` or ``.mgh``.

    Returns
    -------
    nibabel image (X, Y, Z)
        Its data are in memory, in the type of the file where that is an integer of up to 32 bits, else (also
        where the header scales them) float32. The header is the file's own.

    Raises
    ------
    ImageError
        The file is missing, damaged, not three-dimensional or without contrast; its voxels are no real numbers or
        not of 0.1 to 6.9 mm, or its affine cannot be used.
    """
    return _head(read_image(Path(path)), path)


def check_image(image: Image, name: str = "the image") -> Image:
    """Bring an image in memory to what `load_image` returns.

    Parameters
    ----------
    image : nibabel image
    name : str
        What messages call it.

    Raises
    ------
    ImageError
        As `load_image`.
    """
    return _head(take_image(image, name), name)


def _head(image: Image, name: str | os.PathLike) -> Image:
    """Return an image of a head with finite data without negative values; refused without contrast."""
    given = np.asarray(image.dataobj)
    data, note = without_negative(_finite(given, name))
    if note:
        logger.warning("%s: %s", name, note)
        if given.dtype.kind == "f":  # NaN for background, as standardised images have it, stays 0 where all was shifted
            data[~np.isfinite(given)] = 0
    if data.min() == data.max():
        value = data.flat[0].item()
        raise ImageError(f"{name}: every voxel is {value:g}; an image with contrast is needed")
    return with_data(image, data)


def load_labels(path: str | os.PathLike) -> Image:
    """Read a label image as three-dimensional whole numbers; unlike an image of a head it may be empty.

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.mgz`` or ``.mgh``, of any number type.

    Returns
    -------
    nibabel image, uint16 (X, Y, Z)

    Raises
    ------
    ImageError
        The file is missing, damaged, not three-dimensional, or its affine cannot be used; or a value is no whole
        number from 0 to 65535.
    """
    return _label_image(read_image(Path(path)), path)


def check_labels(image: Image, name: str = "the labels") -> Image:
    """Bring a label image in memory to what `load_labels` returns, or refuse it as that does."""
    return _label_image(take_image(image, name), name)


def _label_image(image: Image, name: str | os.PathLike) -> Image:
    data = np.asarray(image.dataobj)
    whole = data.dtype.kind in "iu" or bool((np.isfinite(data) & (data == np.rint(data))).all())
    if not whole or data.min() < 0 or data.max() > np.iinfo(np.uint16).max:
        raise ImageError(f"{name}: its values are not whole numbers from 0 to 65535; a label image is needed")
    return with_data(image, data.astype(np.uint16))


def read_image(path: Path) -> Image:
    """Read any image of three axes with its values as they are, NaN and infinity included.

    Returns
    -------
    nibabel image (X, Y, Z)
        Integers of up to 32 bits or float32, in memory; affine and header in mm.

    Raises
    ------
    ImageError
        The file is missing, damaged, not three-dimensional, or its voxels are no real numbers or lie nowhere.
    """
    check_file(path)
    image, data = _read(path, unpacked(path) if is_compressed(path) else None)
    return with_data(image, _three_dimensional(_real(data, path), path), *placed(image, path, path))


def open_series(path: Path) -> Image:
    """Open an image of any number of axes, checked as `read_image` does, with its voxels still in the file.

    Returns
    -------
    nibabel image
        Its affine and header in mm; ``dataobj[..., k]`` reads a volume.

    Raises
    ------
    ImageError
        The file is missing or damaged, or its voxels lie nowhere.
    """
    check_file(path)
    packed_otherwise = is_compressed(path) and check_gzip(path)
    image = _opened(path, unpacked(path) if packed_otherwise else None)
    affine, header = placed(image, path, path)
    return type(image)(image.dataobj, affine, header)


def load_as_is(path: str | os.PathLike) -> Image:
    """Read an image that the app itself has written, without looking for what may be wrong with those of others.

    Returns
    -------
    nibabel image
        As `nibabel.load` returns it; what is compressed has its voxels in memory, and its checksum was compared.

    Raises
    ------
    ImageError
        The file is compressed and truncated or corrupt.
    """
    path = Path(path)
    if not is_compressed(path):
        return nib.load(path)
    content = unpacked(path)
    with _damage_said(path):
        image = _of_content(path, content)
        return type(image)(_voxels(image, content), image.affine, image.header)


def take_image(image: Image, name: str) -> Image:
    """Bring an image in memory to what `read_image` returns; ``name`` is what messages call it."""
    data = _three_dimensional(_real(np.asanyarray(image.dataobj), name), name)
    file = image.get_filename()
    return with_data(image, data, *placed(image, name, Path(file) if file else None))


def with_data(image: Image, data: np.ndarray, affine: np.ndarray | None = None, header: Any = None) -> Image:
    """Return an image of the same kind with other voxels, and with its own affine and header if no others are given."""
    header = (image.header if header is None else header).copy()
    header.set_data_dtype(_type_on_disk(data.dtype, ".nii" if isinstance(header, nib.Nifti1Header) else ".mgz"))
    return type(image)(data, image.affine if affine is None else affine, header)


def _read(path: Path, content: np.ndarray | None) -> tuple[Image, np.ndarray]:
    """Return an image and its array, as they are in a file or its content; float32 where its header scales them."""
    image = _opened(path, content)
    with _damage_said(path):
        if content is not None:
            return image, _voxels(image, content, np.float32)
        return image, np.asarray(image.dataobj, np.float32 if _is_scaled(image) else None)


def _opened(path: Path, content: np.ndarray | None) -> Image:
    if suffix_of(path) in (".nii", ".nii.gz"):
        check_nifti(path)
    with _damage_said(path):
        return nib.load(path) if content is None else _of_content(path, content)


def _of_content(path: Path, content: np.ndarray) -> Image:
    """Return the image of an unpacked file; `_voxels` reads its voxels without a copy."""
    return _kind(path, content[:4].tobytes()).from_stream(ArrayFile(content))


def _is_scaled(image: Image) -> bool:
    return (image.dataobj.slope, image.dataobj.inter) != (1, 0)


def _voxels(image: Image, content: np.ndarray, scaled: type | None = None) -> np.ndarray:
    """Return the voxels of an image of unpacked content, a view of it unless its header scales them.

    Parameters
    ----------
    image : nibabel image
    content : uint8 (bytes,)
    scaled : optional
        Type of scaled voxels; nibabel's by default.
    """
    proxy = image.dataobj
    stop = proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize
    if _is_scaled(image) or stop > len(content):  # nibabel says what is missing
        return np.asarray(proxy, scaled)
    voxels = content[proxy.offset : stop].view(proxy.dtype).reshape(proxy.shape, order="F")
    return np.require(voxels, requirements="A")


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    """Turn what nibabel raises into a sentence; it has many ways to fail on a damaged header."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read, it is truncated, corrupt or no image ({reason})") from error


def _kind(path: Path, start: bytes) -> type[Image]:
    """Return nibabel's class of a file, from its first four bytes, as `nibabel.load` finds it."""
    if suffix_of(path) == ".mgz":
        return nib.MGHImage
    return nib.Nifti2Image if start in _NIFTI2 else nib.Nifti1Image


def _real(data: np.ndarray, name: str | os.PathLike) -> np.ndarray:
    """Return the same numbers in native byte order and no wider than 32 bits; refuses what are no numbers."""
    if data.dtype.kind not in "biuf":
        raise ImageError(f"{name}: its voxels are {data.dtype}; single real numbers are needed")
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, is counted and set to 0
            return data.astype(np.float32, copy=False)
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.itemsize <= 4 and data.dtype != np.uint32:
        return data.astype(data.dtype.newbyteorder("="), copy=False)
    span = np.iinfo(np.int32)
    fits = not data.size or (data.min() >= span.min and data.max() <= span.max)
    return data.astype(np.int32 if fits else np.float32)


def _three_dimensional(data: np.ndarray, name: str | os.PathLike) -> np.ndarray:
    shape = data.shape
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim > 3:
        raise ImageError(
            f"{name}: has shape {shape}; three axes are needed (take one volume of a series, or average it)"
        )
    if data.ndim < 3 or min(data.shape) < 2:
        raise ImageError(f"{name}: has shape {shape}; three axes are needed, not a single slice")
    return data


def _finite(data: np.ndarray, name: str | os.PathLike) -> np.ndarray:
    """Return the same array where all is finite, else a copy with zeros."""
    if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):
        return data
    bad = ~np.isfinite(data)
    logger.warning("%s: %d voxels are NaN or infinite; they are read as 0", name, bad.sum())
    return np.where(bad, np.float32(0), data)


def save_image(
    data: np.ndarray,
    affine: np.ndarray,
    path: str | os.PathLike,
    dtype: np.dtype | type | None = None,
    code: int = 1,
    segmentation: str = "",
) -> Path:
    """Write an image in one go (a half-written file is never seen), with sform and, but for sheared axes, qform.

    Parameters
    ----------
    data : (X, Y, Z) or (X, Y, Z, C)
    affine : float (4, 4), mm
    path : path
        ``.nii``, ``.nii.gz`` or ``.mgz``. Its folder is made where it is missing.
    dtype : optional
        Type on disk, without rescaling; the array's own by default. What a format lacks becomes a wider one
        (bool uint8, 64-bit integers int32; in MGZ also uint16 int32 and float64 float32).
    code : int
        NIfTI's code of both orientations: 1 scanner, 2 another image, 3 Talairach, 4 MNI152, 5 template.
    segmentation : str
        Name of a segmentation whose labels these are (``aseg``): NIfTI headers tell so, and what its table is called.

    Returns
    -------
    Path

    Raises
    ------
    ImageError
        The extension is another one.
    """
    path = Path(path)
    suffix = _writable_suffix(path)
    data = np.asarray(data, dtype)
    data = data.astype(_type_on_disk(data.dtype, suffix), copy=False)
    if suffix == ".mgz":
        image = nib.MGHImage(data, affine)
    else:
        image = nib.Nifti1Image(data, affine)
        place(image, affine, code)
        image.header.set_xyzt_units("mm")
        if segmentation:
            image.header.set_intent("label", (), segmentation)
            image.header["aux_file"] = f"seg-{segmentation}_dseg.tsv"  # where NIfTI wants the table
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if suffix == ".nii.gz":
            _write_gzip(image, temporary)
        else:
            image.to_filename(temporary)
    return path


def place(image: nib.Nifti1Image, affine: np.ndarray, code: int) -> None:
    """Give an image an affine with NIfTI's code, as sform and as qform, in place.

    A qform holds rotations alone. Of sheared axes it would be another place than the sform, which only some programs
    prefer: it is left without a code.
    """
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    if describe_orientation(image):
        image.header["qform_code"] = 0


def _write_gzip(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image compressed with ISA-L: ten times as fast as zlib, and as small as its quickest level."""
    with path.open("wb") as raw, igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        image.to_stream(file)


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a path where no image can be written, before any work.

    Raises
    ------
    ImageError
        The extension is not allowed, the folder is absent or cannot be written in, or a folder has this name.
    """
    path = Path(path)
    _writable_suffix(path)
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise ImageError(f"{path}: its folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ImageError(f"{path}: its folder {path.parent} cannot be written in")


def _writable_suffix(path: Path) -> str:
    suffix = suffix_of(path, WRITABLE)
    if not suffix:
        raise ImageError(f"{path}: cannot be written; allowed are {', '.join(WRITABLE)}")
    return suffix


def _type_on_disk(dtype: np.dtype, suffix: str) -> np.dtype:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind in "iu" and dtype.itemsize == 8:
        return np.dtype(np.int32)
    if suffix == ".mgz" and dtype in (np.int8, np.uint16, np.uint32):
        return np.dtype(np.int32)
    if dtype == np.float16 or (suffix == ".mgz" and dtype == np.float64):
        return np.dtype(np.float32)
    return dtype


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a UTF-8 text, all at once; returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
