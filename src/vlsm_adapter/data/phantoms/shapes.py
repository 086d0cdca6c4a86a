"""What the four scenes are drawn from: smooth noise, thin curves, lesion outlines and where they may lie.

All random fields come from the generator that is passed in, and no linear-algebra library takes part, so that a
case is the same bits however many threads run. Coordinates are (row, column) in pixels; fields are float32 (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.floating]
Size = tuple[int, int]

_TABLE = 2048  # angles at which an outline is tabulated


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn picture.

    Attributes:
        image: uint8 (H, W) or (H, W, 3).
        supports: one bool (H, W) per lesion, disjoint and at least two pixels apart.
    """

    image: NDArray[np.uint8]
    supports: list[NDArray[np.bool_]]


def grid(size: Size) -> tuple[Field, Field]:
    """Row and column coordinates of the pixel centres, (H, 1) and (1, W)."""
    return np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)[None, :]


def sigmoid(values: Field) -> Field:
    """Logistic function, without overflow for large negative values."""
    return (0.5 * (1.0 + np.tanh(0.5 * values))).astype(np.float32, copy=False)


def _spline_axis(values: Field, length: int, scale: float, shift: float) -> Field:
    """Uniform cubic B-spline interpolation of ``values`` along axis 0 at ``length`` points, knots ``scale`` apart."""
    position = np.arange(length, dtype=np.float32) / np.float32(scale) + np.float32(shift)
    index = position.astype(np.intp)
    t = (position - index).astype(np.float32)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    result: Field = weights[0] * values[index]
    for k in (1, 2, 3):
        result = result + weights[k] * values[index + k]
    return result / np.float32(6.0)


def rgb(red: float, green: float, blue: float) -> Field:
    """A colour as (3, 1, 1), to be combined with fields: pictures are drawn channel first, which is much faster."""
    return np.array([red, green, blue], np.float32)[:, None, None]


def to_image(picture: Field) -> NDArray[np.uint8]:
    """A picture (3, H, W) in 0 to 1 as uint8 (H, W, 3)."""
    return np.ascontiguousarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8).transpose(1, 2, 0))


def smooth_noise(rng: np.random.Generator, size: Size, scale: float | tuple[float, float]) -> Field:
    """Gaussian noise of about zero mean and unit variance, smooth over ``scale`` pixels (one number or per axis)."""
    down, across = (scale, scale) if isinstance(scale, int | float) else scale
    shift = rng.random(2)
    knots = rng.standard_normal((int(size[0] / down) + 6, int(size[1] / across) + 6), dtype=np.float32)
    field = _spline_axis(knots, size[0], down, shift[0])
    return np.ascontiguousarray(_spline_axis(field.T, size[1], across, shift[1]).T) / np.float32(0.48)


def fractal_noise(rng: np.random.Generator, size: Size, scale: float, octaves: int = 3, gain: float = 0.5) -> Field:
    """A sum of smooth noises, each half as coarse and ``gain`` times as strong as the one before; unit variance."""
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        total += np.float32(gain**octave) * smooth_noise(rng, size, max(scale / 2**octave, 1.0))
    return total / np.float32(np.sqrt(sum(gain ** (2 * octave) for octave in range(octaves))))


def profile(rng: np.random.Generator, width: int, scale: float) -> Field:
    """Smooth noise along a line, (width,), about unit variance."""
    knots = rng.standard_normal((int(width / scale) + 6, 1), dtype=np.float32)
    return _spline_axis(knots, width, scale, rng.random())[:, 0] / np.float32(0.69)


def threads(noise: Field, width: float) -> Field:
    """Thin lines along the zero crossings of ``noise``, in [0, 1]: a mesh of unequal cells."""
    return np.exp(-np.square(noise / np.float32(width)))


def splat(points: NDArray[np.floating], weights: NDArray[np.floating], size: Size) -> Field:
    """Sum of ``weights`` (N,) at sub-pixel ``points`` (N, 2), spread over the four nearest pixels; outside is dropped."""
    base = np.floor(points).astype(np.intp)
    part = points - base
    total = np.zeros(size[0] * size[1])
    for down in (0, 1):
        for across in (0, 1):
            row, column = base[:, 0] + down, base[:, 1] + across
            inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
            share = np.abs(1 - down - part[:, 0]) * np.abs(1 - across - part[:, 1]) * weights
            total += np.bincount((row * size[1] + column)[inside], share[inside], minlength=total.size)
    return total.reshape(size).astype(np.float32)


