"""Nodes of the processing of several visits together."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from medsegmamba_bids.anatomy import OUTSIDE_BRAIN
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import load_as_is, load_image, open_series, save_image, write_text
from medsegmamba_bids.interfaces.segmentation import (
    SegmentAseg,
    SegmentHippocampus,
    SegmentInputSpec,
    SegmentOutputSpec,
    save_segmentation,
)
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.longitudinal.alignment import (
    MOST_LACKING,
    Alignment,
    Visit,
    align,
    common_masks,
    common_view,
    white_level,
)
from medsegmamba_bids.longitudinal.change import (
    COLUMNS,
    LEAST_DAYS,
    VisitTable,
    change_table,
    in_time,
    to_tsv,
    too_soon,
)
from medsegmamba_bids.longitudinal.class_files import PosteriorFolder
from medsegmamba_bids.longitudinal.deformation import displacement, expansion, relative_volumes
from medsegmamba_bids.longitudinal.fusion import WEIGHT, fuse
from medsegmamba_bids.longitudinal.images import into_midspace, median_image, normalized_alike
from medsegmamba_bids.longitudinal.protocol import Protocol, contrast_of, differences, read_sidecar
from medsegmamba_bids.report.derivatives import read_json
from medsegmamba_bids.report.provenance import steps_of
from medsegmamba_bids.segmentations import VOLUME_DEFINITIONS, of_task
from medsegmamba_bids.stats.intracranial import to_xfm
from medsegmamba_bids.stats.tables import read_tsv
from medsegmamba_bids.weights.info import WeightsFile, WeightsInfo

if TYPE_CHECKING:
    from medsegmamba_bids.inference.merge import Segmentation

logger = logging.getLogger(__name__)

_NOTED_LACK = 0.001  # of the brain, outside a visit's field of view


class AlignVisitsInputSpec(StepInputSpec):
    """Inputs of :class:`AlignVisits`; lists hold an entry per visit."""

    names = traits.List(traits.Str, mandatory=True, desc="of the visits, for messages")
    native_files = traits.List(File(exists=True), mandatory=True, desc="T1w images as they came")
    conformed_files = traits.List(File(exists=True), mandatory=True, desc="conformed")
    labels_files = traits.List(File(exists=True), mandatory=True, desc="FreeSurfer labels, conformed")
    mask_files = traits.List(File(exists=True), mandatory=True, desc="brain masks, conformed")


class AlignVisitsOutputSpec(StepOutputSpec):
    """Outputs of :class:`AlignVisits`."""

    alignment_file = File(desc="JSON: grid in the middle, transforms to it, level of white matter")
    brain_file = File(desc="brain mask that most visits have, in the middle")
    white_file = File(desc="white matter in most visits; undefined where none is labelled")
    view_file = File(desc="what all visits show")


class AlignVisits(StepInterface):
    """Find the space in the middle between visits, and what they have in common there."""

    input_spec = AlignVisitsInputSpec
    output_spec = AlignVisitsOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Register, vote on masks, save."""
        files = (
            self.inputs.native_files,
            self.inputs.conformed_files,
            self.inputs.labels_files,
            self.inputs.mask_files,
        )
        visits = [Visit(name, *map(Path, paths)) for name, *paths in zip(self.inputs.names, *files, strict=True)]
        alignment = align(visits, self.inputs.num_threads)
        brain, white = common_masks(visits, alignment)
        view, lacking = common_view(visits, alignment, brain)
        notes = _lacking_notes(self.inputs.names, lacking)
        affine = alignment.grid.affine
        masks = {"brain": brain, "view": view} | ({"white": white} if white.any() else {})
        outputs = {
            f"{name}_file": str(save_image(mask, affine, folder / f"{name}.nii.gz", np.uint8))
            for name, mask in masks.items()
        }
        return {
            **outputs,
            "alignment_file": str(_save_alignment(alignment, white_level(visits), folder / "alignment.json")),
            "notes": notes,
            "details": {
                "Overlaps": dict(zip(self.inputs.names, np.round(alignment.overlaps, 4).tolist(), strict=True))
            },
        }


def _lacking_notes(names: list[str], lacking: list[float]) -> list[str]:
    """Return sentences about visits that do not show the whole brain; refuse what shows too little."""
    for name, share in zip(names, lacking, strict=True):
        if share > MOST_LACKING:
            raise ImageError(
                f"{name} lacks {100 * share:.0f} % of the brain, which lies outside its field of view; visits are "
                f"compared where each lacks {100 * MOST_LACKING:.0f} % at most. Leave it out with --session-label"
            )
    return [
        f"{name} lacks {100 * share:.1f} % of the brain, which lies outside its field of view; all visits are cut so"
        for name, share in zip(names, lacking, strict=True)
        if share > _NOTED_LACK
    ]


