"""Estimated total intracranial volume from an affine registration to a template.

The larger a head, the more it must shrink to fit a template: eTIV = V / det(A), where A maps the head to the
template and V is the template's own constant (Buckner et al. 2004, NeuroImage 23:724). There is one template, so that
a scan has the same volume on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.itk import to_itk, to_lps, to_ras

PLAUSIBLE_MM3 = (900_000.0, 2_100_000.0)

_SEED = 20240908
_SAMPLES = 30_000
_STEPS = {"learningRate": 2.0, "minStep": 0.02, "numberOfIterations": 60, "relaxationFactor": 0.6}  # mm
_COARSE_MM = 2.0  # the template's voxels; heads are brought near that
_SMOOTHING_MM = 2.0  # of heads, as the template was smoothed
_MARGIN_MM = 24  # of the head around the brain: its skull, and room to move
_FEWEST = 8  # structures that tell where a head lies
_SHELL_MM = (8.0, 20.0)  # from the brain: skull and scalp
_TISSUE, _ENOUGH_TISSUE = 0.1, 0.2  # of white matter's brightness; of the shell


@dataclass(frozen=True)
class Template:
    """A head to register to.

    Attributes
    ----------
    name : str
        In the names of transforms.
    path : Path
        Intensities; 0 where they must not count.
    volume : float
        Its constant, mm3.
    source : str
        Where the constant comes from.
    """

    name: str
    path: Path
    volume: float
    source: str


HEAD = (
    "samseg20subjects",
    2_164_000.0,
    "found on six public heads, as the number that gives FreeSurfer's eTIV; head template of samseg's atlas",
)


def find_template() -> Template:
    """Return the template that comes with the package: a whole head, of samseg's atlas (``NOTICE.txt`` beside it)."""
    name, volume, source = HEAD
    return Template(name, Path(str(data_path("template/samseg_head.nii.gz"))), volume, source)


def nilearn_template() -> Path:
    """Return the path of nilearn's skull-stripped MNI152 T1 at 1 mm, without importing nilearn (seconds)."""
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    files = sorted(folder.glob("mni_icbm152_t1_tal_nlin_sym_09a*.nii.gz"))
    if not files:
        raise FileNotFoundError(f"{folder}: nilearn's MNI152 template is not there; install nilearn anew")
    return files[0]


def shows_skull(data: np.ndarray, brain: np.ndarray, voxel_mm: float = 1.0) -> bool:
    """Return whether an image shows the head around the brain: tissue between 8 and 20 mm from it, in a fifth of that
    shell.

    Parameters
    ----------
    data : (X, Y, Z)
        Intensities.
    brain : bool (X, Y, Z)
    voxel_mm : float
        Edge of the isotropic voxels, mm.
    """
    step = max(1, round(4 / voxel_mm))
    data, brain = data[::step, ::step, ::step], brain[::step, ::step, ::step]
    if not brain.any():
        return False
    distance = ndimage.distance_transform_edt(~brain, sampling=step * voxel_mm)
    shell = (distance >= _SHELL_MM[0]) & (distance <= _SHELL_MM[1])
    bright = data[shell] > _TISSUE * np.percentile(data[brain], 90)
    return bool(bright.size and bright.mean() >= _ENOUGH_TISSUE)


