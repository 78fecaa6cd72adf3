"""Node: images and labels of a T1w -> the pictures of its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, isdefined, traits

from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS


class DrawPicturesInputSpec(StepInputSpec):
    """Inputs of :class:`DrawPictures`, on the conformed grid."""

    conformed_file = File(exists=True, mandatory=True)
    mask_file = File(exists=True, mandatory=True, desc="non-zero in the brain")
    aseg_labels = File(exists=True, mandatory=True)
    aseg_entropy = File(exists=True, mandatory=True)
    hippocampus_labels = File(exists=True)
    hippocampus_entropy = File(exists=True)
    prefix = traits.Str(mandatory=True, desc="the T1w's name without _T1w and extension")
    scans = traits.Int(mandatory=True, desc="T1w images on the page: of many, pictures are smaller")


class DrawPicturesOutputSpec(StepOutputSpec):
    """Outputs of :class:`DrawPictures`."""

    out_file = File(desc="JSON, for the report")


class DrawPictures(StepInterface):
    """Draw what a report shows before volumes are known, so that it need not wait for them."""

    input_spec = DrawPicturesInputSpec
    output_spec = DrawPicturesOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Draw, save."""
        from medsegmamba_bids.report.drawn import draw_from_files, save_pictures

        files = self.inputs
        labels = _there({ASEG.name: files.aseg_labels, HIPPOCAMPUS.name: files.hippocampus_labels})
        entropies = _there({ASEG.name: files.aseg_entropy, HIPPOCAMPUS.name: files.hippocampus_entropy})
        head, brain = Path(files.conformed_file), Path(files.mask_file)
        pictures = draw_from_files(head, labels, entropies, brain, files.scans)
        return {"out_file": str(save_pictures(pictures, files.prefix, files.scans, folder / "pictures.json"))}


def _there(files: dict[str, Any]) -> dict[str, Path]:
    return {name: Path(file) for name, file in files.items() if isdefined(file)}
