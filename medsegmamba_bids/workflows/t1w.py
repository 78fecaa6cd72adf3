"""The workflow of one T1w: from the image to labels, and from labels to files."""

from __future__ import annotations

from dataclasses import dataclass

from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.brain_masks import GivenMask, NonzeroMask
from medsegmamba_bids.interfaces.conform import Conform
from medsegmamba_bids.interfaces.draw import Draw
from medsegmamba_bids.interfaces.normalize import Normalize
from medsegmamba_bids.interfaces.record import WriteRecord
from medsegmamba_bids.interfaces.segmentation import SegmentAseg, SegmentHippocampus
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, SEGMENTATIONS
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.weights.info import WeightsFile
from medsegmamba_bids.workflows.ingredients import files_now, made_from
from medsegmamba_bids.workflows.networks import Networks
from medsegmamba_bids.workflows.on_request import add_more_forms
from medsegmamba_bids.workflows.results import init_aseg_results_wf, init_results_wf
from medsegmamba_bids.workflows.steps import mask_network_step, network_step, step

#: A row of a connect table: from a node to a node or workflow, which output becomes which input.
Row = tuple[Node, "Node | Workflow", list[tuple[str, str]]]

_GRID = tuple((name, f"inputnode.{name}") for name in ("native_affine", "native_shape"))
_FOUND = tuple(
    (name, f"inputnode.{name}") for name in ("labels_file", "entropy_file", "posteriors_file", "numbers_file")
)


DRAW = "draw"  # makes the pictures of a T1w's report, and its viewer
BRAIN = "brain"  # the network that makes a mask for weights which do not


@dataclass(frozen=True)
class _Chain:
    """Nodes from a T1w to its labels.

    Attributes
    ----------
    conform, normalize, aseg : Node
    mask : Node
        Makes the brain mask; ``aseg`` itself where its classes cover the brain and no mask is given.
    mask_output, mask_input : str
        Which output of it is the mask, and which input the conformed image.
    white_matter : Node or None
        Whose labels tell where white matter is.
    order : tuple of Node
    """

    conform: Node
    normalize: Node
    aseg: Node
    mask: Node
    mask_output: str
    mask_input: str
    white_matter: Node | None
    order: tuple[Node, ...]


def init_t1w_wf(image: T1wImage, config: RunConfig, networks: Networks, template: Template, scans: int = 1) -> Workflow:
    """Build the workflow of a T1w: conform, segment, normalise, measure, write.

    Brain mask and normalised image come from what the network found, or before it where its weights ask for them.

    Parameters
    ----------
    image : T1wImage
    config : RunConfig
    networks : Networks
    template : Template
        For the intracranial volume.
    scans : int
        T1w images on the report's page.
    """
    chain = _chain(image, config, networks)
    conform, normalize, aseg, mask = chain.conform, chain.normalize, chain.aseg, chain.mask
    steps = [node.name for node in chain.order]
    results = init_aseg_results_wf(image, config, networks.aseg, template, steps)
    finish = _finish_node(image, config, networks, template)
    draw = step(Draw(prefix=image.prefix, scans=scans), DRAW, config)

    workflow = Workflow(name=image.node_name)
    workflow.connect(
        [
            *([] if mask is aseg else [(conform, mask, [("out_file", chain.mask_input)])]),
            *_image_rows(networks.aseg, aseg, chain),
            (conform, normalize, [("out_file", "in_file")]),
            (mask, normalize, [(chain.mask_output, "mask_file")]),
            *([(chain.white_matter, normalize, [("labels_file", "labels_file")])] if chain.white_matter else []),
            (
                conform,
                results,
                [("out_file", "inputnode.conformed_file"), ("sidecar_file", "inputnode.conformed_json")],
            ),
            (conform, results, [*_GRID]),
            (mask, results, [(chain.mask_output, "inputnode.mask_file")]),
            (mask, results, [("labels_file", "inputnode.around_file")] if mask.name == BRAIN else []),
            (normalize, results, [("out_file", "inputnode.norm_file")]),
            (aseg, results, [*_FOUND]),
            *[(node, results, [("record", f"statistics_aseg.record_{node.name}")]) for node in chain.order],
            (results, finish, [("write_aseg.out_files", "aseg_files")]),
            (conform, draw, [("out_file", "conformed_file")]),
            (mask, draw, [(chain.mask_output, "mask_file")]),
            (aseg, draw, [("labels_file", "aseg_labels"), ("entropy_file", "aseg_entropy")]),
        ]
    )
    if networks.hippocampus:
        _add_hippocampus(workflow, image, config, networks.hippocampus, chain, finish, draw)
        subfields = workflow.get_node(f"{HIPPOCAMPUS.task}_results_wf")
        workflow.connect(results, "statistics_aseg.measures", subfields, "statistics_hippocampus.whole_brain")
    found = {kind.task: node for kind in SEGMENTATIONS if (node := workflow.get_node(kind.task))}
    add_more_forms(workflow, image, config, found, normalize, (mask, chain.mask_output), finish)
    return workflow


