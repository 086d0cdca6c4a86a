"""Placing labels beside points so that no label covers another, a point, or leaves the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Directions to try, the most readable first: right, left, above, below, then between.
_DIRECTIONS = tuple(math.radians(angle) for angle in (0, 180, 90, 270, 35, 145, 325, 215, 62, 118, 242, 298))
_DISTANCES = (1.0, 1.9, 3.0, 4.4, 6.0, 8.0)
# More labels than this are placed in one order alone: to try several would take seconds.
_MANY = 30
# Between a label and one beside it: less reads as one name.
_SPACE = 2.5


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in points of the picture."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, frame: Box) -> float:
        """Area outside ``frame``."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(frame)

    def moved_into(self, frame: Box) -> Box:
        """Of the same size inside ``frame``, at its edge where it was outside; as it is along a side where it is too long."""
        right, up = 0.0, 0.0
        if self.right - self.left <= frame.right - frame.left:
            right = max(frame.left - self.left, 0.0) + min(frame.right - self.right, 0.0)
        if self.top - self.bottom <= frame.top - frame.bottom:
            up = max(frame.bottom - self.bottom, 0.0) + min(frame.top - self.top, 0.0)
        return Box(self.left + right, self.bottom + up, self.right + right, self.top + up)

    def grown(self, by: float) -> Box:
        """Larger on every side."""
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    *,
    gap: float = 4.6,
    point_radius: float = 3.5,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """A place for every label.

    Args:
        points: what is labelled, (n, 2).
        sizes: width and height of each label.
        frame: what labels stay in.
        gap: from a point to its nearest place.
        point_radius: of the drawn points, which labels keep off.
        obstacles: what else they keep off.

    Returns:
        The rectangle of each label, in the order of ``points``. Deterministic.
    """
    discs = [Box(x, y, x, y).grown(point_radius) for x, y in points]
    everyone = range(len(points))

    def alone(index: int, number: int, box: Box, distance: float) -> float:
        total = 0.15 * distance + 0.02 * number  # near and readable, where there is room
        total += 4.0 * box.outside(frame)
        total += sum(8.0 * box.grown(0.8).overlap(disc) for other, disc in enumerate(discs) if other != index)
        total += 6.0 * box.overlap(discs[index])
        total += sum(2.0 * box.overlap(obstacle) for obstacle in obstacles)
        # Nearer to another point than to its own, it would be read as that one's.
        own = math.dist(_nearest(box, points[index]), points[index])
        return total + sum(12.0 for point in points if math.dist(_nearest(box, point), point) < own - 0.5)

    options: list[list[tuple[float, Box]]] = []
    for index, (point, size) in enumerate(zip(points, sizes, strict=True)):
        places = [
            (alone(index, number, box, distance), box)
            for number, (out, distance) in enumerate(_places(point, size, gap))
            if (box := out.moved_into(frame))
        ]
        options.append(sorted(places, key=lambda place: place[0]))

    def among(index: int, box: Box, chosen: Sequence[Box]) -> float:
        mine = (points[index], _nearest(box, points[index]))
        wide, total = Box(box.left - _SPACE, box.bottom - 0.8, box.right + _SPACE, box.top + 0.8), 0.0
        for other, place in enumerate(chosen):
            if other != index:
                total += 4.0 * wide.overlap(place)
                # Lines to their points that cross mislead; one through another's name reads as that one's.
                theirs = (points[other], _nearest(place, points[other]))
                total += 25.0 * _cross(*mine, *theirs)
                total += 15.0 * (_through(place, *mine) + _through(box, *theirs))
        return total

    def best(index: int, chosen: Sequence[Box]) -> tuple[float, Box]:
        found, where = math.inf, options[index][0][1]
        for cost, box in options[index]:
            if cost >= found:  # the others are no better even by themselves
                break
            total = cost + among(index, box, chosen)
            if total < found:
                found, where = total, box
        return found, where

    # A few rounds of each moving to its best place settle it, differently in another order: the best of several is kept.
    crowd = [sum(math.dist(point, other) < 40 for other in points) for point in points]
    orders = [
        sorted(everyone, key=lambda i: -crowd[i]),
        sorted(everyone, key=lambda i: crowd[i]),
        sorted(everyone, key=lambda i: points[i]),
        sorted(everyone, key=lambda i: points[i], reverse=True),
        sorted(everyone, key=lambda i: -points[i][1]),
    ]
    results: list[tuple[float, list[Box]]] = []
    for order in orders if len(points) <= _MANY else orders[:1]:
        chosen = [places[0][1] for places in options]
        for _ in range(8):
            before = list(chosen)
            for index in order:
                chosen[index] = best(index, chosen)[1]
            if chosen == before:
                break
        results.append((sum(best(index, chosen)[0] for index in everyone), chosen))
    return min(results, key=lambda result: result[0])[1]


def leader(box: Box, point: tuple[float, float], *, longest: float = 7.0) -> tuple[float, float] | None:
    """Where a line from ``point`` meets its label; None where it is near enough to need none."""
    end = _nearest(box, point)
    return end if math.dist(end, point) > longest else None


def _places(point: tuple[float, float], size: tuple[float, float], gap: float) -> list[tuple[Box, float]]:
    x, y = point
    width, height = size
    found = []
    for factor in _DISTANCES:
        for angle in _DIRECTIONS:
            reach = gap * factor
            # The label's near side, not its middle, is at this distance.
            centre_x = x + math.cos(angle) * reach + (0.5 * width * _sign(math.cos(angle)))
            centre_y = y + math.sin(angle) * reach + (0.5 * height * _sign(math.sin(angle)))
            box = Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            found.append((box, reach))
    return found


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-6 else math.copysign(1.0, value)


def _nearest(box: Box, point: tuple[float, float]) -> tuple[float, float]:
    return min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top)


def _through(box: Box, a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether the line from ``a`` to ``b`` runs through the inside of ``box`` (Liang and Barsky, 1984)."""
    enters, leaves = 0.0, 1.0
    for start, end, low, high in ((a[0], b[0], box.left, box.right), (a[1], b[1], box.bottom, box.top)):
        if start == end:
            if not low < start < high:
                return False
            continue
        one, other = sorted(((low - start) / (end - start), (high - start) / (end - start)))
        enters, leaves = max(enters, one), min(leaves, other)
    return leaves - enters > 1e-9


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
