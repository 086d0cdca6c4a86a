"""Statistics over cases: by hand, JSON, groups, units, coverage of the intervals, paired differences."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from vlsm_adapter.errors import ConfigError, UserError
from vlsm_adapter.metrics import paired_difference, score_case, summarise
from vlsm_adapter.types import CaseScore


def score(
    case: int | str,
    dice: float,
    *,
    hd95: float = 1.0,
    unit: str = "px",
    prompt: str = "polyp",
    emptiness: str = "none",
    truth_area: int = 10,
) -> CaseScore:
    values = {"dice": dice, "hd95": hd95}
    return CaseScore(str(case), prompt, values, unit, emptiness, truth_area, 10)


def scores(values: Sequence[float]) -> list[CaseScore]:
    return [score(case, float(value)) for case, value in enumerate(values)]


def test_by_hand() -> None:
    summary = summarise(
        [
            score("a", 0.2),
            score("b", 0.6),
            score("c", 0.0, emptiness="missed"),
            score("d", 1.0, emptiness="both", truth_area=0),
            score("e", 0.0, emptiness="false_alarm", truth_area=0),
        ]
    )
    assert (summary["n"], summary["n_cases"], summary["n_groups"]) == (5, 5, 5)
    assert summary["emptiness"] == {"none": 2, "both": 1, "missed": 1, "false_alarm": 1}
    dice = summary["metrics"]["dice"]
    assert dice["n"] == 5
    assert dice["mean"] == pytest.approx(1.8 / 5)
    assert dice["median"] == 0.2
    assert dice["std"] == pytest.approx(np.std([0.2, 0.6, 0, 1, 0], ddof=1))
    assert 0 <= dice["ci_low"] < dice["mean"] < dice["ci_high"] <= 1
    assert (dice["display_name"], dice["unit"], dice["higher_is_better"]) == ("Dice", "ratio", True)
    assert summary["metrics"]["hd95"]["unit"] == "px"
    apart = summary["truth_foreground"]
    assert apart["n"] == 3
    assert apart["metrics"]["dice"]["mean"] == pytest.approx(0.8 / 3)


def test_summary_is_strict_json_even_where_nothing_is_defined() -> None:
    nothing = summarise([])
    assert (nothing["n"], nothing["metrics"], nothing["n_groups"]) == (0, {}, 0)
    one = summarise([score("a", 0.5, emptiness="both", truth_area=0)])
    assert one["metrics"]["dice"]["mean"] == 0.5
    assert one["metrics"]["dice"]["std"] is None
    assert one["metrics"]["dice"]["ci_low"] is None
    assert one["truth_foreground"]["n"] == 0
    assert one["truth_foreground"]["metrics"]["dice"]["mean"] is None
    broken = summarise([score("a", math.nan), score("b", 0.5, hd95=math.inf), score("c", 0.7)])
    assert broken["metrics"]["dice"]["n_undefined"] == 1
    assert broken["metrics"]["dice"]["mean"] == pytest.approx(0.6)
    assert broken["metrics"]["hd95"]["n"] == 2
    for summary in (nothing, one, broken):
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_same_seed_same_interval() -> None:
    values = scores(np.random.default_rng(0).random(30))
    first = summarise(values, seed=3)
    assert first == summarise(values, seed=3)
    assert first["metrics"]["dice"]["ci_low"] != summarise(values, seed=4)["metrics"]["dice"]["ci_low"]
    assert first["bootstrap"] == {"n_boot": 2000, "confidence": 0.95, "seed": 3, "resampled": "case"}


def test_chunks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = scores(np.random.default_rng(0).random(30))
    whole = summarise(values, n_boot=101)
    monkeypatch.setattr("vlsm_adapter.metrics.aggregate._CHUNK", 70)
    assert summarise(values, n_boot=101) == whole


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, size=400)
    found = summarise(scores(values))["metrics"]["dice"]
    half = 1.96 * values.std(ddof=1) / 20
    assert found["ci_low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["ci_high"] == pytest.approx(values.mean() + half, abs=0.1 * half)
    narrow = summarise(scores(values), confidence=0.5)["metrics"]["dice"]
    assert found["ci_low"] < narrow["ci_low"] < narrow["ci_high"] < found["ci_high"]


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for repetition in range(300):
        found = summarise(scores(rng.beta(5, 2, size=40)), n_boot=300, seed=repetition)["metrics"]["dice"]
        covered += found["ci_low"] <= 5 / 7 <= found["ci_high"]
    assert 0.90 <= covered / 300 <= 0.98


def test_groups_are_resampled_whole() -> None:
    rng = np.random.default_rng(3)
    patient = rng.normal(0.6, 0.1, size=20)
    values = scores([patient[case // 10] for case in range(200)])  # ten identical images of each patient
    groups: dict[str, str | None] = {str(case): f"patient {case // 10}" for case in range(200)}
    grouped, alone = summarise(values, groups=groups), summarise(values)
    assert grouped["n_groups"] == 20
    assert grouped["bootstrap"]["resampled"] == "group"
    assert grouped["metrics"]["dice"]["mean"] == alone["metrics"]["dice"]["mean"]

    def width(summary: dict) -> float:
        return summary["metrics"]["dice"]["ci_high"] - summary["metrics"]["dice"]["ci_low"]

    assert width(grouped) == pytest.approx(math.sqrt(10) * width(alone), rel=0.15)
    one = summarise(values, groups=dict.fromkeys(groups, "the only patient"))
    assert one["metrics"]["dice"]["ci_low"] is None


def test_groups_of_unequal_size_weigh_by_their_cases() -> None:
    values = scores([1.0] * 9 + [0.0])
    groups = {str(case): "large" if case < 9 else None for case in range(10)}
    found = summarise(values, groups=groups)
    assert found["n_groups"] == 2
    assert found["metrics"]["dice"]["mean"] == pytest.approx(0.9)
    assert (found["metrics"]["dice"]["ci_low"], found["metrics"]["dice"]["ci_high"]) == (0.0, 1.0)


def test_prompts_of_one_case_are_resampled_together() -> None:
    values = [score(case, case / 30, prompt=prompt) for case in range(30) for prompt in ("polyp", "a polyp", "lump")]
    found = summarise(values)
    assert (found["n"], found["n_cases"], found["n_groups"]) == (90, 30, 30)
    once = summarise([score(case, case / 30) for case in range(30)])
    for end in ("ci_low", "ci_high"):
        assert found["metrics"]["dice"][end] == pytest.approx(once["metrics"]["dice"][end])


def test_millimetres_and_pixels_are_never_averaged() -> None:
    mixed = [score("a", 0.5, hd95=2.0, unit="mm"), score("b", 0.7, hd95=20.0), score("c", 0.9, hd95=40.0)]
    found = summarise(mixed)["metrics"]
    assert found["dice"]["mean"] == pytest.approx(0.7)
    assert (found["hd95"]["unit"], found["hd95"]["mean"], found["hd95"]["n"]) == ("mixed", None, 3)
    assert found["hd95"]["by_unit"]["mm"]["mean"] == 2
    assert found["hd95"]["by_unit"]["px"]["mean"] == 30
    pairs = paired_difference(mixed, mixed, "hd95")
    assert (pairs["unit"], pairs["mean_difference"]) == ("mixed", None)
    assert pairs["by_unit"]["px"]["mean_difference"] == 0


def test_what_cannot_be_summarised_is_refused() -> None:
    with pytest.raises(UserError, match=r"'b'.*same metrics"):
        summarise([score("a", 0.5), CaseScore("b", "p", {"dice": 0.1}, "px", "none", 1, 1)])
    with pytest.raises(UserError, match="case 'a' with prompt 'polyp' is scored twice"):
        summarise([score("a", 0.5), score("a", 0.6)])
    with pytest.raises(ConfigError, match="n_boot"):
        summarise([], n_boot=0)
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(ConfigError, match="confidence"):
            summarise([], confidence=confidence)


def test_paired_difference_by_hand() -> None:
    a = [score("x", 0.9, hd95=3), score("y", 0.8, hd95=5), score("z", 0.5, hd95=9)]
    b = [score("z", 0.5, hd95=9), score("x", 0.6, hd95=9), score("y", 0.9, hd95=1)]
    found = paired_difference(a, b, "dice")
    assert found["n"] == 3
    assert found["mean_a"] == pytest.approx(2.2 / 3)
    assert found["mean_b"] == pytest.approx(2.0 / 3)
    assert found["mean_difference"] == pytest.approx(0.2 / 3)
    assert (found["a_better"], found["b_better"], found["tied"]) == (1, 1, 1)
    assert found["ci_low"] <= found["mean_difference"] <= found["ci_high"]
    distance = paired_difference(a, b, "hd95")
    assert (distance["mean_difference"], distance["unit"]) == (pytest.approx(-2 / 3), "px")
    assert (distance["a_better"], distance["b_better"], distance["tied"]) == (1, 1, 1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_pairing_takes_out_what_the_cases_share() -> None:
    rng = np.random.default_rng(4)
    hard = rng.random(50)
    a, b = scores(hard + 0.05 + rng.normal(0, 0.01, 50)), scores(hard)
    found = paired_difference(a, b, "dice")
    assert 0.04 < found["ci_low"] < found["mean_difference"] < found["ci_high"] < 0.06
    swapped = paired_difference(b, a, "dice")
    assert swapped["mean_difference"] == -found["mean_difference"]
    assert swapped["ci_low"] == pytest.approx(-found["ci_high"])
    constant = paired_difference(scores(hard), scores(hard), "dice")
    assert (constant["ci_low"], constant["ci_high"], constant["tied"]) == (0, 0, 50)


def test_pairs_match_by_case_or_by_case_and_prompt() -> None:
    one, other = [score("x", 0.5, prompt="polyp")], [score("x", 0.4, prompt="round polyp")]
    assert paired_difference(one, other, "dice")["mean_difference"] == pytest.approx(0.1)
    several = [score("x", 0.5, prompt="p"), score("x", 0.7, prompt="q")]
    found = paired_difference(several, list(reversed(several)), "dice")
    assert (found["n"], found["tied"]) == (2, 2)
    with pytest.raises(UserError, match="case 'x' with prompt 'q' is missing from the second"):
        paired_difference(several, [score("x", 0.5, prompt="p")], "dice")


def test_paired_difference_refuses_what_does_not_pair() -> None:
    with pytest.raises(UserError, match="case 'y' is missing from the second"):
        paired_difference([score("x", 0.5), score("y", 0.5)], [score("x", 0.5)], "dice")
    with pytest.raises(UserError, match="case 'y' is missing from the first"):
        paired_difference([score("x", 0.5)], [score("x", 0.5), score("y", 0.5)], "dice")
    with pytest.raises(UserError, match="in mm in the first set and in px"):
        paired_difference([score("x", 0.5, unit="mm")], [score("x", 0.5)], "dice")
    with pytest.raises(UserError, match="no 'nsd'"):
        paired_difference([score("x", 0.5)], [score("x", 0.5)], "nsd")
    with pytest.raises(ConfigError, match="unknown metric"):
        paired_difference([score("x", 0.5)], [score("x", 0.5)], "f1")
    empty = paired_difference([], [], "dice")
    assert (empty["n"], empty["mean_difference"], empty["ci_low"]) == (0, None, None)
    undefined = paired_difference([score("x", math.nan), score("y", 0.5)], [score("x", 0.5), score("y", 0.5)], "dice")
    assert (undefined["n"], undefined["n_undefined"]) == (1, 1)


def test_real_scores_go_all_the_way() -> None:
    rng = np.random.default_rng(5)
    pairs = [(rng.random((12, 9)) < 0.5, rng.random((12, 9)) < 0.5) for _ in range(8)]
    found = summarise([score_case(p, t, case_id=str(i), prompt="polyp") for i, (p, t) in enumerate(pairs)])
    assert list(found["metrics"]) == ["dice", "iou", "hd95", "nsd", "precision", "recall"]
    assert all(found["metrics"][name]["mean"] > 0 for name in found["metrics"])
    json.dumps(found, allow_nan=False)
