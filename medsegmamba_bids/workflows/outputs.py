"""The sinks: which result of which node becomes which product, and what the JSON beside it says."""

from __future__ import annotations

from functools import partial
from typing import Any

from nipype.pipeline.engine import Node, Workflow

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name, product
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image.labels import table_of_labels
from medsegmamba_bids.interfaces.sink import METADATA, WriteOutputs
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, SEGMENTATIONS
from medsegmamba_bids.workflows.networks import Network, Networks

RAW = "raw"  # names the input dataset in BIDS URIs
_MEASURED = {kind.stats: kind.conformed for kind in SEGMENTATIONS}

#: A node and its output.
Source = tuple[Node, str]


def derivative_link(number: int) -> str:
    """Name of a dataset of ``--derivatives`` in BIDS URIs, counted from 0."""
    return f"derivatives{number + 1}"


def connect_outputs(
    workflow: Workflow,
    name: str,
    sources: dict[str, Source],
    image: T1wImage,
    config: RunConfig,
    network: Network,
    template: str,
) -> Node:
    """Add a sink for some products of a T1w, and return it.

    Parameters
    ----------
    workflow : Workflow
    name : str
        Of the sink.
    sources : dict
        Product, or product and ``_json`` for its metadata -> where it comes from.
    image, config
    network : Network
        That made them.
    template : str
        Name of the template, for the transform.
    """
    products = tuple(key for key in sources if not key.endswith(METADATA))
    sink = Node(WriteOutputs(products), name=name, mem_gb=min(0.5, config.mem_gb))
    sink.inputs.output_dir = str(config.output_dir)
    sink.inputs.prefix = image.prefix
    sink.inputs.template = template
    sink.inputs.metadata = {key: product_metadata(key, image, config, network) for key in products}
    for key, (node, output) in sources.items():
        workflow.connect(node, output, sink, key)
    return sink


def product_metadata(name: str, image: T1wImage, config: RunConfig, network: Network) -> dict[str, Any]:
    """What the JSON beside a product says; empty where the table of names says nothing."""
    if name in _MEASURED:
        return {"Sources": [_uri(image, _MEASURED[name]), _uri(image, "conformed")]}
    fixed = product(name).get("metadata", {})
    if not fixed:
        return {}
    fill = partial(_fill, image=image)
    found = {key: [fill(v) for v in value] if isinstance(value, list) else fill(value) for key, value in fixed.items()}
    if name == "conformed_mask" and image.mask:
        found["Sources"] = [_mask_uri(image, config)]
        return found
    if name not in ("conformed", "mask"):
        found["Weights"] = network.provenance()
    if name.endswith("_posteriors"):
        found["LabelMap"] = _label_map(network)
    return found


def _fill(value: Any, image: T1wImage) -> Any:
    """Replace ``{product}`` by the product's URI."""
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    return _uri(image, value.strip("{}"))


def _uri(image: T1wImage, name: str) -> str:
    return f"bids:{RAW}:{image.relative}" if name == RAW else f"bids::{output_name(image.prefix, name)}"


def _mask_uri(image: T1wImage, config: RunConfig) -> str:
    for number, folder in enumerate(config.derivatives):
        if image.mask.is_relative_to(folder):
            return f"bids:{derivative_link(number)}:{image.mask.relative_to(folder).as_posix()}"
    return image.mask.as_uri()


def _label_map(network: Network) -> list[str]:
    try:
        return table_of_labels(network.info.labels).table["abbreviation"].tolist()
    except TableError:  # a table of someone else's
        return [str(label) for label in network.info.labels]


def products_of_aseg(config: RunConfig) -> list[str]:
    """Return the products that every T1w has, so that it can be told whether it is done."""
    always = ["conformed", "mask", "conformed_mask", ASEG.native, ASEG.conformed, ASEG.entropy, ASEG.stats]
    return always + [ASEG.posteriors] * config.save_posteriors + ["freesurfer_stats"] * config.fs_stats


def products_of_hippocampus(networks: Networks, config: RunConfig) -> list[str]:
    """Return the products of the subfields; none where they are left out."""
    if networks.hippocampus is None:
        return []
    always = [HIPPOCAMPUS.native, HIPPOCAMPUS.conformed, HIPPOCAMPUS.entropy, HIPPOCAMPUS.stats]
    return always + [HIPPOCAMPUS.posteriors] * config.save_posteriors
