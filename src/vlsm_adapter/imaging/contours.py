"""Outlines of masks as GeoJSON (RFC 7946): exact polygons along the edges of pixels.

Coordinates are pixels of the picture as shown, ``[x, y]``: x to the right, y down, (0, 0) the outer corner of the first pixel,
so that the pixel of row r and column c is the square from (c, r) to (c + 1, r + 1). Filling the polygons gives the mask back
pixel by pixel. Rings are closed and simple: no ring meets itself. Outer rings run in the direction of positive area in
(x, y), which RFC 7946 calls counterclockwise for a y that points up; holes run the other way.

A mask has a feature for every connected component (8 neighbours): a polygon, or several where parts touch at corners
only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter import files
from vlsm_adapter.imaging.base import Spacing, Stack
from vlsm_adapter.imaging.postprocess import bounding_box, components

Ring = list[tuple[int, int]]
CONVENTION = (
    "pixels of the picture as shown: x to the right, y down, (0, 0) the outer corner of the first pixel; "
    "pixel (row r, column c) is the square from (c, r) to (c + 1, r + 1)"
)


def features(
    mask: npt.NDArray[np.bool_], *, prompt: str, picture: int, spacing: Spacing | None = None
) -> list[dict[str, Any]]:
    """GeoJSON features of ``mask``, bool (H, W), one per connected component, none for an empty mask.

    Args:
        mask: the mask.
        prompt: goes into the properties.
        picture: its number in its stack, counted from 0, as well.
        spacing: adds ``area_mm2``.
    """
    if not mask.any():
        return []
    rows, columns = bounding_box(mask)
    part = mask[rows, columns]
    numbers, count = components(part)
    outlines = polygons(part, at=(columns.start, rows.start))
    grouped: dict[int, list[list[Ring]]] = {number: [] for number in range(1, count + 1)}
    for (row, column), rings in outlines:
        grouped[int(numbers[row, column])].append(rings)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    found = []
    for number, of_component in grouped.items():
        pixels = int(sizes[number])
        properties: dict[str, Any] = {"prompt": prompt, "picture": picture, "component": number, "area_px": pixels}
        if spacing is not None:
            properties["area_mm2"] = round(pixels * spacing.pixel_mm2, 6)
        single = len(of_component) == 1
        found.append(
            {
                "type": "Feature",
                "properties": properties,
                "geometry": {
                    "type": "Polygon" if single else "MultiPolygon",
                    "coordinates": of_component[0] if single else of_component,
                },
            }
        )
    return found


def collection(stack: Stack, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A GeoJSON FeatureCollection of the features of ``stack``, with what its coordinates mean."""
    spacing = stack.spacing
    return {
        "type": "FeatureCollection",
        "vlsm_adapter": {
            "coordinates": CONVENTION,
            "image": [str(path.name) for path in stack.paths],
            "size": list(stack.size),
            "pictures": stack.count,
            "spacing_mm": None if spacing is None else {"row": spacing.row, "column": spacing.column},
        },
        "features": found,
    }


def write(path: Path, stack: Stack, found: list[dict[str, Any]]) -> None:
    """Write the collection of :func:`features` found, atomically: a line each.

    Raises:
        UserError: the file cannot be written.
    """
    head = json.dumps({**collection(stack, []), "features": None}, ensure_ascii=False)
    lines = ",\n".join(json.dumps(feature, ensure_ascii=False, separators=(",", ":")) for feature in found)
    files.write_text(path, head.removesuffix("null}") + (f"[\n{lines}\n]}}\n" if found else "[]}\n"))


def polygons(mask: npt.NDArray[np.bool_], at: tuple[int, int] = (0, 0)) -> list[tuple[tuple[int, int], list[Ring]]]:
    """Polygons of ``mask``, bool (H, W), one per part that is connected by edges (4 neighbours).

    Args:
        mask: the mask.
        at: added to every (x, y).

    Returns:
        For each polygon a pixel (row, column) of it, and its rings: the outer one first, then its holes. Of each ring the
        corners alone, the first repeated at the end.
    """
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    outer: list[Ring] = [[] for _ in range(count)]
    holes: list[list[Ring]] = [[] for _ in range(count)]
    inside: list[tuple[int, int]] = [(0, 0)] * count
    for pixel, ring in _rings(mask):
        part = int(parts[pixel]) - 1
        closed = [(x + at[0], y + at[1]) for x, y in (*ring, ring[0])]
        if _doubled_area(ring) > 0:
            outer[part], inside[part] = closed, pixel
        else:
            holes[part].append(closed)
    return [(inside[part], [outer[part], *holes[part]]) for part in range(count)]


