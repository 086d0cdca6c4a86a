"""Polygons to masks, by one stated rule.

Coordinates are continuous, in pixels, x to the right and y down; the pixel of row r and column c is the square from
(c, r) to (c + 1, r + 1), as in COCO. A pixel is foreground where its centre (c + 0.5, r + 0.5) lies inside.

* Inside one ring is told by the even-odd rule: a ray from the centre crosses the ring an odd number of times. So where
  a ring crosses itself, what it goes round twice is outside.
* Several rings are united, as COCO does with the parts of one object; there are no holes.
* A centre on the ring itself belongs to the part on its right, or below it: of two polygons that share an edge,
  every pixel is in exactly one.

What lies outside of the image is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.entries import kind_of, shown
from vlsm_adapter.errors import DataError

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]

# No hand draws this many; it bounds the time that a polygon made to do harm can take.
MAX_POINTS = 100_000
# Crossings of edges and rows that are worked on at once; bounds the memory.
_CROSSINGS = 2_000_000
# Pixels likewise.
_PIXELS = 4_000_000


def read_ring(values: Any, height: int, width: int, *, where: str = "polygon") -> Ring:
    """``[x0, y0, x1, y1, ...]`` as float64 (N, 2) of x and y.

    Raises:
        DataError: not a list of numbers, fewer than three points, more than 100,000, a number that is not finite, or a
            point further outside of the image than the image is large.
    """
    if not isinstance(values, list):
        raise DataError(f"{where}: the polygon is {kind_of(values)}, not a list of numbers x, y, x, y, ...")
    if len(values) % 2 or len(values) < 6:
        raise DataError(f"{where}: a polygon of {len(values)} numbers; needed: x and y of at least three points")
    if len(values) > 2 * MAX_POINTS:
        raise DataError(f"{where}: a polygon of {len(values) // 2} points; at most {MAX_POINTS} are read")
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{where}: a polygon holds {kind_of(value)}, not numbers alone")
        extent = height if number % 2 else width
        # Compared before it becomes a float: a whole number of 400 digits has none. NaN fails as well.
        if not -extent <= value <= 2 * extent:
            raise DataError(
                f"{where}: the polygon has a point at {'y' if number % 2 else 'x'} = {shown(value)}, far outside of the image "
                f"({width} x {height} pixels): made for another image?"
            )
    return np.asarray(values, np.float64).reshape(-1, 2)


def rasterise(rings: Sequence[Ring], height: int, width: int) -> Mask:
    """The mask of one or more rings, bool (H, W); see the module for the rule.

    Args:
        rings: each float64 (N, 2) of x and y in pixels; closed by itself, whichever way round it goes.
        height, width: of the mask, in pixels.
    """
    mask = np.zeros((height, width), bool)
    for ring in rings:
        add_ring(mask, ring)
    return mask


def ring_area(ring: Ring) -> float:
    """The area inside of a ring that does not cross itself, in square pixels (shoelace formula)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def add_ring(mask: Mask, ring: Ring) -> None:
    """Set the pixels of ``mask`` whose centre is inside of ``ring``; the work is that of the ring's own box.

    Every edge toggles, in each row whose centre line it crosses, the first pixel whose centre is not left of the
    crossing; a pixel is inside where the number of toggles up to it is odd.
    """
    height, width = mask.shape
    start, end = ring, np.roll(ring, -1, axis=0)
    # Each edge from its upper to its lower end, so that two polygons compute the same crossings of a shared edge.
    swap = (start[:, 1] > end[:, 1])[:, None]
    upper, lower = np.where(swap, end, start), np.where(swap, start, end)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    crossed = last > first
    if not crossed.any():
        return
    upper, lower, first, last = upper[crossed], lower[crossed], first[crossed], last[crossed]
    top, bottom = int(first.min()), int(last.max())
    left = math.floor(min(max(float(ring[:, 0].min()), 0), width))
    right = math.ceil(max(min(float(ring[:, 0].max()), width), 0))
    if right <= left:
        return
    # Some rows at a time, so that a ring round the largest image that is read takes no more memory than one round a small one.
    step = max(1, _PIXELS // (right - left + 1))
    for row in range(top, bottom, step):
        stop = min(row + step, bottom)
        band = mask[row:stop, left:right]
        band |= _inside(upper, lower, np.clip(first, row, stop), np.clip(last, row, stop), row, stop, left, right)


def _inside(
    upper: Ring,
    lower: Ring,
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    top: int,
    bottom: int,
    left: int,
    right: int,
) -> Mask:
    """The pixels of rows ``top`` to ``bottom`` and columns ``left`` to ``right`` that are inside, (rows, columns)."""
    columns = right - left + 1
    toggles = np.zeros((bottom - top) * columns, np.int64)
    for edges, rows in _crossings(first, last):
        along = (rows + 0.5 - upper[edges, 1]) / (lower[edges, 1] - upper[edges, 1])
        x = upper[edges, 0] + along * (lower[edges, 0] - upper[edges, 0])
        column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
        toggles += np.bincount((rows - top) * columns + column, minlength=toggles.size)
    return np.cumsum(toggles.reshape(-1, columns), axis=1)[:, : right - left] % 2 == 1


def _crossings(
    first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(edge, row) of every row from ``first`` to before ``last`` of every edge, some millions at a time."""
    counts = last - first
    ends = np.cumsum(counts)
    done = 0
    while done < len(counts):
        before = int(ends[done - 1]) if done else 0
        # At least one edge at a time; an edge has at most as many rows as the image.
        stop = max(done + 1, int(np.searchsorted(ends, before + _CROSSINGS, side="right")))
        part = counts[done:stop]
        edges = np.repeat(np.arange(done, stop), part)
        rows = np.arange(int(part.sum())) - np.repeat(np.cumsum(part) - part, part) + first[edges]
        yield edges, rows
        done = stop
