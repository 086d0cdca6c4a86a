"""score_case: all metrics at once, and the rule for empty masks."""

import math

import numpy as np
import pytest

from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.metrics import dice, hd95, iou, nsd, precision, recall, score_case

EMPTY = np.zeros((6, 8), dtype=bool)
LESION = EMPTY.copy()
LESION[1:4, 2:5] = True
SHIFTED = np.roll(LESION, 2, axis=1)


@pytest.mark.parametrize(
    ("pred", "truth", "emptiness", "overlap", "distance"),
    [
        (EMPTY, EMPTY, "both", 1.0, 0.0),
        (EMPTY, LESION, "missed", 0.0, 10.0),
        (LESION, EMPTY, "false_alarm", 0.0, 10.0),
    ],
)
def test_empty_rule(pred: np.ndarray, truth: np.ndarray, emptiness: str, overlap: float, distance: float) -> None:
    score = score_case(pred, truth, case_id="c", prompt="polyp")
    assert score.emptiness == emptiness
    ratios = dict.fromkeys(("dice", "iou", "nsd", "precision", "recall"), overlap)
    assert score.values == {**ratios, "hd95": distance}
    assert (score.truth_area, score.predicted_area) == (int(truth.sum()), int(pred.sum()))


def test_a_missed_lesion_costs_the_diagonal_in_mm() -> None:
    score = score_case(EMPTY, LESION, case_id="c", prompt="p", spacing=(0.5, 0.25))
    assert score.unit == "mm"
    assert score.values["hd95"] == pytest.approx(math.hypot(6 * 0.5, 8 * 0.25))


@pytest.mark.parametrize("spacing", [None, (0.5, 2.0)])
def test_missing_a_lesion_is_never_better_than_the_worst_prediction(spacing: tuple[float, float] | None) -> None:
    truth, pred = EMPTY.copy(), EMPTY.copy()
    truth[0, 0] = pred[-1, -1] = True
    assert hd95(pred, truth, spacing) < hd95(EMPTY, truth, spacing)


def test_values_are_those_of_the_functions() -> None:
    spacing = (0.7, 1.3)
    score = score_case(SHIFTED, LESION, case_id="c", prompt="polyp", spacing=spacing, nsd_tolerance=1.0)
    assert (score.case_id, score.prompt, score.unit, score.emptiness) == ("c", "polyp", "mm", "none")
    assert score.values == {
        "dice": dice(SHIFTED, LESION),
        "iou": iou(SHIFTED, LESION),
        "hd95": hd95(SHIFTED, LESION, spacing),
        "nsd": nsd(SHIFTED, LESION, 1.0, spacing),
        "precision": precision(SHIFTED, LESION),
        "recall": recall(SHIFTED, LESION),
    }
    assert score.row()["hd95"] == score.values["hd95"]


def test_chosen_metrics_in_the_order_asked() -> None:
    score = score_case(SHIFTED, LESION, case_id="c", prompt="p", metrics=["nsd", "dice"])
    assert list(score.values) == ["nsd", "dice"]
    with pytest.raises(ConfigError, match="did you mean 'hd95'"):
        score_case(SHIFTED, LESION, case_id="c", prompt="p", metrics=["hd96"])


def test_errors_name_the_case() -> None:
    with pytest.raises(DataError, match=r"^case 'img_7': .*\(6, 8\).*\(6, 7\)"):
        score_case(LESION, LESION[:, :7], case_id="img_7", prompt="p")


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan), "ab", 1.0])
def test_wrong_spacing_is_refused(spacing: object) -> None:
    with pytest.raises(DataError, match=r"spacing.*2 positive numbers"):
        score_case(LESION, LESION, case_id="c", prompt="p", spacing=spacing)  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf, "wide", None])
def test_wrong_tolerance_is_refused(tolerance: object) -> None:
    with pytest.raises(ConfigError, match=r"tolerance.*>= 0"):
        score_case(LESION, LESION, case_id="c", prompt="p", nsd_tolerance=tolerance)  # type: ignore[arg-type]
