"""What every metric is given (a checked pair of masks), what it says of itself, and the registry of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.metrics.distances import SurfaceDistances, surface_distances
from vlsm_adapter.registry import Registry

DEFAULT_NSD_TOLERANCE = 2.0

Emptiness = Literal["none", "both", "missed", "false_alarm"]


@dataclass(frozen=True)
class MaskPair:
    """A predicted and a true mask of one case, checked, with what several metrics share computed once.

    Build it with `MaskPair.of`, which checks; the plain constructor trusts its arguments.

    Attributes:
        pred, truth: bool arrays of one shape, (H, W) or any number of axes.
        spacing: pixel size per axis in mm, or None: distances are then in pixels.
        nsd_tolerance: the tolerance of NSD, in mm where the spacing is known, else in pixels.
        probability: float array of their shape, the probability of foreground before the threshold, or None.
    """

    pred: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...] | None = None
    nsd_tolerance: float = DEFAULT_NSD_TOLERANCE
    probability: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pred: Any,
        truth: Any,
        *,
        spacing: Sequence[float] | None = None,
        nsd_tolerance: float = DEFAULT_NSD_TOLERANCE,
        probability: Any = None,
    ) -> MaskPair:
        """Check and pair two masks (bool, or numbers that are all 0 or 1; anything ``np.asarray`` takes).

        Raises:
            DataError: the shapes differ, a mask has no pixels or holds something else than 0 and 1, a probability is not
                from 0 to 1, or the spacing is not one positive number per axis.
            ConfigError: the tolerance is not a finite number >= 0.
        """
        pred_mask, truth_mask = _as_mask(pred, "predicted"), _as_mask(truth, "true")
        if pred_mask.shape != truth_mask.shape:
            raise DataError(
                f"the predicted mask has shape {pred_mask.shape}, the true mask {truth_mask.shape}: "
                "they must be equal; resize the logits to the size of the true mask, then threshold"
            )
        chances = None if probability is None else _as_probability(probability)
        if chances is not None and chances.shape != truth_mask.shape:
            raise DataError(
                f"the probability has shape {chances.shape}, the true mask {truth_mask.shape}: "
                "they must be equal; resize the logits to the size of the true mask"
            )
        return cls(pred_mask, truth_mask, _as_spacing(spacing, pred_mask.ndim), _as_tolerance(nsd_tolerance), chances)

    @property
    def unit(self) -> str:
        """The unit of distances: ``"mm"`` where the spacing is known, else ``"px"``."""
        return "px" if self.spacing is None else "mm"

    @cached_property
    def pred_area(self) -> int:
        """Predicted foreground in pixels."""
        return int(np.count_nonzero(self.pred))

    @cached_property
    def truth_area(self) -> int:
        """True foreground in pixels."""
        return int(np.count_nonzero(self.truth))

    @cached_property
    def intersection(self) -> int:
        """Pixels that are foreground in both masks."""
        return int(np.count_nonzero(self.pred & self.truth)) if self.pred_area and self.truth_area else 0

    @property
    def required_probability(self) -> np.ndarray:
        """The probability of foreground, for the metrics that need it.

        Raises:
            ConfigError: none was given.
        """
        if self.probability is None:
            raise ConfigError("calibration needs the probability of foreground, not only a mask: give probability=")
        return self.probability

    @property
    def emptiness(self) -> Emptiness:
        """Which of the masks are empty, in the words of `CaseScore.emptiness`."""
        if self.pred_area:
            return "none" if self.truth_area else "false_alarm"
        return "missed" if self.truth_area else "both"

    @property
    def diagonal(self) -> float:
        """Length of the image diagonal in `unit`: no two pixels are further apart."""
        spacing = self.spacing or (1.0,) * self.pred.ndim
        return math.hypot(*(size * step for size, step in zip(self.pred.shape, spacing, strict=True)))

    @cached_property
    def surface(self) -> SurfaceDistances:
        """Distances between the two boundaries; both masks must have foreground."""
        return surface_distances(self.pred, self.truth, self.spacing)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and what a table needs to know of it.

    Attributes:
        name: the key in `CaseScore.values`, lower case.
        display_name: as it stands in a table.
        higher_is_better: the direction of better.
        unit: ``"ratio"`` (0 to 1) or ``"distance"`` (in `MaskPair.unit`).
        compute: from a pair of masks to a finite number, empty masks included.
        needs_probability: whether it measures the probability of foreground and not the mask alone.
    """

    name: str
    display_name: str
    higher_is_better: bool
    unit: Literal["ratio", "distance"]
    compute: Callable[[MaskPair], float]
    needs_probability: bool = False


METRICS: Registry[Metric] = Registry("metric")


def metric(
    name: str,
    *,
    display_name: str,
    higher_is_better: bool,
    unit: Literal["ratio", "distance"] = "ratio",
    needs_probability: bool = False,
) -> Callable[[Callable[[MaskPair], float]], Callable[[MaskPair], float]]:
    """Decorator that registers a function of a `MaskPair` as the metric ``name``."""

    def add(compute: Callable[[MaskPair], float]) -> Callable[[MaskPair], float]:
        METRICS.register(name)(Metric(name, display_name, higher_is_better, unit, compute, needs_probability))
        return compute

    return add


def _as_mask(value: Any, which: str) -> np.ndarray:
    mask = np.asarray(value)
    if mask.ndim == 0 or mask.size == 0:
        raise DataError(f"the {which} mask has shape {mask.shape}: a mask has at least one axis and one pixel")
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind not in "iuf":
        raise DataError(f"the {which} mask has dtype {mask.dtype}: masks are bool, or numbers that are all 0 or 1")
    foreground: np.ndarray = mask == 1
    wrong = ~foreground & (mask != 0)
    if wrong.any():
        found = mask[wrong][0]
        fix = "threshold it first" if mask.dtype.kind == "f" else "compare it with the label's value first"
        raise DataError(f"the {which} mask holds {found:g}: masks are bool, or numbers that are all 0 or 1; {fix}")
    return foreground


def _as_probability(value: Any) -> np.ndarray:
    """``value`` as a float array of probabilities; float32 and float64 are kept as they are.

    Raises:
        DataError: it holds something else than numbers from 0 to 1.
    """
    chances = np.asarray(value)
    if chances.dtype.kind not in "fiub":
        raise DataError(f"the probability has dtype {chances.dtype}: give numbers from 0 to 1")
    if chances.dtype not in (np.float32, np.float64):
        chances = chances.astype(np.float64)
    # Written so that NaN fails.
    if chances.size and not (chances.min() >= 0 and chances.max() <= 1):
        wrong = chances[~((chances >= 0) & (chances <= 1))][0]
        raise DataError(f"the probability holds {wrong:g}: it must be from 0 to 1; apply the sigmoid to logits")
    return chances


def _as_spacing(value: Sequence[float] | None, ndim: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    wanted = f"give {ndim} positive numbers in mm, one per axis (row first), or None for pixels"
    try:
        spacing = tuple(float(step) for step in value)
    except (TypeError, ValueError):
        raise DataError(f"spacing {value!r} cannot be used: {wanted}") from None
    if len(spacing) != ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(f"spacing {spacing} cannot be used: {wanted}")
    return spacing


def _as_tolerance(value: float) -> float:
    try:
        tolerance = float(value)
    except (TypeError, ValueError):
        tolerance = math.nan
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(
            f"NSD tolerance {value!r} cannot be used: give a finite number >= 0, in mm where the spacing is known, "
            "else in pixels"
        )
    return tolerance
