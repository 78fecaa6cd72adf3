"""Dice of a network on prepared scans."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medsegmamba_bids.inference.predict import predict_volume
from medsegmamba_bids.training.config import PairsConfig
from medsegmamba_bids.training.pair_data import PreparedPair


def dice_of_scan(
    network: nn.Module, pair: PreparedPair, config: PairsConfig, classes: int, device: torch.device
) -> np.ndarray:
    """Dice of every class, float64 (C,); NaN where the reference lacks it.

    The network sees patches half a patch apart, without averaging over mirror images.
    """
    prediction = predict_volume(
        network,
        pair.image.astype(np.float32) / np.float32(255),
        patch_size=config.patch_size,
        step=config.patch_size // 2,
        n_classes=classes,
        device=device,
        precision=config.precision,
        box=tuple(slice(0, side) for side in pair.image.shape),
    )
    found = prediction.probabilities.argmax(0).cpu().numpy()
    return dice_scores(found, pair.target, classes)


def dice_scores(found: np.ndarray, reference: np.ndarray, classes: int) -> np.ndarray:
    """Dice of every class, float64 (C,); NaN where the reference lacks it.

    Examples
    --------
    >>> dice_scores(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 4).round(2).tolist()
    [1.0, 0.67, 0.67, nan]
    """
    joint = np.bincount(reference.ravel().astype(np.int64) * classes + found.ravel(), minlength=classes**2)
    joint = joint.reshape(classes, classes)
    truth = joint.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(truth > 0, 2 * np.diag(joint) / (truth + joint.sum(0)), np.nan)
