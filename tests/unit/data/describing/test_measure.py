"""Words of a mask: true by an independent reading, silent at the border, turned and mirrored with the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.describing import measure
from vlsm_adapter.data.describing.colours import BASIC, lab
from vlsm_adapter.data.describing.measure import POSITIONS, describe, size_word, solidity, speck_limit


@dataclass(frozen=True)
class Drawn:
    """An ellipse or rectangle: centre and half sides in pixels, angle in degrees."""

    kind: str
    row: float
    column: float
    long: float
    short: float
    angle: float

    def on(self, height: int, width: int) -> np.ndarray:
        rows, columns = np.mgrid[:height, :width]
        angle = math.radians(self.angle)
        down, across = rows - self.row, columns - self.column
        along = across * math.cos(angle) + down * math.sin(angle)
        aside = down * math.cos(angle) - across * math.sin(angle)
        if self.kind == "ellipse":
            return (along / self.long) ** 2 + (aside / self.short) ** 2 <= 1
        return (np.abs(along) <= self.long) & (np.abs(aside) <= self.short)


@st.composite
def figures(draw: st.DrawFn, kind: str = "ellipse") -> tuple[tuple[int, int], Drawn]:
    """A figure that lies whole in a picture, large enough to have a shape."""
    height, width = draw(st.integers(60, 220)), draw(st.integers(60, 220))
    corner = 1.0 if kind == "ellipse" else math.sqrt(2)
    long = draw(st.floats(10, (min(height, width) / 2 - 4) / corner))
    short = draw(st.floats(max(5.0, long / 6), long))
    reach = corner * long + 1
    row, column = draw(st.floats(reach, height - reach - 1)), draw(st.floats(reach, width - reach - 1))
    return (height, width), Drawn(kind, row, column, long, short, draw(st.floats(0, 180)))


def reading_of_place(mask: np.ndarray) -> tuple[str, float]:
    """The 3 x 3 place by centre of mass, found by counting, and how far (in parts of a side) the nearest line is."""
    words, room = [], 1.0
    for axis, names in ((1, ("top", "", "bottom")), (0, ("left", "", "right"))):
        profile = mask.sum(axis=axis).astype(float)
        where = float((profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()) / len(profile)
        words.append(names[min(int(where * 3), 2)])
        room = min(room, abs(where - 1 / 3), abs(where - 2 / 3))
    return " ".join(word for word in words if word) or "center", room


# -- every word is true --------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(figures())
def test_an_ellipse_is_called_what_it_is(drawn: tuple[tuple[int, int], Drawn]) -> None:
    size, figure = drawn
    mask = figure.on(*size)
    words = describe(mask)
    ratio = figure.long / figure.short
    assert words.number == 1
    assert words.shape in ("round", "oval", "elongated", None)
    if words.shape == "round":
        assert ratio < 1.35
    if words.shape == "oval":
        assert 1.2 < ratio < 2.7
    if words.shape == "elongated":
        assert ratio > 2.7
    if figure.short > 9:  # coarse pixels excuse silence
        assert words.shape == "round" or ratio > 1.15
        assert words.shape == "oval" or not 1.4 < ratio < 2.3
        assert words.shape == "elongated" or ratio < 3.4


@settings(max_examples=100, deadline=None)
@given(figures("rectangle"))
def test_a_rectangle_is_never_round_oval_or_irregular(drawn: tuple[tuple[int, int], Drawn]) -> None:
    size, figure = drawn
    words = describe(figure.on(*size))
    assert words.number == 1
    assert words.shape in ("rectangular", "elongated", None)
    ratio = figure.long / figure.short
    if figure.short > 9 and 1.3 < ratio < 2.2:
        assert words.shape == "rectangular"


@settings(max_examples=150, deadline=None)
@given(figures() | figures("rectangle"))
def test_size_and_place_are_true_and_silent_only_near_a_border(drawn: tuple[tuple[int, int], Drawn]) -> None:
    size, figure = drawn
    mask = figure.on(*size)
    words = describe(mask)
    share = mask.mean()
    true = "small" if share < 0.025 else "medium" if share < 0.10 else "large"
    assert words.size in (true, None)
    if words.size is None:
        assert min(abs(math.log(share / 0.025)), abs(math.log(share / 0.10))) <= math.log(1.15) + 1e-9
    place, room = reading_of_place(mask)
    assert words.positions in ((place,), ())
    if words.positions:
        assert room >= 0.02
    elif room > 0.03:  # the box's middle is the centre of a whole figure to within a pixel
        assert room < 0.02 + 1.5 / min(size)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numbers_are_those_drawn(data: st.DataObject) -> None:
    """Discs in cells of a grid, apart by a tenth of a cell and more."""
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    cell = 48
    mask = np.zeros((rows * cell, columns * cell), bool)
    number = 0
    for row in range(rows):
        for column in range(columns):
            if data.draw(st.booleans()):
                radius = data.draw(st.floats(9, 18))
                mask |= Drawn("ellipse", row * cell + 24, column * cell + 24, radius, radius, 0).on(*mask.shape)
                number += 1
    words = describe(mask)
    assert words.number == (number if number <= 9 else None)
    assert len(words.findings) == number
    if number:
        assert words.shape == "round"
        true = {reading_of_place(one.on(*mask.shape)) for one in _discs(mask, cell)}
        if words.positions:
            assert set(words.positions) == {place for place, _ in true}
        else:
            assert min(room for _, room in true) < 0.02 + 1 / cell
    else:
        assert words.empty


def _discs(mask: np.ndarray, cell: int) -> list[Drawn]:
    found = []
    for row in range(mask.shape[0] // cell):
        for column in range(mask.shape[1] // cell):
            part = mask[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            if part.any():
                radius = math.sqrt(part.sum() / math.pi)
                found.append(Drawn("ellipse", row * cell + 24, column * cell + 24, radius, radius, 0))
    return found


def reading_of_lab(colour: Sequence[float]) -> np.ndarray:
    """L*a*b* by the definitions of CIE 15, from the chromaticities of sRGB's primaries and of D65."""
    corners = np.array([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in corners]).T
    white = np.array((0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290))
    matrix = columns * np.linalg.solve(columns, white)
    value = np.array(colour) / 255
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in value]
    x, y, z = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in matrix @ linear / white)
    return np.array((116 * y - 16, 500 * (x - y), 200 * (y - z)))


