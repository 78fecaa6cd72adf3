"""TABSurfer, a network of the paper's comparison: a CNN encoder and decoder around a transformer.

Source: Cao et al. 2023, arXiv 2312.08267, and what the authors' checkpoints hold. Other than in MedSegMamba the
residual blocks have one convolution, and the last one keeps its channels.

Shape letters: B batch; P patch side; S = P / 8; L = S ** 3 voxels; C channels of the transformer; H heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medsegmamba_bids.errors import NetworkError
from medsegmamba_bids.networks.blocks import Conv3d, DoubleConv, Linear, NormReLU, UpSampling, mlp
from medsegmamba_bids.networks.medsegmamba import DOWN_SAMPLING, check_sizes


class ShortResidual(nn.Module):
    """3x3x3 convolution, group normalisation and ReLU, plus a 1x1x1 convolution of the input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels_in, channels_out, 3, padding=1)
        self.norm = NormReLU(channels_out)
        self.identity = Conv3d(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels_in, X, Y, Z) -> (B, channels_out, X, Y, Z)."""
        inside, identity = self.norm(self.conv(x)), self.identity(x)
        return identity + inside if torch.is_grad_enabled() else inside.add_(identity)


class SelfAttention(nn.Module):
    """Attention of every voxel to every voxel (Vaswani et al. 2017); the input's projection has no bias."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = Linear(channels, 3 * channels, bias=False)
        self.proj = Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, C) -> (B, L, C)."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, H, C / H)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.proj(y.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Two residual modules, normalised first: attention, and a multilayer perceptron."""

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, attention_dropout)
        self.attention_dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = mlp(channels, hidden, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, C) -> (B, L, C)."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x)))
        return x + self.mlp(self.mlp_norm(x))


class TABSurfer(nn.Module):
    """The published network by default; every size can be changed.

    Parameters
    ----------
    channels : four int
        Of the encoder's levels, multiples of 8 (GroupNorm has 8 groups).
    embedding, heads, layers : int
        Channels, attention heads and number of the transformer's layers.
    hidden : int, optional
        Of the layers' perceptrons; by default as many as there are positions, as published.
    classes : int
    patch_size : int
        Side of the patches, a multiple of 8. Their positions are learned, so that other sizes are refused.
    dropout, attention_dropout : float
        In the transformer, while training.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        embedding: int = 1024,
        heads: int = 16,
        layers: int = 8,
        hidden: int | None = None,
        classes: int = 32,
        patch_size: int = 96,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_sizes(channels, patch_size)
        if embedding % heads:
            raise NetworkError(f"embedding {embedding}: must be a multiple of the {heads} heads")
        self.patch_size = patch_size
        positions = (patch_size // DOWN_SAMPLING) ** 3
        c1, c2, c3, c4 = channels
        self.encoder = nn.ModuleList(ShortResidual(*pair) for pair in ((1, c1), (c1, c2), (c2, c3), (c3, c4)))
        self.pool = nn.MaxPool3d(2)
        self.expand_norm = NormReLU(c4)
        self.expand = Conv3d(c4, embedding, 3, padding=1)
        self.positions = nn.Parameter(torch.zeros(1, positions, embedding))
        self.bottleneck = nn.Sequential(
            *(
                TransformerLayer(embedding, heads, hidden or positions, dropout, attention_dropout)
                for _ in range(layers)
            )
        )
        self.compress = DoubleConv(embedding, c4)
        self.up = nn.ModuleList(UpSampling(*pair) for pair in ((c4, c3), (c3, c2), (c2, c1)))
        self.decoder = nn.ModuleList(ShortResidual(*pair) for pair in ((2 * c3, c3), (2 * c2, c2), (2 * c1, c1)))
        self.head = Conv3d(c1, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Intensities (B, 1, P, P, P), 0 to 1 -> class scores before the softmax (B, C, P, P, P)."""
        if x.shape[2:] != (self.patch_size,) * 3:
            raise NetworkError(f"patches of {tuple(x.shape[2:])}: this TABSurfer was built for {self.patch_size}^3")
        skips = [x := self.encoder[0](x)]
        for block in self.encoder[1:]:
            skips.append(x := block(self.pool(x)))
        x = self.expand(self.expand_norm(skips.pop())).movedim(1, -1)
        y = self.bottleneck(x.flatten(1, 3) + self.positions).view(x.shape)
        x = self.compress(y.movedim(-1, 1))
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat((skips.pop(), up(x)), 1))
        return self.head(x)

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """Intensities (B, 1, P, P, P) -> class probabilities, float32 (B, C, P, P, P)."""
        return self(x).float().softmax(1)


