"""Calibration of the probability of foreground: expected calibration error and Brier score, over the pixels of a case."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlsm_adapter.errors import ConfigError
from vlsm_adapter.metrics.base import MaskPair, metric

ECE_BINS = 20


@metric("ece", display_name="ECE", higher_is_better=False, needs_probability=True)
def _ece(pair: MaskPair) -> float:
    return _error(pair.required_probability, pair.truth, ECE_BINS)


@metric("brier", display_name="Brier score", higher_is_better=False, needs_probability=True)
def _brier(pair: MaskPair) -> float:
    distance = pair.required_probability - pair.truth
    return float(np.mean(np.square(distance), dtype=np.float64))


def expected_calibration_error(probability: Any, truth: Any, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the probability of foreground, in [0, 1], lower is better.

    The pixels are put into ``bins`` bins of equal width by their probability, [0, 1/bins), [1/bins, 2/bins), ..., the last
    with its upper end. The error is the mean over pixels of the difference, in their bin, between mean probability and
    share of true foreground (Naeini et al., AAAI 2015; Guo et al., ICML 2017, here of the foreground's probability and not of
    the likelier class's). Equal to MONAI's ``CalibrationErrorMetric`` (``EXPECTED``). It is defined for empty masks too.

    Args:
        probability: float (H, W), or any number of axes, in [0, 1].
        truth: mask of the same shape, bool or 0/1.
        bins: number of bins, at least 1.

    Raises:
        DataError: the shapes differ, a probability is out of range or not a number, or the truth is not a mask.
        ConfigError: ``bins`` is below 1.
    """
    if bins < 1:
        raise ConfigError(f"{bins} bins: give at least 1")
    pair = MaskPair.of(truth, truth, probability=probability)
    return _error(pair.required_probability, pair.truth, bins)


def brier_score(probability: Any, truth: Any) -> float:
    """Mean squared difference of probability and truth over the pixels, in [0, 1], lower is better (Brier, 1950).

    It is defined for empty masks too.

    Args:
        probability: float (H, W), or any number of axes, in [0, 1].
        truth: mask of the same shape, bool or 0/1.

    Raises:
        DataError: the shapes differ, a probability is out of range or not a number, or the truth is not a mask.
    """
    return _brier(MaskPair.of(truth, truth, probability=probability))


def _error(probability: np.ndarray, truth: np.ndarray, bins: int) -> float:
    values = probability.ravel()
    # A whole number of at most `bins`: the product is rounded towards 0, and probability 1 joins the last bin.
    index = np.minimum((values * values.dtype.type(bins)).astype(np.intp), bins - 1)
    expected = np.bincount(index, weights=values, minlength=bins)
    found = np.bincount(index[truth.ravel()], minlength=bins)
    return float(np.abs(expected - found).sum() / values.size)
