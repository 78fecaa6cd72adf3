"""Class probabilities as a 4D image, written a class at a time: all of them at once need gigabytes."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import TracebackType

import nibabel as nib
import numpy as np

from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import atomic_path

_LEVELS = 255  # probabilities are stored in steps of 1/255


class PosteriorFile:
    """Writes probabilities as they come; a context, at whose end the file is complete and in its place.

    Stored as uint8 in steps of 1/255, which the header's slope undoes.

    Parameters
    ----------
    path : Path
        ``.nii.gz``
    grid : Grid
        The conformed one.
    n_classes : int
    """

    def __init__(self, path: Path, grid: Grid, n_classes: int) -> None:
        self.grid, self.n_classes = grid, n_classes
        self.done = 0
        self.path = path
        self._context = atomic_path(path)

    def __enter__(self) -> PosteriorFile:
        self._temporary = self._context.__enter__()
        # A modification time of 0 makes equal contents equal files.
        self._raw = self._temporary.open("wb")
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=self._raw, mtime=0)
        self._file.write(_header((*self.grid.shape, self.n_classes), self.grid.affine))
        return self

    def __call__(self, index: int, box: Box, posterior: np.ndarray) -> None:
        """Add a class, as ``inference.merge.OnPosterior`` says; classes come in order."""
        if index != self.done:
            raise ValueError(f"class {index} came where class {self.done} was expected")
        levels = np.rint(np.clip(posterior, 0, 1) * _LEVELS).astype(np.uint8)
        volume = self.grid.paste(levels, box, _LEVELS if index == 0 else 0)
        self._file.write(volume.tobytes(order="F"))
        self.done += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                nothing = Box.empty()
                while self.done < self.n_classes:  # nothing was found: background alone
                    self(self.done, nothing, np.zeros((0, 0, 0), np.float32))
            self._file.close()
        finally:
            self._raw.close()
            self._context.__exit__(kind, error, trace)


def _header(shape: tuple[int, ...], affine: np.ndarray) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1 / _LEVELS, 0)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)  # no extensions
