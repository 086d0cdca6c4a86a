"""Losses on logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from vlsm_adapter.registry import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: Registry[Loss] = Registry("loss")

DICE_WEIGHT, CROSS_ENTROPY_WEIGHT = 1.5, 1.0  # of the paper
SMOOTH = 1e-5


def soft_dice_loss(probability: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of ``1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e)``, sums over pixels, nothing squared.

    Args:
        probability, target: (P, H, W) in [0, 1].
    """
    pixels = tuple(range(1, probability.ndim))
    overlap = (probability * target).sum(pixels)
    size = probability.sum(pixels) + target.sum(pixels)
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


@LOSSES.register("dice_bce")
def dice_bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1.5 Dice of the probabilities + binary cross-entropy on the logits.

    Args:
        logits, target: (P, H, W); the target in {0, 1}. Computed in float32 whatever the precision of the model.
    """
    logits, target = logits.float(), target.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
    return DICE_WEIGHT * soft_dice_loss(logits.sigmoid(), target) + CROSS_ENTROPY_WEIGHT * cross_entropy


@LOSSES.register("published")
def published(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The published code's loss: it passes probabilities where the cross-entropy expects logits.

    A confidently wrong pixel then has almost no gradient; kept for comparison with published numbers.
    """
    logits, target = logits.float(), target.float()
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(probability, target)
    return DICE_WEIGHT * soft_dice_loss(probability, target) + CROSS_ENTROPY_WEIGHT * cross_entropy