@pytest.mark.parametrize(("_", "colour"), BASIC)
def test_lab_follows_the_definitions(_: str, colour: tuple[int, int, int]) -> None:
    assert lab(np.array([colour]))[0] == pytest.approx(reading_of_lab(colour), abs=0.05)


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(0, 2**32 - 1))
def test_a_colour_word_is_the_nearest_by_the_definitions(colour: tuple[int, int, int], seed: int) -> None:
    mask = Drawn("ellipse", 32, 32, 14, 14, 0).on(64, 64)
    noise = np.random.default_rng(seed).normal(0, 3, (64, 64, 3))
    image = np.full((64, 64, 3), (70, 150, 90), np.uint8)  # never a grey picture
    image[mask] = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)[mask]
    word = describe(mask, image).colour
    if word is not None:
        here = reading_of_lab(np.median(image[mask], axis=0))
        distances = sorted((float(np.linalg.norm(reading_of_lab(one) - here)), name) for name, one in BASIC)
        assert word == distances[0][1]


@pytest.mark.parametrize(("name", "colour"), [BASIC[0], BASIC[5], BASIC[8], BASIC[16], BASIC[21], BASIC[23]])
def test_a_plain_colour_is_said(name: str, colour: tuple[int, int, int]) -> None:
    mask = Drawn("ellipse", 32, 32, 14, 14, 0).on(64, 64)
    image = np.full((64, 64, 3), (200, 180, 90), np.uint8)
    image[mask] = colour
    assert describe(mask, image).colour == name
    assert describe(mask).colour is None
    half = image.copy()
    half[:32] = np.where(mask[:32, :, None], np.array((60, 140, 60), np.uint8), image[:32])
    if name != "green":
        assert describe(mask, half).colour in (None, name)


@pytest.mark.parametrize(
    ("inside", "around", "word"), [(40, 90, "dark"), (90, 40, "bright"), (60, 65, None), (60, 60, None)]
)
def test_grey_pictures_are_dark_or_bright_against_what_is_around(inside: int, around: int, word: str | None) -> None:
    mask = Drawn("ellipse", 50, 60, 16, 20, 30).on(110, 120)
    image = np.where(mask, inside, around).astype(np.uint8)
    assert describe(mask, image).colour == word
    assert describe(mask, np.repeat(image[..., None], 3, axis=2)).colour == word


# -- silence ---------------------------------------------------------------------------------------------------------------


def test_specks_do_not_count_and_doubtful_ones_silence_what_depends_on_them() -> None:
    mask = np.zeros((300, 300), bool)
    mask[20:80, 20:80] = True  # 3600 px: 1 % of it is 36 px
    assert describe(mask).number == 1
    speck = mask.copy()
    speck[200:205, 250:257] = True  # 35 px
    with_speck = describe(speck)
    assert (with_speck.number, with_speck.positions, with_speck.specks) == (1, ("top left",), 1)
    assert with_speck.shape == describe(mask).shape == "rectangular"
    doubtful = mask.copy()
    doubtful[200:207, 250:257] = True  # 49 px, below 72
    words = describe(doubtful)
    assert (words.number, words.positions, words.shape) == (None, (), None)
    assert [finding.doubtful for finding in words.findings] == [False, True]
    second = mask.copy()
    second[220:232, 250:262] = True  # 144 px
    assert describe(second).number == 2
    assert describe(second).positions == ("top left", "bottom right")


def test_a_mask_of_one_small_thing_is_that_thing() -> None:
    for side in (1, 2, 5):
        mask = np.zeros((500, 500), bool)
        mask[100 : 100 + side, 400 : 400 + side] = True
        words = describe(mask)
        assert (words.number, words.size, words.positions, words.shape) == (1, "small", ("top right",), None)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**7), st.data())
