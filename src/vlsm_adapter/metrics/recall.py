"""Recall (sensitivity, true positive rate) of the pixels to be found."""

from __future__ import annotations

from typing import Any

from vlsm_adapter.metrics.base import MaskPair, metric


@metric("recall", display_name="Recall", higher_is_better=True)
def _recall(pair: MaskPair) -> float:
    if pair.emptiness != "none":
        return 1.0 if pair.emptiness == "both" else 0.0
    return pair.intersection / pair.truth_area


def recall(pred: Any, truth: Any) -> float:
    """Share of the true foreground that is found, ``|A and B| / |B|``, in [0, 1], higher is better.

    Both masks empty: 1. Exactly one empty: 0, also where there was nothing to find and the quotient is not defined.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.

    Raises:
        DataError: the shapes differ, or a mask is not a mask.
    """
    return _recall(MaskPair.of(pred, truth))
