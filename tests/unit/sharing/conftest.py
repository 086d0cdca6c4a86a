from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Summary = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def summary() -> Summary:
    """What ``summary.json`` of an evaluation holds that the card tells, with changes."""

    def made(**changes: Any) -> dict[str, Any]:
        dice = {"display_name": "Dice", "unit": "ratio", "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6}
        bootstrap = {"resampled": "case", "confidence": 0.95}
        return {
            "split": "test",
            "level": "p1",
            "threshold": 0.5,
            "nsd_tolerance": 2.0,
            "data": {"path": "/data/polyps", "name": "polyps"},
            "prompts": {"different": 1, "leaks": False},
            "skipped": [],
            "base": {"parameters": 10},
            "adapter": {"metrics": {"dice": dice}, "n_cases": 3, "bootstrap": bootstrap},
            **changes,
        }

    return made
