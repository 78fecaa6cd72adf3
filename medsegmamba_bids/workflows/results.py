"""From labels to files: the T1w's own grid, statistics, the intracranial volume, the sinks."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.etiv import EstimateIntracranial
from medsegmamba_bids.interfaces.native import ToNative
from medsegmamba_bids.interfaces.statistics import Statistics
from medsegmamba_bids.segmentations import ASEG, SegmentationKind
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.weights.info import WeightsFile
from medsegmamba_bids.workflows.outputs import sink_node
from medsegmamba_bids.workflows.steps import step

_INPUTS = ("labels_file", "entropy_file", "posteriors_file", "numbers_file")  # of a network's node
_INPUTS += ("norm_file", "native_affine", "native_shape")
_BRAIN_INPUTS = ("conformed_file", "conformed_json", "mask_file", "around_file")
_BRAIN_STEPS = ("native_mask", "intracranial")
_TRANSFORMS = (("out_file", "transform"), ("itk_file", "transform_itk"), ("lta_file", "transform_lta"))
_BRAIN_PRODUCTS = ("conformed", "mask", "conformed_mask", *(product for _, product in _TRANSFORMS))


def init_results_wf(
    kind: SegmentationKind,
    image: T1wImage,
    config: RunConfig,
    network: WeightsFile,
    steps: Sequence[str],
    products: Sequence[str] = (),
) -> Workflow:
    """Build what is done with the labels of a segmentation: to the T1w's grid, measured, written.

    Parameters
    ----------
    kind : SegmentationKind
    image : T1wImage
    config : RunConfig
    network : WeightsFile
        That made the labels.
    steps : sequence of str
        Nodes whose records go into the JSON beside the table of volumes, besides those of this workflow.
    products : sequence of str
        Written as well; who calls connects them.
    """
    task = kind.task
    inputs = Node(IdentityInterface(fields=[*_INPUTS, *_BRAIN_INPUTS]), name="inputnode")
    native = step(ToNative(segmentation=kind.name), f"native_{task}", config)
    table = kind.listed_table(network.info.labels)
    records = [*steps, native.name, *(_BRAIN_STEPS if kind is ASEG else ())]
    measured = Statistics(records, table=table, subject=image.prefix, notes=list(image.notes))
    statistics = step(measured, f"statistics_{task}", config)
    write = sink_node(f"write_{task}", [*products, *products_of(kind, config)], image, config, network)

    workflow = Workflow(name=f"{task}_results_wf")
    workflow.connect(
        [
            (inputs, native, [("labels_file", "in_file")]),
            (inputs, native, [(name, name) for name in ("native_affine", "native_shape")]),
            (inputs, statistics, [(name, name) for name in ("labels_file", "numbers_file", "norm_file")]),
            (native, statistics, [("record", f"record_{native.name}")]),
            (native, write, [("out_file", kind.native)]),
            (inputs, write, [("labels_file", kind.conformed), ("entropy_file", kind.entropy)]),
            (inputs, write, [("posteriors_file", kind.posteriors)] if config.save_posteriors else []),
            (statistics, write, [("table_file", kind.stats), ("sidecar_file", f"{kind.stats}_json")]),
        ]
    )
    return workflow


def init_aseg_results_wf(
    image: T1wImage, config: RunConfig, network: WeightsFile, template: Template, steps: Sequence[str]
) -> Workflow:
    """Build what is done with the subcortical structures, and with the brain as a whole.

    Parameters
    ----------
    image, config, network, steps
        As `init_results_wf` takes them.
    template : Template
        For the intracranial volume.
    """
    products = [*_BRAIN_PRODUCTS, *(["freesurfer_stats"] if config.fs_stats else [])]
    workflow = init_results_wf(ASEG, image, config, network, steps, products)
    inputs, statistics, write = map(workflow.get_node, ("inputnode", "statistics_aseg", "write_aseg"))
    statistics.inputs.template = template
    write.inputs.template = template.name
    native_mask = step(ToNative(), "native_mask", config)
    intracranial = step(EstimateIntracranial(template=template), "intracranial", config)

    workflow.connect(
        [
            (inputs, native_mask, [("mask_file", "in_file")]),
            (inputs, native_mask, [(name, name) for name in ("native_affine", "native_shape")]),
            (inputs, intracranial, [("norm_file", "in_file"), ("mask_file", "mask_file"), ("labels_file",) * 2]),
            (inputs, statistics, [(name, name) for name in ("mask_file", "around_file")]),
            (intracranial, statistics, [("etiv", "etiv"), ("record", "record_intracranial")]),
            (native_mask, statistics, [("record", "record_native_mask")]),
            (inputs, write, [("conformed_file", "conformed"), ("conformed_json", "conformed_json")]),
            (inputs, write, [("mask_file", "conformed_mask")]),
            (native_mask, write, [("out_file", "mask")]),
            (intracranial, write, [*_TRANSFORMS]),
            (statistics, write, [("fs_file", "freesurfer_stats")] if config.fs_stats else []),
        ]
    )
    return workflow


def products_of(kind: SegmentationKind, config: RunConfig) -> list[str]:
    """Return products of a segmentation that a run writes."""
    return [kind.native, kind.conformed, kind.entropy, kind.stats] + [kind.posteriors] * config.save_posteriors
