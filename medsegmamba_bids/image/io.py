"""Reading and writing images, with errors that say what is wrong and what is allowed."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.intensity import without_negative

logger = logging.getLogger(__name__)

READABLE = (".nii", ".nii.gz", ".mgz", ".mgh")
WRITABLE = (".nii", ".nii.gz", ".mgz")
COARSE_MM = 3.0  # thin structures are lost from here on
COARSEST_MM = 6.9  # slices of 7 mm are refused, however their size was rounded
_ROUNDING_MM = 0.01
_CHUNK = 1 << 20


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``.

    It replaces ``path`` when the block ends well and vanishes when not, so that nobody sees half a file.
    Its name is random: jobs on several machines may write into one folder.
    """
    path = Path(path)
    suffix = _suffix(path, (*READABLE, path.suffix))
    stem = path.name[: len(path.name) - len(suffix)]
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}.part{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:  # a full disk names no file, others the temporary one
        if error.filename is None or str(temporary) in (str(error.filename), str(error.filename2)):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # what went wrong is told, not this
            temporary.unlink(missing_ok=True)


def _suffix(path: Path, allowed: tuple[str, ...]) -> str:
    return max((s for s in allowed if path.name.lower().endswith(s.lower())), key=len, default="")


def load_image(path: str | os.PathLike) -> nib.spatialimages.SpatialImage:
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
        The file is missing, damaged, not three-dimensional, without contrast or has voxels over 6.9 mm; its
        voxels are no real numbers, or its affine cannot be used.
    """
    return _head(*_load(Path(path)), path)


def check_image(image: nib.spatialimages.SpatialImage, name: str = "the image") -> nib.spatialimages.SpatialImage:
    """Bring an image in memory to what :func:`load_image` returns.

    Parameters
    ----------
    image : nibabel image
    name : str
        What messages call it.

    Raises
    ------
    ImageError
        As :func:`load_image`.
    """
    return _head(image, _in_memory(image, name), name)


def _head(
    image: nib.spatialimages.SpatialImage, data: np.ndarray, name: str | os.PathLike
) -> nib.spatialimages.SpatialImage:
    """An image of a head with finite data without negative values; refused without contrast."""
    data = _finite(data, name)
    data, note = without_negative(data)
    if note:
        logger.warning("%s: %s", name, note)
    if data.min() == data.max():
        value = data.flat[0].item()
        raise ImageError(f"{name}: every voxel is {value:g}; an image with contrast is needed")
    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    return type(image)(data, image.affine, header)


def load_labels(path: str | os.PathLike) -> nib.spatialimages.SpatialImage:
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
    return _label_image(*_load(Path(path)), path)


def check_labels(image: nib.spatialimages.SpatialImage, name: str = "the labels") -> nib.spatialimages.SpatialImage:
    """Bring a label image in memory to what :func:`load_labels` returns, or refuse it as that does."""
    return _label_image(image, _in_memory(image, name), name)


def _label_image(
    image: nib.spatialimages.SpatialImage, data: np.ndarray, name: str | os.PathLike
) -> nib.spatialimages.SpatialImage:
    whole = data.dtype.kind in "iu" or bool((np.isfinite(data) & (data == np.rint(data))).all())
    if not whole or data.min() < 0 or data.max() > np.iinfo(np.uint16).max:
        raise ImageError(f"{name}: its values are not whole numbers from 0 to 65535; a label image is needed")
    header = image.header.copy()
    data = data.astype(np.uint16)
    header.set_data_dtype(np.uint16 if isinstance(header, nib.Nifti1Header) else np.int32)
    return type(image)(data, image.affine, header)


def _load(path: Path) -> tuple[nib.spatialimages.SpatialImage, np.ndarray]:
    """An image and its array, with three axes and a grid that can be used."""
    _check_file(path)
    image, data = _read(path)
    data = _three_dimensional(_real(data, path), path)
    _check_sizes(image.header, path)
    _check_affine(image.affine, path)
    return image, data


def _in_memory(image: nib.spatialimages.SpatialImage, name: str) -> np.ndarray:
    """The array of an image in memory, with three axes and on a grid that can be used."""
    data = _three_dimensional(_real(np.asanyarray(image.dataobj), name), name)
    _check_affine(image.affine, name)
    return data


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ImageError(
            f"{path}: a link whose target is not there; in a DataLad dataset fetch it with `datalad get {path}`"
        )
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if not path.is_file() or not _suffix(path, READABLE):
        raise ImageError(f"{path}: not an image file; allowed are {', '.join(READABLE)}")
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror})") from error
    if not start:
        raise ImageError(f"{path}: the file is empty")
    if start.startswith(b"/annex/objects/"):
        raise ImageError(f"{path}: only a pointer of git-annex; fetch it with `datalad get {path}`")
    if _suffix(path, READABLE) in (".nii.gz", ".mgz"):
        _check_gzip(path)


def _check_gzip(path: Path) -> None:
    """Unpack a file once to its end: nibabel does not read the checksum there."""
    try:
        with gzip.open(path) as file:
            while file.read(_CHUNK):
                pass
    except EOFError as error:
        raise ImageError(f"{path}: the compressed file is truncated; copy it again") from error
    except (OSError, zlib.error) as error:
        raise ImageError(f"{path}: the compressed file is corrupt ({error}); copy it again") from error


def _read(path: Path) -> tuple[nib.spatialimages.SpatialImage, np.ndarray]:
    """Image and its array, as they are in the file; float32 where its header scales them."""
    try:
        image = nib.load(path)
        proxy = image.dataobj
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        data = np.asarray(proxy, np.float32) if scaled else np.asarray(proxy)
    except Exception as error:  # nibabel has many ways to fail on a damaged header
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read, it is truncated, corrupt or no image ({reason})") from error
    return image, data


def _real(data: np.ndarray, name: str | os.PathLike) -> np.ndarray:
    """The same numbers in native byte order and no wider than 32 bits; refuses what are no numbers."""
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


def _check_sizes(header: object, path: Path) -> None:
    """Refuse voxel sizes of 0 where the orientation depends on them: nibabel reads them as 1 mm."""
    if not isinstance(header, nib.Nifti1Header) or header["sform_code"] > 0:
        return
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        sizes = type(header).from_fileobj(file, check=False)["pixdim"][1:4]
    if not sizes.all():
        raise ImageError(f"{path}: its affine is zero or singular (voxels of {_sizes(sizes)} mm)")


def _check_affine(affine: np.ndarray, name: str | os.PathLike) -> None:
    if not np.isfinite(affine).all():
        raise ImageError(f"{name}: its affine is not finite, so that sizes are unknown")
    zooms = nib.affines.voxel_sizes(affine)
    volume = abs(np.linalg.det(affine[:3, :3]))
    if zooms.min() <= 0 or volume < 1e-3 * zooms.prod():
        raise ImageError(f"{name}: its affine is zero or singular, so that sizes are unknown")
    thickest = float(zooms.max())
    if thickest > COARSEST_MM + _ROUNDING_MM:
        raise ImageError(f"{name}: its voxels are {_sizes(zooms)} mm; at most {COARSEST_MM} mm are allowed")
    if thickest > COARSE_MM - _ROUNDING_MM:
        logger.warning(
            "%s: its voxels are %s mm; volumes of small structures will not be reliable",
            name,
            _sizes(zooms),
        )


def _sizes(zooms: np.ndarray) -> str:
    return " x ".join(f"{size:.3g}" for size in zooms)


def _finite(data: np.ndarray, name: str | os.PathLike) -> np.ndarray:
    """The same array where all is finite, else a copy with zeros."""
    if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):
        return data
    bad = ~np.isfinite(data)
    logger.warning("%s: %d voxels are NaN or infinite; they are read as 0", name, bad.sum())
    return np.where(bad, np.float32(0), data)


def describe_orientation(image: nib.spatialimages.SpatialImage, tolerance_mm: float = 0.1) -> str:
    """Say what is odd about an image's orientation; empty where there is nothing to say.

    A NIfTI file holds two orientations. The standard rule, which nibabel follows: the sform where its code is
    above 0, else the qform. Disagreement is measured at the corners of the image, in mm.
    """
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return ""
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if not sform_code and not qform_code:
        return "neither sform nor qform is set: the orientation, left and right included, is a guess"
    if not (sform_code and qform_code):
        return ""
    try:
        sform, qform = (Grid(affine, image.shape[:3]) for affine in (header.get_sform(), header.get_qform()))
    except nib.spatialimages.HeaderDataError:
        return "the qform cannot be read; the sform is used"
    apart = sform.distance(qform)
    if apart <= tolerance_mm:
        return ""
    return f"sform and qform disagree by up to {apart:.1f} mm; the sform is used"


def save_image(
    data: np.ndarray,
    affine: np.ndarray,
    path: str | os.PathLike,
    dtype: np.dtype | type | None = None,
    code: int = 1,
) -> Path:
    """Write an image in one go (a half-written file is never seen), with sform and qform.

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
        image.set_sform(affine, code)
        image.set_qform(affine, code)
        image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
    return path


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
    suffix = _suffix(path, WRITABLE)
    if not suffix:
        raise ImageError(f"{path}: cannot be written; allowed are {', '.join(WRITABLE)}")
    return suffix


def orientation_code(image: nib.spatialimages.SpatialImage) -> int:
    """NIfTI's code of the orientation in use: the sform's, else the qform's; 1 where there is none."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return 1
    code = int(header["sform_code"]) or int(header["qform_code"])
    return code if code in range(1, 6) else 1


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
