"""Precision, recall and calibration: by hand, by definition, against MONAI, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.metrics import brier_score, dice, expected_calibration_error, precision, recall, score_case

SHAPES = array_shapes(min_dims=1, max_dims=3, max_side=8)
MASKS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
CHANCES = SHAPES.flatmap(
    lambda shape: st.tuples(arrays(np.float32, shape, elements=st.floats(0, 1, width=32)), arrays(bool, shape))
)


def grid(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


# Precision and recall


def test_by_hand() -> None:
    pred, truth = grid("##..", "##..", "...."), grid(".##.", ".##.", ".#..")
    assert precision(pred, truth) == 2 / 4
    assert recall(pred, truth) == 2 / 5


@given(MASKS)
def test_dice_is_their_harmonic_mean_and_they_mirror_each_other(masks: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = masks
    p, r = precision(pred, truth), recall(pred, truth)
    assert dice(pred, truth) == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    assert p == recall(truth, pred)
    assert 0 <= p <= 1


@pytest.mark.parametrize("function", [precision, recall])
def test_empty_masks_have_the_rule_of_all_metrics(function: object) -> None:
    empty, full = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    assert [function(a, b) for a, b in ((empty, empty), (empty, full), (full, empty), (full, full))] == [1, 0, 0, 1]  # type: ignore[operator]


def test_precision_and_recall_equal_monai() -> None:
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        pred, truth = rng.random((9, 7)) < rng.random(), rng.random((9, 7)) < rng.random()
        pred[0, 0] = truth[-1, -1] = True
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, truth)]
        matrix = monai.get_confusion_matrix(*tensors)
        for name, ours in (("precision", precision), ("sensitivity", recall)):
            assert ours(pred, truth) == pytest.approx(monai.compute_confusion_matrix_metric(name, matrix).item())


# Calibration


def test_calibration_by_hand() -> None:
    chances = np.array([[0.1, 0.2, 0.9, 0.8]])
    truth = np.array([[False, True, True, True]])
    # Two bins: 0.1, 0.2 (mean 0.15, half true) and 0.9, 0.8 (mean 0.85, all true), two pixels each.
    assert expected_calibration_error(chances, truth, bins=2) == pytest.approx((2 * 0.35 + 2 * 0.15) / 4)
    assert expected_calibration_error(chances, truth, bins=1) == pytest.approx(0.75 - 0.5)
    assert brier_score(chances, truth) == pytest.approx((0.01 + 0.64 + 0.01 + 0.04) / 4)


def test_bins_hold_their_lower_end_and_the_last_both() -> None:
    ends = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    truth = np.zeros(5, bool)
    # Bins of a quarter: 0 | 0.25 | 0.5 | 0.75 and 1 together; each error is the mean probability of its bin.
    assert expected_calibration_error(ends, truth, bins=4) == pytest.approx((0 + 0.25 + 0.5 + 2 * 0.875) / 5)


def test_a_probability_that_is_always_right_or_says_the_share_is_calibrated() -> None:
    truth = np.random.default_rng(0).random((30, 40)) < 0.3
    assert expected_calibration_error(truth.astype(float), truth) == brier_score(truth, truth) == 0
    share = np.full(truth.shape, truth.mean())
    assert expected_calibration_error(share, truth) == pytest.approx(0, abs=1e-12)
    assert brier_score(share, truth) == pytest.approx(truth.mean() * (1 - truth.mean()))
    assert (
        expected_calibration_error(1 - truth.astype(float), truth) == brier_score(1 - truth.astype(float), truth) == 1
    )


@settings(max_examples=60, deadline=None)
@given(CHANCES, st.integers(1, 30))
def test_calibration_equals_the_definition(case: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    chances, truth = case
    values = [
        (min(int(np.float32(p) * np.float32(bins)), bins - 1), float(p), bool(t))
        for p, t in zip(chances.flat, truth.flat, strict=True)
    ]
    error = 0.0
    for number in range(bins):
        inside = [(p, t) for index, p, t in values if index == number]
        error += abs(sum(p for p, _ in inside) - sum(t for _, t in inside))
    found = expected_calibration_error(chances, truth, bins=bins)
    assert found == pytest.approx(error / chances.size, abs=1e-9)
    assert brier_score(chances, truth) == pytest.approx(np.mean([(p - t) ** 2 for _, p, t in values]), abs=1e-6)
    # Never above the mean distance: a mean of signed errors.
    assert 0 <= found <= np.abs(chances.astype(np.float64) - truth).mean() + 1e-9
    # Brier by its decomposition is at least the squared error of calibration.
    assert found**2 <= brier_score(chances.astype(np.float64), truth) + 1e-9


@pytest.mark.parametrize("bins", [1, 10, 20])
def test_calibration_equals_monai(bins: int) -> None:
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    if not hasattr(monai, "CalibrationErrorMetric"):
        pytest.skip("this MONAI has no calibration metric")
    rng = np.random.default_rng(1)
    for shape in ((9, 7), (40, 50), (5, 6, 4)):
        chances = (rng.random(shape) ** 3).astype(np.float32)
        truth = rng.random(shape) < chances**2
        metric = monai.CalibrationErrorMetric(num_bins=bins, include_background=True, calibration_reduction="expected")
        metric(torch.from_numpy(chances)[None, None], torch.from_numpy(truth)[None, None].float())
        assert expected_calibration_error(chances, truth, bins=bins) == pytest.approx(
            metric.aggregate().item(), rel=1e-4
        )


def test_a_case_is_scored_on_its_probability_where_there_is_one() -> None:
    truth = grid("##..", "....")
    chances = np.array([[0.9, 0.4, 0.1, 0.0], [0.0, 0.0, 0.2, 0.0]], np.float32)
    without = score_case(chances > 0.5, truth, case_id="c", prompt="p")
    score = score_case(chances > 0.5, truth, case_id="c", prompt="p", probability=chances)
    assert list(score.values) == ["dice", "iou", "hd95", "nsd", "precision", "recall", "ece", "brier"]
    assert list(without.values) == ["dice", "iou", "hd95", "nsd", "precision", "recall"]
    assert {name: score.values[name] for name in without.values} == without.values
    assert (score.values["precision"], score.values["recall"]) == (1, 0.5)
    assert score.values["ece"] == pytest.approx(expected_calibration_error(chances, truth))
    assert score.values["brier"] == pytest.approx(brier_score(chances, truth))
    empty = score_case(truth & False, truth & False, case_id="c", prompt="p", probability=chances * 0.5)
    assert (empty.emptiness, empty.values["dice"]) == ("both", 1)
    assert 0 < empty.values["ece"] < 1


@pytest.mark.parametrize(
    ("chances", "says"),
    [
        (np.full((2, 2), 1.5), "holds 1.5.*sigmoid"),
        (np.full((2, 2), -0.1), r"holds -0\.1"),
        (np.array([[0.5, np.nan], [0, 1]]), "holds nan"),
        (np.array([["a", "b"], ["c", "d"]]), "dtype"),
        (np.zeros((2, 3)), r"\(2, 3\).*\(2, 2\)"),
    ],
)
def test_what_is_no_probability_is_refused_in_one_line(chances: np.ndarray, says: str) -> None:
    truth = np.eye(2, dtype=bool)
    for call in (
        lambda: expected_calibration_error(chances, truth),
        lambda: brier_score(chances, truth),
        lambda: score_case(truth, truth, case_id="c", prompt="p", probability=chances),
    ):
        with pytest.raises(DataError, match=says) as error:
            call()
        assert "\n" not in str(error.value)


def test_calibration_of_a_mask_alone_is_refused() -> None:
    truth = np.eye(2, dtype=bool)
    with pytest.raises(ConfigError, match="needs the probability"):
        score_case(truth, truth, case_id="c", prompt="p", metrics=["ece"])
    with pytest.raises(ConfigError, match="at least 1"):
        expected_calibration_error(truth, truth, bins=0)