def test_the_largest_component_is_never_a_speck_or_doubtful(pixels: int, data: st.DataObject) -> None:
    largest = data.draw(st.integers(1, pixels))
    limit = speck_limit(pixels, largest)
    assert largest >= limit
    assert largest < 2 or not largest < measure.DOUBTFUL * limit


def test_a_hairline_gap_or_neck_leaves_the_number_open() -> None:
    mask = np.zeros((200, 200), bool)
    mask[50:100, 50:98] = True
    mask[50:100, 99:150] = True
    assert describe(mask).number is None  # a gap of one pixel
    apart = np.zeros((200, 200), bool)
    apart[50:100, 30:80] = True
    apart[50:100, 95:150] = True
    assert describe(apart).number == 2
    joined = apart.copy()
    joined[74:76, 80:95] = True  # a neck of two pixels
    assert describe(joined).number is None
    wide = apart.copy()
    wide[60:90, 80:95] = True
    assert describe(wide).number == 1


def test_what_differs_between_findings_is_not_said() -> None:
    mask = Drawn("ellipse", 40, 40, 20, 20, 0).on(240, 240) | Drawn("ellipse", 180, 180, 40, 20, 0).on(240, 240)
    words = describe(mask)
    assert (words.number, words.shape, words.size) == (2, None, None)
    assert words.positions == ("top left", "bottom right")
    assert [finding.shape for finding in words.findings] == ["oval", "round"]
    # Two medium ones that are large together: a reader of "medium polyps" could think of either.
    twice = Drawn("ellipse", 60, 60, 35, 35, 0).on(240, 240) | Drawn("ellipse", 180, 180, 35, 35, 0).on(240, 240)
    assert {finding.size for finding in describe(twice).findings} == {"medium"}
    assert describe(twice).size is None


def test_an_arch_is_irregular_and_its_place_is_not_guessed() -> None:
    rows, columns = np.mgrid[:200, :200]
    radius = np.hypot(rows - 110, columns - 100)
    arch = (radius < 80) & (radius > 60) & (rows < 110)
    assert describe(arch).shape == "irregular"
    assert describe(arch).number == 1
    assert solidity(arch[30:110]) < 0.6


def test_many_findings_and_odd_masks() -> None:
    dots = np.zeros((400, 400), bool)
    dots[::40, ::40] = True
    dots = np.kron(dots[::40, ::40], np.pad(np.ones((20, 20), bool), 10))
    words = describe(dots)
    assert words.number is None
    assert words.positions == ()
    assert not words.empty
    full = describe(np.ones((50, 70), bool))
    assert (full.number, full.size, full.positions) == (1, "large", ("center",))
    line = describe(np.ones((1, 300), bool))
    assert line.number == 1
    assert describe(np.zeros((40, 40), bool)).empty
    assert describe(np.ones((40, 40), bool), np.zeros((40, 40), np.uint8)).colour is None  # nothing is around


@pytest.mark.parametrize(
    ("share", "word"),
    [
        (0.0, "small"),
        (0.0217, "small"),
        (0.025, None),
        (0.03, "medium"),
        (0.086, "medium"),
        (0.1, None),
        (0.116, "large"),
    ],
)
def test_sizes(share: float, word: str | None) -> None:
    assert size_word(share) == word


# -- turning the picture -------------------------------------------------------------------------------------------------------

_GRID = np.arange(9).reshape(3, 3)


@settings(max_examples=60, deadline=None)
@given(figures() | figures("rectangle"), figures(), st.booleans(), st.integers(0, 2**32 - 1))
def test_flips_and_turns_change_places_and_nothing_else(
    one: tuple[tuple[int, int], Drawn], other: tuple[tuple[int, int], Drawn], both: bool, seed: int
) -> None:
    size, figure = one
    mask = figure.on(*size)
    if both:
        mask |= other[1].on(*size)
    image = np.random.default_rng(seed).integers(0, 60, (*size, 3), np.uint8)
    image[mask] += np.array((150, 60, 50), np.uint8)
    words = describe(mask, image)
    turns = {
        "mirrored": lambda array: array[:, ::-1],
        "upside down": lambda array: array[::-1],
        "quarter": lambda array: np.rot90(array),
        "half": lambda array: np.rot90(array, 2),
        "transposed": lambda array: array.swapaxes(0, 1),
    }
    for turn in turns.values():
        turned = describe(np.ascontiguousarray(turn(mask)), np.ascontiguousarray(turn(image)))
        assert (turned.number, turned.shape, turned.colour, turned.size) == (
            words.number,
            words.shape,
            words.colour,
            words.size,
        )
        cells = turn(_GRID)
        moved = {
            POSITIONS[int(np.flatnonzero(cells.ravel() == POSITIONS.index(place))[0])] for place in words.positions
        }
        assert set(turned.positions) == moved


def test_positions_are_in_reading_order() -> None:
    assert POSITIONS == (
        "top left",
        "top",
        "top right",
        "left",
        "center",
        "right",
        "bottom left",
        "bottom",
        "bottom right",
    )
