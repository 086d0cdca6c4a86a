"""All metrics of one case at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlsm_adapter.errors import DataError
from vlsm_adapter.metrics.base import DEFAULT_NSD_TOLERANCE, METRICS, MaskPair
from vlsm_adapter.types import CaseScore


def score_case(
    pred: Any,
    truth: Any,
    *,
    case_id: str,
    prompt: str,
    spacing: Sequence[float] | None = None,
    nsd_tolerance: float = DEFAULT_NSD_TOLERANCE,
    metrics: Sequence[str] | None = None,
    probability: Any = None,
) -> CaseScore:
    """Score one predicted mask against the truth at native size.

    Empty masks: both empty scores Dice = IoU = NSD = precision = recall = 1 and HD95 = 0; exactly one empty scores 0, and
    HD95 = the length of the image diagonal. `CaseScore.emptiness` says which it was.

    Args:
        pred, truth: masks of one shape, (H, W) or any number of axes, bool or 0/1.
        case_id, prompt: copied into the score.
        spacing: pixel size per axis, (row, column), in mm; None for distances in pixels.
        nsd_tolerance: tolerance of NSD, in mm, or in pixels without a spacing.
        metrics: names to compute, in this order; None means all that are registered, those of calibration only with a
            ``probability``.
        probability: of foreground before the threshold, float of the shape of the masks, from 0 to 1.

    Raises:
        DataError: a mask, the probability or the spacing cannot be used; the message names the case.
        ConfigError: unknown metric, one of calibration without a ``probability``, or the tolerance is not a finite
            number >= 0.
    """
    chosen = [METRICS.get(name) for name in (METRICS.names() if metrics is None else metrics)]
    if metrics is None and probability is None:
        chosen = [metric for metric in chosen if not metric.needs_probability]
    try:
        pair = MaskPair.of(pred, truth, spacing=spacing, nsd_tolerance=nsd_tolerance, probability=probability)
    except DataError as error:
        raise DataError(f"case '{case_id}': {error}") from None
    return CaseScore(
        case_id=case_id,
        prompt=prompt,
        values={metric.name: metric.compute(pair) for metric in chosen},
        unit=pair.unit,
        emptiness=pair.emptiness,
        truth_area=pair.truth_area,
        predicted_area=pair.pred_area,
    )
