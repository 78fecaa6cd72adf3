"""What is written on request: meshes, FreeSurfer's files of subfields, labels in the space of templates."""

from __future__ import annotations

from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.space_templates import SpaceTemplate, find_templates
from medsegmamba_bids.interfaces.more_forms import FreeSurferSubfields, MakeMeshes, ToTemplate
from medsegmamba_bids.interfaces.sink import WriteOutputs
from medsegmamba_bids.segmentations import HIPPOCAMPUS, of_task
from medsegmamba_bids.workflows.outputs import label_sources
from medsegmamba_bids.workflows.steps import step

#: A node and its output.
Found = tuple[Node, str]


def add_more_forms(
    workflow: Workflow,
    image: T1wImage,
    config: RunConfig,
    found: dict[str, Node],
    normalize: Node,
    mask: Found,
    finish: Node,
) -> None:
    """Add what the options ask for besides; nothing where they ask for nothing.

    Parameters
    ----------
    workflow : Workflow
        Of a T1w.
    image, config
    found : dict of str to Node
        Task -> node that segments.
    normalize : Node
    mask : (Node, str)
    finish : Node
        Records what was written.
    """
    folders: dict[str, Node] = {}
    if config.meshes:
        for task, node in found.items():
            meshes = step(MakeMeshes(segmentation=of_task(task).name), f"meshes_{task}", config)
            workflow.connect(node, "labels_file", meshes, "labels_file")
            folders[f"{task}_meshes"] = meshes
    if config.fs_subfields and HIPPOCAMPUS.task in found:
        subfields = step(FreeSurferSubfields(), "freesurfer_subfields", config)
        names = [("labels_file",) * 2, ("numbers_file",) * 2]
        workflow.connect([(found[HIPPOCAMPUS.task], subfields, names)])
        folders["freesurfer_subfields"] = subfields
    for number, template in enumerate(find_templates(config.output_spaces)):
        folders[f"template_{number}"] = _template_node(
            workflow, image, config, found, normalize, mask, number, template
        )
    if folders:
        _write(workflow, image, config, folders, finish)


def _template_node(
    workflow: Workflow,
    image: T1wImage,
    config: RunConfig,
    found: dict[str, Node],
    normalize: Node,
    mask: Found,
    number: int,
    template: SpaceTemplate,
) -> Node:
    metadata = {task: {"Sources": label_sources(image, of_task(task))} for task in found}
    node = step(ToTemplate(template=template, metadata=metadata), f"template_{number}", config, config.omp_nthreads)
    workflow.connect(
        [
            (normalize, node, [("out_file", "norm_file")]),
            (mask[0], node, [(mask[1], "mask_file")]),
            *[(segment, node, [("labels_file", f"{task}_file")]) for task, segment in found.items()],
        ]
    )
    return node


def _write(workflow: Workflow, image: T1wImage, config: RunConfig, folders: dict[str, Node], finish: Node) -> None:
    interface = WriteOutputs(tuple(folders), output_dir=str(config.output_dir), prefix=image.prefix)
    write = Node(interface, name="write_more", mem_gb=min(0.5, config.mem_gb))
    workflow.connect([(node, write, [("out_dir", name)]) for name, node in folders.items()])
    workflow.connect(write, "out_files", finish, "more_files")
