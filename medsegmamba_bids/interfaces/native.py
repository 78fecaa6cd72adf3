"""Node: labels on the conformed grid -> the T1w's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from medsegmamba_bids.image.geometry import labels_to_grid
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_as_is, save_image
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec


class ToNativeInputSpec(StepInputSpec):
    """Inputs of :class:`ToNative`."""

    in_file = File(exists=True, mandatory=True, desc="labels or mask")
    native_affine = traits.List(traits.List(traits.Float), mandatory=True, desc="affine (4, 4) of the T1w, mm")
    native_shape = traits.List(traits.Int, mandatory=True, desc="sides of the T1w's grid")
    segmentation = traits.Str("", usedefault=True, desc="whose labels these are; empty for a mask")
    transform = traits.List(
        traits.List(traits.Float), desc="affine (4, 4) from the T1w's points to those of the labels, mm, if they differ"
    )


class ToNativeOutputSpec(StepOutputSpec):
    """Outputs of :class:`ToNative`."""

    out_file = File(desc="the labels on the T1w's grid")


class ToNative(StepInterface):
    """Resample labels linearly, one at a time."""

    input_spec = ToNativeInputSpec
    output_spec = ToNativeOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, resample, save."""
        image = load_as_is(self.inputs.in_file)
        native = Grid(self.inputs.native_affine, self.inputs.native_shape)
        seen = Grid(self.inputs.transform @ native.affine, native.shape) if isdefined(self.inputs.transform) else native
        moved = labels_to_grid(np.asanyarray(image.dataobj), Grid.of(image), seen)
        path = save_image(moved, native.affine, folder / "native.nii.gz", segmentation=self.inputs.segmentation)
        return {"out_file": str(path)}
