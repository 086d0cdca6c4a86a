"""Measurements of masks against figures known by geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vlsm_adapter.data.audit.facts import measure_mask


def test_disc(round_mask: Any) -> None:
    facts = measure_mask(round_mask((200, 200), (0.3, 0.7), 0.2))
    (part,) = facts.parts
    assert part.centre == pytest.approx((0.3, 0.7), abs=1e-3)
    assert part.axis_ratio == pytest.approx(1, abs=0.01)
    assert part.ellipse_iou > 0.97
    assert part.extent == pytest.approx(np.pi / 4, abs=0.02)
    assert facts.box == (20, 100, 99, 179)
    assert facts.sides == (False, False, False, False)
    assert not facts.grid[:5].any()
    assert facts.grid[8, 3]


def test_square_and_triangle_have_corners() -> None:
    square = np.zeros((120, 120), bool)
    square[20:100, 20:100] = True
    triangle = np.tril(np.ones((120, 120), bool))
    assert measure_mask(square).parts[0].ellipse_iou == pytest.approx(0.826, abs=0.01)
    assert measure_mask(triangle).parts[0].ellipse_iou < 0.8
    assert measure_mask(square).parts[0].extent == 1
    assert measure_mask(triangle).sides == (True, True, True, True)


def test_specks_holes_and_parts() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:50, 10:50] = True
    mask[20:30, 20:30] = False
    mask[70:90, 60:90] = True
    mask[0, 0] = True
    facts = measure_mask(mask)
    assert len(facts.parts) == 2
    assert (facts.specks, facts.speck_at) == (1, (0, 0))
    assert facts.holes == pytest.approx(100 / facts.pixels)
    assert facts.box == (0, 0, 89, 89)


def test_empty_and_full() -> None:
    assert measure_mask(np.zeros((5, 7), bool)).empty
    full = measure_mask(np.ones((5, 7), bool))
    assert (full.share, full.box, full.grid.any()) == (1.0, (0, 0, 6, 4), True)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_any_mask_is_measured(height: int, width: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    facts = measure_mask(mask)
    assert facts.pixels == np.count_nonzero(mask)
    assert facts.empty == (not mask.any())
    if mask.any():
        assert facts.parts
        for part in facts.parts:
            assert 0 < part.centre[0] < 1
            assert 0 < part.centre[1] < 1
            assert part.axis_ratio >= 1 - 1e-9
            assert 0 <= part.ellipse_iou <= 1 + 1e-9
        rows, columns = np.nonzero(mask)
        assert facts.box == (columns.min(), rows.min(), columns.max(), rows.max())
        assert facts.holes * facts.pixels == pytest.approx(ndimage.binary_fill_holes(mask).sum() - facts.pixels)
        expected = np.zeros((12, 12), bool)
        expected[rows * 12 // height, columns * 12 // width] = True
        assert (facts.grid == expected).all()
