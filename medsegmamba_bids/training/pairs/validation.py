"""Dice of a network on prepared scans."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.inference.predict import Patching, Resources, predict_volume
from medsegmamba_bids.stats.overlap import dice_scores
from medsegmamba_bids.training.pairs.pair_patches import PreparedPair
from medsegmamba_bids.training.training_config import PairsConfig


def dice_of_scan(
    network: nn.Module, pair: PreparedPair, config: PairsConfig, classes: int, device: torch.device
) -> np.ndarray:
    """Return the Dice of every class, float64 (C,); NaN where the reference lacks it.

    The network sees patches half a patch apart, without averaging over mirror images.
    """
    prediction = predict_volume(
        network,
        pair.image.astype(np.float32) / np.float32(255),
        classes,
        Patching(config.patch_size, step=config.patch_size // 2),
        Resources(device, config.precision),
        box=Box.whole(pair.image.shape),
    )
    predicted = prediction.probabilities.argmax(0).cpu().numpy()
    return dice_scores(predicted, pair.target, classes)
