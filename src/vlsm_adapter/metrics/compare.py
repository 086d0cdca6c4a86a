"""Is one run better than another on the same cases? Paired tests, and what many of them together are worth.

Cases of one group (patient, video) are not independent: groups, not cases, are what the tests permute and rank. p-values
are two-sided. Holm's correction bounds the chance of a single false claim in the table (Holm, Scandinavian Journal of
Statistics 1979), Benjamini and Hochberg's the expected share of false claims among those made (JRSS B 1995).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.metrics.aggregate import DEFAULT_RESAMPLES, group_labels, matched, paired_difference
from vlsm_adapter.metrics.base import METRICS
from vlsm_adapter.types import CaseScore

DEFAULT_PERMUTATIONS = 10_000
TESTS = ("sign_flip", "wilcoxon")
# Below this number of values every assignment of signs is counted; above it the normal approximation is good to 0.001.
_EXACT_WILCOXON = 50
# Signs held in memory at a time.
_CHUNK = 2_000_000


def sign_flip_test(
    differences: Sequence[float] | np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    permutations: int = DEFAULT_PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Paired permutation test of a mean difference of 0, with whole groups.

    Were the two runs interchangeable, swapping them on all cases of a group would change the sign of its differences and
    nothing else. The p-value is the share of such swaps that give a mean difference at least as far from 0 as the one
    seen: of all of them where there are at most ``permutations``, else (1 + found) / (1 + ``permutations``) of random ones.

    Args:
        differences: (cases,), finite.
        groups: the group of each case; None takes each case for its own.
        permutations: random swaps, at least 1.
        seed: of the random swaps; the order of the cases does not matter.

    Returns:
        The p-value, two-sided; 1 where all differences are 0 or there are none.

    Raises:
        ConfigError: ``permutations`` is below 1.
    """
    if permutations < 1:
        raise ConfigError(f"permutations is {permutations}: give at least 1 (the default is {DEFAULT_PERMUTATIONS})")
    values = np.asarray(differences, dtype=np.float64)
    labels = [str(index) for index in range(len(values))] if groups is None else list(groups)
    names, group_of = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    sums = _rounded(np.bincount(group_of, weights=values, minlength=len(names)), values)
    # With random signs the sizes alone matter. Sorted, so that the order of the cases does not; a group without a difference
    # is the same under both signs.
    sizes = np.sort(np.abs(sums[sums != 0]))
    if not len(sizes):
        return 1.0
    # Totals that are equal on paper may differ in their last bits, by the order of addition.
    seen = abs(float(sums.sum())) - 1e-9 * float(sizes.sum())
    if len(sizes) <= math.log2(permutations):
        totals = np.zeros(1)
        for size in sizes:
            totals = np.concatenate([totals + size, totals - size])
        return float(np.mean(np.abs(totals) >= seen))
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(sizes))
    found = 0
    for start in range(0, permutations, rows):
        signs = 2.0 * generator.integers(0, 2, size=(min(rows, permutations - start), len(sizes))) - 1
        found += int(np.count_nonzero(np.abs(signs @ sizes) >= seen))
    return (1 + found) / (1 + permutations)


def wilcoxon_test(differences: Sequence[float] | np.ndarray, groups: Sequence[str] | None = None) -> float:
    """Wilcoxon signed-rank test (Wilcoxon, Biometrics Bulletin 1945) of the mean differences of the groups.

    Differences of 0 are left out, equal ones share their mean rank. Up to 50 values the p-value is exact, also with equal
    ranks; beyond that the normal approximation with the variance corrected for ties, without continuity correction.

    Args:
        differences: (cases,), finite.
        groups: the group of each case; None takes each case for its own.

    Returns:
        The p-value, two-sided; 1 where all differences are 0 or there are none.
    """
    given = np.asarray(differences, dtype=np.float64)
    values = given
    if groups is not None and len(given):
        _, group_of = np.unique(np.asarray(list(groups), dtype=str), return_inverse=True)
        values = np.bincount(group_of, weights=given) / np.bincount(group_of)
    values = _rounded(values, given)
    values = values[values != 0]
    if not len(values):
        return 1.0
    _, place, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    # Twice the ranks, so that the mean of an even number of ranks is a whole number.
    ranks = (2 * np.cumsum(counts) - counts + 1)[place]
    positive = int(ranks[values > 0].sum())
    total = int(ranks.sum())
    if len(values) <= _EXACT_WILCOXON:
        ways = np.zeros(total + 1)
        ways[0] = 1
        for rank in ranks:
            ways[rank:] += ways[: total + 1 - rank].copy()
        tail = min(ways[: positive + 1].sum(), ways[positive:].sum())
        return float(min(1.0, 2 * tail / ways.sum()))
    # The variance of a sum of ranks with random signs is the sum of their squares over 4; ranks are doubled here.
    deviation = math.sqrt(float(np.square(ranks.astype(np.float64)).sum())) / 2
    return math.erfc(abs(positive - total / 2) / deviation / math.sqrt(2))


