"""Pictures of masks on images, looked at pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.overlays import (
    BLUE,
    LONG_SIDE,
    SHORT_SIDE,
    YELLOW,
    Panel,
    draw_masks,
    figure,
    prediction_overlay,
    shown_mask,
)

GREY = np.full((40, 60, 3), 90, np.uint8)


def square(size: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[10:20, 15:40] = True
    return mask


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(colour, np.uint8)).all(axis=2)


def test_the_truth_is_a_line_inside_its_own_area() -> None:
    drawn = draw_masks(GREY, square(), None)
    line = coloured(drawn, YELLOW)
    assert line.any()
    assert not (line & ~square()).any()
    inside = np.zeros((40, 60), bool)
    inside[11:19, 16:39] = True
    assert not (line & inside).any()
    assert (drawn[inside] == 90).all()  # what the line encloses is the image itself


def test_the_prediction_is_an_area_with_an_edge() -> None:
    drawn = draw_masks(GREY, None, square())
    assert coloured(drawn, BLUE).sum() == 2 * 25 + 2 * 8
    changed = (drawn != 90).any(axis=2)
    assert (changed == square()).all()


def test_a_full_mask_has_no_edge_at_the_border_and_an_empty_one_draws_nothing() -> None:
    full, empty = np.ones((40, 60), bool), np.zeros((40, 60), bool)
    assert not coloured(draw_masks(GREY, full, None), YELLOW).any()
    assert (draw_masks(GREY, empty, empty) == GREY).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 799), st.integers(0, 599), st.sampled_from([(8, 8), (30, 40), (600, 800), (1200, 900)]))
def test_a_single_pixel_is_never_lost(column: int, row: int, size: tuple[int, int]) -> None:
    mask = np.zeros((600, 800), bool)
    mask[row, column] = True
    shown = shown_mask(mask, size)
    assert shown.shape == size
    assert shown.any()
    rows, columns = np.nonzero(shown)
    assert abs((rows.mean() + 0.5) / size[0] - (row + 0.5) / 600) <= 1 / min(size[0], 600)
    assert abs((columns.mean() + 0.5) / size[1] - (column + 0.5) / 800) <= 1 / min(size[1], 800)


@pytest.mark.parametrize("size", [(40, 60), (900, 600), (1, 1), (2000, 50), (30, 3000)])
def test_panels_have_the_promised_size(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    mask = np.zeros(size, bool)
    one = figure(image, [Panel("image")], "case")
    three = figure(image, [Panel("image"), Panel("truth", mask), Panel("both", mask, mask)], "case")
    assert three.height == one.height
    assert three.width == 3 * one.width + 8
    assert min(one.width, one.height - 40) <= SHORT_SIDE
    assert max(one.width, one.height - 40) <= max(SHORT_SIDE, LONG_SIDE)


def test_captions_are_drawn_and_cut_to_the_picture() -> None:
    short = np.asarray(figure(GREY, [Panel("a")], "ISIC_01, Dice 0.912"))
    long = np.asarray(figure(GREY, [Panel("a")], "very long " * 100 + "\n息肉"))
    assert (short[-18:] < 128).any()
    assert short.shape == long.shape
    assert (long[-18:, -2:] == 255).all()


def test_a_prediction_is_shown_at_the_size_of_its_image_within_bounds() -> None:
    small = prediction_overlay(GREY, square(), title="x")
    assert small.size == (384, 256 + 20)
    fitting = prediction_overlay(np.zeros((300, 500, 3), np.uint8), np.zeros((300, 500), bool), title="x")
    assert fitting.size == (500, 300 + 20)
    large = prediction_overlay(np.zeros((1000, 1200, 3), np.uint8), np.zeros((1000, 1200), bool), title="x" * 500)
    assert large.height - 20 == pytest.approx(512, abs=22)
    assert max(large.size) <= 640


def test_an_empty_prediction_says_so() -> None:
    image = np.zeros((300, 500, 3), np.uint8)
    found = np.asarray(prediction_overlay(image, np.ones((300, 500), bool), title="polyp"))[:20]
    nothing = np.asarray(prediction_overlay(image, np.zeros((300, 500), bool), title="polyp"))[:20]
    assert (nothing < 128).sum() > (found < 128).sum()
