"""The workflow of several visits of a participant: from T1w images that were processed one by one to what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name, product
from medsegmamba_bids.datasets.visit_times import VisitTimes
from medsegmamba_bids.interfaces.etiv import EstimateIntracranial
from medsegmamba_bids.interfaces.native import ToNative
from medsegmamba_bids.interfaces.record import WriteRecord
from medsegmamba_bids.interfaces.sink import WriteOutputs
from medsegmamba_bids.interfaces.statistics import Statistics
from medsegmamba_bids.interfaces.visit_steps import (
    AlignVisits,
    CompareVisits,
    DeformVisit,
    FuseVisit,
    IntoMidspace,
    MedianTemplate,
    SegmentVisit,
    SegmentVisitHippocampus,
)
from medsegmamba_bids.longitudinal.fusion import WEIGHT
from medsegmamba_bids.report.run_records import size_and_time
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, SegmentationKind
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.weights.info import WeightsFile
from medsegmamba_bids.workflows.dataset_links import RAW, dataset_uri
from medsegmamba_bids.workflows.ingredients import made_from
from medsegmamba_bids.workflows.networks import Networks
from medsegmamba_bids.workflows.steps import network_step, step
from medsegmamba_bids.workflows.t1w import Row

LONGITUDINAL = "longitudinal_wf"
RECORD = "longitudinal"  # ends the record's name
_IMAGES = ("template", "template_mask", "visit")  # no network made them
_TEMPLATE_PRODUCTS = {
    ASEG.task: ("template", "template_mask", "template_aseg", ASEG.changes),
    HIPPOCAMPUS.task: ("template_hippocampus", HIPPOCAMPUS.changes),
}
_VISIT_PRODUCTS = {
    ASEG.task: ("visit", "visit_transform", "visit_aseg", "visit_midspace_aseg", "visit_aseg_stats"),
    HIPPOCAMPUS.task: ("visit_hippocampus", "visit_midspace_hippocampus", "visit_hippocampus_stats"),
}
_MIDDLE = ("alignment_file", "brain_file", "white_file", "view_file")


@dataclass(frozen=True)
class Visits:
    """What is processed together.

    Attributes
    ----------
    subject : str
        Without ``sub-``.
    images : tuple of T1wImage
        Processed by themselves already; two sessions and more.
    times : VisitTimes
        Of the images, in their order.
    """

    subject: str
    images: tuple[T1wImage, ...]
    times: VisitTimes

    @property
    def prefix(self) -> str:
        """Name of what all visits share, without suffix."""
        return f"sub-{self.subject}"

    def paths(self, name: str, config: RunConfig) -> list[str]:
        """Return a product of each image."""
        return [str(config.output_dir / output_name(image.prefix, name)) for image in self.images]


def init_longitudinal_wf(visits: Visits, config: RunConfig, networks: Networks, template: Template) -> Workflow:
    """Build the workflow of several visits: align, segment each and their median alike, fuse, measure, compare.

    It starts from what the processing of each T1w by itself wrote, so that a visit can be added later.

    Parameters
    ----------
    visits : Visits
    config : RunConfig
    networks : Networks
    template : Template
        For the intracranial volume, which all visits share.
    """
    align = step(_align(visits, config), "align", config)
    images = [_into_midspace(image, number, config) for number, image in enumerate(visits.images)]
    norms, conformed = (Node(Merge(len(images)), name=name) for name in ("all_norm", "all_conformed"))
    median = step(MedianTemplate(), "median", config)
    intracranial = step(EstimateIntracranial(template=template), "intracranial", config)
    deform = [step(DeformVisit(), f"deform_{number}", config) for number in range(len(images))]
    larger = Node(Merge(len(images)), name="all_larger")
    shared = _Shared(visits, config, networks, align, images, median, intracranial, larger)
    aseg = shared.segmented(ASEG, networks.aseg)
    kinds = [aseg] + ([shared.segmented(HIPPOCAMPUS, networks.hippocampus, aseg)] if networks.hippocampus else [])
    finish = _finish_node(visits, config, networks, template)

    workflow = Workflow(name=LONGITUDINAL)
    workflow.connect(
        [
            *[(align, image, [(name, name) for name in _MIDDLE]) for image in images],
            *[(image, norms, [("norm_file", f"in{number}")]) for number, image in enumerate(images, 1)],
            *[(image, conformed, [("conformed_file", f"in{number}")]) for number, image in enumerate(images, 1)],
            (norms, median, [("out", "norm_files")]),
            (conformed, median, [("out", "conformed_files")]),
            *[(median, node, [("norm_file", "template_file")]) for node in deform],
            *[(align, node, [("brain_file", "brain_file")]) for node in deform],
            *[(image, node, [("norm_file", "norm_file")]) for image, node in zip(images, deform, strict=True)],
            *[(node, larger, [("larger_file", f"in{number}")]) for number, node in enumerate(deform, 1)],
            (median, intracranial, [("norm_file", "in_file")]),
            (align, intracranial, [("brain_file", "mask_file")]),
            (aseg.template, intracranial, [("labels_file", "labels_file")]),
            *[row for kind in kinds for row in kind.rows],
            *[(kind.written, finish, [("out", f"{kind.kind.task}_files")]) for kind in kinds],
        ]
    )
    return workflow


@dataclass(frozen=True)
class _Segmented:
    """The nodes of one segmentation, of all visits.

    Attributes
    ----------
    kind : SegmentationKind
    template : Node
        Segments the median.
    fused : list of Node
        Of each visit, the labels.
    statistics : list of Node
        Of each visit.
    written : Node
        Lists what was written.
    rows : list
        Of the connect table.
    """

    kind: SegmentationKind
    template: Node
    fused: list[Node]
    statistics: list[Node]
    written: Node
    rows: list[Row]


@dataclass(frozen=True)
class _Shared:
    """What the segmentations of all visits start from."""

    visits: Visits
    config: RunConfig
    networks: Networks
    align: Node
    images: list[Node]
    median: Node
    intracranial: Node
    larger: Node

    def segmented(self, kind: SegmentationKind, network: WeightsFile, aseg: _Segmented | None = None) -> _Segmented:
        """Return nodes and rows of a segmentation; subfields are looked for around the template's hippocampi."""
        task, count = kind.task, len(self.images)
        interface = SegmentVisit if aseg is None else SegmentVisitHippocampus
        template = network_step(interface, f"{task}_template", network, self.config)
        posteriors, written = (Node(Merge(count + 1), name=f"{name}_{task}") for name in ("all", "written"))
        tables = Node(Merge(count), name=f"tables_{task}")
        compare = step(self._compare(kind), f"compare_{task}", self.config)
        write = self._sink(f"write_{task}", _TEMPLATE_PRODUCTS[task], self.visits.prefix, network)
        around = aseg.template if aseg else template
        place = "aseg_file" if aseg else "around_file"
        rows: list[Row] = [
            *self._image_rows(network, self.median, template),
            *([(aseg.template, template, [("labels_file", "aseg_file")])] if aseg else []),
            (template, posteriors, [("posteriors_file", f"in{count + 1}")]),
            (template, write, [("labels_file", f"template_{task}")]),
            *([] if aseg else [(self.median, write, [("image_file", "template")])]),
            *([] if aseg else [(self.align, write, [("brain_file", "template_mask")])]),
            (self.align, compare, [("record", "align_record")]),
            (tables, compare, [("out", "together_files")]),
            (template, compare, [("labels_file", "template_file")]),
            (self.larger, compare, [("out", "larger_files")]),
            (compare, write, [("table_file", kind.changes), ("sidecar_file", f"{kind.changes}_json")]),
            (write, written, [("out_files", f"in{count + 1}")]),
        ]
        fused, statistics = [], []
        for number, (image, node) in enumerate(zip(self.visits.images, self.images, strict=True)):
            segment = network_step(interface, f"{task}_{number}", network, self.config)
            fuse = step(_fuse(network), f"fuse_{task}_{number}", self.config)
            native = step(ToNative(segmentation=kind.name), f"native_{task}_{number}", self.config)
            steps = [self.align, node, segment, fuse, native, *([] if aseg else [self.intracranial])]
            measure = step(self._statistics(kind, network, image, steps), f"statistics_{task}_{number}", self.config)
            sink = self._sink(f"write_{task}_{number}", _VISIT_PRODUCTS[task], image.prefix, network, image)
            fused.append(fuse)
            statistics.append(measure)
            rows += [
                *self._image_rows(network, node, segment),
                (around, segment, [("labels_file", place)]),
                *([(aseg.fused[number], segment, [("labels_file", "border_file")])] if aseg else []),
                (segment, posteriors, [("posteriors_file", f"in{number + 1}")]),
                (segment, fuse, [("posteriors_file", "own_file")]),
                (posteriors, fuse, [("out", "all_files")]),
                (node, fuse, [("norm_file", "in_file")]),
                (fuse, native, [("labels_file", "in_file")]),
                (node, native, [(name, name) for name in ("transform", "native_affine", "native_shape")]),
                (fuse, measure, [(name, name) for name in ("labels_file", "numbers_file")]),
                (node, measure, [("norm_file", "norm_file")]),
                *[(before, measure, [("record", f"record_{before.name}")]) for before in steps],
                *self._whole_brain_rows(network, aseg, fuse, measure, number),
                (fuse, sink, [("labels_file", f"visit_midspace_{task}")]),
                (native, sink, [("out_file", f"visit_{task}")]),
                (measure, sink, [("table_file", f"visit_{task}_stats"), ("sidecar_file", f"visit_{task}_stats_json")]),
                *([] if aseg else [(node, sink, [("image_file", "visit"), ("transform_file", "visit_transform")])]),
                (measure, tables, [("table_file", f"in{number + 1}")]),
                (sink, written, [("out_files", f"in{number + 1}")]),
            ]
        return _Segmented(kind, template, fused, statistics, written, rows)

    def _image_rows(self, network: WeightsFile, image: Node, node: Node) -> list[Row]:
        """Return what a network is given: the image that its weights ask for, stripped by the common mask."""
        spec = network.info.input
        name = "norm_file" if spec.intensity == "freesurfer" else "conformed_file"
        mask = [(self.align, node, [("brain_file", "mask_file")])] if spec.skull_stripped else []
        return [(image, node, [(name, "in_file")]), *mask]

    def _whole_brain_rows(
        self, network: WeightsFile, aseg: _Segmented | None, fuse: Node, measure: Node, number: int
    ) -> list[Row]:
        """Return where measures of the whole brain come from: a mask, or the table of structures."""
        if aseg:
            return [(aseg.statistics[number], measure, [("measures", "whole_brain")])]
        source, name = (fuse, "mask_file") if network.makes_mask else (self.align, "brain_file")
        return [(source, measure, [(name, "mask_file")]), (self.intracranial, measure, [("etiv", "etiv")])]

    def _statistics(
        self, kind: SegmentationKind, network: WeightsFile, image: T1wImage, steps: Sequence[Node]
    ) -> Statistics:
        table = kind.listed_table(network.info.labels)
        measured = Statistics([node.name for node in steps], table=table, subject=image.prefix, notes=list(image.notes))
        if kind is ASEG:
            measured.inputs.template = self.intracranial.inputs.template
        return measured

    def _compare(self, kind: SegmentationKind) -> CompareVisits:
        images = self.visits.images
        return CompareVisits(
            scans=[f"{image.prefix}_T1w" for image in images],
            sessions=[image.session for image in images],
            native_files=[str(image.path) for image in images],
            years=list(self.visits.times.years),
            times_source=self.visits.times.source,
            alone_files=self.visits.paths(kind.stats, self.config),
            volumes=kind.volumes,
        )

    def _sink(
        self, name: str, products: tuple[str, ...], prefix: str, network: WeightsFile, image: T1wImage | None = None
    ) -> Node:
        interface = WriteOutputs(
            products,
            output_dir=str(self.config.output_dir),
            prefix=prefix,
            metadata={key: _metadata(key, self.visits, image, network, self.config) for key in products},
        )
        return Node(interface, name=name, mem_gb=min(0.5, self.config.mem_gb))


