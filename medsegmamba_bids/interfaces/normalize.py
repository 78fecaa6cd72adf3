"""Node: bias field corrected, white matter at 110."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, isdefined

from medsegmamba_bids.image.intensity import correct_bias_field, normalize_white_matter, white_matter_peak
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec

logger = logging.getLogger(__name__)

_WHITE_MATTER = (2, 41)
_ENOUGH_VOXELS = 1000


class NormalizeInputSpec(StepInputSpec):
    """Inputs of :class:`Normalize`."""

    in_file = File(exists=True, mandatory=True, desc="conformed T1w")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    labels_file = File(exists=True, desc="labels, of which 2 and 41 are white matter")


class NormalizeOutputSpec(StepOutputSpec):
    """Outputs of :class:`Normalize`."""

    out_file = File(desc="normalised T1w, float32, 0..255; not skull-stripped")


class Normalize(StepInterface):
    """Correct the bias field (N4) and bring white matter to 110."""

    input_spec = NormalizeInputSpec
    output_spec = NormalizeOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, normalise, save."""
        image = nib.load(self.inputs.in_file)
        mask = np.asanyarray(nib.load(self.inputs.mask_file).dataobj) > 0
        labels = None
        if isdefined(self.inputs.labels_file):
            labels = np.asanyarray(nib.load(self.inputs.labels_file).dataobj)
        data = _normalised(np.asanyarray(image.dataobj), mask, labels, self.inputs.num_threads)
        return {"out_file": str(save_image(data, image.affine, folder / "norm.nii", np.float32))}


def _normalised(data: np.ndarray, mask: np.ndarray, labels: np.ndarray | None, threads: int) -> np.ndarray:
    """The corrected image, or the image itself where there is no brain to go by."""
    if not (mask & (data > 0)).any():
        logger.warning("no brain was found: intensities are not normalised")
        return data
    try:
        data = correct_bias_field(data, mask, threads)
    except (ValueError, RuntimeError) as error:  # ITK's errors are RuntimeErrors
        reason = " ".join(str(error).split())[-200:]
        logger.warning("the bias field could not be estimated (%s); intensities are scaled only", reason)
    for find in (_from_labels, _from_histogram):
        with contextlib.suppress(ValueError):
            return normalize_white_matter(data, find(data, mask, labels))
    logger.warning("no white matter was found: intensities are not normalised")
    return data


def _from_labels(data: np.ndarray, mask: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    white = np.isin(labels, _WHITE_MATTER) if labels is not None else np.zeros(data.shape, bool)
    if np.count_nonzero(white) < _ENOUGH_VOXELS:
        raise ValueError("too few voxels are labelled as white matter")
    return white


def _from_histogram(data: np.ndarray, mask: np.ndarray, labels: np.ndarray | None) -> float:
    return white_matter_peak(data, mask)
