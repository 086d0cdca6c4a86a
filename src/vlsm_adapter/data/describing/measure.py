"""What a mask shows, in words: shape, colour, size, number and position, or None where readers could differ.

Every word has a threshold and a margin around it in which nothing is said. Components (8-connected) too small to count
are specks; those between speck and finding are doubtful, and then only what holds with and without them is said.
Positions are those of the picture: left is the viewer's left, not the patient's.

=============  ======================================================================================================
word           said when (constants of this module)
=============  ======================================================================================================
speck          a component below 16 px, 0.02 % of the image or 1 % of the largest component; doubtful below twice that
number         components that count, up to nine; None where closing gaps below 2 % of the largest finding's longer side
               (at least 2 px), or cutting necks as narrow, changes it
round          IoU with the ellipse of equal second moments >= 0.87 and long axis <= 1.25 x short axis
oval           the same IoU, long axis from 1.3 to 2.5 x short axis
elongated      solidity >= 0.9, long axis >= 3 x short axis
rectangular    IoU with the rectangle of equal second moments and the same area >= 0.93, long axis <= 2.5 x short axis
irregular      solidity <= 0.85 (share of its own convex hull)
small          below 2.17 % of the image (2.5 % / 1.15)
medium         from 2.88 % (2.5 % x 1.15) to 8.7 % (10 % / 1.15)
large          from 11.5 % (10 % x 1.15)
position       cell of the 3 x 3 grid that holds both the centroid, at least 2 % of the side away from the grid's lines,
               and the middle of the bounding box
colour         colour pictures: nearest basic colour term to the median, 4 Delta E*ab before the next, within 30, and
               nearest for half of the pixels; grey pictures: dark or bright when the mean is at least 10 grey levels
               from that of the ring 1.2 % to 5 % of the shorter side around (at least 2 to 8 px)
=============  ======================================================================================================

Of several findings a shape, size or colour is said only if it is true of each one (size: and of all together). Of a
mask of more than 64 findings nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from vlsm_adapter.data.describing.colours import BASIC, contrast, lab, nearest_word

SHAPES = ("round", "oval", "elongated", "rectangular", "irregular")
SIZES = ("small", "medium", "large")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
#: The nine places in reading order, the middle one "center".
POSITIONS = tuple(f"{row} {column}".strip() or "center" for row in ROWS for column in COLUMNS)
GREY_WORDS = ("dark", "bright")
COLOURS = tuple(dict.fromkeys(word for word, _ in BASIC))

SPECK_PIXELS = 16
SPECK_OF_IMAGE = 0.0002
SPECK_OF_LARGEST = 0.01
DOUBTFUL = 2.0
GAP = 0.01
ELLIPSE_IOU = 0.87
RECTANGLE_IOU = 0.93
ROUND_TO, OVAL_FROM, OVAL_TO, ELONGATED_FROM = 1.25, 1.3, 2.5, 3.0
CONVEX_FROM, IRREGULAR_TO = 0.9, 0.85
SHAPE_PIXELS = 100
SMALL_BELOW, LARGE_FROM, SIZE_MARGIN = 0.025, 0.10, 1.15
POSITION_MARGIN = 0.02
COLOUR_MARGIN, COLOUR_REACH, COLOUR_SHARE = 4.0, 30.0, 0.5
GREY_CHROMA = 4.0
GREY_DIFFERENCE = 10.0
RING, RING_LEAST = (0.012, 0.05), (2.0, 8.0)
MANY = 64
NECK_SHARE = 0.05
_SAMPLE = 20_000
_FIT_SIDE = 512
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True, slots=True)
class Finding:
    """One component that counts.

    Attributes:
        area: pixels.
        centre: centroid (row, column) in pixels, pixel centres at whole numbers.
        shape, size, position, colour: words of the table above, or None.
        doubtful: so small that a reader may take it for a speck.
    """

    area: int
    centre: tuple[float, float]
    shape: str | None
    size: str | None
    position: str | None
    colour: str | None
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """What may be said of a mask; None (for positions: empty) where nothing is.

    Attributes:
        number: findings, 0 for a mask without any.
        shape, colour, size: true of every finding.
        positions: the places of all findings, each once, in reading order.
        specks: components too small to count.
        findings: the measured components, largest first.
    """

    number: int | None
    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    positions: tuple[str, ...] = ()
    specks: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to find at all: no component counts, none is doubtful."""
        return self.number == 0 and not self.findings


