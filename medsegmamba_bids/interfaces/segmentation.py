"""Nodes that run a network. Networks stay in the process, so that each is loaded once in it."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from medsegmamba_bids.anatomy import HIPPOCAMPI
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_as_is, save_image, write_text
from medsegmamba_bids.interfaces.posteriors import PosteriorFile
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.segmentations import of_task
from medsegmamba_bids.stats.contrast import describe_contrast
from medsegmamba_bids.weights.info import WeightsFile, WeightsInfo

if TYPE_CHECKING:
    from medsegmamba_bids.inference.merge import Segmentation
    from medsegmamba_bids.inference.segmenter import Segmenter

logger = logging.getLogger(__name__)

# Networks are a process's own and outlive a node: this is what the process is kept for.
_SEGMENTERS: dict[tuple[Any, ...], Segmenter] = {}


class SegmentInputSpec(StepInputSpec):
    """Inputs of :class:`SegmentAseg`."""

    in_file = File(exists=True, mandatory=True, desc="conformed T1w, normalised where the weights ask for it")
    mask_file = File(exists=True, desc="brain mask; the image is set to 0 outside")
    weights = traits.Instance(WeightsFile, mandatory=True, nohash=True, desc="its fingerprint stands for it")
    fingerprint = traits.Str(mandatory=True, desc="of the weights")
    precision = traits.Str("float32", usedefault=True, desc="what the network computes in")
    step_size = traits.Int(desc="voxels between patches; what the weights say if undefined")
    save_posteriors = traits.Bool(False, usedefault=True, desc="write the probabilities of all classes")
    device = traits.Str("auto", usedefault=True, nohash=True)
    batch_size = traits.Int(nohash=True, desc="patches at once")
    low_memory = traits.Bool(False, usedefault=True, nohash=True, desc="take less than 2 GiB of a GPU's memory")


class SegmentOutputSpec(StepOutputSpec):
    """Outputs of nodes that run a network."""

    labels_file = File(desc="FreeSurfer labels, uint16")
    entropy_file = File(desc="entropy of the class probabilities, bits")
    mask_file = File(desc="brain mask; undefined where the classes do not cover the brain")
    posteriors_file = File(desc="probabilities of all classes, on request")
    numbers_file = File(desc="soft volumes and mean posteriors by label, JSON")


class SegmentAseg(StepInterface):
    """Segment a conformed T1w."""

    input_spec = SegmentInputSpec
    output_spec = SegmentOutputSpec
    runs_network: ClassVar[bool] = True
    #: Whether it is an error where nothing is found.
    must_find: ClassVar[bool] = True

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, segment, save."""
        info = self.inputs.weights.info
        image = self._image()
        with self._posteriors(folder, image, info) as posteriors:
            segmentation = self._segment(image, info, posteriors)
        notes = list(segmentation.notes)
        if self.must_find:
            from medsegmamba_bids.inference.single import check_not_empty

            check_not_empty(segmentation, "the image")
            notes += filter(None, [describe_contrast(np.asanyarray(image.dataobj), segmentation.labels)])
        results = save_segmentation(segmentation, folder, of_task(info.task).name)
        if posteriors is not None:
            results["posteriors_file"] = str(posteriors.path)
        return {**results, "notes": notes, "details": self._details(segmentation, info)}

    def _segment(self, image: Any, info: WeightsInfo, posteriors: PosteriorFile | None) -> Segmentation:
        return self._segmenter().segment(image, self.inputs.weights, posteriors)

    def _image(self) -> nib.Nifti1Image:
        image = load_as_is(self.inputs.in_file)
        data = np.asanyarray(image.dataobj)
        if isdefined(self.inputs.mask_file):
            brain = np.asanyarray(load_as_is(self.inputs.mask_file).dataobj) > 0
            data = np.where(brain, data, data.dtype.type(0))
        return nib.Nifti1Image(data, image.affine)

    def _posteriors(self, folder: Path, image: Any, info: WeightsInfo) -> Any:
        if not self.inputs.save_posteriors:
            return contextlib.nullcontext()
        return PosteriorFile(folder / "posteriors.nii.gz", Grid.of(image), len(info.labels))

    def _segmenter(self) -> Segmenter:
        from medsegmamba_bids.inference.beside import make_way
        from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

        threads = self.inputs.num_threads
        make_way(threads)
        step, batch = (value if isdefined(value) else None for value in (self.inputs.step_size, self.inputs.batch_size))
        low_memory = self.inputs.low_memory
        key = (self.inputs.device, self.inputs.precision, step, batch, low_memory, threads)
        if key not in _SEGMENTERS:
            settings = InferenceSettings(self.inputs.device, self.inputs.precision, step, batch, low_memory=low_memory)
            settings = replace(settings, progress=lambda done, total: make_way(threads))  # before each patch
            _SEGMENTERS[key] = Segmenter(settings)
            logger.info("the network runs on %s", _SEGMENTERS[key].device)
        return _SEGMENTERS[key]

    def _details(self, segmentation: Segmentation, info: WeightsInfo) -> dict[str, Any]:
        step = self.inputs.step_size
        return {
            "Device": segmentation.device,
            "Precision": self.inputs.precision,
            "StepSize": step if isdefined(step) else info.input.step,
            "Weights": {**info.provenance(), "Origin": info.origin},
        }


