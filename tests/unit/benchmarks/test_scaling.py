"""How cost grows: slopes, the words for them, the table and the plot; nothing here is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None)
@given(st.floats(-2, 3), st.floats(0.01, 100), st.lists(st.integers(1, 10**6), min_size=2, unique=True))
def test_slopes_of_a_power(power: float, factor: float, amounts: list[int]) -> None:
    import scaling

    amounts.sort()
    costs = [factor * amount**power for amount in amounts]
    assert scaling.slopes(amounts, costs) == pytest.approx([power] * (len(amounts) - 1), abs=1e-6, rel=1e-6)


def test_growth_in_words() -> None:
    import scaling

    assert scaling.growth([1, 2, 4], [1.0, 0.9]) == "linear from 1 to 4 (slope 0.95)"
    words = scaling.growth([1, 4, 16, 64, 256], [0.1, 0.3, 1.0, 1.5])
    assert words == "below linear from 1 to 16 (slope 0.20); linear from 16 to 64 (slope 1.00); " + (
        "above linear from 64 to 256 (slope 1.50)"
    )


def points() -> dict[tuple[str, int], list[dict[str, float]]]:
    return {
        ("side", side): [{"seconds": noise * side**2 / 1e5, "bytes": float(side**4)} for noise in (1.0, 1.1, 9.0)]
        for side in (176, 352, 704)
    } | {("batch", 4): [{"seconds": 1.0, "bytes": 1e8}]}


def test_summary_compares_with_pixels_not_sides() -> None:
    import scaling

    found = scaling.summary(scaling.AXES["side"], points())
    assert found is not None
    assert found["values"] == [176, 352, 704]
    assert found["seconds"][0] == pytest.approx(1.1 * 176**2 / 1e5), "the median of the rounds"
    assert found["slopes"]["seconds"] == pytest.approx([1, 1])
    assert found["slopes"]["bytes"] == pytest.approx([2, 2])
    assert scaling.summary(scaling.AXES["prompts"], points()) is None


def test_table_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import scaling

    axes = [scaling.summary(scaling.AXES[name], points()) for name in ("side", "batch")]
    found = {"axes": axes, "failed": {"width 512": "exit code -9"}}
    text = scaling.table(found)
    assert "| 352 pixels a side |" in text
    assert "Memory above linear from 176 to 704 (slope 2.00)" in text
    assert "width 512: failed: exit code -9" in text
    scaling.plot(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.svg", "scaling.png"}


@pytest.mark.slow
def test_points_are_measured(tmp_path: Path) -> None:
    import scaling
    from measuring import Setting
    from our_way import save_base_model

    setting = Setting(str(save_base_model(tmp_path / "base", quick=True)), str(tmp_path), 1, True)
    measured: list[dict[str, Any]] = [
        scaling.predict(setting, images=2, prompts=2, side=64),
        scaling.train(setting, batch=2, width=8),
        scaling.train(setting, cases=2, batch=2, method="shallow"),
    ]
    for one in measured:
        assert one["seconds"] > 0
        assert one["bytes"] >= scaling.LEAST_MEMORY
        assert one["peak"] >= one["bytes"]