def describe(mask: NDArray[np.bool_], image: NDArray[np.uint8] | None = None) -> Words:
    """Measure a mask.

    Args:
        mask: bool (H, W).
        image: uint8 (H, W, 3) or (H, W); without it no colour is said.
    """
    labels, count = ndimage.label(mask, structure=_EIGHT)
    if not count:
        return Words(0)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    limit = speck_limit(mask.size, int(areas.max()))
    counted = [int(index) for index in np.argsort(-areas, kind="stable") if areas[index] >= limit]
    specks = count - len(counted)
    if len(counted) > MANY:
        return Words(None, specks=specks)
    boxes = ndimage.find_objects(labels)
    grey = _grey(image)
    findings = [
        Finding(
            area=int(areas[index]),
            shape=shape_word(region),
            size=size_word(areas[index] / mask.size),
            colour=None if image is None else _colour(labels, index + 1, boxes[index], image, grey),
            doubtful=bool(areas[index] < DOUBTFUL * limit),
            **_place(region, boxes[index], mask.shape),
        )
        for index in counted
        for region in [labels[boxes[index]] == index + 1]
    ]
    readings = [_together(findings, mask.size)]
    if sure := [finding for finding in findings if not finding.doubtful]:
        readings.append(_together(sure, mask.size))
    number, shape, colour, size, positions = (
        one if one == other else None for one, other in zip(readings[0], readings[-1], strict=True)
    )
    plain = number is not None and number < len(NUMBERS) and _number_is_plain(labels, boxes, counted)
    return Words(number if plain else None, shape, colour, size, positions or (), specks, tuple(findings))


def speck_limit(pixels: int, largest: int) -> float:
    """The area in pixels below which a component of a mask of ``pixels`` does not count."""
    # A mask that is one small thing is that thing, however small: nothing is a speck beside itself.
    return min(max(SPECK_PIXELS, SPECK_OF_IMAGE * pixels, SPECK_OF_LARGEST * largest), max(largest / DOUBTFUL, 1))


def size_word(share: float) -> str | None:
    """The size of an area that is ``share`` (0 to 1) of the image."""
    if share * SIZE_MARGIN < SMALL_BELOW:
        return "small"
    if share >= SMALL_BELOW * SIZE_MARGIN and share * SIZE_MARGIN < LARGE_FROM:
        return "medium"
    return "large" if share >= LARGE_FROM * SIZE_MARGIN else None


def grid_word(down: float, across: float, margin: float = 0.0) -> str | None:
    """The cell of the 3 x 3 grid at (``down``, ``across``), each from 0 to 1; None within ``margin`` of a line."""
    cells = []
    for value in (down, across):
        # A hair more than the margin, so that rounding cannot tell a place from its mirror image.
        if margin and min(abs(value - 1 / 3), abs(value - 2 / 3)) < margin + 1e-9:
            return None
        cells.append(0 if value < 1 / 3 else 1 if value <= 2 / 3 else 2)
    return POSITIONS[3 * cells[0] + cells[1]]


def _place(region: NDArray[np.bool_], box: tuple[slice, slice], shape: tuple[int, ...]) -> dict[str, Any]:
    """``centre`` and ``position`` of one component: ``region`` is its bounding box, at ``box`` in a picture of ``shape``.

    The position is None where centroid and middle of the box lie in different cells, or the centroid near a line.
    """
    rows, columns = np.nonzero(region)
    centre = float(rows.mean()) + box[0].start, float(columns.mean()) + box[1].start
    by_centroid = grid_word((centre[0] + 0.5) / shape[0], (centre[1] + 0.5) / shape[1], POSITION_MARGIN)
    down, across = ((part.start + part.stop) / 2 / side for part, side in zip(box, shape, strict=True))
    by_box = grid_word(down, across)
    return {"centre": centre, "position": by_centroid if by_centroid == by_box else None}


