"""Paired tests and corrections: by hand, against SciPy, invariances, and that they claim no more than they may."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.metrics import compare_runs
from vlsm_adapter.metrics.compare import benjamini_hochberg, holm, sign_flip_test, wilcoxon_test
from vlsm_adapter.types import CaseScore

DIFFERENCES = arrays(np.float64, st.integers(0, 30), elements=st.integers(-20, 20).map(lambda x: x / 20))
P_VALUES = st.lists(st.none() | st.floats(0, 1), max_size=12)


def scores(dice: Sequence[float], *, unit: str = "px", hd95: Sequence[float] | None = None) -> list[CaseScore]:
    distances = [1.0] * len(dice) if hd95 is None else hd95
    return [
        CaseScore(str(case), "polyp", {"dice": float(value), "hd95": float(distance)}, unit, "none", 9, 9)
        for case, (value, distance) in enumerate(zip(dice, distances, strict=True))
    ]


# The permutation test


def test_signs_by_hand() -> None:
    # Of the eight ways to sign 1, 2, 3, the sums are 6 4 2 0 0 -2 -4 -6.
    assert sign_flip_test([1, 2, 3]) == 2 / 8
    assert sign_flip_test([1, 2, -3]) == 1
    assert sign_flip_test([1, -2, 3]) == 6 / 8
    assert sign_flip_test([0.1, 0.2, 0.0, 0.0]) == 2 / 4
    assert sign_flip_test([]) == sign_flip_test([0, 0]) == 1


def test_a_group_changes_its_sign_as_a_whole() -> None:
    # Sums of the groups 3, 3 and -1.
    assert sign_flip_test([1, 2, 3, -1], ["a", "a", "b", "c"]) == sign_flip_test([3, 3, -1]) == 4 / 8
    many = [0.1] * 40
    assert sign_flip_test(many, ["one patient"] * 40) == 1
    assert sign_flip_test(many) < 0.001


def test_equals_scipy_over_all_signs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = rng.normal(0.3, 1, 9)
        expected = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        assert sign_flip_test(values) == pytest.approx(expected.pvalue)


def test_random_signs_come_close_to_all_of_them() -> None:
    values = np.random.default_rng(3).normal(0.5, 1, 12)
    exact = sign_flip_test(values, permutations=2**12)
    assert sign_flip_test(values, permutations=2**12 - 1) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(values, permutations=100, seed=1) == sign_flip_test(values, permutations=100, seed=1)
    assert sign_flip_test(np.ones(2000), permutations=999) == 1 / 1000
    with pytest.raises(ConfigError, match="permutations is 0"):
        sign_flip_test(values, permutations=0)


@settings(max_examples=60, deadline=None)
@given(DIFFERENCES, st.randoms(use_true_random=False), st.floats(0.01, 100))
def test_order_direction_and_scale_do_not_matter(values: np.ndarray, rng: object, scale: float) -> None:
    groups = [f"g{rng.randrange(9)}" for _ in values]  # type: ignore[attr-defined]
    order = list(range(len(values)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    for test in (lambda d, g: sign_flip_test(d, g, permutations=200), wilcoxon_test):
        p = test(values, groups)
        assert 0 < p <= 1
        assert test(values[order], [groups[i] for i in order]) == pytest.approx(p)
        assert test(-values, groups) == pytest.approx(p)
        assert test(values * scale, groups) == pytest.approx(p)
        renamed = [f"patient {name}" for name in groups]
        assert test(values, renamed) == pytest.approx(p)


# Wilcoxon


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=11))
def test_ranks_equal_the_definition_over_all_signs(values: list[int]) -> None:
    kept = [value for value in values if value]
    if not kept:
        assert wilcoxon_test(values) == 1
        return
    ranks = stats.rankdata(np.abs(kept))
    seen = ranks[np.array(kept) > 0].sum()
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(kept))
    ]
    low, high = np.mean(np.array(sums) <= seen), np.mean(np.array(sums) >= seen)
    assert wilcoxon_test(values) == pytest.approx(min(1, 2 * min(low, high)))


@pytest.mark.parametrize("count", [6, 20, 50])
def test_wilcoxon_equals_scipys_exact_one(count: int) -> None:
    values = np.random.default_rng(count).normal(0.2, 1, count)
    assert wilcoxon_test(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize("count", [51, 300])
def test_wilcoxon_equals_scipys_approximation_with_ties_and_zeros(count: int) -> None:
    rng = np.random.default_rng(count)
    for values in (rng.normal(0.1, 1, count), np.append(rng.integers(-4, 6, 2 * count) / 10, 0.0)):
        expected = stats.wilcoxon(values, zero_method="wilcox", correction=False, method="approx").pvalue
        assert wilcoxon_test(values) == pytest.approx(expected, rel=1e-9)


def test_values_equal_on_paper_share_their_rank() -> None:
    same = np.array([0.3 - 0.2, 0.2 - 0.1, 0.5 - 0.4, 0.1])
    assert len(set(same)) > 1
    assert wilcoxon_test([*same, -0.1]) == wilcoxon_test([1, 1, 1, 1, -1])
    assert wilcoxon_test([0.4, -0.2, 0.3], ["a", "a", "b"]) == wilcoxon_test([0.1, 0.3])


# Corrections


def test_corrections_by_hand() -> None:
    p_values = [0.01, 0.04, 0.03, None, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert benjamini_hochberg(p_values) == pytest.approx([0.02, 0.04, 0.04, None, 0.02])
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([None]) == [None]
    assert holm([0.9, 0.9]) == [1.0, 1.0]


@given(P_VALUES, st.randoms(use_true_random=False))
def test_corrections_keep_the_order_and_never_claim_more(p_values: list[float | None], rng: object) -> None:
    for correct in (holm, benjamini_hochberg):
        made = correct(p_values)
        assert [p is None for p in made] == [p is None for p in p_values]
        pairs = sorted((p, q) for p, q in zip(p_values, made, strict=True) if p is not None and q is not None)
        assert all(p <= q <= 1 for p, q in pairs)
        assert all(a[1] <= b[1] for a, b in itertools.pairwise(pairs))
        order = list(range(len(p_values)))
        rng.shuffle(order)  # type: ignore[attr-defined]
        assert correct([p_values[i] for i in order]) == [made[i] for i in order]
    bound = [None if p is None else min(1, p * sum(q is not None for q in p_values)) for p in p_values]
    for step_up, step_down, bonferroni in zip(benjamini_hochberg(p_values), holm(p_values), bound, strict=True):
        if bonferroni is not None and step_up is not None and step_down is not None:
            assert step_up <= step_down + 1e-12
            assert step_down <= bonferroni + 1e-12


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_equals_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values).tolist())


# Runs


def test_runs_are_compared_with_the_first() -> None:
    rng = np.random.default_rng(5)
    base = rng.random(40) * 0.5
    runs = {
        "base": scores(base, hd95=10 * base),
        "better": scores(base + 0.1 + rng.normal(0, 0.02, 40), hd95=5 * base),
        "noise": scores(base + rng.normal(0, 0.05, 40), hd95=10 * base),
    }
    result = compare_runs(runs, n_boot=200, permutations=999)
    assert [(row["run"], row["reference"], row["metric"]) for row in result["rows"]] == [
        (run, "base", metric) for run in ("better", "noise") for metric in ("dice", "hd95")
    ]
    better, distance, noise, same = result["rows"]
    assert 0.09 < better["ci_low"] < better["mean_difference"] < better["ci_high"] < 0.11
    assert better["p_sign_flip"] == 0.001
    assert better["p_sign_flip_holm"] == 0.004
    assert better["p_sign_flip_bh"] == 0.002
    assert better["p_wilcoxon_holm"] < 1e-5
    assert noise["p_sign_flip"] > 0.05
    assert (distance["mean_difference"] < 0, distance["a_better"] >= 39) == (True, True)
    assert (same["tied"], same["p_sign_flip"], same["p_wilcoxon"]) == (40, 1, 1)
    assert (result["n_cases"], result["n_groups"], result["tests"]["count"]) == (40, 40, 4)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    every = compare_runs(runs, pairs="all", metrics=["dice"], n_boot=50, permutations=99)
    assert [(row["run"], row["reference"]) for row in every["rows"]] == [
        ("better", "base"), ("noise", "base"), ("noise", "better"),
    ]  # fmt: skip


def test_groups_make_the_tests_and_the_interval_honest() -> None:
    rng = np.random.default_rng(6)
    patient = np.repeat(rng.normal(0.02, 0.1, 12), 20)  # twenty nearly equal images of each patient
    a, b = scores(0.5 + patient + rng.normal(0, 0.001, 240)), scores([0.5] * 240)
    groups: dict[str, str | None] = {str(case): f"p{case // 20}" for case in range(240)}
    grouped = compare_runs({"b": b, "a": a}, metrics=["dice"], groups=groups)
    alone = compare_runs({"b": b, "a": a}, metrics=["dice"])
    assert (grouped["n_groups"], grouped["resampled"]) == (12, "group")
    for test in ("p_sign_flip", "p_wilcoxon"):
        assert grouped["rows"][0][test] > alone["rows"][0][test]
    assert grouped["rows"][0]["p_sign_flip"] > 0.05
    assert alone["rows"][0]["p_sign_flip"] < 0.05


@pytest.mark.parametrize("test", [lambda d, g: sign_flip_test(d, g, permutations=400), wilcoxon_test])
def test_without_a_difference_one_in_twenty_is_claimed(test: object) -> None:
    rng = np.random.default_rng(7)
    claims = 0
    for _ in range(300):
        shared = np.repeat(rng.normal(0, 1, 15), 4)
        claims += test(shared + rng.normal(0, 0.5, 60), [f"p{i // 4}" for i in range(60)]) < 0.05  # type: ignore[operator]
    assert 0.02 <= claims / 300 <= 0.085


def test_units_are_tested_apart_and_undefined_values_left_out() -> None:
    mixed = [scores([0.5])[0], CaseScore("x", "p", {"dice": 0.5, "hd95": 3.0}, "mm", "none", 1, 1)]
    other = [scores([0.5], hd95=[2.0])[0], CaseScore("x", "p", {"dice": math.nan, "hd95": 3.0}, "mm", "none", 1, 1)]
    rows = compare_runs({"a": mixed, "b": other})["rows"]
    assert [(row["metric"], row["unit"], row["n"]) for row in rows] == [
        ("dice", "ratio", 1), ("hd95", "mm", 1), ("hd95", "px", 1),
    ]  # fmt: skip
    undefined = [CaseScore("x", "p", {"dice": math.nan}, "px", "none", 1, 1)]
    (row,) = compare_runs({"a": undefined, "b": undefined})["rows"]
    assert (row["n"], row["p_sign_flip"], row["p_wilcoxon_holm"]) == (0, None, None)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="at least two"):
        compare_runs({"a": scores([0.5])})
    with pytest.raises(UserError, match="case '1' is missing"):
        compare_runs({"a": scores([0.5, 0.6]), "b": scores([0.5])})
    with pytest.raises(ConfigError, match="unknown metric"):
        compare_runs({"a": scores([0.5]), "b": scores([0.5])}, metrics=["f1"])
