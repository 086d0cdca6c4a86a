"""Dice and IoU: hand-computed values, properties, and what is refused as a mask."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vlsm_adapter.errors import ConfigError, DataError, UserError
from vlsm_adapter.metrics import METRICS, dice, hd95, iou, nsd, score_case

MASKS = array_shapes(min_dims=1, max_dims=3, max_side=9).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def grid(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def test_by_hand() -> None:
    pred = grid("##..", "##..", "....")
    truth = grid(".##.", ".##.", ".#..")
    assert dice(pred, truth) == pytest.approx(2 * 2 / (4 + 5))
    assert iou(pred, truth) == pytest.approx(2 / 7)


@given(MASKS)
def test_bounds_symmetry_and_relation(masks: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = masks
    d, j = dice(pred, truth), iou(pred, truth)
    assert 0 <= j <= d <= 1
    assert d == dice(truth, pred)
    assert j == iou(truth, pred)
    assert d == pytest.approx(2 * j / (1 + j))
    assert dice(pred, pred) == iou(pred, pred) == 1


@given(MASKS)
def test_equals_the_definition_over_sets_of_pixels(masks: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = ({tuple(index) for index in np.argwhere(mask)} for mask in masks)
    assert dice(*masks) == (2 * len(a & b) / (len(a) + len(b)) if a or b else 1)
    assert iou(*masks) == (len(a & b) / len(a | b) if a or b else 1)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_any_zero_one_array_is_a_mask(dtype: type) -> None:
    pred = grid("##.", "...").astype(dtype)
    truth = grid(".##", "...").astype(dtype)
    assert dice(pred, truth) == 0.5
    assert dice(pred.tolist(), truth.tolist()) == 0.5


def test_a_view_is_a_mask_and_stays_as_it_was() -> None:
    base = np.zeros((8, 8), dtype=bool)
    base[2:6, 2:6] = True
    base.flags.writeable = False
    view = base[::2, ::-1]
    assert dice(view, view) == nsd(view, view, 0) == 1
    assert hd95(view, view) == 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.array([[0, 255], [255, 0]], dtype=np.uint8), "holds 255"),
        (np.array([[0.0, 0.5], [1.0, 0.0]]), "holds 0.5.*threshold"),
        (np.array([[0.0, np.nan], [1.0, 0.0]]), "holds nan"),
        (np.array([[0.0, -np.inf], [1.0, 0.0]]), "holds -inf"),
        (np.array([["a", "b"], ["c", "d"]]), "dtype"),
        (np.array([[0, 1j], [0, 0]]), "dtype"),
        (np.zeros((0, 2), dtype=bool), "shape"),
        (np.True_, "shape"),
        (np.zeros((3, 2), dtype=bool), r"\(3, 2\).*\(2, 2\).*resize"),
    ],
)
@pytest.mark.parametrize("function", [dice, iou, hd95, lambda pred, truth: nsd(pred, truth, 1)])
def test_what_is_not_a_mask_is_refused_in_one_line(function: object, bad: np.ndarray, says: str) -> None:
    good = np.eye(2, dtype=bool)
    with pytest.raises(DataError, match=says) as raised:
        function(bad, good)  # type: ignore[operator]
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError):
        function(good, bad)  # type: ignore[operator]


def test_registry_names_direction_and_unit() -> None:
    assert METRICS.names()[:4] == ["dice", "iou", "hd95", "nsd"]
    known = {name: METRICS.get(name) for name in METRICS}
    assert {name for name in known if not known[name].higher_is_better} >= {"hd95"}
    assert known["hd95"].unit == "distance"
    assert known["dice"].unit == known["iou"].unit == known["nsd"].unit == "ratio"
    assert all(known[name].name == name and known[name].display_name for name in known)
    with pytest.raises(ConfigError, match="did you mean 'dice'"):
        METRICS.get("dise")


@settings(max_examples=30)
@given(arrays(bool, (7, 5)), arrays(bool, (7, 5)), st.sampled_from([None, (0.5, 2.0)]))
def test_contract_of_every_metric(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None) -> None:
    """Finite for every pair, best for equal masks, never worse for the truth than for a prediction."""
    found = score_case(pred, truth, case_id="a", prompt="p", spacing=spacing, probability=pred * 0.8).values
    best = score_case(truth, truth, case_id="a", prompt="p", spacing=spacing, probability=truth).values
    for name in METRICS:
        assert isinstance(found[name], float)
        assert np.isfinite(found[name])
        assert (best[name] >= found[name]) if METRICS.get(name).higher_is_better else (best[name] <= found[name])


def test_import_is_light() -> None:
    code = "import sys, vlsm_adapter.metrics; print([m for m in ('scipy', 'torch', 'monai') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