def _metadata(
    name: str, visits: Visits, image: T1wImage | None, network: WeightsFile, config: RunConfig
) -> dict[str, Any]:
    """Return what the JSON beside a product says; empty where the table of names says nothing."""
    fixed = product(name).get("metadata", {})

    def fill(value: Any) -> Any:
        if not (isinstance(value, str) and value.startswith("{")):
            return value
        other = value.strip("{}")
        if other == RAW:
            return dataset_uri(config.bids_dir, image.relative, config)
        prefix = image.prefix if other.startswith("visit") else visits.prefix
        return f"bids::{output_name(prefix, other)}"

    filled = {key: [fill(v) for v in value] if isinstance(value, list) else fill(value) for key, value in fixed.items()}
    return {**filled, "Weights": network.info.provenance()} if filled and name not in _IMAGES else filled


def _align(visits: Visits, config: RunConfig) -> AlignVisits:
    return AlignVisits(
        names=[f"{image.prefix}_T1w" for image in visits.images],
        native_files=[str(image.path) for image in visits.images],
        conformed_files=visits.paths("conformed", config),
        labels_files=visits.paths(ASEG.conformed, config),
        mask_files=visits.paths("conformed_mask", config),
    )


def _into_midspace(image: T1wImage, number: int, config: RunConfig) -> Node:
    return step(IntoMidspace(in_file=str(image.path), visit=number), f"midspace_{number}", config)


