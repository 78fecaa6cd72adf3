"""The sinks: which result of which node becomes which product, and what the JSON beside it says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from nipype.pipeline.engine import Node

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name, product
from medsegmamba_bids.errors import TableError
from medsegmamba_bids.image.labels import table_of_labels
from medsegmamba_bids.interfaces.sink import WriteOutputs
from medsegmamba_bids.segmentations import SEGMENTATIONS, SegmentationKind
from medsegmamba_bids.weights.info import WeightsFile
from medsegmamba_bids.workflows.dataset_links import RAW, dataset_uri, mask_folder

_MEASURED = {kind.stats: kind.conformed for kind in SEGMENTATIONS}


def sink_node(name: str, products: Sequence[str], image: T1wImage, config: RunConfig, network: WeightsFile) -> Node:
    """Return a node that writes products of a T1w.

    Parameters
    ----------
    name : str
        Of the node.
    products : sequence of str
        What it can write; what is undefined is left out.
    image, config
    network : WeightsFile
        That made them.
    """
    interface = WriteOutputs(
        tuple(products),
        output_dir=str(config.output_dir),
        prefix=image.prefix,
        metadata={key: product_metadata(key, image, config, network) for key in products},
    )
    return Node(interface, name=name, mem_gb=min(0.5, config.mem_gb))


def product_metadata(name: str, image: T1wImage, config: RunConfig, network: WeightsFile) -> dict[str, Any]:
    """Return what the JSON beside a product says; empty where the table of names says nothing."""
    if name in _MEASURED:
        return {"Sources": [_uri(image, _MEASURED[name]), _uri(image, "conformed")]}
    fixed = product(name).get("metadata", {})
    if not fixed:
        return {}
    fill = partial(_fill, image=image, config=config)
    metadata = {
        key: [fill(v) for v in value] if isinstance(value, list) else fill(value) for key, value in fixed.items()
    }
    if name == "conformed_mask" and image.mask:
        metadata["Sources"] = [_mask_uri(image, config)]
        return metadata
    if name not in ("conformed", "mask"):
        metadata["Weights"] = network.info.provenance()
    if name.endswith("_posteriors"):
        metadata["LabelMap"] = _label_map(network)
    return metadata


def label_sources(image: T1wImage, kind: SegmentationKind) -> list[str]:
    """Return the URIs of what labels of a segmentation in another space were made from."""
    return [_uri(image, kind.conformed), _uri(image, "conformed")]


def _fill(value: Any, image: T1wImage, config: RunConfig) -> Any:
    """Replace ``{product}`` by the product's URI, ``{raw}`` by the T1w's."""
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    name = value.strip("{}")
    return dataset_uri(config.bids_dir, image.relative, config) if name == RAW else _uri(image, name)


def _uri(image: T1wImage, name: str) -> str:
    return f"bids::{output_name(image.prefix, name)}"


def _mask_uri(image: T1wImage, config: RunConfig) -> str:
    folders = [mask_folder(config.brain_mask)] if config.brain_mask else config.derivatives
    for folder in folders:
        if image.mask.is_relative_to(folder):
            return dataset_uri(folder, image.mask.relative_to(folder).as_posix(), config)
    return image.mask.as_uri()  # of no dataset that the options name


def _label_map(network: WeightsFile) -> list[str]:
    try:
        return table_of_labels(network.info.labels).table["abbreviation"].tolist()
    except TableError:  # a table of someone else's
        return [str(label) for label in network.info.labels]
