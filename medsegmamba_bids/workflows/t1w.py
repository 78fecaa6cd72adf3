"""The workflow of one T1w: conform, mask, normalise, segment, measure, bring back, write."""

from __future__ import annotations

from typing import Any

from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.conform import Conform
from medsegmamba_bids.interfaces.etiv import EstimateIntracranial
from medsegmamba_bids.interfaces.masks import GivenMask, NonzeroMask
from medsegmamba_bids.interfaces.native import ToNative
from medsegmamba_bids.interfaces.normalize import Normalize
from medsegmamba_bids.interfaces.record import WriteRecord
from medsegmamba_bids.interfaces.segmentation import SegmentAseg, SegmentHippocampus
from medsegmamba_bids.interfaces.statistics import Statistics
from medsegmamba_bids.interfaces.step import StepInterface
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.workflows.ingredients import files_now, made_from
from medsegmamba_bids.workflows.networks import Network, Networks
from medsegmamba_bids.workflows.outputs import (
    Source,
    connect_outputs,
    products_of_aseg,
    products_of_hippocampus,
)

# Most memory that a step was seen to need, GB; images of 512^3 voxels and the authors' network included.
_MEMORY = {"conform": 2.5, "network": 4.0, "normalize": 1.5, "native": 2.5, "statistics": 1.5, "other": 0.8}


def init_t1w_wf(image: T1wImage, config: RunConfig, networks: Networks, template: dict[str, Any]) -> Workflow:
    """Build the workflow of a T1w.

    Parameters
    ----------
    image : T1wImage
    config : RunConfig
    networks : Networks
    template : dict
        Fields of ``stats.intracranial.Template``, for the intracranial volume.
    """
    return _Builder(image, config, networks, template).build()