def branches(
    rng: np.random.Generator,
    roots: NDArray[np.float64],
    headings: NDArray[np.float64],
    lengths: NDArray[np.float64],
    *,
    generations: int = 4,
    bend: float = 0.05,
    spread: float = 0.6,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Branching trees of curves, as of vessels, grown from ``roots`` (N, 2) along ``headings`` (N,) in radians.

    The first branches have ``lengths`` (N,) in pixels. Each wanders by about ``bend`` radians in half a pixel and
    splits in two at its end, up to ``spread`` radians to either side.

    Returns:
        Points (M, 2) at most half a pixel apart, the length each stands for (M,), and the calibre (M,) in (0, 1].
    """
    points, shares, calibres = [], [], []
    rows, columns, angles, reaches = roots[:, 0], roots[:, 1], headings, lengths
    widths = np.ones(len(roots))
    for generation in range(generations):
        steps = max(int(2 * reaches.max()), 2)
        stride = reaches / steps
        wander = bend * np.sqrt(2 * stride)[:, None] * rng.standard_normal((len(rows), steps))
        course = angles[:, None] + np.cumsum(wander, axis=1)
        down = rows[:, None] + np.cumsum(np.sin(course) * stride[:, None], axis=1)
        across = columns[:, None] + np.cumsum(np.cos(course) * stride[:, None], axis=1)
        points.append(np.stack([down.ravel(), across.ravel()], axis=1))
        shares.append(np.repeat(stride, steps))
        calibres.append((widths[:, None] * np.linspace(1, 0.75, steps)).ravel())
        if generation + 1 < generations:
            turn = spread * rng.uniform(0.3, 1.0, (2, len(rows))) * np.array([[-1.0], [1.0]])
            share = rng.uniform(0.55, 0.85, (2, len(rows)))
            rows, columns = np.tile(down[:, -1], 2), np.tile(across[:, -1], 2)
            angles = (course[:, -1] + turn).ravel()
            reaches, widths = (reaches * share).ravel(), (widths * share).ravel()
    return np.concatenate(points), np.concatenate(shares), np.concatenate(calibres)


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed curve around ``centre``: an ellipse whose radius varies with the angle.

    Attributes:
        centre: (row, column) in pixels.
        radius: geometric mean radius in pixels.
        elongation: long over short axis, >= 1.
        angle: of the long axis, radians from the row direction of the image.
        table: relative radius at equally spaced angles.
    """

    centre: tuple[float, float]
    radius: float
    elongation: float
    angle: float
    table: Field

    def level(self, rows: Field, columns: Field) -> Field:
        """About the distance to the curve in pixels, positive inside, at broadcastable coordinates."""
        down, across = rows - np.float32(self.centre[0]), columns - np.float32(self.centre[1])
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        stretch = np.float32(np.sqrt(self.elongation))
        along = (across * cosine + down * sine) / stretch
        beside = (down * cosine - across * sine) * stretch
        index = (np.arctan2(beside, along) * np.float32(_TABLE / (2 * np.pi))).astype(np.intp) % _TABLE
        return self.table[index] * np.float32(self.radius) - np.hypot(along, beside)


def outline(
    rng: np.random.Generator,
    centre: tuple[float, float],
    radius: float,
    *,
    elongation: float,
    roughness: float,
    angle: float | None = None,
    harmonics: int = 7,
) -> Outline:
    """An outline of random lobes: ``roughness`` is their relative height (0 is an ellipse, 0.25 very irregular)."""
    theta = np.arange(_TABLE) * (2 * np.pi / _TABLE)
    lobes = np.zeros(_TABLE)
    for order in range(2, 2 + harmonics):
        lobes += rng.normal() / order**0.8 * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
    lobes *= roughness / max(float(np.std(lobes)), 1e-9)
    table = np.clip(1 + lobes, 0.55, 1.6).astype(np.float32)
    return Outline(centre, radius, elongation, rng.uniform(0, np.pi) if angle is None else angle, table)


@dataclass(frozen=True, slots=True)
class Style:
    """How the lesions of one scene are drawn: ranges to draw from, radii as fractions of the shorter image side.

    Attributes:
        radius: smallest and largest mean radius.
        elongation: long over short axis.
        roughness: relative height of the lobes.
        tilt: largest angle of the long axis to the horizontal, radians.
    """

    radius: tuple[float, float]
    elongation: tuple[float, float]
    roughness: tuple[float, float]
    tilt: float = np.pi / 2
    harmonics: int = 7


def place(
    rng: np.random.Generator,
    allowed: Field,
    styles: Sequence[Style],
    kinds: Sequence[int],
    *,
    inside: float = 0.9,
    ragged: Field | None = None,
    avoid: NDArray[np.bool_] | None = None,
) -> list[tuple[int, Outline, Field]]:
    """Lay one lesion of each kind (``styles[kind]``) where ``allowed`` (pixels of distance, positive inside) lets it, apart from the others.

    A lesion that finds no room is tried smaller; from the second on it may be left out. At least the fraction
    ``inside`` of it lies in the allowed region, and what lies outside is cut off. None comes near ``avoid``.

    Returns:
        Kind, outline and level of each lesion. The level is positive exactly on the lesion's support: one connected
        region per lesion, and no two of them within two pixels.
    """
    size = allowed.shape[0], allowed.shape[1]
    rows, columns = grid(size)
    short = min(size)
    step = max(short // 64, 1)
    coarse_allowed = allowed[::step, ::step] > 0
    candidates = np.argwhere(coarse_allowed) * step
    taken = np.zeros(size, bool) if avoid is None else avoid.copy()
    placed: list[tuple[int, Outline, Field]] = []
    for number, kind in enumerate(kinds):
        style = styles[kind]
        radius = short * float(np.exp(rng.uniform(*np.log(style.radius))))
        for attempt in range(60):
            if attempt and attempt % 6 == 0:
                radius = max(0.88 * radius, 0.75 * short * style.radius[0])
            centre = candidates[rng.integers(len(candidates))] + rng.uniform(0, step, 2)
            shape = outline(
                rng,
                (float(centre[0]), float(centre[1])),
                radius,
                elongation=rng.uniform(*style.elongation),
                roughness=rng.uniform(*style.roughness),
                angle=rng.uniform(-style.tilt, style.tilt),
                harmonics=style.harmonics,
            )
            margin = 4.0 + 0.02 * short
            reach = shape.level(rows[::step] - 0.0, columns[:, ::step])
            body = reach > 0
            total = np.pi * radius**2 / step**2
            fits = np.count_nonzero(body & coarse_allowed) >= inside * total * 0.97
            if (fits and not np.any(taken[::step, ::step] & (reach > -margin))) or (number == 0 and attempt == 59):
                break
        else:
            continue
        level = np.minimum(shape.level(rows, columns), allowed)
        if ragged is not None:
            level = np.minimum(level + ragged * np.float32(min(1.0, radius / 20)), allowed)
        level = _one_piece(level, shape.centre, taken)
        if np.count_nonzero(level > 0) < 12:
            continue
        taken |= ndimage.maximum_filter(level > 0, size=7)
        placed.append((kind, shape, level))
    return placed


def _one_piece(level: Field, centre: tuple[float, float], taken: NDArray[np.bool_]) -> Field:
    """``level`` made negative on all but the largest 4-connected region of its support, holes filled."""
    support = (level > 0) & ~taken
    labels, count = ndimage.label(support)
    if count > 1:
        support = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    filled = ndimage.binary_fill_holes(support) & ~taken
    edge = np.float32(0.01)
    return np.where(filled, np.maximum(level, edge), np.minimum(level, -edge))


_GLYPHS = {  # rows of three pixels, top to bottom, as octal digits
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71122",
    "8": "75757", "9": "75717", ":": "02020", "/": "11244", "L": "44447", "R": "75765", " ": "00000",
}  # fmt: skip


def text(letters: str, scale: int = 1) -> NDArray[np.bool_]:
    """Letters as a bitmap of 5 x 4 pixels a glyph, times ``scale``: the burnt-in marks of a device."""
    glyphs = [[[int(row) >> bit & 1 for bit in (2, 1, 0)] + [0] for row in _GLYPHS[letter]] for letter in letters]
    return np.kron(np.concatenate(np.array(glyphs, bool), axis=1), np.ones((scale, scale), bool))
