"""SegMambaBot, a network of the paper's comparison (section 2.5): MedSegMamba with SegMamba's tri-oriented Mamba.

The first residual module of each block is replaced, the second one and all around the blocks stay. SegMamba's gated
spatial convolution is left out, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medsegmamba_bids.networks.mamba import TriOrientedMamba
from medsegmamba_bids.networks.medsegmamba import EncoderDecoder
from medsegmamba_bids.networks.ss3d import ScanBlock


class SegMambaBot(EncoderDecoder):
    """The network of the paper by default; every size can be changed.

    Parameters
    ----------
    channels, bottleneck, blocks, classes, patch_size, dropout, drop_path
        As :class:`~medsegmamba_bids.networks.medsegmamba.MedSegMamba` takes them.
    state, convolution, expansion : int
        Of Mamba: states, width of the causal convolution, inner channels for each channel.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        bottleneck: int = 1024,
        state: int = 16,
        blocks: int = 9,
        classes: int = 32,
        patch_size: int = 96,
        dropout: float = 0.1,
        drop_path: float = 0.3,
        convolution: int = 4,
        expansion: int = 2,
    ) -> None:
        def make_block(number: int) -> nn.Module:
            scan = TriOrientedMamba(bottleneck, state, convolution, expansion)
            return ScanBlock(bottleneck, scan, dropout, drop_path)

        super().__init__(channels, bottleneck, blocks, make_block, classes, patch_size)
