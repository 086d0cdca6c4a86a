"""Outlines as GeoJSON: filling them gives the mask back, and rings are what the format asks for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlsm_adapter.imaging.base import Spacing
from vlsm_adapter.imaging.contours import features, polygons, write


def noise(height: int, width: int, density: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < density


# By seed: drawing every pixel from hypothesis is a hundred times slower.
masks = st.builds(noise, st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32))


def rasterised(rings: list[list[Any]], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside by the even-odd rule: crossings of a ray to the right."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            assert (x0 == x1) != (y0 == y1), "an edge runs along pixels"
            if x0 == x1:
                inside ^= (rows > min(y0, y1)) & (rows < max(y0, y1)) & (columns < x0)
    return inside


def area(ring: list[Any]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


RING_THAT_TOUCHES_ITSELF = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]], bool)
TWO_HOLES_AT_A_CORNER = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool)
CLOSED_BY_A_CORNER = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)


@settings(max_examples=150, deadline=None)
@given(masks)
@example(RING_THAT_TOUCHES_ITSELF)
@example(TWO_HOLES_AT_A_CORNER)
@example(CLOSED_BY_A_CORNER)
def test_filling_gives_the_mask_back(mask: np.ndarray) -> None:
    filled = np.zeros(mask.shape, int)
    for pixel, rings in polygons(mask):
        part = rasterised(rings, mask.shape)
        assert part[pixel]
        filled += part
    assert np.array_equal(filled, mask.astype(int)), "polygons overlap or miss pixels"


@settings(max_examples=150, deadline=None)
@given(masks)
@example(RING_THAT_TOUCHES_ITSELF)
@example(TWO_HOLES_AT_A_CORNER)
def test_rings_are_simple_closed_and_wound_right(mask: np.ndarray) -> None:
    for _, rings in polygons(mask):
        for number, ring in enumerate(rings):
            assert ring[0] == ring[-1]
            assert len(set(ring[:-1])) == len(ring) - 1 >= 4, "a ring passes a point twice"
            assert (area(ring) > 0) == (number == 0), "outer rings run one way, holes the other"
            turns = [(ring[i][0] == ring[i - 1][0]) != (ring[i + 1][0] == ring[i][0]) for i in range(1, len(ring) - 1)]
            assert all(turns), "only corners are listed"


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 3))
def test_features_are_components(mask: np.ndarray, border: int) -> None:
    from scipy import ndimage

    padded = np.pad(mask, border)
    found = features(padded, prompt="polyp", picture=2, spacing=Spacing(0.5, 2.0))
    labels, count = ndimage.label(padded, np.ones((3, 3)))
    assert len(found) == count
    for feature in found:
        properties, geometry = feature["properties"], feature["geometry"]
        single = geometry["type"] == "Polygon"
        parts = [geometry["coordinates"]] if single else geometry["coordinates"]
        filled = np.any([rasterised(rings, padded.shape) for rings in parts], axis=0)
        assert np.array_equal(filled, labels == labels[filled][0])
        assert properties["area_px"] == filled.sum() == sum(area(ring) for rings in parts for ring in rings)
        assert properties["area_mm2"] == filled.sum() * 1.0
        assert (properties["prompt"], properties["picture"]) == ("polyp", 2)


def test_one_pixel_is_its_square() -> None:
    mask = np.zeros((5, 7), bool)
    mask[2, 4] = True
    (feature,) = features(mask, prompt="a", picture=0)
    assert feature["geometry"] == {"type": "Polygon", "coordinates": [[(4, 2), (5, 2), (5, 3), (4, 3), (4, 2)]]}
    assert "area_mm2" not in feature["properties"]


def test_the_file_is_json_and_says_what_coordinates_mean(tmp_path: Path) -> None:
    stack = SimpleNamespace(paths=(Path("a.png"),), size=(5, 7), count=1, spacing=None)
    mask = np.eye(5, 7, dtype=bool)
    write(tmp_path / "a.geojson", stack, features(mask, prompt='pölyp "x"', picture=0))  # type: ignore[arg-type]
    found = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert found["type"] == "FeatureCollection"
    assert found["features"][0]["geometry"]["type"] == "MultiPolygon"
    assert found["features"][0]["properties"]["prompt"] == 'pölyp "x"'
    assert "pixel" in found["vlsm_adapter"]["coordinates"]
    assert found["vlsm_adapter"]["spacing_mm"] is None
    write(tmp_path / "none.geojson", stack, [])  # type: ignore[arg-type]
    assert json.loads((tmp_path / "none.geojson").read_text(encoding="utf-8"))["features"] == []
