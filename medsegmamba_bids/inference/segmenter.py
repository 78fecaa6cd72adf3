"""From a conformed image to labels, posteriors and volumes: what nodes and commands call.

Shape letters: X, Y, Z conformed grid; x, y, z a box of the network's grid; C classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn

from medsegmamba_bids.anatomy import DEEP, HIPPOCAMPI, OUTSIDE_BRAIN, RIGHT_HIPPOCAMPUS, SUBFIELDS_FROM, covers_brain
from medsegmamba_bids.devices import check_precision
from medsegmamba_bids.errors import SegmentationError, TableError
from medsegmamba_bids.image.components import largest_component
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.labels import is_one_of, table_of_labels
from medsegmamba_bids.inference.borders import follow_hippocampi
from medsegmamba_bids.inference.device import choose_device, limit_memory
from medsegmamba_bids.inference.foreground import head_mask, looks_whole
from medsegmamba_bids.inference.merge import Guide, OnPosterior, Segmentation, View, background_only, merge_posteriors
from medsegmamba_bids.inference.neck import leave_out_neck
from medsegmamba_bids.inference.predict import (
    Patching,
    Prediction,
    Progress,
    Resources,
    predict_volume,
)
from medsegmamba_bids.inference.rescale import AlignedGrids
from medsegmamba_bids.networks.kernels.memory import give_memory_back
from medsegmamba_bids.networks.kernels.selective_scan import choose_backend, scan_backend
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.weights.files import load_weights
from medsegmamba_bids.weights.folders import resolve_weights
from medsegmamba_bids.weights.info import WeightsFile, WeightsInfo

logger = logging.getLogger(__name__)

#: What was resolved, a file, a name, or None for the task's default.
Weights = str | os.PathLike | WeightsFile | None

HIPPOCAMPUS_SIDE = 96  # mm, section 2.1 of the paper
_GPU_BATCH = 4
_BRAIN_MARGIN_MM = 8.0
_NOTABLE_MM3 = 1000
_STRAY = 0.005  # of the deep structures' voxels at either end of an axis, which do not say where the middle is
_FROM_NECK = (
    "muscles of the neck looked like brain: what lay far below the brain stem was left out; look at the cerebellum"
)
_WHOLE_FOR_STRIPPED = (
    "the weights {name} expect a skull-stripped, intensity-normalised brain, but this image seems to be "
    "a whole head ({litres:.1f} litres above zero): the labels will not be reliable"
)


@dataclass(frozen=True)
class InferenceSettings:
    """How a network is run; none of it changes what is segmented, but step and precision change values a little.

    Attributes
    ----------
    device : str or torch.device
        auto (a GPU that works, else the CPU), cpu, cuda, cuda:N or mps; a `torch.device` is taken as it is.
    precision : {"float32", "bfloat16", "float16"}
    step : int or None
        Distance between neighbouring patches, voxels of the network; None is what the weights say.
    batch_size : int or None
        Patches at once; None is 1 on the CPU, where more do not help, and 4 on a GPU.
    gaussian : bool or None
        Weight the middle of a patch more; None is what the weights say.
    half_accumulator : bool
        Keep the mean probabilities in float16.
    low_memory : bool
        Take less than 2 GiB of a GPU's memory: patches one by one, their mean on the CPU. Slower.
    largest_component : bool
        Drop what does not hang together with the largest part of the segmentation, where the classes cover the
        whole brain, or with the largest part of a hippocampus; and what is found in the neck.
    scan_backend : str or None
        Of the selective scan; None is the best that works on the device.
    progress : callable or None
        Called with the patches done and all patches.
    """

    device: str | torch.device = "auto"
    precision: str = "float32"
    step: int | None = None
    batch_size: int | None = None
    gaussian: bool | None = None
    half_accumulator: bool = False
    low_memory: bool = False
    largest_component: bool = True
    scan_backend: str | None = None
    progress: Progress | None = None


class Segmenter:
    """Keeps networks on their device, so that each weights file is loaded once in a process.

    Parameters
    ----------
    settings : InferenceSettings

    Raises
    ------
    UserError
        If the device does not work or cannot compute in the precision.
    """

    def __init__(self, settings: InferenceSettings | None = None) -> None:
        settings = settings or InferenceSettings()
        self.device = choose_device(settings.device)
        check_precision(settings.precision, self.device.type)
        choose_backend(self.device, settings.scan_backend)
        if settings.low_memory:
            limit_memory(self.device)
        self.settings = replace(settings, device=self.device)
        self._networks: dict[tuple[Path, str], tuple[nn.Module, WeightsInfo]] = {}

    def load(self, weights: Weights, task: str) -> tuple[nn.Module, WeightsInfo]:
        """Return network and description of weights: what was resolved, a file, a name, or (None) the default.

        Raises
        ------
        WeightsError, SegmentationError
            The weights cannot be used, or the step does not fit them.
        """
        file = weights if isinstance(weights, WeightsFile) else resolve_weights(weights, task)
        key = (file.path.resolve(), file.info.fingerprint)
        if key not in self._networks:
            self._networks[key] = load_weights(file)
        _check_step(self.settings.step, self._networks[key][1])
        return self._networks[key]

    def segment(
        self,
        conformed: nib.spatialimages.SpatialImage,
        weights: Weights = None,
        on_posterior: OnPosterior | None = None,
        brain: Box | None = None,
    ) -> Segmentation:
        """Segment a conformed image; see `segment_conformed`."""
        network, info = self.load(weights, ASEG.task)
        return segment_conformed(network, info, conformed, self.settings, on_posterior, brain)

    def segment_hippocampus(
        self,
        conformed: nib.spatialimages.SpatialImage,
        aseg_labels: np.ndarray,
        weights: Weights = None,
        on_posterior: OnPosterior | None = None,
        border_labels: np.ndarray | None = None,
    ) -> Segmentation:
        """Segment the hippocampal subfields; see `segment_hippocampus` of this module."""
        network, info = self.load(weights, HIPPOCAMPUS.task)
        return segment_hippocampus(network, info, conformed, aseg_labels, self.settings, on_posterior, border_labels)


def segment_conformed(
    network: nn.Module,
    info: WeightsInfo,
    conformed: nib.spatialimages.SpatialImage,
    settings: InferenceSettings | None = None,
    on_posterior: OnPosterior | None = None,
    brain: Box | None = None,
) -> Segmentation:
    """Segment a conformed image with a network.

    The image is brought to the network's voxel size. A skull-stripped image is segmented in the box of
    its non-zero voxels. In a whole head a quick pass, with patches side by side, finds the brain first,
    and the overlapping patches cover only that. The class probabilities return to the conformed grid by
    linear interpolation, a class at a time. Weights may ask for a second look at the deep structures in smaller voxels,
    and for intensities to decide between tissues (``WeightsInfo.input``). Does not strip skulls and does not normalise
    intensities.

    Parameters
    ----------
    network, info
        As ``load_weights`` returns them.
    conformed : nibabel image (X, Y, Z)
        Voxels of 1 mm in LIA order, 0..255, as ``image.geometry.conform`` makes them.
    settings : InferenceSettings, optional
    on_posterior : callable, optional
        Called for each class in order with its index, the box and the probabilities float32 in it.
    brain : Box, optional
        Where in the image the brain lies, if that is known: it is not looked for then.

    Raises
    ------
    SegmentationError
        If the image is not conformed.
    """
    job = _Job(network, info, conformed, settings or InferenceSettings())
    box = job.box_of_brain(brain) if brain else job.search_box()
    if box is None:
        job.note("nothing was found to segment: all of it is background")
        return background_only(job.grids.conformed, info.labels, job.notes)
    return job.finish(job.predict(box), on_posterior)


def segment_hippocampus(
    network: nn.Module,
    info: WeightsInfo,
    conformed: nib.spatialimages.SpatialImage,
    aseg_labels: np.ndarray,
    settings: InferenceSettings | None = None,
    on_posterior: OnPosterior | None = None,
    border_labels: np.ndarray | None = None,
) -> Segmentation:
    """Segment the hippocampal subfields in the box around both hippocampi.

    Parameters
    ----------
    aseg_labels : int (X, Y, Z)
        FreeSurfer labels on the conformed grid, 17 and 53 among them: the box lies around these.
    border_labels : int (X, Y, Z), optional
        The same whose hippocampi the outer border follows, if the weights ask for that; by default ``aseg_labels``.
    network, info, conformed, settings, on_posterior
        As :func:`segment_conformed` takes them.

    Raises
    ------
    SegmentationError
        If there is no hippocampus, or the images do not fit.
    """
    job = _Job(network, info, conformed, settings or InferenceSettings())
    if aseg_labels.shape != job.data.shape:
        raise SegmentationError(f"labels of shape {aseg_labels.shape} for an image of shape {job.data.shape}")
    box = hippocampus_box(aseg_labels)
    job.notes += [f"no {side} hippocampus was found" for side in missing_hippocampi(aseg_labels)]
    views = list(job.predict(job.grids.to_network_box(box)))
    if info.input.follow_aseg:
        border = aseg_labels if border_labels is None else border_labels
        follow_hippocampi(views, info.labels, border, info.input.follow_aseg)
    return job.finish(views, on_posterior)


def hippocampus_box(labels: np.ndarray, side: int = HIPPOCAMPUS_SIDE) -> Box:
    """Return the box around the hippocampi, 96 mm a side, within the volume.

    Parameters
    ----------
    labels : int (X, Y, Z)
        FreeSurfer labels at 1 mm; 17 and 53 are the hippocampi.
    side : int
        Edge of the box, voxels. A volume that is smaller limits it.

    Raises
    ------
    SegmentationError
        If there is neither a left nor a right hippocampus. One alone is enough, with a warning.

    Examples
    --------
    >>> labels = np.zeros((128, 128, 128), np.uint16)
    >>> labels[90:100, 60:64, 0:20], labels[40:50, 60:64, 0:20] = 17, 53
    >>> hippocampus_box(labels)
    (slice(22, 118, None), slice(14, 110, None), slice(0, 96, None))
    """
    missing = missing_hippocampi(labels)
    if len(missing) == len(HIPPOCAMPI):
        raise SegmentationError("no hippocampus was found (labels 17 and 53), so it has no subfields")
    if missing:
        logger.warning("no %s hippocampus was found; the box lies around the other", missing[0])
    return Box.around(is_one_of(labels, HIPPOCAMPI)).at_least(side, labels.shape)


def missing_hippocampi(labels: np.ndarray) -> list[str]:
    """Return the sides, "left" or "right", without a hippocampus among the labels."""
    return [side for label, side in HIPPOCAMPI.items() if not (labels == label).any()]


class _Job:
    """One conformed image and one network."""

    def __init__(
        self,
        network: nn.Module,
        info: WeightsInfo,
        conformed: nib.spatialimages.SpatialImage,
        settings: InferenceSettings,
    ) -> None:
        _check_conformed(conformed)
        give_memory_back()  # what the last image left is cut otherwise than what this one takes
        self.network, self.info, self.settings = network, info, settings
        self.data = np.asanyarray(conformed.dataobj)
        self.device = choose_device(settings.device)
        self.grids = AlignedGrids(Grid.of(conformed), info.input.voxel_size)
        self.volume = self._volume(self.grids)
        self.notes: list[str] = []
        self.groups = class_groups(info)

    def _volume(self, grids: AlignedGrids) -> np.ndarray:
        # Both conventions ("conformed", "freesurfer") end with a division by 255.
        return grids.to_network(self.data) / np.float32(255)

    def search_box(self) -> Box | None:
        """Return where in the network's grid the overlapping patches go; None if there is nothing."""
        whole = looks_whole(self.data)
        if self.info.input.skull_stripped or not whole:
            if whole:
                litres = np.count_nonzero(self.data) / 1e6
                self.note(_WHOLE_FOR_STRIPPED.format(name=self.info.name, litres=litres))
            return Box.around(self.volume)
        return self._find_brain(self.grids.to_network_box(Box.around(head_mask(self.data))))

    def box_of_brain(self, brain: Box) -> Box:
        """Return where in the network's grid the overlapping patches go for a brain that was found already."""
        margin = int(np.ceil(_BRAIN_MARGIN_MM / self.grids.ratio))
        return self.grids.to_network_box(brain).grow(margin, self.volume.shape)

    def _find_brain(self, head: Box) -> Box | None:
        """Locate the brain in the box of a head by one pass with patches side by side."""
        side_by_side = Patching(self.info.input.patch_size, step=self.info.input.patch_size)
        quick = self._predict(self.grids, head, side_by_side, half_accumulator=True)
        self._leave_out_neck(quick, self.grids)
        outside = [index for index, label in enumerate(self.info.labels) if label in (0, *OUTSIDE_BRAIN)]
        brain = ~np.isin(quick.probabilities.argmax(0).cpu().numpy(), outside)
        if self.groups:
            brain = largest_component(brain)
        margin = int(np.ceil(_BRAIN_MARGIN_MM / self.grids.ratio))
        box = Box.around(brain)
        return box and box.out_of(quick.box).grow(margin, self.volume.shape)

    def predict(self, box: Box) -> Iterator[View]:
        """Run the overlapping patches in a box of the network's grid; those of the mirror image perhaps in smaller
        voxels, and then first, as they take the most memory. The deep structures perhaps once more, last, as they are
        looked for in what was seen.
        """
        spec, settings = self.info.input, self.settings
        patching = Patching(
            spec.patch_size,
            step=settings.step or spec.step,
            gaussian=spec.gaussian if settings.gaussian is None else settings.gaussian,
            mirror=self._mirror() if spec.mirror else None,
        )
        if patching.mirror is not None and spec.mirror_voxel_size is not None:
            fine = AlignedGrids(self.grids.conformed, spec.mirror_voxel_size)
            fine_box = fine.to_network_box(self.grids.to_conformed_box(box))
            yield self._view(fine, fine_box, replace(patching, plain=False))
            view = self._view(self.grids, box, replace(patching, mirror=None))
        else:
            view = self._view(self.grids, box, patching)
        middle = self._deep_middle(view) if spec.deep_voxel_size else None  # a view that was given away may change
        yield view
        del view  # before the next one is made
        if middle:
            yield self._deep_view(middle, patching)

    def _deep_middle(self, view: View) -> Box | None:
        """Return the middle of the deep structures in a view, a box of no width; None where there are none."""
        deep = np.isin(np.array(self.info.labels), DEEP)
        places = np.argwhere(deep[view.prediction.probabilities.argmax(0).cpu().numpy()])
        if not len(places):
            return None
        low, high = np.quantile(places, (_STRAY, 1 - _STRAY), axis=0).astype(int)
        found = Box(slice(first, last + 1) for first, last in zip(low.tolist(), high.tolist(), strict=True))
        box = view.grids.to_conformed_box(found.out_of(view.prediction.box))
        return Box(slice(middle, middle) for middle in ((side.start + side.stop) // 2 for side in box))

    def _deep_view(self, middle: Box, patching: Patching) -> View:
        """See one patch around the deep structures, in smaller voxels."""
        spec = self.info.input
        grids = AlignedGrids(self.grids.conformed, spec.deep_voxel_size)
        around = grids.to_network_box(middle).at_least(spec.deep_patch_size, grids.network_shape)
        one = replace(patching, patch_size=spec.deep_patch_size, step=spec.deep_patch_size)
        return replace(self._view(grids, around, one), fades=True)

    def _view(self, grids: AlignedGrids, box: Box, patching: Patching) -> View:
        prediction = self._predict(grids, box, patching, self.settings.half_accumulator)
        if self._leave_out_neck(prediction, grids) >= _NOTABLE_MM3 and _FROM_NECK not in self.notes:
            self.note(_FROM_NECK)
        return View(prediction, grids)

    def _leave_out_neck(self, prediction: Prediction, grids: AlignedGrids) -> float:
        if not self.settings.largest_component:
            return 0.0
        return leave_out_neck(prediction.probabilities, self.info.labels, grids.ratio)

    def _predict(self, grids: AlignedGrids, box: Box, patching: Patching, half_accumulator: bool) -> Prediction:
        settings = self.settings
        volume = self.volume if grids is self.grids else self._volume(grids)
        batch = settings.batch_size or (1 if self.device.type == "cpu" else _GPU_BATCH)
        resources = Resources(
            self.device, settings.precision, batch, half_accumulator, settings.low_memory, settings.progress
        )
        with scan_backend(settings.scan_backend):
            prediction = predict_volume(self.network, volume, len(self.info.labels), patching, resources, box)
        self.notes += prediction.notes
        return prediction

    def _mirror(self) -> np.ndarray | None:
        """Return the class of the other side for each class; None, with a note, for a table without sides."""
        try:
            return table_of_labels(np.array(self.info.labels)).mirror
        except TableError as error:
            self.note(f"no averaging with the mirror image: {error}")
            return None

    def finish(self, views: Iterable[View], on_posterior: OnPosterior | None) -> Segmentation:
        """Bring the probabilities back to the conformed grid."""
        groups = self.groups if self.settings.largest_component else []
        weight = self.info.input.follow_intensities
        guide = Guide(self.data, weight) if weight else None
        return merge_posteriors(views, self.info.labels, groups, self.notes, on_posterior, guide)

    def note(self, note: str) -> None:
        """Keep a sentence for the user, and log it."""
        logger.warning(note)
        self.notes.append(note)


def class_groups(info: WeightsInfo) -> list[list[int]]:
    """Return the classes that hang together: the brain as a whole, also with the fluid around it where that is a
    class; the hippocampi a side each.

    Structures without the cerebrum between them need not touch each other, and hypointensities never do.
    """
    classes = [index for index, label in enumerate(info.labels) if index]
    if info.task != HIPPOCAMPUS.task:
        brain = [index for index in classes if info.labels[index] not in OUTSIDE_BRAIN]
        groups = [brain] if brain == classes else [brain, classes]
        return groups if covers_brain(info.labels) else []
    right_from = SUBFIELDS_FROM[RIGHT_HIPPOCAMPUS]
    left = [index for index in classes if info.labels[index] < right_from]
    right = [index for index in classes if info.labels[index] >= right_from]
    return [group for group in (left, right) if group]


def _check_step(step: int | None, info: WeightsInfo) -> None:
    if step is not None and not 1 <= step <= info.input.patch_size:
        raise SegmentationError(
            f"step {step}: must lie in 1..{info.input.patch_size}, the patch size of the weights {info.name}"
        )


def _check_conformed(image: nib.spatialimages.SpatialImage) -> None:
    zooms = nib.affines.voxel_sizes(image.affine)
    axes = "".join(nib.aff2axcodes(image.affine))
    if len(image.shape) != 3 or not np.allclose(zooms, 1, atol=1e-3) or axes != "LIA":
        raise SegmentationError(
            f"an image of shape {image.shape}, {axes}, with voxels of {zooms.round(3).tolist()} mm is not "
            "conformed; it must have three axes, LIA, of 1 mm"
        )
    dtype = image.get_data_dtype()
    if dtype.kind not in "uif":
        raise SegmentationError(f"an image of type {dtype} is not conformed; numbers are needed")
