"""Which weights files a run uses; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.image.labels import covers_brain
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.weights.folders import default_weights, find_weights
from medsegmamba_bids.weights.info import WeightsInfo, read_info

_LEAVE_OUT = "none"


@dataclass(frozen=True)
class Network:
    """A weights file and what it says of itself."""

    path: Path
    info: WeightsInfo

    @property
    def makes_mask(self) -> bool:
        """Whether its classes cover the whole brain."""
        return covers_brain(self.info.labels)

    @property
    def takes_heads(self) -> bool:
        """Whether it takes a conformed head as it is."""
        return not self.info.input.skull_stripped and self.info.input.intensity == "conformed"

    def provenance(self) -> dict[str, str]:
        """What the JSON beside its results says of it."""
        return {"Name": self.info.name, "Checksum": self.info.checksum}


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Attributes
    ----------
    aseg : Network
    hippocampus : Network or None
        None leaves the subfields out.
    brain : Network or None
        Makes brain masks where ``aseg`` does not; None where no network can.
    """

    aseg: Network
    hippocampus: Network | None = None
    brain: Network | None = None


def choose_networks(config: RunConfig) -> Networks:
    """Find the weights that the options name.

    Raises
    ------
    WeightsError
        A file is absent, damaged, for another task, or none comes with the package.
    """
    aseg = _network(find_weights(config.aseg_weights, ASEG.task))
    hippocampus = _hippocampus(config.hippocampus_weights)
    if aseg.takes_heads and aseg.makes_mask:
        return Networks(aseg, hippocampus)
    embedded = default_weights(ASEG.task)
    brain = _network(embedded) if embedded else None
    return Networks(aseg, hippocampus, brain if brain and brain.takes_heads and brain.makes_mask else None)


def _hippocampus(name: str | None) -> Network | None:
    if name is None:
        path = default_weights(HIPPOCAMPUS.task)
        return _network(path) if path else None
    return None if name.lower() == _LEAVE_OUT else _network(find_weights(name, HIPPOCAMPUS.task))


def _network(path: Path) -> Network:
    path = path.resolve()
    return Network(path, read_info(path))