class _Builder:
    """Nodes of one T1w, in the order of the work."""

    def __init__(self, image: T1wImage, config: RunConfig, networks: Networks, template: dict[str, Any]) -> None:
        self.image, self.config, self.networks = image, config, networks
        self.made_from = made_from(image, config, networks, Template(**template))
        self.template = {**template, "path": str(template["path"])}
        self.workflow = Workflow(name=image.node_name)
        self.records: list[Node] = []
        self.sinks: dict[str, Node] = {}

    def build(self) -> Workflow:
        self.conform = self.node(Conform(in_file=str(self.image.path)), "conform", "conform")
        self.mask: Source | None = None
        self.norm: Source | None = None
        if self.image.mask:
            self.mask = (self.given_mask(), "out_file")
        if not self.networks.aseg.takes_heads:
            self.prepare_for_aseg()
        self.aseg = self.segment(SegmentAseg, self.networks.aseg, "aseg")
        if self.mask is None:
            self.mask = (self.aseg, "mask_file") if self.networks.aseg.makes_mask else self.other_mask()
        if self.norm is None:
            self.norm = self.normalize((self.aseg, "labels_file") if self.networks.aseg.makes_mask else None)
        self.finish_aseg()
        if self.networks.hippocampus:
            self.finish_hippocampus()
        self.record()
        return self.workflow

    def node(self, interface: StepInterface, name: str, memory: str = "other", threads: int = 1) -> Node:
        interface.inputs.num_threads = threads
        memory_gb = min(_MEMORY[memory], self.config.mem_gb)
        node = Node(interface, name=name, mem_gb=memory_gb, n_procs=threads)
        self.workflow.add_nodes([node])
        self.records.append(node)
        return node

    def connect(self, source: Source, node: Node, entry: str) -> None:
        self.workflow.connect(*source, node, entry)

    def given_mask(self) -> Node:
        node = self.node(GivenMask(in_file=str(self.image.mask)), "mask", "native")
        self.connect((self.conform, "out_file"), node, "reference")
        return node

    def prepare_for_aseg(self) -> None:
        """Make mask and normalised image first, for weights that ask for them."""
        white_matter = None
        if self.mask is None:
            self.mask = self.other_mask()
            white_matter = (self.mask[0], "labels_file") if self.networks.brain else None
        self.norm = self.normalize(white_matter)

    def other_mask(self) -> Source:
        """A mask that does not come from the network which segments."""
        if self.networks.brain:
            return self.segment(SegmentAseg, self.networks.brain, "brain"), "mask_file"
        node = self.node(NonzeroMask(), "mask")
        self.connect((self.conform, "out_file"), node, "in_file")
        return node, "out_file"

    def normalize(self, labels: Source | None) -> Source:
        node = self.node(Normalize(), "normalize", "normalize", self.config.omp_nthreads)
        self.connect((self.conform, "out_file"), node, "in_file")
        self.connect(self.mask, node, "mask_file")
        if labels:
            self.connect(labels, node, "labels_file")
        return node, "out_file"

    def segment(self, interface: type[SegmentAseg], network: Network, name: str) -> Node:
        """A node that runs a network, on the image that its weights ask for."""
        config, spec = self.config, network.info.input
        inputs = {"batch_size": config.batch_size}
        if name != "brain":  # a mask is made as its weights say
            inputs |= {"step_size": config.step_size, "save_posteriors": config.save_posteriors}
        node = self.node(
            interface(
                weights=str(network.path),
                checksum=network.info.checksum,
                precision=config.precision,
                device=config.device,
                low_memory=config.low_memory,
                **{key: value for key, value in inputs.items() if value is not None},
            ),
            name,
            "network",
            config.omp_nthreads,
        )
        self.connect(self.norm if spec.intensity == "freesurfer" else (self.conform, "out_file"), node, "in_file")
        if spec.skull_stripped:
            self.connect(self.mask, node, "mask_file")
        return node

    def to_native(self, source: Source, name: str) -> Source:
        node = self.node(ToNative(), name, "native")
        self.connect(source, node, "in_file")
        for entry in ("native_affine", "native_shape"):
            self.connect((self.conform, entry), node, entry)
        return node, "out_file"

    def statistics(self, segmented: Node, table: str, name: str, threads: int) -> Node:
        interface = Statistics(table=table, subject=self.image.prefix, notes=list(self.image.notes))
        before = list(self.records)
        node = self.node(interface, name, "statistics", threads)
        self.connect((segmented, "labels_file"), node, "labels_file")
        self.connect((segmented, "numbers_file"), node, "numbers_file")
        self.connect(self.norm, node, "norm_file")
        merged = self.merge_records(before, f"{name}_records")
        self.connect((merged, "out"), node, "records")
        return node

    def merge_records(self, nodes: list[Node], name: str) -> Node:
        from nipype.interfaces.utility import Merge

        merged = Node(Merge(len(nodes)), name=name, run_without_submitting=True)
        for number, node in enumerate(nodes, 1):
            self.workflow.connect(node, "record", merged, f"in{number}")
        return merged

    def finish_aseg(self) -> None:
        """Native grid, intracranial volume, statistics and sink of the subcortical structures."""
        native_labels = self.to_native((self.aseg, "labels_file"), "native_aseg")
        native_mask = self.to_native(self.mask, "native_mask")
        etiv = self.node(EstimateIntracranial(template=self.template), "intracranial")
        self.connect(self.norm, etiv, "in_file")
        self.connect(self.mask, etiv, "mask_file")
        statistics = self.statistics(
            self.aseg, ASEG.listed_table(self.networks.aseg.info.labels), "statistics_aseg", self.config.omp_nthreads
        )
        statistics.inputs.template = self.template
        self.connect((etiv, "etiv"), statistics, "etiv")
        self.connect(self.mask, statistics, "mask_file")
        sources = {
            "conformed": (self.conform, "out_file"),
            "mask": native_mask,
            "conformed_mask": self.mask,
            "aseg": native_labels,
            "conformed_aseg": (self.aseg, "labels_file"),
            "aseg_entropy": (self.aseg, "entropy_file"),
            "aseg_posteriors": (self.aseg, "posteriors_file"),
            "aseg_stats": (statistics, "table_file"),
            "freesurfer_stats": (statistics, "fs_file"),
        }
        sources = {key: sources[key] for key in products_of_aseg(self.config)}
        sources |= {
            "conformed_json": (self.conform, "sidecar_file"),
            "aseg_stats_json": (statistics, "sidecar_file"),
            "transform": (etiv, "out_file"),
        }
        self.write("write_aseg", sources, self.networks.aseg)

    def finish_hippocampus(self) -> None:
        """Segmentation, native grid, statistics and sink of the subfields."""
        kept = self.records
        self.records = []
        segmented = self.segment(SegmentHippocampus, self.networks.hippocampus, "hippocampus")
        self.connect((self.aseg, "labels_file"), segmented, "aseg_file")
        native_labels = self.to_native((segmented, "labels_file"), "native_hippocampus")
        # On one thread, since it then runs while the intracranial volume is estimated, which has no more.
        statistics = self.statistics(segmented, HIPPOCAMPUS.listed, "statistics_hippocampus", threads=1)
        sources = {
            "hippocampus": native_labels,
            "conformed_hippocampus": (segmented, "labels_file"),
            "hippocampus_entropy": (segmented, "entropy_file"),
            "hippocampus_posteriors": (segmented, "posteriors_file"),
            "hippocampus_stats": (statistics, "table_file"),
        }
        sources = {key: sources[key] for key in products_of_hippocampus(self.networks, self.config)}
        sources["hippocampus_stats_json"] = (statistics, "sidecar_file")
        self.write("write_hippocampus", sources, self.networks.hippocampus)
        self.records = kept + self.records

    def write(self, name: str, sources: dict[str, Source], network: Network) -> None:
        sink = connect_outputs(self.workflow, name, sources, self.image, self.config, network, self.template["name"])
        self.sinks[name.removeprefix("write_")] = sink

    def record(self) -> None:
        """Last, say what all was made from."""
        node = Node(WriteRecord(), name="finish", mem_gb=min(0.3, self.config.mem_gb))
        node.inputs.output_dir = str(self.config.output_dir)
        node.inputs.prefix = self.image.prefix
        node.inputs.made_from = self.made_from
        node.inputs.in_files = files_now(self.image)
        for name, sink in self.sinks.items():
            self.workflow.connect(sink, "out_files", node, f"{name}_files")
