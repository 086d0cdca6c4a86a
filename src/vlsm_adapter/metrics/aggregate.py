"""Statistics over the scores of many cases: means with bootstrap confidence intervals, and paired differences.

Everything returned can be written as JSON: what is not defined (a mean of nothing, the interval of a single case) is
None, never NaN. Intervals are percentile bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap,
1993). What is resampled is the case, with all its prompts, or the group (patient, video) where groups are given, since
the images of one patient are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.metrics.base import METRICS
from vlsm_adapter.types import CaseScore

DEFAULT_RESAMPLES = 2000
# With fewer cases or groups a percentile bootstrap of 95 % holds the mean in less than nine tenths of samples, with two in
# half of them (simulated, scores of a beta distribution).
FEWEST_RESAMPLED = 10
_EMPTINESS = ("none", "both", "missed", "false_alarm")
# Drawn indices held in memory at a time (8 bytes each).
_CHUNK = 2_000_000


def summarise(
    scores: Sequence[CaseScore],
    *,
    groups: Mapping[str, str | None] | None = None,
    n_boot: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Summarise the scores of a set of cases, over all of them and over those with foreground in the truth.

    Args:
        scores: one per case and prompt; all with the same metrics. May be empty.
        groups: case id to group; groups are resampled whole. A case without one is its own group.
        n_boot: bootstrap resamples, >= 1.
        confidence: coverage of the intervals, in (0, 1).
        seed: of the resampling; the same scores in the same order and the same seed give the same numbers.

    Returns:
        A dict that is valid JSON::

            {"n": scores, "n_cases": distinct cases, "n_groups": what was resampled,
             "emptiness": {"none": .., "both": .., "missed": .., "false_alarm": ..},
             "bootstrap": {"n_boot": .., "confidence": .., "seed": .., "resampled": "case" | "group"},
             "metrics": {"dice": STATISTICS, ...},
             "truth_foreground": {"n": .., "metrics": {...}}}

        STATISTICS has display_name, higher_is_better, unit, n, n_undefined (values that are not finite, left out),
        mean, std (ddof 1), median, ci_low and ci_high (of the mean). Where scores in mm and in px meet, a distance has
        unit ``"mixed"``, no statistics, and those of each unit apart under ``"by_unit"``.

    Raises:
        UserError: the scores do not all hold the same metrics, or one case and prompt is scored twice.
        ConfigError: ``n_boot`` or ``confidence`` is out of range.
    """
    _check_bootstrap(n_boot, confidence)
    _index(scores)
    names = list(scores[0].values) if scores else []
    for score in scores:
        if set(score.values) != set(names):
            raise UserError(
                f"case '{score.case_id}' has the metrics {sorted(score.values)}, case '{scores[0].case_id}' has "
                f"{sorted(names)}: score all cases with the same metrics"
            )
    labels = group_labels(scores, groups)
    options = {"n_boot": n_boot, "confidence": confidence, "seed": seed}

    def describe(chosen: Sequence[int]) -> dict[str, Any]:
        return {name: _by_unit(name, scores, labels, chosen, options) for name in names}

    emptiness = Counter(score.emptiness for score in scores)
    foreground = [i for i, score in enumerate(scores) if score.truth_area > 0]
    return {
        "n": len(scores),
        "n_cases": len({score.case_id for score in scores}),
        "n_groups": len(set(labels)),
        "emptiness": {kind: emptiness[kind] for kind in _EMPTINESS},
        "bootstrap": {**options, "resampled": "group" if groups else "case"},
        "metrics": describe(range(len(scores))),
        "truth_foreground": {"n": len(foreground), "metrics": describe(foreground)},
    }


