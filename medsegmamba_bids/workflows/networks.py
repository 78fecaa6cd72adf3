"""Which weights files a run uses; read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.weights.folders import default_weights_file, resolve_weights
from medsegmamba_bids.weights.info import WeightsFile

_LEAVE_OUT = "none"


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Attributes
    ----------
    aseg : WeightsFile
    hippocampus : WeightsFile or None
        None leaves the subfields out.
    brain : WeightsFile or None
        Makes brain masks where ``aseg`` does not; None where no network can.
    """

    aseg: WeightsFile
    hippocampus: WeightsFile | None = None
    brain: WeightsFile | None = None


def choose_networks(config: RunConfig) -> Networks:
    """Find the weights that the options name.

    Raises
    ------
    WeightsError
        A file is absent, damaged, for another task, or none comes with the package.
    ConfigError
        Files of subfields are asked for, and that subfields are left out.
    """
    if config.fs_subfields and (config.hippocampus_weights or "").lower() == _LEAVE_OUT:
        raise ConfigError("--fs-subfields writes subfields, and --hippocampus-weights none leaves them out")
    aseg = resolve_weights(config.aseg_weights, ASEG.task)
    hippocampus = _hippocampus(config.hippocampus_weights)
    if aseg.takes_heads and aseg.makes_mask:
        return Networks(aseg, hippocampus)
    brain = default_weights_file(ASEG.task)
    return Networks(aseg, hippocampus, brain if brain and brain.takes_heads and brain.makes_mask else None)


def _hippocampus(name: str | None) -> WeightsFile | None:
    if name is None:
        return default_weights_file(HIPPOCAMPUS.task)
    return None if name.lower() == _LEAVE_OUT else resolve_weights(name, HIPPOCAMPUS.task)
