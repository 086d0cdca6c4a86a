"""Segmentation metrics: one value per case from two masks, and statistics over cases.

``METRICS`` lists them in the order they are reported in. To add one: a file here with a function of a ``MaskPair``
under ``@metric(...)``, and its import below. Definitions and the rule for empty masks: docs/metrics.md.
"""

from vlsm_adapter.metrics.aggregate import paired_difference, summarise
from vlsm_adapter.metrics.base import METRICS, MaskPair, Metric, metric
from vlsm_adapter.metrics.dice import dice
from vlsm_adapter.metrics.iou import iou
from vlsm_adapter.metrics.score import score_case
from vlsm_adapter.metrics.surface import hd95, nsd

__all__ = [
    "METRICS",
    "MaskPair",
    "Metric",
    "dice",
    "hd95",
    "iou",
    "metric",
    "nsd",
    "paired_difference",
    "score_case",
    "summarise",
]