def similarity_from_labels(labels: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """Return the rotation, scale and shift that bring the structures of a head to where they lie in the template.

    It follows the brain and knows nothing of the skull: a start, and no measurement. An affine would follow wide
    ventricles, which stretch the middle of a brain alone; the registration does not find back from there.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer labels.
    affine : float (4, 4)
        mm, RAS+.

    Returns
    -------
    float (4, 4) or None
        None where fewer than eight of the structures were found.
    """
    there = pd.read_csv(data_path("template/centroids.tsv"), sep="\t", index_col="label")
    coarse = labels[::2, ::2, ::2]
    voxels = np.argwhere(coarse > 0)
    values = coarse[coarse > 0].astype(np.int64)
    counts = np.bincount(values, minlength=int(there.index.max()) + 1)
    present = [label for label in there.index if counts[label]]
    if len(present) < _FEWEST:
        return None
    sums = np.stack([np.bincount(values, column, minlength=len(counts)) for column in voxels.T], axis=1)
    here = nib.affines.apply_affine(affine, 2 * sums[present] / counts[present, None])
    places = there.loc[present].to_numpy()
    here_around, there_around = here - here.mean(axis=0), places - places.mean(axis=0)
    rotation, _ = Rotation.align_vectors(there_around, here_around)
    matrix = rotation.as_matrix() * np.linalg.norm(there_around) / np.linalg.norm(here_around)
    return nib.affines.from_matvec(matrix, places.mean(axis=0) - matrix @ here.mean(axis=0))


def register_affine(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    start: np.ndarray,
    threads: int = 1,
) -> np.ndarray:
    """Register a head to a template with 12 parameters (Mattes' mutual information, SimpleITK).

    Under a second on one processor, on voxels of about 2 mm. Does not find a head that lies far from ``start``.

    Parameters
    ----------
    moving, fixed : (X, Y, Z)
        Intensities of head and template; only where the template is not 0 they are compared. The template is smooth
        already.
    moving_affine, fixed_affine : float (4, 4)
        mm, RAS+.
    start : float (4, 4)
        From points of the head to points of the template, mm, RAS+.
    threads : int
        The result does not depend on it: samples are drawn with a seed and the number of work units is fixed.

    Returns
    -------
    float (4, 4)
        From points of the head to points of the template, mm, RAS+.

    Raises
    ------
    ImageError
        An image is 0 everywhere.
    RuntimeError
        ITK could not register: too little of the images overlaps.
    """
    import SimpleITK as sitk

    if not (moving.any() and fixed.any()):
        raise ImageError("an image is 0 everywhere: there is nothing to register")
    images = [to_itk(fixed, fixed_affine), to_itk(*_coarse(moving, moving_affine))]
    mask = sitk.Cast(images[0] > 0, sitk.sitkUInt8)
    inside = np.count_nonzero(fixed)
    transform = to_lps(np.linalg.inv(start), centre=nib.affines.apply_affine(fixed_affine, np.divide(fixed.shape, 2)))
    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(threads)
    method.SetNumberOfThreads(threads)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, _SAMPLES / inside), _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(**_STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(*images)
    return np.linalg.inv(to_ras(sitk.AffineTransform(transform)))


def _coarse(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means over blocks of voxels, near 2 mm along each axis, smoothed; and their affine."""
    zooms = nib.affines.voxel_sizes(affine)
    steps = np.maximum(1, np.rint(_COARSE_MM / zooms)).astype(int)
    whole = [side // step * step for side, step in zip(data.shape, steps, strict=True)]
    blocks = [part for side, step in zip(whole, steps, strict=True) for part in (side // step, step)]
    small = data[tuple(map(slice, whole))].reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)
    scale = nib.affines.from_matvec(np.diag(steps.astype(float)), (steps - 1) / 2)
    return ndimage.gaussian_filter(small, _SMOOTHING_MM / (zooms * steps)), affine @ scale


def head_around(brain: np.ndarray) -> Box:
    """Return the part of a conformed image that the registration looks at; bool (X, Y, Z), voxels of 1 mm."""
    return Box.around(brain, margin=_MARGIN_MM)


def estimate_etiv(transform: np.ndarray, template: Template) -> float:
    """Return the eTIV in mm3 from the transform that takes a head to a template.

    Examples
    --------
    >>> template = Template("MNI305", Path("x"), 1_948_106.0, "")
    >>> round(estimate_etiv(np.diag([1.1, 1.1, 1.1, 1]), template))  # a small head must grow
    1463641
    """
    return template.volume / abs(float(np.linalg.det(transform[:3, :3])))


def to_xfm(transform: np.ndarray) -> str:
    """Return the text of an affine: four rows of four numbers, from RAS+ mm of the T1w to RAS+ mm of the template.

    NumPy reads it; nitransforms, which would write ITK, LTA and FSL, is one dependency more for one matrix.
    """
    return "\n".join(" ".join(f"{value:.8f}" for value in row) for row in transform) + "\n"
