"""Nodes: brain masks on the conformed grid that do not come from a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.components import fill_holes
from medsegmamba_bids.image.geometry import labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_as_is, save_image
from medsegmamba_bids.image.masks import check_within_head, load_mask
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec


class GivenMaskInputSpec(StepInputSpec):
    """Inputs of :class:`GivenMask`."""

    in_file = File(mandatory=True, desc="mask or skull-stripped image in the T1w's space")
    reference = File(exists=True, mandatory=True, desc="conformed T1w")


class MaskOutputSpec(StepOutputSpec):
    """Outputs of nodes that make a mask."""

    out_file = File(desc="brain mask, uint8, on the conformed grid")


class GivenMask(StepInterface):
    """Bring a mask that the user gives to the conformed grid; refuse what cannot be a brain's."""

    input_spec = GivenMaskInputSpec
    output_spec = MaskOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, resample, save."""
        from medsegmamba_bids.inference.foreground import head_mask

        given, reference = load_mask(self.inputs.in_file), load_as_is(self.inputs.reference)
        mask = labels_to_grid(np.asanyarray(given.dataobj), Grid.of(given), Grid.of(reference))
        check_within_head(mask, fill_holes(head_mask(np.asanyarray(reference.dataobj))), self.inputs.in_file)
        return {"out_file": str(save_image(mask, reference.affine, folder / "mask.nii.gz"))}


class NonzeroMaskInputSpec(StepInputSpec):
    """Inputs of :class:`NonzeroMask`."""

    in_file = File(exists=True, mandatory=True, desc="conformed T1w")


class NonzeroMask(StepInterface):
    """The mask of an image that is skull-stripped already; refuses a whole head."""

    input_spec = NonzeroMaskInputSpec
    output_spec = MaskOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, threshold, save."""
        from medsegmamba_bids.inference.foreground import looks_whole

        image = load_as_is(self.inputs.in_file)
        data = np.asanyarray(image.dataobj)
        if looks_whole(data):
            raise ImageError(
                "a brain mask is needed, as these weights do not make one and the image shows a whole head; "
                "give one with --brain-mask or --derivatives"
            )
        mask = fill_holes(data > 0)
        return {"out_file": str(save_image(mask, image.affine, folder / "mask.nii.gz", np.uint8))}