class SegmentHippocampusInputSpec(SegmentInputSpec):
    """Inputs of :class:`SegmentHippocampus`."""

    aseg_file = File(exists=True, mandatory=True, desc="labels, of which 17 and 53 are the hippocampi")
    border_file = File(exists=True, desc="labels whose hippocampi the outer border follows; aseg_file if undefined")


class SegmentHippocampus(SegmentAseg):
    """Segment the hippocampal subfields; nothing, with a note, where there is no hippocampus."""

    input_spec = SegmentHippocampusInputSpec
    must_find: ClassVar[bool] = False

    def _segment(self, image: Any, info: WeightsInfo, posteriors: PosteriorFile | None) -> Segmentation:
        from medsegmamba_bids.inference.merge import background_only
        from medsegmamba_bids.inference.segmenter import missing_hippocampi

        aseg = np.asanyarray(load_as_is(self.inputs.aseg_file).dataobj)
        if len(missing_hippocampi(aseg)) == len(HIPPOCAMPI):
            note = "no hippocampus was found, so there are no subfields"
            return background_only(Grid.of(image), info.labels, [note])
        file = self.inputs.border_file
        border = np.asanyarray(load_as_is(file).dataobj) if isdefined(file) else None
        return self._segmenter().segment_hippocampus(image, aseg, self.inputs.weights, posteriors, border)


def save_segmentation(segmentation: Segmentation, folder: Path, name: str) -> dict[str, Any]:
    """Write the images and numbers of a segmentation of this name; return their files."""
    affine = segmentation.grid.affine
    results = {
        "labels_file": str(save_image(segmentation.labels, affine, folder / "labels.nii.gz", segmentation=name)),
        "entropy_file": str(save_image(segmentation.entropy, affine, folder / "entropy.nii.gz", np.float32)),
        "numbers_file": str(folder / "numbers.json"),
    }
    if segmentation.brain_mask is not None:
        results["mask_file"] = str(save_image(segmentation.brain_mask, affine, folder / "mask.nii.gz", np.uint8))
    present = {label for label, count in segmentation.voxels.items() if count}
    numbers = {
        "SoftVolumes": segmentation.soft_volumes,
        "MeanPosteriors": {label: value for label, value in segmentation.mean_posterior.items() if label in present},
    }
    write_text(folder / "numbers.json", json.dumps(numbers, indent=1))
    return results


def read_numbers(path: str | Path) -> tuple[dict[int, float], dict[int, float]]:
    """Return soft volumes and mean posteriors by label, from a ``numbers_file``."""
    numbers = json.loads(Path(path).read_text(encoding="utf-8"))
    return tuple({int(label): value for label, value in numbers[key].items()} for key in numbers)
