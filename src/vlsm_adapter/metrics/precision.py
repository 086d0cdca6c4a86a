"""Precision (positive predictive value) of the pixels found."""

from __future__ import annotations

from typing import Any

from vlsm_adapter.metrics.base import MaskPair, metric


@metric("precision", display_name="Precision", higher_is_better=True)
def _precision(pair: MaskPair) -> float:
    if pair.emptiness != "none":
        return 1.0 if pair.emptiness == "both" else 0.0
    return pair.intersection / pair.pred_area


def precision(pred: Any, truth: Any) -> float:
    """Share of the predicted foreground that is true, ``|A and B| / |A|``, in [0, 1], higher is better.

    Both masks empty: 1. Exactly one empty: 0, also where nothing was predicted and the quotient is not defined.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.

    Raises:
        DataError: the shapes differ, or a mask is not a mask.
    """
    return _precision(MaskPair.of(pred, truth))