def _rounded(values: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """``values`` in units of the largest difference, without the noise of addition.

    What is 0 or equal on paper, as 0.3 - 0.2 and 0.2 - 0.1, may differ in its last bits, and must not count as different.
    """
    largest = float(np.abs(differences).max(initial=0))
    return np.round(values / largest, 11) if largest else np.zeros_like(values)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted by Holm's step-down method, in their order; None (not tested) stays and does not count."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for done, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - done) * p))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted by the step-up method of Benjamini and Hochberg, in their order; None stays and does not count."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    lowest = 1.0
    for rank in range(len(tested), 0, -1):
        p, index = tested[rank - 1]
        lowest = min(lowest, len(tested) / rank * p)
        adjusted[index] = lowest
    return adjusted


def compare_runs(
    runs: Mapping[str, Sequence[CaseScore]],
    *,
    metrics: Sequence[str] | None = None,
    groups: Mapping[str, str | None] | None = None,
    pairs: Literal["first", "all"] = "first",
    permutations: int = DEFAULT_PERMUTATIONS,
    n_boot: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare runs on the same cases: differences with intervals, paired tests, corrected p-values.

    Args:
        runs: name to scores, at least two runs; the first is the reference.
        metrics: names; by default those that all runs have.
        groups: case id to group; groups are resampled, permuted and ranked whole. A case without one is its own.
        pairs: ``"first"`` compares every run with the first, ``"all"`` each with each.
        permutations: of the permutation test.
        n_boot, confidence: of the bootstrap intervals.
        seed: of both.

    Returns:
        A dict that is valid JSON::

            {"runs": [...], "n_cases": .., "n_groups": .., "resampled": "case" | "group", "tests": {"permutations": ..,
             "seed": .., "count": rows in the family that is corrected}, "bootstrap": {...}, "rows": [ROW, ...]}

        ROW is what ``paired_difference(run, reference)`` gives (a is the run, b the reference), one for each unit of a
        distance, with run, reference, and for each of the tests in ``TESTS`` ``p_TEST``, ``p_TEST_holm`` and
        ``p_TEST_bh``. p is None where no pair of values is defined.

    Raises:
        UserError: fewer than two runs, other cases in one of them, or a metric that one lacks.
        ConfigError: an unknown metric, or a number out of range.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to compare: give at least two")
    names = list(runs)
    chosen = list(metrics) if metrics is not None else _shared_metrics(runs)
    options: dict[str, Any] = {"groups": groups, "n_boot": n_boot, "confidence": confidence, "seed": seed}
    rows: list[dict[str, Any]] = []
    for reference, run in combinations(names, 2) if pairs == "all" else ((names[0], name) for name in names[1:]):
        together = matched(runs[run], runs[reference])
        labels = group_labels([a for a, _ in together], groups)
        for metric in chosen:
            about = paired_difference(runs[run], runs[reference], metric, **options)
            by_unit = about.pop("by_unit", None)
            for unit, part in (by_unit or {about["unit"]: {}}).items():
                values, kept = _differences(together, labels, metric, unit if by_unit else None)
                tested: dict[str, float | None] = {
                    "p_sign_flip": sign_flip_test(values, kept, permutations=permutations, seed=seed),
                    "p_wilcoxon": wilcoxon_test(values, kept),
                }
                if not len(values):
                    tested = dict.fromkeys(tested)
                rows.append({"run": run, "reference": reference, **about, **part, **tested})
    for test in TESTS:
        p_values = [row[f"p_{test}"] for row in rows]
        for name, correct in (("holm", holm), ("bh", benjamini_hochberg)):
            for row, p in zip(rows, correct(p_values), strict=True):
                row[f"p_{test}_{name}"] = p
    scores = runs[names[0]]
    return {
        "runs": names,
        "n_cases": len({score.case_id for score in scores}),
        "n_groups": len(set(group_labels(scores, groups))),
        "resampled": "group" if groups else "case",
        "tests": {"permutations": permutations, "seed": seed, "count": len(rows)},
        "bootstrap": {"n_boot": n_boot, "confidence": confidence, "seed": seed},
        "rows": rows,
    }


def _shared_metrics(runs: Mapping[str, Sequence[CaseScore]]) -> list[str]:
    """Metrics that every score of every run has, in the order of the reports."""
    sets = [set(score.values) for scores in runs.values() for score in scores]
    shared = set.intersection(*sets) if sets else set()
    return [name for name in METRICS.names() if name in shared]


def _differences(
    together: Sequence[tuple[CaseScore, CaseScore]], labels: Sequence[str], metric: str, unit: str | None
) -> tuple[np.ndarray, list[str]]:
    """Differences of the pairs where both values are defined (of one unit, if given), and the groups they belong to."""
    found, kept = [], []
    for (a, b), label in zip(together, labels, strict=True):
        difference = a.values[metric] - b.values[metric]
        if np.isfinite(difference) and unit in (None, a.unit):
            found.append(difference)
            kept.append(label)
    return np.array(found, dtype=np.float64), kept