# -- following the edges -------------------------------------------------------------------------------------------------

# Directions: 0 right, 1 down, 2 left, 3 up. An edge has the foreground at its right hand as seen on the screen, so that the
# outer ring runs right along the top of a pixel, then down: positive area in (x, y).
_STRAIGHT = {1: 0, 2: 1, 4: 2, 8: 3}


def _rings(mask: npt.NDArray[np.bool_]) -> list[tuple[tuple[int, int], Ring]]:
    """Simple rings around ``mask`` as corners (x, y), each with a foreground pixel (row, column) at it."""
    width = mask.shape[1] + 1  # vertices in a row; a vertex is its number in reading order
    step = (1, width, -1, -width)
    leaving = bytearray(_edges(mask).tobytes())
    found: list[tuple[tuple[int, int], Ring]] = []
    # A ring has a corner at its top left, from which an edge goes right and none arrives from the left.
    right = np.frombuffer(bytes(leaving), np.uint8).reshape(-1, width) & 1
    starts = np.flatnonzero(right & ~np.pad(right, ((0, 0), (1, 0)))[:, :-1])
    for start in starts.tolist():
        if not leaving[start] & 1:
            continue  # its ring has been followed
        loop: list[tuple[int, int]] = []
        vertex, direction = start, 0
        while leaving[vertex] & (1 << direction):
            leaving[vertex] &= ~(1 << direction)
            loop.append((vertex, direction))
            vertex += step[direction]
            left = leaving[vertex]
            # At most two edges leave. To the right first: where two pixels touch at a corner, the ring stays at its own.
            direction = _STRAIGHT[left] if left in _STRAIGHT else (direction + 1) % 4
        found += _simple(loop, width)
    return found


def _edges(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """uint8 (H + 1, W + 1): for each vertex the directions in which an edge leaves it, as bits."""
    height, width = mask.shape
    around = np.pad(mask, 1)
    middle = around[1:-1, 1:-1]
    leaving = np.zeros((height + 1, width + 1), np.uint8)
    leaving[:-1, :-1] |= middle & ~around[:-2, 1:-1]  # right along the top
    leaving[:-1, 1:] |= (middle & ~around[1:-1, 2:]).astype(np.uint8) << 1  # down the right side
    leaving[1:, 1:] |= (middle & ~around[2:, 1:-1]).astype(np.uint8) << 2  # back along the bottom
    leaving[1:, :-1] |= (middle & ~around[1:-1, :-2]).astype(np.uint8) << 3  # up the left side
    return leaving


def _simple(loop: list[tuple[int, int]], width: int) -> list[tuple[tuple[int, int], Ring]]:
    """A closed loop of edges (vertex, direction) as rings that pass no vertex twice, each with a pixel at its first edge."""
    found: list[tuple[tuple[int, int], Ring]] = []
    path: list[tuple[int, int]] = []
    place: dict[int, int] = {}
    for edge in (*loop, loop[0]):
        start = place.get(edge[0])
        if start is not None:
            cut = path[start:]
            del path[start:]
            for vertex, _ in cut:
                del place[vertex]
            corners = [vertex for number, (vertex, direction) in enumerate(cut) if direction != cut[number - 1][1]]
            found.append((_pixel_at(*cut[0], width), [(vertex % width, vertex // width) for vertex in corners]))
        place[edge[0]] = len(path)
        path.append(edge)
    return found


def _pixel_at(vertex: int, direction: int, width: int) -> tuple[int, int]:
    """(row, column) of the foreground pixel beside an edge."""
    return vertex // width - (direction in (2, 3)), vertex % width - (direction in (1, 2))


def _doubled_area(ring: Ring) -> int:
    return sum(
        x * ring[(number + 1) % len(ring)][1] - ring[(number + 1) % len(ring)][0] * y
        for number, (x, y) in enumerate(ring)
    )
