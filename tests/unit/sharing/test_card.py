"""What the card tells of an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vlsm_adapter.sharing.card import _metric_name, _scores
from vlsm_adapter.sharing.facts import _evaluation

DICE = {"display_name": "Dice", "unit": "ratio", "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6}


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "split": "test",
        "level": "p1",
        "threshold": 0.5,
        "nsd_tolerance": 2.0,
        "data": {"path": "/data/polyps", "name": "polyps"},
        "prompts": {"different": 1, "leaks": False},
        "skipped": [],
        "base": {"parameters": 10},
        "adapter": {"metrics": {"dice": DICE}, "n_cases": 3, "bootstrap": {"resampled": "case", "confidence": 0.95}},
        **changes,
    }


@pytest.mark.parametrize("told", ["fp32", None])
def test_float32_needs_no_word(told: str | None) -> None:
    one = _evaluation(summary(precision=told) if told else summary(), "/data/polyps")
    assert "float32" not in "\n".join(_scores(SimpleNamespace(evaluations=(one,))))  # type: ignore[arg-type]
    assert _metric_name(one, DICE).endswith("prompt level p1")


def test_an_evaluation_in_less_than_32_bits_says_so() -> None:
    one = _evaluation(summary(precision="int8: 64 of 66 linear maps of the encoders"), "/data/polyps")
    lines = _scores(SimpleNamespace(evaluations=(one,)))  # type: ignore[arg-type]
    assert lines[0] == "### polyps, split test, prompt level p1, in int8"
    assert "The model answered in int8: 64 of 66 linear maps of the encoders, not in float32." in lines
    assert _metric_name(one, DICE).endswith("prompt level p1, in int8")
