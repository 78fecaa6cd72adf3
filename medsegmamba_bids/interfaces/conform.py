"""Node: T1w as it is -> 1 mm, 256^3, LIA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, traits

from medsegmamba_bids.image.geometry import conform
from medsegmamba_bids.image.header import describe_orientation
from medsegmamba_bids.image.io import load_image, save_image
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec


class ConformInputSpec(StepInputSpec):
    """Inputs of :class:`Conform`."""

    # That the file exists is checked by the function, whose sentence says more than the trait's.
    in_file = File(mandatory=True, desc="T1w")


class ConformOutputSpec(StepOutputSpec):
    """Outputs of :class:`Conform`."""

    out_file = File(desc="conformed T1w, uint8")
    sidecar_file = File(desc="JSON: whether the T1w came skull-stripped")
    native_affine = traits.List(traits.List(traits.Float), desc="affine (4, 4) of the T1w, mm")
    native_shape = traits.List(traits.Int, desc="sides of the T1w's grid")


class Conform(StepInterface):
    """Check and conform a T1w."""

    input_spec = ConformInputSpec
    output_spec = ConformOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, conform, save."""
        from medsegmamba_bids.inference.foreground import looks_whole

        image = load_image(self.inputs.in_file)
        oddity = describe_orientation(image)
        conformed = conform(image)
        sidecar = folder / "conformed.json"
        sidecar.write_text(json.dumps({"SkullStripped": not looks_whole(np.asanyarray(conformed.dataobj))}))
        return {
            "sidecar_file": str(sidecar),
            "out_file": str(save_image(conformed.dataobj, conformed.affine, folder / "conformed.nii.gz")),
            "native_affine": image.affine.tolist(),
            "native_shape": list(image.shape),
            "notes": [oddity] if oddity else [],
        }