@dataclass(frozen=True, slots=True)
class Moments:
    """Centre and second moments of a region; its ellipse and rectangle of equal second moments.

    Attributes:
        area: pixels.
        row, column: centroid, pixel centres at whole numbers.
        rows, both, columns: second central moments, [[rows, both], [both, columns]], of pixels that are unit squares.
    """

    area: int
    row: float
    column: float
    rows: float
    both: float
    columns: float

    @classmethod
    def of(cls, region: NDArray[np.bool_]) -> Moments:
        """Measure ``region``, bool (H, W) and not empty."""
        rows, columns = np.nonzero(region)
        row, column = float(rows.mean()), float(columns.mean())
        down, across = rows - row, columns - column
        # 1/12 is the second moment of a pixel's own square.
        return cls(
            area=len(rows),
            row=row,
            column=column,
            rows=float(np.mean(down**2)) + 1 / 12,
            both=float(np.mean(down * across)),
            columns=float(np.mean(across**2)) + 1 / 12,
        )

    @property
    def axes(self) -> tuple[float, float]:
        """Variances along the long and the short axis, in square pixels."""
        middle = (self.rows + self.columns) / 2
        half = float(np.hypot((self.rows - self.columns) / 2, self.both))
        return middle + half, max(middle - half, 1e-9)

    @property
    def axis_ratio(self) -> float:
        """Long by short axis, >= 1."""
        long, short = self.axes
        return float(np.sqrt(long / short))

    def ellipse(self, height: int, width: int, pad: int = 0) -> NDArray[np.bool_]:
        """The pixels (height + 2 pad, width + 2 pad) inside the ellipse of these moments."""
        y, x = self._grid(height, width, pad)
        a, b, c = self.rows, self.both, self.columns
        # v' S^-1 v <= 4, written out for the 2 x 2 matrix S.
        return (c * y * y - 2 * b * y * x + a * x * x) <= 4 * (a * c - b * b)

    def rectangle(self, height: int, width: int, pad: int = 0) -> NDArray[np.bool_]:
        """The pixels inside the rectangle of this centre, direction, axis ratio and area."""
        y, x = self._grid(height, width, pad)
        long, short = self.axes
        angle = 0.5 * np.arctan2(2 * self.both, self.columns - self.rows)
        scale = np.sqrt(self.area / (12 * np.sqrt(long * short)))
        along, aside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        # A side of length 2h has the variance h^2 / 3.
        return (np.abs(along) <= scale * np.sqrt(3 * long)) & (np.abs(aside) <= scale * np.sqrt(3 * short))

    def _grid(self, height: int, width: int, pad: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        y = np.arange(-pad, height + pad)[:, None] - self.row
        return y, np.arange(-pad, width + pad)[None, :] - self.column


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """IoU of two masks of one shape; 0 where both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def solidity(region: NDArray[np.bool_]) -> float:
    """Pixels of ``region`` by pixels whose centres lie in its convex hull, in (0, 1]; 1 for digitally convex regions."""
    rows = np.flatnonzero(region.any(axis=1))
    first = region[rows].argmax(axis=1)
    last = region.shape[1] - 1 - region[rows][:, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)])
    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError):
        return 1.0  # all on one line
    corners = points[hull.vertices]
    steps = np.abs(np.roll(corners, -1, axis=0) - corners)
    # Pick's theorem: lattice points in a lattice polygon = area + boundary points / 2 + 1.
    inside = hull.volume + np.gcd(steps[:, 0], steps[:, 1]).sum() / 2 + 1
    return float(np.count_nonzero(region) / inside)


def shape_word(region: NDArray[np.bool_]) -> str | None:
    """The shape of one component, given in its bounding box; None below 100 pixels or between shapes."""
    if np.count_nonzero(region) < SHAPE_PIXELS:
        return None
    convexity = solidity(region)
    if convexity <= IRREGULAR_TO:
        return "irregular"
    fill = np.count_nonzero(region) / region.size
    region = _every(region, max(1, max(region.shape) // _FIT_SIDE))
    height, width = region.shape
    moments = Moments.of(region)
    ratio = moments.axis_ratio
    if convexity >= CONVEX_FROM and ratio >= ELONGATED_FROM:
        return "elongated"
    if ratio > OVAL_TO:
        return None
    pad = int(2 * np.sqrt(moments.axes[0])) + 2  # the figures reach beyond the box
    padded = np.pad(region, pad)
    if overlap(padded, moments.ellipse(height, width, pad)) >= ELLIPSE_IOU:
        return "round" if ratio <= ROUND_TO else "oval" if ratio >= OVAL_FROM else None
    # The moments of a square have no direction, so the box's own is asked as well.
    if max(fill, overlap(padded, moments.rectangle(height, width, pad))) >= RECTANGLE_IOU:
        return "rectangular"
    return None


def _every(array: NDArray[Any], step: int) -> NDArray[Any]:
    return array[step // 2 :: step, step // 2 :: step] if step > 1 else array


def _number_is_plain(labels: NDArray[np.int32], boxes: Sequence[tuple[slice, slice]], counted: Sequence[int]) -> bool:
    """Whether the components stay as many when narrow gaps are closed and narrow necks are cut."""
    if not counted:
        return True
    chosen = [boxes[index] for index in counted]
    rows, columns = (
        slice(min(box[axis].start for box in chosen), max(box[axis].stop for box in chosen)) for axis in (0, 1)
    )
    step = max(1, max(rows.stop - rows.start, columns.stop - columns.start) // _FIT_SIDE)
    window = np.pad(_every(labels[rows, columns], step), 1)
    window[~np.isin(window, [index + 1 for index in counted])] = 0
    largest = max(part.stop - part.start for box in chosen for part in box)
    radius = max(1.0, GAP * largest / step)
    if len(counted) > 1:
        near = ndimage.distance_transform_edt(window == 0) <= radius
        if ndimage.label(near, structure=_EIGHT)[1] < len(counted):
            return False
    cores, number = ndimage.label(ndimage.distance_transform_edt(window > 0) > radius, structure=_EIGHT)
    if number < 2:
        return True
    areas = np.bincount(cores.ravel(), minlength=number + 1)[1:]
    owners = ndimage.maximum(window, cores, np.arange(1, number + 1))
    for owner in set(owners):
        parts = np.sort(areas[owners == owner])[::-1]
        # A core of a few pixels is a bump, not a part.
        if len(parts) > 1 and parts[1] >= max(SPECK_PIXELS, NECK_SHARE * parts[0]):
            return False
    return True


def _together(findings: Sequence[Finding], pixels: int) -> tuple[Any, ...]:
    """(number, shape, colour, size, positions) of ``findings`` in a picture of ``pixels``, as one reader gives them."""
    if not findings:
        return 0, None, None, None, ()
    shape, colour, size = (
        shared([getattr(finding, name) for finding in findings]) for name in ("shape", "colour", "size")
    )
    if size != size_word(sum(finding.area for finding in findings) / pixels):
        size = None
    places = {finding.position for finding in findings}
    positions = () if None in places else tuple(sorted((place for place in places if place), key=POSITIONS.index))
    return len(findings), shape, colour, size, positions


def shared(words: Sequence[str | None]) -> str | None:
    """The one word that all of ``words`` are, or None."""
    return words[0] if len(set(words)) == 1 else None


def _colour(
    labels: NDArray[np.int32],
    label: int,
    box: tuple[slice, slice],
    image: NDArray[np.uint8],
    grey: NDArray[np.uint8] | None,
) -> str | None:
    """The colour of one component; ``grey`` is the picture where it is grey."""
    if grey is not None:
        short = min(labels.shape)
        inner, outer = max(RING_LEAST[0], RING[0] * short), max(RING_LEAST[1], RING[1] * short)
        reach = int(np.ceil(outer))
        wide = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in box)
        window = labels[wide]
        difference = contrast(window == label, grey[wide], inner=inner, outer=outer, exclude=window > 0)
        if difference is None or abs(difference) < GREY_DIFFERENCE:
            return None
        return GREY_WORDS[int(difference > 0)]
    pixels = image[box][labels[box] == label]
    pixels = pixels[:: -(-len(pixels) // _SAMPLE)]
    word = nearest_word(np.median(pixels, axis=0), BASIC, margin=COLOUR_MARGIN, reach=COLOUR_REACH)
    if word is None:
        return None
    points, references = lab(pixels), lab(np.array([reference for _, reference in BASIC]))
    nearest = ((points[:, None] - references[None]) ** 2).sum(axis=2).argmin(axis=1)
    same = np.array([name == word for name, _ in BASIC])
    return word if same[nearest].mean() >= COLOUR_SHARE else None


def _grey(image: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """The grey picture (H, W) where the image has no colour to speak of, else None."""
    if image is None:
        return None
    if image.ndim == 2:
        return image
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / _SAMPLE)))
    spread = np.ptp(image[::step, ::step].astype(np.int16), axis=2)
    return image[..., 1] if float(spread.mean()) < GREY_CHROMA else None
