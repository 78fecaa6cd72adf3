"""Networks by name, imported only when one is built."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsegmamba_bids.errors import NetworkError

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {
    "medsegmamba": "medsegmamba_bids.networks.medsegmamba:MedSegMamba",
    "segmambabot": "medsegmamba_bids.networks.segmambabot:SegMambaBot",
    "tabsurfer": "medsegmamba_bids.networks.tabsurfer:TABSurfer",
}

#: Networks with parameters for every position of a patch: they take patches of the size that they are built for.
OF_ONE_PATCH_SIZE = ("tabsurfer",)


def build_network(name: str, config: dict[str, Any]) -> nn.Module:
    """Return the network ``name`` with the keyword arguments ``config``, as a ``torch.nn.Module``.

    Raises
    ------
    NetworkError
        The name is unknown, or the network takes no such argument.
    """
    if name not in NETWORKS:
        raise NetworkError(f"network {name!r} is unknown; there are {sorted(NETWORKS)}")
    module, _, attribute = NETWORKS[name].partition(":")
    try:
        return getattr(import_module(module), attribute)(**config)
    except TypeError as error:
        raise NetworkError(f"network {name!r} cannot be built from {config}: {error}") from error