def paired_difference(
    scores_a: Sequence[CaseScore],
    scores_b: Sequence[CaseScore],
    metric: str,
    *,
    groups: Mapping[str, str | None] | None = None,
    n_boot: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean difference ``a - b`` of one metric over the same cases, with its paired bootstrap interval.

    Cases are matched by case id, or by case id and prompt where a case was asked several prompts, in any order.

    Args:
        scores_a, scores_b: scores of the two methods (fine-tuned and zero-shot, say) on the same cases.
        metric: name of the metric.
        groups, n_boot, confidence, seed: as in `summarise`.

    Returns:
        A dict that is valid JSON: metric, display_name, higher_is_better, unit, n, n_undefined (pairs left out because
        a value is not finite), mean_a, mean_b, mean_difference, ci_low, ci_high, and the number of pairs where a is
        a_better, b_better or tied. A distance over scores in mm and in px has unit ``"mixed"``, no statistics, and
        those of each unit apart under ``"by_unit"``.

    Raises:
        UserError: the two do not hold the same cases, one is scored twice, or a case has no such metric.
        ConfigError: unknown metric, or ``n_boot`` or ``confidence`` is out of range.
    """
    _check_bootstrap(n_boot, confidence)
    about = METRICS.get(metric)
    pairs = matched(scores_a, scores_b)
    for score in (*scores_a, *scores_b):
        if metric not in score.values:
            raise UserError(f"case '{score.case_id}' has no '{metric}', only {sorted(score.values)}: score it again")
    labels = group_labels([a for a, _ in pairs], groups)

    def describe(chosen: Sequence[int], unit: str) -> dict[str, Any]:
        values = np.array([(pairs[i][0].values[metric], pairs[i][1].values[metric]) for i in chosen], dtype=np.float64)
        values = values.reshape(-1, 2)
        defined = np.asarray(np.isfinite(values).all(axis=1))
        a, b = values[defined].T
        kept = [labels[i] for i, keep in zip(chosen, defined, strict=True) if keep]
        low, high = _interval(a - b, kept, n_boot, confidence, seed)
        gain = a - b if about.higher_is_better else b - a
        return {
            "unit": unit,
            "n": len(a),
            "n_undefined": len(values) - len(a),
            "mean_a": _mean(a),
            "mean_b": _mean(b),
            "mean_difference": _mean(a - b),
            "ci_low": low,
            "ci_high": high,
            "a_better": int(np.count_nonzero(gain > 0)),
            "b_better": int(np.count_nonzero(gain < 0)),
            "tied": int(np.count_nonzero(gain == 0)),
        }

    head = {"metric": metric, "display_name": about.display_name, "higher_is_better": about.higher_is_better}
    return {**head, **_split_units(about.unit == "distance", [a.unit for a, _ in pairs], range(len(pairs)), describe)}


def _by_unit(
    name: str, scores: Sequence[CaseScore], labels: Sequence[str], chosen: Sequence[int], options: Mapping[str, Any]
) -> dict[str, Any]:
    def describe(chosen: Sequence[int], unit: str) -> dict[str, Any]:
        values = np.array([scores[i].values[name] for i in chosen], dtype=np.float64)
        defined = np.isfinite(values)
        kept = [labels[i] for i, keep in zip(chosen, defined, strict=True) if keep]
        numbers = values[defined]
        low, high = _interval(numbers, kept, **options)
        return {
            "unit": unit,
            "n": len(numbers),
            "n_undefined": len(values) - len(numbers),
            "mean": _mean(numbers),
            "std": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
            "median": float(np.median(numbers)) if len(numbers) else None,
            "ci_low": low,
            "ci_high": high,
        }

    about = METRICS.get(name)
    units = [score.unit for score in scores]
    head = {"display_name": about.display_name, "higher_is_better": about.higher_is_better}
    return {**head, **_split_units(about.unit == "distance", units, chosen, describe)}


def _split_units(
    is_distance: bool,
    units: Sequence[str],
    chosen: Sequence[int],
    describe: Callable[[Sequence[int], str], dict[str, Any]],
) -> dict[str, Any]:
    """Describe the chosen scores together; or each unit apart, where a mean of mm and px would mean nothing."""
    if not is_distance:
        return describe(chosen, "ratio")
    present = sorted({units[i] for i in chosen})
    if len(present) <= 1:
        return describe(chosen, present[0] if present else "px")
    by_unit = {unit: describe([i for i in chosen if units[i] == unit], unit) for unit in present}
    nothing = describe([], "mixed")
    return {**nothing, "n": sum(part["n"] for part in by_unit.values()), "by_unit": by_unit}


def _interval(
    values: np.ndarray, labels: Sequence[str], n_boot: int, confidence: float, seed: int
) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of the mean of ``values`` (n,), resampling whole groups; None below two groups."""
    names, group_of = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    n_groups = len(names)
    if n_groups < 2:
        return None, None
    counts = np.bincount(group_of, minlength=n_groups).astype(np.float64)
    sums = np.bincount(group_of, weights=values, minlength=n_groups)
    generator = np.random.default_rng(seed)
    means = np.empty(n_boot)
    rows = max(1, _CHUNK // n_groups)
    for start in range(0, n_boot, rows):
        drawn = generator.integers(n_groups, size=(min(rows, n_boot - start), n_groups))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return percentile_interval(means, confidence)


def percentile_interval(samples: np.ndarray, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval from the resampled values of a statistic (n,); None where none of them is finite."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return None, None
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(finite, [tail, 100.0 - tail])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


class OfCase(Protocol):
    """Whatever belongs to a case."""

    @property
    def case_id(self) -> str: ...


def group_labels(scores: Sequence[OfCase], groups: Mapping[str, str | None] | None) -> list[str]:
    """What is resampled as a whole, for each score: its group, or its case with all its prompts."""
    # The prefix keeps a case without a group from joining a group that bears its name.
    labels = []
    for score in scores:
        group = groups.get(score.case_id) if groups else None
        labels.append(f"case:{score.case_id}" if group is None else f"group:{group}")
    return labels


def _index(scores: Sequence[CaseScore]) -> dict[tuple[str, str], CaseScore]:
    index: dict[tuple[str, str], CaseScore] = {}
    for score in scores:
        key = (score.case_id, score.prompt)
        if key in index:
            raise UserError(
                f"case '{score.case_id}' with prompt '{score.prompt}' is scored twice: give each case and prompt once"
            )
        index[key] = score
    return index


def matched(scores_a: Sequence[CaseScore], scores_b: Sequence[CaseScore]) -> list[tuple[CaseScore, CaseScore]]:
    """The two scores of each case, in the order of ``scores_a``.

    Raises:
        UserError: the two do not hold the same cases, one is scored twice, or in another unit.
    """
    index_a, index_b = _index(scores_a), _index(scores_b)
    one_prompt = all(len({score.case_id for score in scores}) == len(scores) for scores in (scores_a, scores_b))
    keyed_a, keyed_b = (
        {(case, "" if one_prompt else prompt): score for (case, prompt), score in index.items()}
        for index in (index_a, index_b)
    )
    for here, there, which in ((keyed_a, keyed_b, "second"), (keyed_b, keyed_a, "first")):
        lacking = next((key for key in here if key not in there), None)
        if lacking is not None:
            prompt = f" with prompt '{lacking[1]}'" if lacking[1] else ""
            raise UserError(
                f"case '{lacking[0]}'{prompt} is missing from the {which} set of scores: "
                "a paired difference needs the same cases in both"
            )
    pairs = [(score, keyed_b[key]) for key, score in keyed_a.items()]
    for a, b in pairs:
        if a.unit != b.unit:
            raise UserError(
                f"case '{a.case_id}' is scored in {a.unit} in the first set and in {b.unit} in the second: "
                "score both with the same spacing"
            )
    return pairs


def _check_bootstrap(n_boot: int, confidence: float) -> None:
    if n_boot < 1:
        raise ConfigError(f"n_boot is {n_boot}: give at least 1 resample (the default is {DEFAULT_RESAMPLES})")
    if not (math.isfinite(confidence) and 0 < confidence < 1):
        raise ConfigError(f"confidence is {confidence}: give a number between 0 and 1, such as 0.95")