def _save_alignment(alignment: Alignment, level: float, path: Path) -> Path:
    entries = {
        "Affine": alignment.grid.affine.tolist(),
        "Shape": list(alignment.grid.shape),
        "Transforms": [matrix.tolist() for matrix in alignment.transforms],
        "Overlaps": alignment.overlaps,
        "WhiteMatter": level,
    }
    write_text(path, json.dumps(entries, indent=1))
    return path


def _alignment(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


class IntoMidspaceInputSpec(StepInputSpec):
    """Inputs of :class:`IntoMidspace`."""

    in_file = File(exists=True, mandatory=True, desc="T1w as it came")
    visit = traits.Int(mandatory=True, desc="its place among the transforms")
    alignment_file = File(exists=True, mandatory=True, desc="of AlignVisits")
    brain_file = File(exists=True, mandatory=True, desc="of AlignVisits")
    white_file = File(exists=True, desc="of AlignVisits")
    view_file = File(exists=True, mandatory=True, desc="of AlignVisits")


class MidspaceImageOutputSpec(StepOutputSpec):
    """Outputs of nodes that make an image in the middle; uncompressed, so that parts can be read."""

    norm_file = File(desc="float32, white matter at 110; not skull-stripped")
    conformed_file = File(desc="the same as uint8, white matter as bright as in the conformed images")
    image_file = File(desc="the same, compressed")
    transform_file = File(desc="affine from the T1w to the middle, four rows of four numbers")
    transform = traits.List(traits.List(traits.Float), desc="affine (4, 4) from the T1w's points to the middle, mm")
    native_affine = traits.List(traits.List(traits.Float), desc="affine (4, 4) of the T1w, mm")
    native_shape = traits.List(traits.Int, desc="sides of the T1w's grid")


class IntoMidspace(StepInterface):
    """Resample a visit's T1w into the middle and normalise it as all others."""

    input_spec = IntoMidspaceInputSpec
    output_spec = MidspaceImageOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, resample, normalise, save."""
        common = _alignment(self.inputs.alignment_file)
        grid, transform = Grid(common["Affine"], common["Shape"]), np.array(common["Transforms"][self.inputs.visit])
        image = load_image(self.inputs.in_file)
        here = Grid(transform @ image.affine, image.shape)
        view, brain = (_mask(path) for path in (self.inputs.view_file, self.inputs.brain_file))
        white = _mask(self.inputs.white_file) if isdefined(self.inputs.white_file) else None
        moved = into_midspace(np.asarray(image.dataobj), here, grid, view)
        norm, conformed = normalized_alike(moved, brain, white, common["WhiteMatter"], self.inputs.num_threads)
        return {
            "norm_file": str(save_image(norm, grid.affine, folder / "norm.nii", np.float32)),
            "image_file": str(save_image(conformed, grid.affine, folder / "conformed.nii.gz", np.uint8)),
            "transform_file": str(_save_transform(transform, folder / "transform.txt")),
            "conformed_file": str(save_image(conformed, grid.affine, folder / "conformed.nii", np.uint8)),
            "transform": transform.tolist(),
            "native_affine": image.affine.tolist(),
            "native_shape": list(image.shape),
        }


def _save_transform(matrix: np.ndarray, path: Path) -> Path:
    write_text(path, to_xfm(matrix))
    return path


def _mask(path: str) -> np.ndarray:
    return np.asanyarray(load_as_is(path).dataobj) > 0


class MedianTemplateInputSpec(StepInputSpec):
    """Inputs of :class:`MedianTemplate`."""

    norm_files = traits.List(File(exists=True), mandatory=True, desc="of all visits")
    conformed_files = traits.List(File(exists=True), mandatory=True, desc="of all visits")


class MedianTemplate(StepInterface):
    """Take the median of all visits' images."""

    input_spec = MedianTemplateInputSpec
    output_spec = MidspaceImageOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load in parts, take the median, save."""
        outputs = {}
        for name, paths in (("norm", self.inputs.norm_files), ("conformed", self.inputs.conformed_files)):
            image = median_image(paths)
            outputs[f"{name}_file"] = str(save_image(image.dataobj, image.affine, folder / f"{name}.nii"))
        outputs["image_file"] = str(save_image(image.dataobj, image.affine, folder / "median.nii.gz"))
        return outputs


class DeformVisitInputSpec(StepInputSpec):
    """Inputs of :class:`DeformVisit`."""

    template_file = File(exists=True, mandatory=True, desc="normalised median of all visits")
    norm_file = File(exists=True, mandatory=True, desc="normalised visit in the middle")
    brain_file = File(exists=True, mandatory=True, desc="brain mask of all visits")


class DeformVisitOutputSpec(StepOutputSpec):
    """Outputs of :class:`DeformVisit`."""

    larger_file = File(desc="how many times larger each place of the template is in the visit; 1 far from the brain")


class DeformVisit(StepInterface):
    """Find how a visit's brain differs in shape from the template's."""

    input_spec = DeformVisitInputSpec
    output_spec = DeformVisitOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, register, save."""
        template = load_as_is(self.inputs.template_file)
        visit = np.asarray(load_as_is(self.inputs.norm_file).dataobj)
        field, box = displacement(
            np.asarray(template.dataobj), visit, _mask(self.inputs.brain_file), self.inputs.num_threads
        )
        larger = Grid.of(template).paste(expansion(field), box, 1)
        return {"larger_file": str(save_image(larger, template.affine, folder / "larger.nii", np.float32))}


class SegmentVisitInputSpec(SegmentInputSpec):
    """Inputs of :class:`SegmentVisit`."""

    around_file = File(exists=True, desc="labels of the template, around which is looked; the head if undefined")


class _KeepsClasses:
    """Keeps the probabilities of all classes, for the fusion."""

    def _posteriors(self, folder: Path, image: Any, info: WeightsInfo) -> PosteriorFolder:
        return PosteriorFolder(folder / "classes")


class SegmentVisit(_KeepsClasses, SegmentAseg):
    """Segment an image in the middle, in the same box for all visits."""

    input_spec = SegmentVisitInputSpec

    def _segment(self, image: Any, info: WeightsInfo, posteriors: PosteriorFolder | None) -> Segmentation:
        box = None
        if isdefined(self.inputs.around_file):
            labels = np.asanyarray(load_as_is(self.inputs.around_file).dataobj)
            box = Box.around((labels > 0) & ~np.isin(labels, OUTSIDE_BRAIN))
        return self._segmenter().segment(image, self.inputs.weights, posteriors, box)


class SegmentVisitHippocampus(_KeepsClasses, SegmentHippocampus):
    """The same of the hippocampal subfields, around the template's hippocampi."""


class FuseVisitInputSpec(StepInputSpec):
    """Inputs of :class:`FuseVisit`."""

    in_file = File(exists=True, mandatory=True, desc="the visit's image in the middle, whose grid is meant")
    own_file = File(exists=True, mandatory=True, desc="index of the visit's probabilities")
    all_files = traits.List(File(exists=True), mandatory=True, desc="those of all visits and of the template")
    weights = traits.Instance(WeightsFile, mandatory=True, nohash=True, desc="its fingerprint stands for it")
    fingerprint = traits.Str(mandatory=True, desc="of the weights")
    weight = traits.Range(0.0, 1.0, value=WEIGHT, usedefault=True, desc="how far visits are drawn to each other")


class FuseVisit(StepInterface):
    """Draw a visit's probabilities towards those of all, and decide."""

    input_spec = FuseVisitInputSpec
    output_spec = SegmentOutputSpec
    runs_network: ClassVar[bool] = True  # it runs none, but needs torch, which the network's process has

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load a class at a time, fuse, save."""
        from medsegmamba_bids.inference.merge import background_only, merge_probabilities
        from medsegmamba_bids.inference.segmenter import class_groups

        name = of_task(self.inputs.weights.info.task).name
        info, grid = self.inputs.weights.info, Grid.of(nib.load(self.inputs.in_file))
        own, *others = (PosteriorFolder.of(path) for path in (self.inputs.own_file, *self.inputs.all_files))
        if not own.boxes:
            note = "nothing was found in it together with the other visits"
            return {**save_segmentation(background_only(grid, info.labels, [note]), folder, name), "notes": [note]}
        probabilities, box = fuse(own, others, self.inputs.weight)
        segmentation = merge_probabilities(probabilities, box, grid, info.labels, class_groups(info))
        return save_segmentation(segmentation, folder, name)


class CompareVisitsInputSpec(StepInputSpec):
    """Inputs of :class:`CompareVisits`; lists hold an entry per visit."""

    scans = traits.List(traits.Str, mandatory=True, desc="names of the T1w images without extension")
    sessions = traits.List(traits.Str, mandatory=True, desc="labels without ses-")
    native_files = traits.List(File(exists=True), mandatory=True, desc="T1w images, beside which JSON may lie")
    years = traits.List(traits.Either(None, traits.Float), mandatory=True, desc="since the first visit, if known")
    times_source = traits.Str("", usedefault=True, desc="where times come from")
    together_files = traits.List(File(exists=True), mandatory=True, desc="volumes, all visits together; JSON beside")
    alone_files = traits.List(File(exists=True), mandatory=True, desc="volumes, each visit processed by itself")
    template_file = File(exists=True, mandatory=True, desc="labels of the template")
    larger_files = traits.List(File(exists=True), mandatory=True, desc="of DeformVisit")
    volumes = traits.Str(mandatory=True, desc="what volumes are, a key of VOLUME_DEFINITIONS")
    align_record = traits.Dict(mandatory=True, desc="of AlignVisits")


class CompareVisitsOutputSpec(StepOutputSpec):
    """Outputs of :class:`CompareVisits`."""

    table_file = File(desc="TSV, a row per visit and structure")
    sidecar_file = File(desc="JSON: columns, visits, notes")


class CompareVisits(StepInterface):
    """Put the volumes of all visits into one table, with what changed, and say what changed at the scanner."""

    input_spec = CompareVisitsInputSpec
    output_spec = CompareVisitsOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, compare, save."""
        visits = [
            VisitTable(session, scan, years, read_tsv(together), read_tsv(alone), self._relative(larger))
            for session, scan, years, together, alone, larger in zip(*self._columns(), strict=True)
        ]
        notes = [*self.inputs.align_record["Notes"], *self._notes(visits)]
        texts = {
            "table_file": ("changes.tsv", to_tsv(change_table(visits))),
            "sidecar_file": ("changes.json", json.dumps(self._sidecar(visits, notes), indent=2) + "\n"),
        }
        for name, text in texts.values():
            write_text(folder / name, text)
        return {**{output: str(folder / name) for output, (name, _) in texts.items()}, "notes": notes}

    def _columns(self) -> tuple[list, ...]:
        given = self.inputs
        return (
            given.sessions,
            given.scans,
            given.years,
            given.together_files,
            given.alone_files,
            given.larger_files,
        )

    def _relative(self, larger_file: str) -> dict[int, float]:
        """Return how many times larger the template's structures are in a visit."""
        labels = np.asarray(load_as_is(self.inputs.template_file).dataobj)
        return relative_volumes(labels, np.asarray(load_as_is(larger_file).dataobj))

    def _notes(self, visits: list[VisitTable]) -> list[str]:
        notes = differences(self._protocols(visits))
        unknown = [visit.scan for visit in visits if visit.years is None]
        if unknown:
            notes.append(
                f"no time is known of {', '.join(unknown)} (acq_time in scans.tsv or sessions.tsv, or age): "
                "there are no changes a year for them, and visits are in the order of their names"
            )
        if soon := [visit.scan for visit in too_soon(visits)]:
            was, those = ("was", "it") if len(soon) == 1 else ("were", "them")
            notes.append(
                f"{', '.join(soon)} {was} made less than {LEAST_DAYS} days after the first visit: there are no changes "
                f"a year for {those}, as they would be noise made large"
            )
        return notes

    def _protocols(self, visits: list[VisitTable]) -> list[Protocol]:
        paths = {scan: Path(path) for scan, path in zip(self.inputs.scans, self.inputs.native_files, strict=True)}
        protocols = []
        for visit in in_time(visits):
            path = paths[visit.scan]
            zooms = tuple(sorted(Grid.of(open_series(path)).zooms.tolist()))
            protocols.append(Protocol(visit.scan, zooms, read_sidecar(path), contrast_of(visit.together)))
        return protocols

    def _sidecar(self, visits: list[VisitTable], notes: list[str]) -> dict[str, Any]:
        described = {**COLUMNS["LabelVolume_mm3"]}
        described["Description"] += f". {VOLUME_DEFINITIONS[self.inputs.volumes]}"
        return {
            **COLUMNS,
            "LabelVolume_mm3": described,
            "Visits": [visit.scan for visit in in_time(visits)],
            "Times": self.inputs.times_source or "not known",
            "Overlaps": self.inputs.align_record.get("Overlaps", {}),
            "Fusion": {"Weight": WEIGHT},
            "Notes": notes,
            **self._made_by(),
        }

    def _made_by(self) -> dict[str, Any]:
        """Return weights and versions, which are the same of all visits: one run measured them."""
        sidecar = read_json(Path(self.inputs.together_files[0]).with_suffix(".json"))
        weights = [step["Weights"] for step in steps_of(sidecar) if "Weights" in step]
        return {"Weights": weights[0] if weights else {}, "Versions": sidecar.get("Versions", {})}