#: Name in the authors' checkpoints that no other network's have.
POSITIONS = "position_encoding.position_embeddings"

#: The authors' names and ours, tried in order.
_RENAMED = (
    (r"^Conv([1-4])\.", lambda m: f"encoder.{int(m[1]) - 1}."),
    (r"^Up_conv([2-4])\.", lambda m: f"decoder.{4 - int(m[1])}."),
    (r"^Up([2-4])\.up\.1\.", lambda m: f"up.{4 - int(m[1])}.conv."),
    (r"^Up([2-4])\.up\.2\.", lambda m: f"up.{4 - int(m[1])}.norm."),
    (r"^Conv_1x1\.", "head."),
    (r"^gn\.", "expand_norm."),
    (r"^conv_x\.", "expand."),
    (r"^position_encoding\.position_embeddings$", "positions"),
    (r"^reshaped_conv\.conv\.0\.", "compress.first."),
    (r"^reshaped_conv\.conv\.1\.", "compress.first_norm."),
    (r"^reshaped_conv\.conv\.3\.", "compress.second."),
    (r"^reshaped_conv\.conv\.4\.", "compress.second_norm."),
    (r"^((?:en|de)coder\.\d)\.conv\.0\.", r"\1.conv."),
    (r"^((?:en|de)coder\.\d)\.conv\.1\.", r"\1.norm."),
    (r"^((?:en|de)coder\.\d)\.Conv_1x1\.", r"\1.identity."),
)
#: Their layers hold attention and perceptron in turn.
_RENAMED_LAYERS = (
    ("fn.norm.", ("attention_norm.", "mlp_norm.")),
    ("fn.fn.net.", (None, "mlp.")),
    ("fn.fn.", ("attention.", None)),
)
#: Has parameters in their checkpoints, but no effect: the decoder takes the last layer's output as it is.
_UNUSED = "pre_head_ln."


def from_authors_state_dict(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the authors' checkpoint under our names, without the normalisation that nothing uses."""
    return {_our_name(name): value for name, value in state.items() if not name.startswith(_UNUSED)}


def _our_name(name: str) -> str:
    layer = re.match(r"transformer\.net\.(\d+)\.", name)
    if layer:
        number, kind = divmod(int(layer[1]), 2)
        rest = name[layer.end() :]
        for theirs, ours in _RENAMED_LAYERS:
            if rest.startswith(theirs) and ours[kind]:
                return f"bottleneck.{number}.{ours[kind]}{rest.removeprefix(theirs)}"
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def infer_config(state: dict[str, torch.Tensor]) -> dict:
    """Return the configuration of a TABSurfer, read off the authors' names and shapes.

    The number of heads leaves no trace in them: it is taken to be one for 64 channels, which is the published 16.

    Raises
    ------
    KeyError
        A name that every TABSurfer has is absent.
    """
    _, positions, embedding = state[POSITIONS].shape
    numbers = {int(key.split(".")[2]) for key in state if key.startswith("transformer.net.")}
    return {
        "channels": [state[f"Conv{level}.conv.0.weight"].shape[0] for level in (1, 2, 3, 4)],
        "embedding": embedding,
        "heads": max(1, embedding // 64),
        "layers": len(numbers) // 2,
        "hidden": state["transformer.net.1.fn.fn.net.0.weight"].shape[0],
        "classes": state["Conv_1x1.weight"].shape[0],
        "patch_size": DOWN_SAMPLING * round(positions ** (1 / 3)),
    }
