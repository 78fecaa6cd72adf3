"""Reading and writing images, with errors that say what is wrong and what is allowed."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

logger = logging.getLogger(__name__)

READABLE = (".nii", ".nii.gz", ".mgz", ".mgh")
WRITABLE = (".nii", ".nii.gz", ".mgz")
COARSE_MM, COARSEST_MM = 3.0, 7.0


class ImageError(ValueError):
    """An image that cannot be used; the message names the file and the reason."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well, and vanishes when not."""
    path = Path(path)
    suffix = _suffix(path, (*READABLE, path.suffix))
    temporary = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}.part{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _suffix(path: Path, allowed: tuple[str, ...]) -> str:
    return max((s for s in allowed if path.name.lower().endswith(s)), key=len, default="")


def load_image(path: str | os.PathLike) -> nib.spatialimages.SpatialImage:
    """Reads a T1-weighted image as three-dimensional, finite data.

    A trailing axis of length 1 is dropped; NaN and infinite voxels become 0, with a warning that counts them.
    Values keep their type and scale.

    Parameters
    ----------
    path : path
        ``.nii``, ``.nii.gz``, ``.mgz`` or ``.mgh``.

    Returns
    -------
    nibabel image (X, Y, Z)

    Raises
    ------
    ImageError
        The file is missing, damaged, not three-dimensional, of a wrong type, constant, has slices of 7 mm or
        more, or its affine cannot be used.
    """
    path = Path(path)
    _check_file(path)
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ImageError(f"{path}: cannot be read, it is truncated, corrupt or no image ({error})") from error
    data = _three_dimensional(data, path)
    _check_affine(image, path)
    clean = _finite(data, path)
    if clean.min() == clean.max():
        raise ImageError(f"{path}: every voxel is {clean.flat[0]}; an image with contrast is needed")
    if clean is data and image.shape == data.shape:
        return image
    kind = nib.MGHImage if isinstance(image, nib.MGHImage) else nib.Nifti1Image
    return kind(clean, image.affine, image.header if kind is type(image) else None)


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ImageError(
            f"{path}: a link whose target is not there; in a DataLad dataset fetch it with `datalad get {path}`"
        )
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if not path.is_file() or not _suffix(path, READABLE):
        raise ImageError(f"{path}: not an image file; allowed are {', '.join(READABLE)}")


def _three_dimensional(data: np.ndarray, path: Path) -> np.ndarray:
    if data.dtype.fields or np.iscomplexobj(data):
        raise ImageError(f"{path}: its voxels are of type {data.dtype}; single real numbers are needed")
    shape = data.shape
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(f"{path}: has shape {shape}; a T1w image has three axes (average or split a series first)")
    if min(data.shape) < 2:
        raise ImageError(f"{path}: has shape {shape}; a single slice cannot be segmented")
    return data


def _check_affine(image: nib.spatialimages.SpatialImage, path: Path) -> None:
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ImageError(f"{path}: its affine is missing, not finite or singular, so that sizes are unknown")
    thickest = float(nib.affines.voxel_sizes(affine).max())
    if thickest >= COARSEST_MM:
        raise ImageError(f"{path}: its slices are {thickest:.1f} mm thick; at most {COARSEST_MM:.0f} mm is allowed")
    if thickest > COARSE_MM + 0.05:
        logger.warning("%s: voxels of %.1f mm; volumes of small structures will not be reliable", path, thickest)


def _finite(data: np.ndarray, path: Path) -> np.ndarray:
    """The same array where all is finite, else a copy with zeros."""
    if not np.issubdtype(data.dtype, np.floating):
        return data
    bad = ~np.isfinite(data)
    count = int(bad.sum())
    if not count:
        return data
    logger.warning("%s: %d voxels are NaN or infinite; they are read as 0", path, count)
    return np.where(bad, data.dtype.type(0), data)


def describe_orientation(image: nib.spatialimages.SpatialImage, tolerance_mm: float = 0.1) -> str:
    """Says which of two disagreeing NIfTI orientations is used; empty where there is nothing to say.

    The standard rule: the sform where its code is positive, else the qform.
    """
    header = image.header
    if not isinstance(header, nib.Nifti1Header) or not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return ""
    corner = np.array([*image.shape[:3], 1.0])
    apart = float(np.abs((header.get_sform() - header.get_qform()) @ corner).max())
    if apart <= tolerance_mm:
        return ""
    return f"sform and qform disagree by up to {apart:.1f} mm; the sform is used"


def save_image(
    data: np.ndarray, affine: np.ndarray, path: str | os.PathLike, dtype: np.dtype | type | None = None
) -> Path:
    """Writes an image in one go (a half-written file is never seen), both orientation codes set.

    Parameters
    ----------
    data : (X, Y, Z) or (X, Y, Z, C)
    affine : float (4, 4), mm
    path : path
        ``.nii``, ``.nii.gz`` or ``.mgz``.
    dtype : optional
        Type on disk, without rescaling; the array's own by default.
    """
    path = Path(path)
    if not _suffix(path, WRITABLE):
        raise ImageError(f"{path}: cannot be written; allowed are {', '.join(WRITABLE)}")
    data = np.asarray(data, dtype)
    if path.name.lower().endswith(".mgz"):
        image = nib.MGHImage(data.astype(np.int32) if data.dtype in (np.uint16, np.uint32) else data, affine)
    else:
        image = nib.Nifti1Image(data, affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
    return path
