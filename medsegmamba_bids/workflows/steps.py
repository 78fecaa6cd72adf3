"""Nodes: how much memory and how many threads each step is given, and what a network's node is told."""

from __future__ import annotations

from nipype.pipeline.engine import Node

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.interfaces.segmentation import SegmentAseg
from medsegmamba_bids.interfaces.step import StepInterface
from medsegmamba_bids.weights.info import WeightsFile

# Most memory that a step was seen to need, GB; images of 512^3 voxels and the authors' network included.
_MEMORY_GB = {"Conform": 2.5, "Normalize": 1.5, "GivenMask": 2.5, "ToNative": 2.5, "Statistics": 1.5}
_MEMORY_GB |= {"AlignVisits": 2.5, "IntoMidspace": 2.5, "DeformVisit": 2.5}
_NETWORK_GB, _OTHERS_GB = 4.0, 0.8


def step(interface: StepInterface, name: str, config: RunConfig, threads: int = 1) -> Node:
    """Return a node of a step, with the memory that it was seen to need but not more than there is."""
    interface.inputs.num_threads = threads
    needed = _NETWORK_GB if interface.runs_network else _MEMORY_GB.get(type(interface).__name__, _OTHERS_GB)
    return Node(interface, name=name, mem_gb=min(needed, config.mem_gb), n_procs=threads)


def network_step(interface: type[SegmentAseg], name: str, network: WeightsFile, config: RunConfig) -> Node:
    """Return a node that runs a network as the options say."""
    node = mask_network_step(interface, name, network, config)
    node.inputs.save_posteriors = config.save_posteriors
    if config.step_size is not None:
        node.inputs.step_size = config.step_size
    return node


def mask_network_step(interface: type[SegmentAseg], name: str, network: WeightsFile, config: RunConfig) -> Node:
    """Return a node that runs a network as its weights say, for a brain mask alone."""
    inputs = interface(
        weights=network,
        fingerprint=network.info.fingerprint,
        precision=config.precision,
        device=config.device,
        low_memory=config.low_memory,
    )
    if config.batch_size is not None:
        inputs.inputs.batch_size = config.batch_size
    return step(inputs, name, config, config.omp_nthreads)
