"""Node: bias field corrected, white matter at 110."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, isdefined

from medsegmamba_bids.anatomy import WHITE_MATTER
from medsegmamba_bids.image.intensity import normalize
from medsegmamba_bids.image.io import load_as_is, save_image
from medsegmamba_bids.image.labels import is_one_of
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec


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
        image = load_as_is(self.inputs.in_file)
        mask = np.asanyarray(load_as_is(self.inputs.mask_file).dataobj) > 0
        white_matter = None
        if isdefined(self.inputs.labels_file):
            white_matter = is_one_of(np.asanyarray(load_as_is(self.inputs.labels_file).dataobj), WHITE_MATTER)
        data = normalize(np.asanyarray(image.dataobj), mask, white_matter, self.inputs.num_threads)
        return {"out_file": str(save_image(data, image.affine, folder / "norm.nii", np.float32))}
