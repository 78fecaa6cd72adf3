"""Where an image's header says that its voxels lie: units, sizes, orientation, and what is odd about them."""

from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.file_checks import is_compressed
from medsegmamba_bids.image.grid import Grid

logger = logging.getLogger(__name__)

COARSE_MM = 3.0  # thin structures are lost from here on
COARSEST_MM = 6.9  # slices of 7 mm are refused, however their size was rounded
FINEST_MM = 0.1
_ROUNDING_MM = 0.01  # of thick slices
_QUATERNION_ROUNDING = 1e-6  # nibabel's own tolerance for single precision
#: NIfTI's codes of units of length other than mm: name, and how many mm they are.
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
_START = 1024  # bytes; no header that is read here is longer
#: The size of a NIfTI header, its first four bytes in either order, and which one it is.
_NIFTI = {b"\x5c\x01\0\0": nib.Nifti1Header, b"\x1c\x02\0\0": nib.Nifti2Header}
_GOOD_RAS = slice(28, 30)  # of an MGH header: whether the geometry that follows is valid

Image = nib.spatialimages.SpatialImage
Header = nib.spatialimages.SpatialHeader


def placed(image: Image, name: str | os.PathLike, file: Path | None) -> tuple[np.ndarray, Header]:
    """Return the affine in mm and header of an image, both checked; its file is read again where nibabel hides what it
    says.

    A NIfTI header in metres or micrometres is converted, with a warning, unless voxels of that size cannot be and
    voxels of as many mm can: then mm are meant, with a warning too. Voxels of 3 mm or more are warned of.

    Parameters
    ----------
    image : nibabel image
    name : str or path
        What messages call it.
    file : Path or None
        Where it was read from, if anywhere.

    Raises
    ------
    ImageError
        Sizes or directions of the voxels are not known, or the sizes are not between 0.1 and 6.9 mm.
    """
    header = image.header.copy()
    affine = image.affine
    nifti = isinstance(header, nib.Nifti1Header)
    if file is not None and file.exists():
        (_check_sizes if nifti else _check_mgh)(header, _first_bytes(file), name)
    if nifti:
        affine = _to_mm(affine, header, name)
    _check_affine(affine, name)
    return affine, header


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_START)
    return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, _START) if is_compressed(path) else start


def _check_mgh(header: Header, start: bytes, name: str | os.PathLike) -> None:
    """Refuse an MGH file without geometry: nibabel and FreeSurfer read it as 1 mm, whatever it is."""
    if isinstance(header, nib.MGHImage.header_class) and start[_GOOD_RAS] == b"\0\0":
        raise ImageError(
            f"{name}: has no geometry (its goodRASFlag is 0), so that sizes and sides of its voxels are unknown; "
            "make it anew from the original image"
        )


def _check_sizes(header: nib.Nifti1Header, start: bytes, name: str | os.PathLike) -> None:
    """Refuse voxel sizes of 0 where the orientation depends on them: nibabel reads them as 1 mm."""
    if header["sform_code"] > 0:
        return
    sizes = _as_written(type(header), start)["pixdim"][1:4]
    if not sizes.all():
        raise ImageError(f"{name}: its affine is zero or singular (voxels of {_sizes(sizes)} mm)")


def _as_written(kind: type[nib.Nifti1Header], start: bytes) -> nib.Nifti1Header:
    """Return a header as its bytes have it, where nibabel would mend it."""
    return kind(start[: kind.template_dtype.itemsize], check=False)


def check_nifti(path: Path) -> None:
    """Refuse a NIfTI file that nibabel reads wrongly, or of which it says nothing that helps.

    Raises
    ------
    ImageError
        The voxels would begin within the header, whose bytes would be read as voxels; or the orientation is a qform
        that is no rotation. Other damage is not looked for.
    """
    start = _first_bytes(path)
    kind = next((kind for size, kind in _NIFTI.items() if start[:4] in (size, size[::-1])), None)
    if kind is None or len(start) < kind.template_dtype.itemsize:
        return
    header = _as_written(kind, start)
    offset, magic = float(header["vox_offset"]), header["magic"].item().decode("ascii", "replace")
    if offset < kind.sizeof_hdr:
        pair = f" (its magic is {magic!r}, that of a header whose voxels have a file of their own)"
        raise ImageError(
            f"{path}: its voxels would begin at byte {offset:g}, within its header{pair * magic.startswith('ni')}"
        )
    length = float(np.linalg.norm([header[f"quatern_{axis}"] for axis in "bcd"]))
    if header["sform_code"] == 0 and header["qform_code"] != 0 and length > 1 + _QUATERNION_ROUNDING:
        raise ImageError(
            f"{path}: its orientation is unknown: it has no sform, and the quaternion of its qform has a length of "
            f"{length:.3g}, more than the 1 that a rotation has at most"
        )


