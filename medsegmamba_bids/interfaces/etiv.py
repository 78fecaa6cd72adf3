"""Node: estimated total intracranial volume from an affine registration."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, traits

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.image.io import atomic_path
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.stats.intracranial import PLAUSIBLE_MM3, Template, estimate_etiv, register_affine, to_xfm

logger = logging.getLogger(__name__)

_MARGIN = 10  # voxels


class EstimateIntracranialInputSpec(StepInputSpec):
    """Inputs of :class:`EstimateIntracranial`."""

    in_file = File(exists=True, mandatory=True, desc="normalised T1w")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    template = traits.Instance(Template, mandatory=True, desc="what is registered to")


class EstimateIntracranialOutputSpec(StepOutputSpec):
    """Outputs of :class:`EstimateIntracranial`."""

    out_file = File(desc="affine from the T1w to the template, four rows of four numbers")
    etiv = traits.Float(desc="mm3; undefined where nothing could be registered")


class EstimateIntracranial(StepInterface):
    """Register to a template; a failure is a note, not a failed node."""

    input_spec = EstimateIntracranialInputSpec
    output_spec = EstimateIntracranialOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, register, save."""
        template: Template = self.inputs.template
        image = nib.load(self.inputs.in_file)
        mask = np.asanyarray(nib.load(self.inputs.mask_file).dataobj) > 0
        if not mask.any():
            return {"notes": ["no brain was found: there is no eTIV"]}
        transform = _registered(image, mask, template, self.inputs.num_threads)
        if transform is None:
            return {}
        etiv = estimate_etiv(transform, template)
        low, high = PLAUSIBLE_MM3
        if not low <= etiv <= high:
            logger.warning("the eTIV of %.0f mm3 is not plausible (%.0f to %.0f mm3)", etiv, low, high)
        path = folder / "affine.txt"
        with atomic_path(path) as temporary:
            temporary.write_text(to_xfm(transform), encoding="utf-8")
        return {"out_file": str(path), "etiv": etiv}


def _registered(image: Any, mask: np.ndarray, template: Template, threads: int) -> np.ndarray | None:
    moving, affine = np.asanyarray(image.dataobj), image.affine
    if template.stripped:
        box = Box.around(mask, margin=_MARGIN)  # less to smooth
        moving, affine = np.where(mask[box], moving[box], np.float32(0)), box.shift(affine)
    fixed = nib.load(template.path)
    try:
        return register_affine(moving, affine, fixed.get_fdata(dtype=np.float32), fixed.affine, threads)
    except (ImageError, RuntimeError) as error:  # ITK's errors are RuntimeErrors
        reason = " ".join(str(error).split())[-200:]
        logger.warning("the registration to %s failed (%s): there is no eTIV", template.name, reason)
        return None