def _add_hippocampus(
    workflow: Workflow,
    image: T1wImage,
    config: RunConfig,
    network: WeightsFile,
    chain: _Chain,
    finish: Node,
    draw: Node,
) -> None:
    """Add the subfields, which are looked for around the hippocampi that were found."""
    hippocampus = network_step(SegmentHippocampus, HIPPOCAMPUS.task, network, config)
    results = init_results_wf(HIPPOCAMPUS, image, config, network, [hippocampus.name])
    workflow.connect(
        [
            *_image_rows(network, hippocampus, chain),
            (chain.aseg, hippocampus, [("labels_file", "aseg_file")]),
            (chain.conform, results, [*_GRID]),
            (chain.normalize, results, [("out_file", "inputnode.norm_file")]),
            (hippocampus, results, [*_FOUND]),
            (hippocampus, results, [("record", "statistics_hippocampus.record_hippocampus")]),
            (results, finish, [("write_hippocampus.out_files", "hippocampus_files")]),
            (hippocampus, draw, [("labels_file", "hippocampus_labels"), ("entropy_file", "hippocampus_entropy")]),
        ]
    )


def _image_rows(network: WeightsFile, node: Node, chain: _Chain) -> list[Row]:
    """Return what a network is given: the image that its weights ask for, and the mask where that must be stripped."""
    spec = network.info.input
    image = chain.normalize if spec.intensity == "freesurfer" else chain.conform
    mask = [(chain.mask, node, [(chain.mask_output, "mask_file")])] if spec.skull_stripped else []
    return [(image, node, [("out_file", "in_file")]), *mask]


def _chain(image: T1wImage, config: RunConfig, networks: Networks) -> _Chain:
    """Choose where the mask comes from, and the order that follows from it."""
    conform = step(Conform(in_file=str(image.path)), "conform", config)
    # On one thread: little of it gains by more, and others run beside it.
    normalize = step(Normalize(), "normalize", config)
    aseg = network_step(SegmentAseg, ASEG.task, networks.aseg, config)
    heads, covers = networks.aseg.takes_heads, networks.aseg.makes_mask
    mask, mask_output, mask_input = aseg, "mask_file", "in_file"
    if image.mask:
        mask = step(GivenMask(in_file=str(image.mask)), "mask", config)
        mask_output, mask_input = "out_file", "reference"
    elif networks.brain and not (heads and covers):
        mask = mask_network_step(SegmentAseg, BRAIN, networks.brain, config)
    elif not (heads and covers):
        mask, mask_output = step(NonzeroMask(), "mask", config), "out_file"
    if heads:
        order = (conform, mask, aseg, normalize) if image.mask else (conform, aseg, mask, normalize)
        white_matter = aseg if covers else None
    else:
        order = (conform, mask, normalize, aseg)
        white_matter = mask if mask.name == BRAIN else None
    return _Chain(
        *(conform, normalize, aseg, mask, mask_output, mask_input, white_matter), order=tuple(dict.fromkeys(order))
    )


def _finish_node(image: T1wImage, config: RunConfig, networks: Networks, template: Template) -> Node:
    """Record, last, what all was made from."""
    interface = WriteRecord(
        output_dir=str(config.output_dir),
        prefix=image.prefix,
        made_from=made_from(image, config, networks, template),
        in_files=files_now(image),
    )
    return Node(interface, name="finish", mem_gb=min(0.3, config.mem_gb))
