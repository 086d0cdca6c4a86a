"""Polygons to masks: analytic areas, an independent rule for single points, exact partition, and hostile rings."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.importing.polygons import MAX_POINTS, rasterise, read_ring, ring_area
from vlsm_adapter.errors import DataError

HEIGHT, WIDTH = 24, 31
# No edge between two such points runs through the centre of a pixel, so that no rule for ties is tested by chance.
tenths = st.integers(-200, 600)
points = st.builds(lambda x, y: (x / 10 + math.pi / 1000, y / 10 + math.e / 1000), tenths, tenths)
rings = st.lists(points, min_size=3, max_size=12).map(np.array)


def inside_by_ray(ring: np.ndarray, x: float, y: float) -> bool:
    """Even-odd rule by a ray upwards, point by point: written another way than what is tested."""
    inside = False
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (x0 < x) != (x1 < x):
            cross_y = y0 + (x - x0) / (x1 - x0) * (y1 - y0)
            inside ^= cross_y < y
    return inside


@settings(deadline=None, max_examples=30)
@given(rings)
def test_every_pixel_by_its_centre(ring: np.ndarray) -> None:
    mask = rasterise([ring], HEIGHT, WIDTH)
    expected = [[inside_by_ray(ring, c + 0.5, r + 0.5) for c in range(WIDTH)] for r in range(HEIGHT)]
    assert mask.tolist() == expected


@settings(deadline=None)
@given(st.integers(3, 40), st.floats(3, 45), st.floats(0, 6), st.floats(45, 55), st.floats(45, 55))
def test_area_is_that_of_the_polygon(corners: int, radius: float, turn: float, x: float, y: float) -> None:
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    ring = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    analytic = corners / 2 * radius**2 * math.sin(2 * math.pi / corners)
    assert ring_area(ring) == pytest.approx(analytic)
    # Only pixels that an edge runs through can be wrong: at most this many.
    steps = np.abs(ring - np.roll(ring, -1, axis=0)).sum() + 2 * corners
    assert abs(rasterise([ring], 105, 105).sum() - analytic) <= steps
    if radius > 20 and corners > 8:
        assert rasterise([ring], 105, 105).sum() == pytest.approx(analytic, rel=0.02)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=2), st.data())
def test_polygons_that_share_edges_share_no_pixel(point: list[int], data: st.DataObject) -> None:
    """A rectangle cut into triangles at a point on half-pixels: every pixel is in exactly one."""
    width, height = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    middle = (point[0] / 40 * width, point[1] / 40 * height)
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    count = np.zeros((height, width), int)
    for one, other in zip(corners, corners[1:] + corners[:1], strict=True):
        count += rasterise([np.array([one, other, middle], float)], height, width)
    assert (count == 1).all()


@settings(deadline=None, max_examples=50)
@given(rings, st.integers(-5, 5), st.booleans())
def test_direction_start_and_place_do_not_matter(ring: np.ndarray, shift: int, backwards: bool) -> None:
    other = np.roll(ring[::-1] if backwards else ring, shift, axis=0)
    assert (rasterise([ring], HEIGHT, WIDTH) == rasterise([other], HEIGHT, WIDTH)).all()
    bigger = rasterise([ring + np.array([7, 3])], HEIGHT + 10, WIDTH + 10)
    assert (rasterise([ring], HEIGHT, WIDTH) == bigger[3 : 3 + HEIGHT, 7 : 7 + WIDTH]).all()


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [
        # COCO's convention: the box from 1, 1 to 4, 3 is two rows of three pixels.
        ([1, 1, 4, 1, 4, 3, 1, 3], slice(1, 3), slice(1, 4)),
        ([0, 0, 5, 0, 5, 4, 0, 4], slice(0, 4), slice(0, 5)),
        ([0.5, 0.5, 3.5, 0.5, 3.5, 2.5, 0.5, 2.5], slice(0, 2), slice(0, 3)),
        ([-3, -3, 2, -3, 2, 7, -3, 7], slice(0, 4), slice(0, 2)),
    ],
)
def test_boxes(values: list[float], rows: slice, columns: slice) -> None:
    expected = np.zeros((4, 5), bool)
    expected[rows, columns] = True
    assert (rasterise([read_ring(values, 4, 5)], 4, 5) == expected).all()


def test_crossing_rings_are_even_odd_and_several_rings_are_united() -> None:
    outer = np.array([[0, 0], [9, 0], [9, 9], [0, 9]], float)
    inner = np.array([[3, 3], [6, 3], [6, 6], [3, 6]], float)
    assert rasterise([outer, inner], 9, 9).sum() == 81
    twice_round = np.concatenate([outer, inner])
    assert not rasterise([twice_round], 9, 9)[4, 4]
    assert rasterise([], 9, 9).sum() == 0


def test_thin_and_empty_rings_give_no_pixel() -> None:
    assert not rasterise([np.array([[1, 1], [5, 1], [3, 1]], float)], 8, 8).any()
    assert not rasterise([np.array([[50, 50], [60, 50], [55, 60]], float)], 8, 8).any()
    assert not rasterise([np.array([[2.6, 0], [2.9, 0], [2.9, 8], [2.6, 8]], float)], 8, 8).any()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2, 3, 4], "4 numbers; needed: x and y of at least three points"),
        ([1, 2, 3, 4, 5, 6, 7], "7 numbers"),
        ([], "0 numbers"),
        ("1,2,3", "is a text"),
        ([1, 2, 3, None, 5, 6], "holds null"),
        ([1, 2, 3, True, 5, 6], "holds true or false"),
        ([1, 2, 3, float("nan"), 5, 6], "far outside"),
        ([1, 2, 3, float("inf"), 5, 6], "far outside"),
        ([1, 2, 1e18, 4, 5, 6], "x = 1e.18, far outside"),
        ([1, 2, -(10**400), 4, 5, 6], "far outside"),
        ([1, 2, 1, 100, 5, 6], "y = 100, far outside"),
        ([0] * (2 * MAX_POINTS + 2), "at most 100000"),
    ],
)
def test_rings_that_are_none_are_refused(values: object, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_ring(values, 40, 50, where="a.json: annotation 1")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_ring_made_to_cost_time_costs_little() -> None:
    points = 4_000
    zigzag = np.stack([np.linspace(0, 1000, points), np.where(np.arange(points) % 2, 1000.0, 0.0)], axis=1)
    start = time.perf_counter()
    rasterise([zigzag], 1000, 1000)
    assert time.perf_counter() - start < 30


@settings(deadline=None, max_examples=30)
@given(rings)
def test_large_rings_are_worked_on_in_parts(ring: np.ndarray) -> None:
    from vlsm_adapter.data.importing import polygons

    whole = rasterise([ring], HEIGHT, WIDTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons, "_CROSSINGS", 5)
        patch.setattr(polygons, "_PIXELS", 70)
        assert (rasterise([ring], HEIGHT, WIDTH) == whole).all()
