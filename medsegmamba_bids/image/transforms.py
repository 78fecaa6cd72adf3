"""Affine transforms as files of other programs; matrices are from the T1w to the template, in mm, RAS+."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import atomic_path
from medsegmamba_bids.image.itk import to_lps


def save_itk(matrix: np.ndarray, path: Path) -> Path:
    """Write a transform as ITK resamples with it: from points of the template to points of the T1w, LPS+.

    ``antsApplyTransforms -i T1w -r TEMPLATE -t FILE`` and Slicer bring the T1w to the template with it.

    Parameters
    ----------
    matrix : float (4, 4)
    path : Path
        ``.tfm``
    """
    import SimpleITK as sitk

    with atomic_path(path) as temporary:
        sitk.WriteTransform(to_lps(np.linalg.inv(matrix), np.zeros(3)), str(temporary))
    return path


def to_lta(matrix: np.ndarray, source: Grid, target: Grid, names: tuple[str, str]) -> str:
    """Return the text of a FreeSurfer LTA, RAS to RAS: from points of the source to points of the target.

    ``mri_vol2vol --mov SOURCE --targ TARGET --lta FILE`` resamples with it.

    Parameters
    ----------
    matrix : float (4, 4)
    source, target : Grid
    names : (str, str)
        Names of the files of source and target.
    """
    rows = "\n".join(" ".join(f"{value:.15e}" for value in row) for row in matrix)
    return (
        "type      = 1 # LINEAR_RAS_TO_RAS\nnxforms   = 1\nmean      = 0.0000 0.0000 0.0000\nsigma     = 1.0000\n"
        f"1 4 4\n{rows}\nsrc volume info\n{_volume(source, names[0])}dst volume info\n{_volume(target, names[1])}"
    )


def _volume(grid: Grid, name: str) -> str:
    """Return a grid as FreeSurfer tells it: sizes, directions of the axes, and the point at half the shape."""
    directions = (grid.affine[:3, :3] / grid.zooms).T
    axes = zip(("xras  ", "yras  ", "zras  ", "cras  "), [*directions, grid.centre], strict=True)
    lines = [
        "valid = 1  # volume info valid",
        f"filename = {name}",
        f"volume = {' '.join(map(str, grid.shape))}",
        f"voxelsize = {_numbers(grid.zooms)}",
        *(f"{axis} = {_numbers(values)}" for axis, values in axes),
    ]
    return "\n".join(lines) + "\n"


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.15e}" for value in values)
