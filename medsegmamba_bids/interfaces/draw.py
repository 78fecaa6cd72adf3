"""Node: images and labels of a T1w -> the pictures of its report, and its viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, isdefined, traits

from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS


class DrawInputSpec(StepInputSpec):
    """What is drawn, on the conformed grid."""

    conformed_file = File(exists=True, mandatory=True)
    mask_file = File(exists=True, mandatory=True, desc="non-zero in the brain")
    aseg_labels = File(exists=True, mandatory=True)
    aseg_entropy = File(exists=True, mandatory=True)
    hippocampus_labels = File(exists=True)
    hippocampus_entropy = File(exists=True)
    prefix = traits.Str(mandatory=True, desc="the T1w's name without _T1w and extension")
    scans = traits.Int(mandatory=True, desc="T1w images on the page: of many, pictures are smaller")


class DrawOutputSpec(StepOutputSpec):
    """Outputs of :class:`Draw`."""

    pictures_file = File(desc="for the report, JSON")
    viewer_file = File(desc="HTML")


class Draw(StepInterface):
    """Draw what a report shows before volumes are known, so that it need not wait for them; and make the viewer."""

    input_spec = DrawInputSpec
    output_spec = DrawOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, draw, save."""
        from medsegmamba_bids.report.drawn import draw_from_files

        pictures, viewer = draw_from_files(self.inputs.prefix, *_files(self.inputs), self.inputs.scans, folder)
        return {"pictures_file": str(pictures), "viewer_file": str(viewer)}


def _files(inputs: Any) -> tuple[Path, dict[str, Path], dict[str, Path], Path]:
    """Return the T1w, labels and entropies by segmentation, and the mask."""
    labels = _there({ASEG.name: inputs.aseg_labels, HIPPOCAMPUS.name: inputs.hippocampus_labels})
    entropies = _there({ASEG.name: inputs.aseg_entropy, HIPPOCAMPUS.name: inputs.hippocampus_entropy})
    return Path(inputs.conformed_file), labels, entropies, Path(inputs.mask_file)


def _there(files: dict[str, Any]) -> dict[str, Path]:
    return {name: Path(file) for name, file in files.items() if isdefined(file)}
