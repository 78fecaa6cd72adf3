"""MedSegMamba (arXiv 2409.08307, section 2.2.3 and figure 2): a CNN encoder and decoder around VSS3D blocks.

Shape letters: B batch; P patch side; S = P / 8; C classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import nn

from medsegmamba_bids.errors import NetworkError
from medsegmamba_bids.networks.blocks import Conv3d, DoubleConv, NormReLU, ResidualBlock, UpSampling
from medsegmamba_bids.networks.kernels.softmax import channel_softmax
from medsegmamba_bids.networks.scan_paths import ORIENTATIONS, snake
from medsegmamba_bids.networks.ss3d import VSS3D

DOWN_SAMPLING = 8


class EncoderDecoder(nn.Module):
    """A CNN encoder and decoder with skip connections around a sequence of blocks (figure 2).

    Parameters
    ----------
    channels : four int
        Of the encoder's levels, multiples of 8 (GroupNorm has 8 groups).
    bottleneck, blocks : int
        Channels and number of the blocks in the middle.
    make_block : callable
        Number of a block -> a module from (B, S, S, S, bottleneck) to the same shape.
    classes : int
    patch_size : int
        Side of the patches it is meant for, a multiple of 8; other multiples work as well.
    """

    def __init__(
        self,
        channels: Sequence[int],
        bottleneck: int,
        blocks: int,
        make_block: Callable[[int], nn.Module],
        classes: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        check_sizes(channels, patch_size)
        self.patch_size = patch_size
        c1, c2, c3, c4 = channels
        self.encoder = nn.ModuleList(ResidualBlock(*pair) for pair in ((1, c1), (c1, c2), (c2, c3), (c3, c4)))
        self.pool = nn.MaxPool3d(2)
        self.expand_norm = NormReLU(c4)
        self.expand = Conv3d(c4, bottleneck, 3, padding=1)
        self.bottleneck = nn.Sequential(*map(make_block, range(blocks)))
        self.bottleneck_norm = nn.LayerNorm(bottleneck)
        self.compress = DoubleConv(bottleneck, c4)
        self.up = nn.ModuleList(UpSampling(*pair) for pair in ((c4, c3), (c3, c2), (c2, c1)))
        self.decoder = nn.ModuleList(ResidualBlock(*pair) for pair in ((2 * c3, c3), (2 * c2, c2), (2 * c1, 2 * c1)))
        self.head = Conv3d(2 * c1, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Intensities (B, 1, P, P, P), 0 to 1 -> class scores before the softmax (B, C, P, P, P)."""
        skips = [x := self.encoder[0](x)]
        for block in self.encoder[1:]:
            skips.append(x := block(self.pool(x)))
        x = self.expand(self.expand_norm(skips.pop()))
        x = self.bottleneck_norm(self.bottleneck(x.movedim(1, -1)))
        x = self.compress(x.movedim(-1, 1))
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat((skips.pop(), up(x)), 1))
        return self.head(x)

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """Intensities (B, 1, P, P, P) -> class probabilities, float32 (B, C, P, P, P)."""
        return channel_softmax(self(x))


class MedSegMamba(EncoderDecoder):
    """The published network by default; every size can be changed.

    Parameters
    ----------
    channels : four int
        Of the encoder's levels, multiples of 8 (GroupNorm has 8 groups).
    bottleneck, state, blocks : int
        Channels, states and number of the VSS3D blocks.
    classes : int
    patch_size : int
        Side of the patches it is meant for, a multiple of 8; other multiples work as well.
    dropout, drop_path : float
        In the bottleneck, while training (section 2.4).
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        bottleneck: int = 1024,
        state: int = 64,
        blocks: int = 9,
        classes: int = 32,
        patch_size: int = 96,
        dropout: float = 0.1,
        drop_path: float = 0.3,
    ) -> None:
        def make_block(number: int) -> nn.Module:
            return VSS3D(bottleneck, state, number % ORIENTATIONS, dropout, drop_path)

        super().__init__(channels, bottleneck, blocks, make_block, classes, patch_size)


def check_sizes(channels: Sequence[int], patch_size: int) -> None:
    """Refuse channels that GroupNorm cannot divide, and patches that cannot be halved three times."""
    if patch_size % DOWN_SAMPLING or patch_size <= 0:
        raise NetworkError(f"patch size {patch_size}: must be a positive multiple of {DOWN_SAMPLING}")
    if len(channels) != 4 or any(c % 8 for c in channels):
        raise NetworkError(f"channels {tuple(channels)}: must be four multiples of 8")


#: The authors' names and ours, tried in order.
_RENAMED = (
    (r"^Conv1\.", "encoder.0."),
    (r"^downconv(\d)\.down\.1\.", r"encoder.\1."),
    (r"^gn\.", "expand_norm."),
    (r"^bottleneck\.blocks\.", "bottleneck."),
    (r"^pre_head_ln\.", "bottleneck_norm."),
    (r"^Up_conv4\.", "decoder.0."),
    (r"^Up_conv3\.", "decoder.1."),
    (r"^Up_conv2\.", "decoder.2."),
    (r"^Up4\.", "up.0."),
    (r"^Up3\.", "up.1."),
    (r"^Up2\.", "up.2."),
    (r"^Conv_1x1\.", "head."),
    (r"\.up\.0\.1\.", ".conv."),
    (r"\.up\.1\.0\.", ".norm."),
    (r"\.conv\.0\.", ".first."),
    (r"\.conv\.1\.", ".first_norm."),
    (r"\.conv\.3\.", ".second."),
    (r"\.conv\.4\.", ".second_norm."),
    (r"\.ln_1\.", ".scan_norm."),
    (r"\.ln_2\.", ".mlp_norm."),
    (r"\.mlp\.net\.", ".mlp."),
    (r"\.self_attention\.x_proj_weight$", ".scan.x_proj"),
    (r"\.self_attention\.dt_projs_weight$", ".scan.dt_proj"),
    (r"\.self_attention\.dt_projs_bias$", ".scan.dt_bias"),
    (r"\.self_attention\.A_logs$", ".scan.log_rates"),
    (r"\.self_attention\.Ds$", ".scan.skip"),
    (r"\.self_attention\.conv3d\.", ".scan.conv."),
    (r"\.self_attention\.", ".scan."),
)


def from_authors_state_dict(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the authors' checkpoint under our names.

    The scan indices that they save along are checked against ours and left out.

    Raises
    ------
    NetworkError
        Stored scan indices differ from ours.
    """
    renamed = {}
    for name, value in state.items():
        if ".scans." in name:
            _check_indices(name, value)
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if name.endswith((".log_rates", ".skip")):  # theirs have directions and channels in one axis
            value = value.view(8, -1, *value.shape[1:])
        renamed[name] = value
    return renamed


def _check_indices(name: str, stored: torch.Tensor) -> None:
    side = round(stored.numel() ** (1 / 3))
    ours = torch.from_numpy(snake(side))
    if name.endswith("index_flat_inv"):
        ours = torch.argsort(ours)
    if stored.numel() != side**3 or not torch.equal(stored.reshape(-1).long().cpu(), ours):
        raise NetworkError(f"{name}: the stored scan indices are not those of the published scan")
