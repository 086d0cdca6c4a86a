"""What the card tells of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vlsm_adapter.sharing.card import _limits, _metric_name, _scores
from vlsm_adapter.sharing.facts import _evaluation

DICE = {"display_name": "Dice", "unit": "ratio", "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6}


@pytest.mark.parametrize("told", ["fp32", None])
def test_float32_needs_no_word(told: str | None, summary: Callable[..., dict[str, Any]]) -> None:
    one = _evaluation(summary(precision=told) if told else summary(), "/data/polyps")
    assert "float32" not in "\n".join(_scores(SimpleNamespace(evaluations=(one,))))  # type: ignore[arg-type]
    assert _metric_name(one, DICE).endswith("prompt level p1")


def test_an_evaluation_in_less_than_32_bits_says_so(summary: Callable[..., dict[str, Any]]) -> None:
    one = _evaluation(summary(precision="int8: 64 of 66 linear maps of the encoders"), "/data/polyps")
    lines = _scores(SimpleNamespace(evaluations=(one,)))  # type: ignore[arg-type]
    assert lines[0] == "### polyps, split test, prompt level p1, in int8"
    assert "The model answered in int8: 64 of 66 linear maps of the encoders, not in float32." in lines
    assert _metric_name(one, DICE).endswith("prompt level p1, in int8")


@pytest.mark.parametrize("own", [0.5, 0.35])
def test_scores_of_another_threshold_than_the_adapters_say_so(
    own: float, summary: Callable[..., dict[str, Any]]
) -> None:
    one = _evaluation(summary(), "/data/polyps", threshold=own)
    lines = _scores(SimpleNamespace(evaluations=(one,)))  # type: ignore[arg-type]
    assert ("**Made with threshold 0.5; the adapter's is now 0.35.**" in lines) == (own == 0.35)
    assert _metric_name(one, DICE).endswith("prompt level p1, threshold 0.5" if own == 0.35 else "prompt level p1")


NONE_SEEN = {"seen_in_training": 0, "new": 0, "gone": 0}


@pytest.mark.parametrize(
    ("told", "compared", "seen"),
    [
        ({"training_cases": NONE_SEEN, "trained_on_known": True}, False, 0),
        ({"training_cases": NONE_SEEN, "trained_on_known": False}, True, None),
        ({"training_cases": NONE_SEEN, "trained_on_before": 2, "trained_on_known": True}, True, 2),
        ({"training_cases": NONE_SEEN}, True, 0),
        ({"training_cases": NONE_SEEN}, False, None),  # of an earlier version, and training began from another adapter
        ({"trained_on": 0, "trained_on_known": True}, False, 0),
        ({"trained_on": 0, "trained_on_known": False}, True, None),
        ({"trained_on": 3, "trained_on_before": 3, "trained_on_known": False}, True, 3),
        ({"trained_on": None, "trained_on_known": False}, True, None),
        ({"trained_on": None}, True, None),
    ],
)
def test_cases_not_known_to_be_unseen_are_not_held_out(
    told: dict[str, Any], compared: bool, seen: int | None, summary: Callable[..., dict[str, Any]]
) -> None:
    one = _evaluation(summary(**told), "/data/polyps", compared)
    assert (one.seen, one.held_out) == (seen, seen == 0)
    lines = "\n".join(_scores(SimpleNamespace(evaluations=(one,))))  # type: ignore[arg-type]
    assert ("Whether some of these cases were trained on is not known." in lines) == (seen is None)
    assert (f"**{seen} of these cases were trained on" in lines) == bool(seen)
    info = SimpleNamespace(split={}, parent={})
    limits = _limits(SimpleNamespace(evaluations=(one,), manifest=SimpleNamespace(info=info)))  # type: ignore[arg-type]
    assert ("No score on cases known to be held out from training is recorded." in limits) == (seen != 0)
