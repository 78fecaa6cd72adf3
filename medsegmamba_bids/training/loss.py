"""Cross-entropy plus Dice, with classes that a label map may not tell apart.

Shape letters: B batch; C classes; X, Y, Z patch; V voxels.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import nn

SMOOTH = 1.0


def merged_probabilities(probabilities: torch.Tensor, target: torch.Tensor, accepts: torch.Tensor) -> torch.Tensor:
    """Give the probability of every accepted class to the target class.

    Parameters
    ----------
    probabilities : float (V, C)
    target : int64 (V,)
    accepts : bool (C, C)
    """
    accepted = accepts[target]
    total = (probabilities * accepted).sum(1, keepdim=True)
    own = nn.functional.one_hot(target, probabilities.shape[1]).to(probabilities.dtype)
    return probabilities * ~accepted + own * total


def reference_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    accepts: torch.Tensor,
    weights: torch.Tensor,
    dice: float = 1.0,
    cross_entropy: float = 1.0,
) -> torch.Tensor:
    """Return weighted cross-entropy + (1 - mean Dice over the classes present).

    Parameters
    ----------
    logits : float (B, C, X, Y, Z)
    target : int64 (B, X, Y, Z), class indices
    accepts : bool (C, C), ``accepts[t, c]``: c is not wrong where the target is t
    weights : float (C,), of the classes in the cross-entropy
    """
    classes = logits.shape[1]
    flat = logits.float().movedim(1, -1).reshape(-1, classes).softmax(1)
    target = target.reshape(-1).long()
    merged = merged_probabilities(flat, target, accepts)
    own = merged.gather(1, target[:, None])[:, 0].clamp_min(1e-12)
    weight = weights[target]
    entropy = -(weight * own.log()).sum() / weight.sum()
    size = torch.bincount(target, minlength=classes)
    overlap = torch.zeros_like(weights).index_add(0, target, own)
    score = (2 * overlap + SMOOTH) / (merged.sum(0) + size + SMOOTH)
    return cross_entropy * entropy + dice * (1 - score[size > 0].mean())


class _FusedLoss(torch.autograd.Function):
    """The same in two passes over the voxels (numba): stock autograd takes longer than the network's forward."""

    @staticmethod
    def forward(ctx, logits, target, accepts, weights, dice, cross_entropy):
        rows = logits.detach().float().movedim(1, -1).contiguous().softmax(-1)
        flat = rows.view(-1, rows.shape[-1]).numpy()
        loss, gradient = _loss_and_gradient(
            flat, target.reshape(-1).numpy(), accepts.numpy(), weights.numpy(), dice, cross_entropy
        )
        ctx.save_for_backward(torch.from_numpy(gradient).view(rows.shape).movedim(-1, 1))
        ctx.dtype = logits.dtype
        return torch.tensor(loss)

    @staticmethod
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype), None, None, None, None, None


def segmentation_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    accepts: torch.Tensor,
    weights: torch.Tensor,
    dice: float = 1.0,
    cross_entropy: float = 1.0,
) -> torch.Tensor:
    """Return ``reference_loss``, by the fused kernel on a CPU."""
    if logits.device.type == "cpu":
        return _FusedLoss.apply(logits, target, accepts, weights, dice, cross_entropy)
    return reference_loss(logits, target, accepts, weights, dice, cross_entropy)


def _loss_and_gradient(rows, target, accepts, weights, dice, cross_entropy):
    """Loss and its gradient with respect to the logits, float32 (V, C), from probabilities ``rows`` (V, C)."""
    classes = rows.shape[1]
    entropy, overlap, mass, size = _reduce(rows, target, accepts, weights)
    total = max(float((size * weights).sum()), 1e-12)
    present = size > 0
    union = mass + size + SMOOTH
    score = (2 * overlap + SMOOTH) / union
    loss = cross_entropy * entropy / total + dice * (1 - score[present].mean())
    share = dice * present / present.sum()
    d_mass = (share * score / union).astype(np.float32)
    d_overlap = (-2 * share / union).astype(np.float32)
    d_entropy = (-cross_entropy * weights / total).astype(np.float32)
    gradient = _gradient(rows, target, accepts, d_mass, d_overlap, d_entropy, classes)
    return np.float32(loss), gradient


@njit(cache=True, parallel=True, fastmath=True)
def _reduce(rows, target, accepts, weights):
    """Sums of entropy, overlap, predicted mass and size per class, in a fixed order."""
    voxels, classes = rows.shape
    blocks = 64  # fixed, so that sums do not depend on the number of threads
    entropy = np.zeros(blocks)
    overlap, mass = np.zeros((blocks, classes)), np.zeros((blocks, classes))
    size = np.zeros((blocks, classes))
    for block in prange(blocks):
        for v in range(block * voxels // blocks, (block + 1) * voxels // blocks):
            t = target[v]
            own = 0.0
            for c in range(classes):
                if accepts[t, c]:
                    own += rows[v, c]
                else:
                    mass[block, c] += rows[v, c]
            mass[block, t] += own
            overlap[block, t] += own
            size[block, t] += 1
            entropy[block] -= weights[t] * np.log(max(own, 1e-12))
    return entropy.sum(), overlap.sum(0), mass.sum(0), size.sum(0)


@njit(cache=True, parallel=True, fastmath=True)
def _gradient(rows, target, accepts, d_mass, d_overlap, d_entropy, classes):
    """Gradient of the loss with respect to the logits, from probabilities ``rows`` (V, C)."""
    gradient = np.empty_like(rows)
    for v in prange(rows.shape[0]):
        t = target[v]
        own = np.float32(0)
        for c in range(classes):
            if accepts[t, c]:
                own += rows[v, c]
        accepted = d_mass[t] + d_overlap[t] + d_entropy[t] / max(own, np.float32(1e-12))
        mean = np.float32(0)
        for c in range(classes):
            slope = accepted if accepts[t, c] else d_mass[c]
            gradient[v, c] = slope
            mean += rows[v, c] * slope
        for c in range(classes):
            gradient[v, c] = rows[v, c] * (gradient[v, c] - mean)
    return gradient
