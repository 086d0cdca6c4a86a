"""Segmentation metrics: one value per case from two masks, and statistics over cases.

``METRICS`` lists them in the order they are reported in. To add one: a file here with a function of a ``MaskPair``
under ``@metric(...)``, and its import below. Definitions and the rule for empty masks: docs/metrics.md.
"""

from vlsm_adapter.metrics.base import METRICS, MaskPair, Metric, metric

# In the order of the reports.
# isort: off
from vlsm_adapter.metrics.dice import dice
from vlsm_adapter.metrics.iou import iou
from vlsm_adapter.metrics.surface import hd95, nsd
from vlsm_adapter.metrics.precision import precision
from vlsm_adapter.metrics.recall import recall
from vlsm_adapter.metrics.calibration import brier_score, expected_calibration_error
# isort: on

from vlsm_adapter.metrics.aggregate import paired_difference, summarise
from vlsm_adapter.metrics.compare import compare_runs
from vlsm_adapter.metrics.score import score_case

__all__ = [
    "METRICS",
    "MaskPair",
    "Metric",
    "brier_score",
    "compare_runs",
    "dice",
    "expected_calibration_error",
    "hd95",
    "iou",
    "metric",
    "nsd",
    "paired_difference",
    "precision",
    "recall",
    "score_case",
    "summarise",
]
