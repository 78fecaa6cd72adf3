"""Node: estimated total intracranial volume from an affine registration."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, traits

from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_as_is, write_text
from medsegmamba_bids.image.transforms import save_itk, to_lta
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.stats.intracranial import (
    PLAUSIBLE_MM3,
    Template,
    estimate_etiv,
    head_around,
    register_affine,
    shows_skull,
    similarity_from_labels,
    to_xfm,
)

logger = logging.getLogger(__name__)


class EstimateIntracranialInputSpec(StepInputSpec):
    """Inputs of :class:`EstimateIntracranial`."""

    in_file = File(exists=True, mandatory=True, desc="normalised T1w")
    labels_file = File(exists=True, mandatory=True, desc="FreeSurfer labels, which tell where the head lies")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    template = traits.Instance(Template, mandatory=True, desc="what is registered to")


class EstimateIntracranialOutputSpec(StepOutputSpec):
    """Outputs of :class:`EstimateIntracranial`."""

    out_file = File(desc="affine from the T1w to the template, four rows of four numbers")
    itk_file = File(desc="the same for ITK")
    lta_file = File(desc="the same for FreeSurfer")
    etiv = traits.Float(desc="mm3; undefined where nothing could be registered")


class EstimateIntracranial(StepInterface):
    """Register to a template; a failure is a note, not a failed node."""

    input_spec = EstimateIntracranialInputSpec
    output_spec = EstimateIntracranialOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, register, save."""
        template: Template = self.inputs.template
        image, *others = (load_as_is(path) for path in self._files())
        data, labels, brain = (np.asanyarray(one.dataobj) for one in (image, *others))
        brain = brain > 0
        start = similarity_from_labels(labels, image.affine)
        if reason := _why_not(data, brain, start):
            return {"notes": [f"there is no eTIV: {reason}"]}
        transform = _registered(data, brain, image.affine, start, template, self.inputs.num_threads)
        if transform is None:
            return {}
        etiv = estimate_etiv(transform, template)
        low, high = PLAUSIBLE_MM3
        if not low <= etiv <= high:
            logger.warning("the eTIV of %.0f mm3 is not plausible (%.0f to %.0f mm3)", etiv, low, high)
        return {**_save(transform, Grid.of(image), template, folder), "etiv": etiv}

    def _files(self) -> tuple[str, str, str]:
        return self.inputs.in_file, self.inputs.labels_file, self.inputs.mask_file


def _save(transform: np.ndarray, grid: Grid, template: Template, folder: Path) -> dict[str, str]:
    """Write a transform in all its forms; return their files."""
    to_grid = Grid.of(nib.load(template.path))
    texts = {
        "out_file": ("affine.txt", to_xfm(transform)),
        "lta_file": ("affine.lta", to_lta(transform, grid, to_grid, ("T1w", template.path.name))),
    }
    for name, text in texts.values():
        write_text(folder / name, text)
    files = {output: str(folder / name) for output, (name, _) in texts.items()}
    return {**files, "itk_file": str(save_itk(transform, folder / "affine.tfm"))}


def _why_not(data: np.ndarray, brain: np.ndarray, start: np.ndarray | None) -> str:
    """Return why no intracranial volume can be had; empty where it can."""
    if not brain.any():
        return "no brain was found"
    if not shows_skull(data, brain):
        return "the image shows no skull, and the size of a brain is not that of its head"
    if start is None:
        return "too few structures were found to tell where the head lies"
    return ""


def _registered(
    data: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    start: np.ndarray | None,
    template: Template,
    threads: int,
) -> np.ndarray | None:
    fixed = nib.load(template.path)
    box = head_around(brain)
    try:
        return register_affine(
            data[box], box.shift(affine), fixed.get_fdata(dtype=np.float32), fixed.affine, start, threads
        )
    except (ImageError, RuntimeError) as error:  # ITK's errors are RuntimeErrors
        reason = " ".join(str(error).split())[-200:]
        logger.warning("the registration to %s failed (%s): there is no eTIV", template.name, reason)
        return None