def _to_mm(affine: np.ndarray, header: nib.Nifti1Header, name: str | os.PathLike) -> np.ndarray:
    """Return the affine in mm; the header is brought to mm as well, in place."""
    if int(header["xyzt_units"]) % 8 not in _UNITS:
        return affine
    unit, factor = _UNITS[int(header["xyzt_units"]) % 8]
    zooms = nib.affines.voxel_sizes(affine)
    if _plausible(zooms) and not _plausible(zooms * factor):
        logger.warning("%s: its header says %s, but its voxels can only be of %s mm", name, unit, _sizes(zooms))
        factor = 1.0
    else:
        sizes = _sizes(zooms * factor)
        logger.warning("%s: its header is in %s; converted to mm, its voxels are %s mm", name, unit, sizes)
    header["xyzt_units"] = int(header["xyzt_units"]) // 8 * 8 + 2
    header["pixdim"][1:4] *= factor
    for key in ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        header[key] = header[key] * factor
    return np.diag([factor, factor, factor, 1.0]) @ affine


def _plausible(zooms: np.ndarray) -> bool:
    return bool(zooms.min() >= 0.998 * FINEST_MM and zooms.max() <= COARSEST_MM + _ROUNDING_MM)


def _check_affine(affine: np.ndarray, name: str | os.PathLike) -> None:
    if not np.isfinite(affine).all():
        raise ImageError(f"{name}: its affine is not finite, so that sizes are unknown")
    zooms = nib.affines.voxel_sizes(affine)
    volume = abs(np.linalg.det(affine[:3, :3]))
    if zooms.min() <= 0 or not volume >= 1e-3 * zooms.prod():
        raise ImageError(f"{name}: its affine is zero or singular, so that sizes are unknown")
    if not _plausible(zooms):
        limit = f"at most {COARSEST_MM}" if zooms.max() > COARSEST_MM else f"at least {FINEST_MM}"
        raise ImageError(f"{name}: its voxels are {_sizes(zooms)} mm; {limit} mm are allowed")
    if zooms.max() > COARSE_MM - _ROUNDING_MM:
        logger.warning(
            "%s: its voxels are %s mm; volumes of small structures will not be reliable", name, _sizes(zooms)
        )


def _sizes(zooms: np.ndarray) -> str:
    return " x ".join(f"{size:.3g}" for size in zooms)


def describe_orientation(image: Image, tolerance_mm: float = 0.1) -> str:
    """Say what is odd about an image's orientation; empty where there is nothing to say.

    A NIfTI file holds two orientations. The standard rule, which nibabel follows: the sform where its code is
    above 0, else the qform. Disagreement is measured at the corners of the image, in mm; where there is a sform alone,
    it is that of its voxel sizes with the header's over the whole image.
    """
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return ""
    has_sform, has_qform = header["sform_code"] > 0, header["qform_code"] > 0
    if not has_sform and not has_qform:
        return "neither sform nor qform is set: the orientation, left and right included, is a guess"
    if not has_qform:
        return _other_sizes(image, tolerance_mm)
    if not has_sform:
        return ""
    try:
        qform = header.get_qform()
    except (nib.spatialimages.HeaderDataError, ValueError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        return "the qform cannot be read; the sform is used"
    shape = image.shape[:3]
    apart = Grid(header.get_sform(), shape).distance(Grid(qform, shape))
    if apart <= tolerance_mm:
        return ""
    return f"sform and qform disagree by up to {apart:.1f} mm; the sform is used"


def _other_sizes(image: Image, tolerance_mm: float) -> str:
    """Say where a header gives other sizes than its sform: some programs go by those, and measure other volumes."""
    told, used = np.array(image.header.get_zooms()[:3]), nib.affines.voxel_sizes(image.header.get_sform())
    if (np.abs(told - used) * image.shape[:3]).max() <= tolerance_mm:
        return ""
    return f"voxels are {_sizes(told)} mm by the header and {_sizes(used)} mm by its sform; the sform is used"


def orientation_code(image: Image) -> int:
    """Return NIfTI's code of the orientation in use: the sform's, else the qform's; 1 where there is none."""
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return 1
    codes = [int(header[name]) for name in ("sform_code", "qform_code") if header[name] > 0]
    return codes[0] if codes and codes[0] in range(1, 6) else 1
