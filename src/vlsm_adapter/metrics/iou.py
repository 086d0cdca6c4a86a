"""Intersection over union (Jaccard index; Jaccard, New Phytologist 1912)."""

from __future__ import annotations

from typing import Any

from vlsm_adapter.metrics.base import MaskPair, metric


@metric("iou", display_name="IoU", higher_is_better=True)
def _iou(pair: MaskPair) -> float:
    union = pair.pred_area + pair.truth_area - pair.intersection
    return pair.intersection / union if union else 1.0


def iou(pred: Any, truth: Any) -> float:
    """Intersection over union, ``|A and B| / |A or B|``, in [0, 1], higher is better.

    Both masks empty: 1. Exactly one empty: 0.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.

    Raises:
        DataError: the shapes differ, or a mask is not a mask.
    """
    return _iou(MaskPair.of(pred, truth))