def _fuse(network: WeightsFile) -> FuseVisit:
    return FuseVisit(weights=network, fingerprint=network.info.fingerprint)


def _finish_node(visits: Visits, config: RunConfig, networks: Networks, template: Template) -> Node:
    """Record, last, what all was made from."""
    interface = WriteRecord(
        output_dir=str(config.output_dir),
        prefix=visits.prefix,
        suffix=RECORD,
        made_from=visits_made_from(visits, config, networks, template),
        in_files={
            name: {"Path": str(path), **size_and_time(path)} for name, path in visits_read(visits, config).items()
        },
    )
    return Node(interface, name="finish", mem_gb=min(0.3, config.mem_gb))


def visits_made_from(visits: Visits, config: RunConfig, networks: Networks, template: Template) -> dict[str, Any]:
    """Return what the results of several visits depend on, apart from the content of the files that are read."""
    of_images = [made_from(image, config, networks, template) for image in visits.images]
    shared = {key: of_images[0][key] for key in ("Version", "Weights", "Options", "Template")}
    return {
        **shared,
        "Visits": [entry["T1w"] for entry in of_images],
        "Times": {"Years": list(visits.times.years), "Source": visits.times.source},
        "Fusion": WEIGHT,
        "Volumes": ["labels", "shape"],
    }


def visits_read(visits: Visits, config: RunConfig) -> dict[str, Path]:
    """Return files that the results of several visits are made from, by name."""
    read = {image.relative: image.path for image in visits.images}
    for name in ("conformed", ASEG.conformed, "conformed_mask"):
        paths = map(Path, visits.paths(name, config))
        read |= {path.relative_to(config.output_dir).as_posix(): path for path in paths}
    return read
