"""Does a model listen to words? Probes asked beside the evaluation's own prompt, and a score in [0, 1].

A probe is a pair of prompts that differ in the words at issue (``data.probes``): one true of the object, one not. Let D
be the Dice of an answer with the object's mask. A kind of probe has the value

    1 - sum of D(asked otherwise) / sum of D(asked rightly)        over the cases, clipped to [0, 1]

the share of what the model finds of the object when asked for it that it no longer marks when asked for something else.
Contradictory pairs are weighed so that each two words count alike in both directions ("large" asked of small objects and
"small" of large ones); a word that is not met in both is left out. Else a model that finds little with "small", whatever
the truth, would seem to listen where most objects are large.
A model deaf to words answers both alike: 0. One that marks the object only when it is asked for: 1, however well it
outlines it. One that stumbles over any unusual wording finds as little with either: near 0. **Prompt sensitivity** is the
mean of the kinds' values. A kind whose mean D(asked rightly) is below ``LEAST_FOUND`` has no value, since there is nothing
to lose; a score over none is None. Cases with an empty mask take no part.

Intervals are percentile bootstrap intervals of the whole statistic; groups (patients, videos) are resampled where given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlsm_adapter.data.probes import PAIRS
from vlsm_adapter.metrics.aggregate import DEFAULT_RESAMPLES, group_labels, percentile_interval

LEAST_FOUND = 0.05


@dataclass(frozen=True, slots=True)
class PairScore:
    """One pair of one case: Dice with the object when asked rightly and otherwise; ``words`` of a contradictory pair."""

    case_id: str
    probe: str
    true: float
    false: float
    words: tuple[str, str] = ("", "")


def sensitivity(
    scores: Sequence[PairScore],
    *,
    groups: Mapping[str, str | None] | None = None,
    n_boot: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The prompt-sensitivity score of a model from its pairs, as the head of this module defines it.

    Args:
        scores: the pairs.
        groups: case id to group; groups are resampled whole. A case without one is its own group.
        n_boot: bootstrap resamples.
        seed: of the resampling; equal sets of cases are resampled alike, so that two models can be compared.

    Returns:
        ``{"score": {"value", "ci_low", "ci_high", "kinds": [kinds with a value]}, "components": {kind: {"n", "n_compared", "value", "ci_low",
        "ci_high", "dice_true", "dice_false"}}}``, values in [0, 1] or None, means of Dice weighed as the value is,
        ``n_compared`` of the ``n`` pairs in both directions; and under ``"_samples"`` the resampled scores (n_boot,).
    """
    labels = group_labels(scores, groups)
    places = {name: number for number, name in enumerate(sorted(set(labels)))}
    ways = {way: number for number, way in enumerate(sorted({(score.probe, score.words) for score in scores}))}
    sums = np.zeros((3, len(places), len(ways)))  # of Dice asked rightly, of Dice asked otherwise, of pairs
    for score, label in zip(scores, labels, strict=True):
        sums[:, places[label], ways[score.probe, score.words]] += (score.true, score.false, 1)
    samples = np.full((n_boot, len(PAIRS)), np.nan)
    if len(places) > 1:
        drawn = np.random.default_rng(seed).multinomial(len(places), [1 / len(places)] * len(places), size=n_boot)
        resampled = np.stack([drawn @ one for one in sums])
        samples = np.stack([_compare(resampled, _both_ways(ways, probe))[0] for probe in PAIRS], axis=1)
    total = sums.sum(axis=1, keepdims=True)
    components: dict[str, dict[str, Any]] = {}
    for column, probe in enumerate(PAIRS):
        both = _both_ways(ways, probe)
        value, true, false = (float(one[0]) for one in _compare(total, both))
        low, high = percentile_interval(samples[:, column]) if np.isfinite(value) else (None, None)
        components[probe] = {
            "n": sum(score.probe == probe for score in scores),
            "n_compared": int(sum(total[2, 0, way] for way in {way for pair in both for way in pair})),
            "value": _number(value),
            "ci_low": low,
            "ci_high": high,
            "dice_true": _number(true),
            "dice_false": _number(false),
        }
    # The kinds that have a value on the cases as they are; a resample may lack one of them.
    chosen = [column for column, probe in enumerate(PAIRS) if components[probe]["value"] is not None]
    heard = _row_means(samples[:, chosen])
    low, high = percentile_interval(heard)
    value = float(np.mean([components[PAIRS[column]]["value"] for column in chosen])) if chosen else np.nan
    return {
        "score": {
            "value": _number(value),
            "ci_low": low,
            "ci_high": high,
            "kinds": [PAIRS[column] for column in chosen],
        },
        "components": components,
        "_samples": heard,
    }


def of_all_kinds(score: Mapping[str, Any]) -> str:
    """`` (1 of 3 kinds of probes)`` where a score is not the mean of all kinds, else nothing."""
    count = len(score.get("kinds", PAIRS))
    return "" if count in (0, len(PAIRS)) else f" ({count} of {len(PAIRS)} kinds of probes)"


# -- small parts ---------------------------------------------------------------------------------------------------------


def _both_ways(ways: Mapping[tuple[str, tuple[str, str]], int], probe: str) -> list[tuple[int, int]]:
    """Numbers of the ways of asking that are each other's reverse; a way without words is its own."""
    found: list[tuple[int, int]] = []
    for (kind, words), number in ways.items():
        reverse = ways.get((kind, words[::-1]))
        if kind == probe and reverse is not None and number <= reverse:
            found.append((number, reverse))
    return found


def _compare(
    sums: NDArray[np.float64], both: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Value of one kind of probe, and mean Dice asked rightly and otherwise, for each of N samples; NaN where undefined.

    Args:
        sums: (3, N, ways): of Dice asked rightly, of Dice asked otherwise, of pairs.
        both: ways that are compared with each other.
    """
    one, other = (sums[:, :, [pair[side] for pair in both]] for side in (0, 1))
    there = (one[2] > 0) & (other[2] > 0)
    n, m = np.where(there, one[2], 1), np.where(there, other[2], 1)
    # The harmonic mean of the counts: a word met ten times one way and once the other says little more than 1 : 1 does.
    weights = np.where(there, 2 * n * m / (n + m), 0)
    total = weights.sum(axis=1)
    true, false = (
        np.divide(
            (weights * (one[k] / n + other[k] / m) / 2).sum(axis=1),
            total,
            out=np.full(len(total), np.nan),
            where=total > 0,
        )
        for k in (0, 1)
    )
    enough = np.nan_to_num(true) >= LEAST_FOUND
    ratio = np.divide(false, true, out=np.full(len(total), np.nan), where=enough)
    return np.clip(1 - ratio, 0, 1), true, false


def _row_means(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the finite values of each row; NaN where there are none."""
    finite = np.isfinite(samples)
    counts = finite.sum(axis=1)
    sums = np.where(finite, samples, 0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(samples), np.nan), where=counts > 0)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
