"""Estimated total intracranial volume from an affine registration to a template.

The larger a head, the more it must shrink to fit a template: eTIV = V / det(A), where A maps the head to the
template and V is the template's own constant (Buckner et al. 2004, NeuroImage 23:724).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box

PLAUSIBLE_MM3 = (900_000.0, 2_100_000.0)

_SEED = 20240908
_SAMPLES = 40_000
_SHRINK = (4, 2)
_STEPS = {"learningRate": 2.0, "minStep": 0.02, "numberOfIterations": 150, "relaxationFactor": 0.6}  # mm
_MARGIN_MM = 16.0  # of background around the head


@dataclass(frozen=True)
class Template:
    """A brain to register to.

    Attributes
    ----------
    name : str
        As in TemplateFlow's names and those of transforms.
    path : Path
    volume : float
        Its constant, mm3.
    stripped : bool
        Whether it shows the brain alone.
    source : str
        Where the constant comes from.
    """

    name: str
    path: Path
    volume: float
    stripped: bool
    source: str


MNI152 = (
    "MNI152NLin2009aSym",
    1_886_539.0,
    "voxels above zero in the skull-stripped ICBM 152 2009a template that nilearn carries",
)
MNI305 = ("MNI305", 1_948_106.0, "FreeSurfer's constant for MNI305")


def find_template() -> Template:
    """Return MNI305 where TemplateFlow's folder has it already, else the MNI152 brain that nilearn carries.

    Nothing is downloaded. Volumes from different templates are not comparable to the last percent: results name
    the template.

    Raises
    ------
    FileNotFoundError
        nilearn does not have its template where it should be.
    """
    home = Path(os.environ.get("TEMPLATEFLOW_HOME") or Path.home() / ".cache" / "templateflow")
    fetched = home / "tpl-MNI305" / "tpl-MNI305_T1w.nii.gz"
    # An empty file stands for one that was never fetched.
    if fetched.is_file() and fetched.stat().st_size:
        return Template(MNI305[0], fetched, MNI305[1], False, MNI305[2])
    return Template(MNI152[0], nilearn_template(), MNI152[1], True, MNI152[2])


def nilearn_template() -> Path:
    """Return the path of nilearn's skull-stripped MNI152 T1 at 1 mm, without importing nilearn (seconds)."""
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    found = sorted(folder.glob("mni_icbm152_t1_tal_nlin_sym_09a*.nii.gz"))
    if not found:
        raise FileNotFoundError(f"{folder}: nilearn's MNI152 template is not there; install nilearn anew")
    return found[0]


def register_affine(
    moving: np.ndarray, moving_affine: np.ndarray, fixed: np.ndarray, fixed_affine: np.ndarray, threads: int = 1
) -> np.ndarray:
    """Register an image to a template with 12 parameters (Mattes' mutual information, SimpleITK).

    About 5 s on one processor. Starts with the centres of mass on each other; a head may be tilted by 20 degrees.
    Does not strip skulls: for a template whose ``stripped`` is set, set a whole head to 0 outside its brain mask
    first, or the skull will be fitted to the cortex. The mask should reach to the skull, as the template's does:
    without the CSF around the brain, the volume that follows is some percent too small.

    Parameters
    ----------
    moving, fixed : (X, Y, Z)
        Intensities of head and template, both stripped or both whole; 0 outside.
    moving_affine, fixed_affine : float (4, 4)
        mm, RAS+.
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
        ITK could not register: the images are too small, or too little of them overlaps.
    """
    import SimpleITK as sitk

    images = [_to_itk(*_cropped(fixed, fixed_affine)), _to_itk(*_cropped(moving, moving_affine))]
    voxels = images[0].GetNumberOfPixels()
    start = sitk.CenteredTransformInitializer(
        *images, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(threads)
    method.SetNumberOfThreads(threads)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, _SAMPLES * k**3 / voxels) for k in _SHRINK], _SEED)
    method.SetShrinkFactorsPerLevel(_SHRINK)
    method.SetSmoothingSigmasPerLevel(_SHRINK)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(**_STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(*images)
    return np.linalg.inv(_to_ras(sitk.AffineTransform(start)))


def _cropped(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part that is not background, and its affine: half the time for a brain in 256^3 voxels."""
    margin = int(np.ceil(_MARGIN_MM / nib.affines.voxel_sizes(affine).min()))
    box = Box.around(data, margin)
    if box is None:
        raise ImageError("an image is 0 everywhere: there is nothing to register")
    return data[box], box.shift(affine)


def _to_itk(data: np.ndarray, affine: np.ndarray) -> object:
    """A SimpleITK image of an array; ITK's world is LPS+ and its arrays run z, y, x."""
    import SimpleITK as sitk

    zooms = nib.affines.voxel_sizes(affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, np.float32))
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(zooms.tolist())
    image.SetDirection((flip @ affine[:3, :3] / zooms).ravel().tolist())
    image.SetOrigin((flip @ affine[:3, 3]).tolist())
    return image


def _to_ras(transform: object) -> np.ndarray:
    """The 4 x 4 matrix in RAS+ of an affine transform of ITK, which maps fixed to moving points in LPS+."""
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    out = np.eye(4)
    out[:3, :3] = matrix
    out[:3, 3] = shift + centre - matrix @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ out @ flip


def estimate_etiv(transform: np.ndarray, template: Template) -> float:
    """The eTIV in mm3 from the transform that takes a head to a template.

    Examples
    --------
    >>> template = Template("MNI305", Path("x"), 1_948_106.0, False, "")
    >>> round(estimate_etiv(np.diag([1.1, 1.1, 1.1, 1]), template))  # a small head must grow
    1463641
    """
    return template.volume / abs(float(np.linalg.det(transform[:3, :3])))


def to_xfm(transform: np.ndarray) -> str:
    """Text of an affine: four rows of four numbers, from RAS+ mm of the T1w to RAS+ mm of the template."""
    return "\n".join(" ".join(f"{value:.8f}" for value in row) for row in transform) + "\n"
