"""Dice similarity coefficient (Dice, Ecology 1945)."""

from __future__ import annotations

from typing import Any

from vlsm_adapter.metrics.base import MaskPair, metric


@metric("dice", display_name="Dice", higher_is_better=True)
def _dice(pair: MaskPair) -> float:
    total = pair.pred_area + pair.truth_area
    return 2.0 * pair.intersection / total if total else 1.0


def dice(pred: Any, truth: Any) -> float:
    """Dice similarity coefficient, ``2 |A and B| / (|A| + |B|)``, in [0, 1], higher is better.

    Both masks empty: 1. Exactly one empty: 0.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.

    Raises:
        DataError: the shapes differ, or a mask is not a mask.
    """
    return _dice(MaskPair.of(pred, truth))
