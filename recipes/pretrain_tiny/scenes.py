"""Generated scenes: textured objects, cut-outs or soft blobs on procedural or photo backgrounds.

Everything derives from one ``numpy.random.Generator``: same generator state, same scene.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phrases import COLOURS, SHAPES, BoolArray, Generator, Scene, SceneObject

FloatArray = NDArray[np.float32]


@functools.lru_cache(maxsize=1)
def noise_bank() -> FloatArray:
    """(24, 256, 256) periodic noise tiles of unit deviation, from white to cloud-like (spectrum 1/f^b)."""
    rng = np.random.default_rng(20260101)
    fy, fx = np.meshgrid(np.fft.fftfreq(256), np.fft.rfftfreq(256), indexing="ij")
    frequency = np.sqrt(fx**2 + fy**2)
    frequency[0, 0] = 1.0
    tiles = []
    for index in range(24):
        steepness = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)[index % 6]
        spectrum = np.fft.rfft2(rng.standard_normal((256, 256))) / frequency**steepness
        spectrum[0, 0] = 0.0
        tile = np.fft.irfft2(spectrum, s=(256, 256))
        tiles.append((tile / tile.std()).astype(np.float32))
    return np.stack(tiles)


def noise(size: tuple[int, int], rng: Generator, rough: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> FloatArray:
    """A random window of a noise tile; ``rough`` picks among spectra from 0 (white) to 5 (clouds)."""
    bank = noise_bank()
    tile = bank[int(rng.choice(np.asarray(rough))) + 6 * int(rng.integers(4))]
    top, left = rng.integers(0, 256 - np.minimum(size, 255))
    window = tile[top : top + size[0], left : left + size[1]]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    return window if rng.random() < 0.5 else -window


def sample_colour(name: str, rng: Generator) -> FloatArray:
    """An RGB colour (3,) in 0-1 that people would call ``name``."""
    h0, h1, s0, s1, v0, v1 = COLOURS[name]
    hue = (rng.uniform(h0, h1) % 360) / 360
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(s0, s1), rng.uniform(v0, v1)), dtype=np.float32)


def background(size: int, rng: Generator, photo: NDArray[np.uint8] | None, grey: bool) -> FloatArray:
    """Float (size, size, 3) in 0-1: a flat colour, clouds, waves or speckle, or the photo given."""
    if photo is not None:
        image = photo.astype(np.float32) / 255
        image = image * rng.uniform(0.5, 1.0) + rng.uniform(0, 0.2)
    else:
        two = rng.uniform(0.05, 0.95, (2, 3)).astype(np.float32)
        two[1] = two[0] + (two[1] - two[0]) * rng.uniform(0.1, 0.8)
        kind = rng.integers(4)
        if kind == 0:
            angle = rng.uniform(0, 2 * np.pi)
            line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
            mix = 0.5 + np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None]
        elif kind == 1:
            line = np.linspace(0, rng.uniform(10, 60), size, dtype=np.float32)
            angle = rng.uniform(0, np.pi)
            mix = 0.5 + 0.5 * np.sin(np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None])
        else:
            mix = 0.5 + 0.3 * noise((size, size), rng, (1, 2, 3, 4, 5))
        image = two[0] + (two[1] - two[0]) * np.clip(mix, 0, 1)[..., None]
    if grey:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    return np.ascontiguousarray(image, dtype=np.float32)


def shape_field(shape: str, u: NDArray[Any], v: NDArray[Any], rng: Generator) -> NDArray[Any]:
    """How far inside a unit shape each point (u, v) lies: 1 at the centre, 0 on the outline, negative outside."""
    if shape in ("circle", "ellipse"):
        return 1 - np.sqrt(u * u + v * v)
    if shape in ("square", "rectangle", "bar", "diamond"):
        return 1 - np.maximum(np.abs(u), np.abs(v))
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        width = rng.uniform(0.28, 0.38)
        return np.minimum(1 - np.maximum(a, b), width - np.minimum(a, b))
    radius = np.sqrt(u * u + v * v)
    if shape == "ring":
        return rng.uniform(0.16, 0.26) - np.abs(radius - 0.75)
    if shape == "crescent":
        return np.minimum(1 - radius, np.sqrt((u - rng.uniform(0.45, 0.6)) ** 2 + v * v) - 0.9)
    angle = np.arctan2(v, u)
    if shape in ("triangle", "hexagon"):
        sides = 3 if shape == "triangle" else 6
        sector = 2 * np.pi / sides
        outline = np.cos(sector / 2) / np.cos(np.mod(angle, sector) - sector / 2)
    elif shape == "star":
        phase = np.abs(np.mod(angle / (2 * np.pi / 5), 1.0) * 2 - 1)
        outline = 0.42 + 0.58 * phase**1.4
    else:  # blob: a circle with smooth harmonics
        outline = np.ones_like(angle)
        for harmonic in range(2, 6):
            strength = rng.uniform(0, 0.42) / harmonic
            outline += strength * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
        outline *= 0.9
    return 1 - radius / outline


def texture_pattern(texture: str, u: FloatArray, v: FloatArray, rng: Generator) -> NDArray[Any]:
    """Brightness factor (H, W) of a surface, about 1."""
    if texture == "striped":
        return 1 - 0.55 * (np.sin(u * rng.uniform(7, 13)) > 0).astype(np.float32)
    if texture == "dotted":
        rate = rng.uniform(6, 10)
        return 1 - 0.6 * ((np.sin(u * rate) * np.sin(v * rate)) > 0.35).astype(np.float32)
    if texture == "rough":
        return 1 + 0.3 * noise(u.shape, rng, (0, 1, 2)).clip(-2, 2)
    kind = rng.integers(3)
    if kind == 0:
        return np.ones_like(u)
    if kind == 1:
        return 1 + 0.2 * (u * np.float32(rng.uniform(-1, 1)) + v * np.float32(rng.uniform(-1, 1))).clip(-1, 1)
    return 0.8 + 0.35 * np.clip(1 - (u + 0.3) ** 2 - (v + 0.3) ** 2, 0, 1)  # lit like a ball


@dataclass(frozen=True)
class SceneStyle:
    """What a scene may contain.

    ``level`` 0: two to four sharp shapes told apart by shape, colour and position; 1: the whole vocabulary.
    ``soft``: share of low-contrast scenes (soft blobs on noisy grey or tinted ground, dark or bright).
    """

    level: int = 1
    soft: float = 0.25
    photo: float = 0.3


def render(
    size: int,
    rng: Generator,
    style: SceneStyle,
    photo: NDArray[np.uint8] | None = None,
    cutouts: Sequence[tuple[NDArray[np.uint8], str]] = (),
) -> Scene:
    """Render one scene of ``size`` x ``size`` px.

    Args:
        photo: uint8 (size, size, 3) to use as background, or None for a procedural one.
        cutouts: RGBA uint8 pictures with names to place among the shapes.
    """
    soft_scene = style.level > 0 and not cutouts and rng.random() < style.soft
    grey = soft_scene and rng.random() < 0.55
    canvas = background(size, rng, None if soft_scene else photo, grey)
    if soft_scene:
        level = rng.uniform(0.2, 0.75)
        canvas = level + (canvas - canvas.mean()) * rng.uniform(0.1, 0.6)
        if not grey:  # a warm or random tint
            canvas = canvas * rng.uniform(0.45, 1.25, 3).astype(np.float32)
    few = style.level == 0
    count = int(rng.integers(2, 5)) if few else int(rng.integers(1, 4 if soft_scene else 6))
    count = max(count, len(cutouts))
    names = list(SHAPES)
    # Few names and colours per scene make the objects share attributes, so that one word alone seldom decides.
    shapes = [names[i] for i in rng.permutation(len(names))[: int(rng.integers(1, 4))]]
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[: int(rng.integers(1, 4))]]
    taken = np.zeros((size, size), dtype=bool)
    placed: list[SceneObject] = []
    for index in range(count):
        for _ in range(6):
            made = None
            if index < len(cutouts):
                made = _place_cutout(canvas, taken, cutouts[index], rng)
            elif soft_scene:
                made = _place_soft(canvas, taken, rng)
            else:
                shape = shapes[int(rng.integers(len(shapes)))]
                colour = colours[int(rng.integers(len(colours)))]
                made = _place_shape(canvas, taken, shape, colour, few, rng)
            if made is not None:
                placed.append(made)
                taken |= made.mask
                break
    _finish(canvas, rng, soft_scene)
    return Scene((np.clip(canvas, 0, 1) * 255).astype(np.uint8), placed)


def _window(size: int, x: float, y: float, reach: float) -> tuple[slice, slice] | None:
    left, right = int(max(0, np.floor((x - reach) * size))), int(min(size, np.ceil((x + reach) * size)))
    top, bottom = int(max(0, np.floor((y - reach) * size))), int(min(size, np.ceil((y + reach) * size)))
    if right - left < 3 or bottom - top < 3:
        return None
    return slice(top, bottom), slice(left, right)


def _grid(size: int, window: tuple[slice, slice], x: float, y: float) -> tuple[FloatArray, FloatArray]:
    rows = (np.arange(window[0].start, window[0].stop, dtype=np.float32) + 0.5) / size - np.float32(y)
    columns = (np.arange(window[1].start, window[1].stop, dtype=np.float32) + 0.5) / size - np.float32(x)
    return np.broadcast_to(columns[None, :], (len(rows), len(columns))), np.broadcast_to(
        rows[:, None], (len(rows), len(columns))
    )


def _radius(rng: Generator) -> float:
    low, high = ((0.07, 0.1), (0.11, 0.165), (0.19, 0.3))[int(rng.choice(3, p=(0.3, 0.45, 0.25)))]
    return float(rng.uniform(low, high))


def _record(
    mask_window: BoolArray, window: tuple[slice, slice], size: int, taken: BoolArray
) -> tuple[BoolArray, float, float, float] | None:
    """Full-size mask, centre and area of an object, or None if it is too small or covers another."""
    area = int(mask_window.sum())
    if area < max(12, 0.003 * size * size) or (taken[window] & mask_window).sum() > 0.02 * area:
        return None
    mask = np.zeros((size, size), dtype=bool)
    mask[window] = mask_window & ~taken[window]
    rows, columns = np.nonzero(mask[window])
    x = (columns.mean() + window[1].start + 0.5) / size
    y = (rows.mean() + window[0].start + 0.5) / size
    return mask, float(x), float(y), float(mask[window].sum() / (size * size))


def _place_shape(
    canvas: FloatArray, taken: BoolArray, shape: str, colour: str, few: bool, rng: Generator
) -> SceneObject | None:
    size = canvas.shape[0]
    radius = float(rng.uniform(0.1, 0.2)) if few else _radius(rng)
    aspect = {
        "ellipse": rng.uniform(1.5, 2.2),
        "rectangle": rng.uniform(1.6, 2.4),
        "bar": rng.uniform(4.5, 7.0),
        "blob": rng.uniform(1.0, 1.5),
        "diamond": rng.uniform(1.0, 1.6),
    }.get(shape, 1.0)
    if shape == "bar":
        radius = max(radius, 0.1)
    a, b = radius * aspect**0.5, radius / aspect**0.5
    reach = max(a, b) * 1.45
    margin = max(a, b) * 0.8
    x, y = rng.uniform(min(margin, 0.45), max(1 - margin, 0.55), 2)
    window = _window(size, x, y, reach)
    if window is None:
        return None
    turn = {"square": 0.2, "rectangle": np.pi, "cross": 0.25, "triangle": np.pi, "diamond": 0.15}.get(shape, np.pi)
    angle = rng.uniform(-turn, turn) + (np.pi / 4 if shape == "diamond" else 0)
    dx, dy = _grid(size, window, x, y)
    if shape == "diamond":  # stretched along its diagonals, so that it stands on a corner at any aspect
        u = (dx / b + dy / a) * np.float32(0.7071)
        v = (dy / a - dx / b) * np.float32(0.7071)
    else:
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = (dx * cos + dy * sin) / np.float32(a), (dy * cos - dx * sin) / np.float32(b)
    inside = shape_field(shape, u, v, rng)
    edge = max(1.2 / (size * min(a, b)), 0.02)
    alpha = np.clip(inside / edge + 0.5, 0, 1)
    found = _record(alpha > 0.5, window, size, taken)
    if found is None:
        return None
    texture = (
        "plain"
        if few
        else str(rng.choice(np.array(["plain", "striped", "dotted", "rough"]), p=(0.55, 0.15, 0.15, 0.15)))
    )
    if texture in ("striped", "dotted") and (min(a, b) * size < 9 or colour == "black"):
        texture = "plain"
    surface = sample_colour(colour, rng) * texture_pattern(texture, u, v, rng)[..., None]
    if texture in ("striped", "dotted") and rng.random() < 0.3:
        surface = np.where(surface.max(axis=2, keepdims=True) < 0.45, np.float32(0.95), surface)
    alpha = (alpha * ~taken[window])[..., None]
    canvas[window] += alpha * (np.clip(surface, 0, 1) - canvas[window])
    mask, cx, cy, area = found
    return SceneObject(shape, colour, texture, None, False, mask, cx, cy, area)


def _place_soft(canvas: FloatArray, taken: BoolArray, rng: Generator) -> SceneObject | None:
    size = canvas.shape[0]
    radius = _radius(rng)
    shape = str(rng.choice(np.array(["circle", "ellipse", "blob"]), p=(0.2, 0.3, 0.5)))
    aspect = rng.uniform(1.5, 2.2) if shape == "ellipse" else 1.0
    a, b = radius * aspect**0.5, radius / aspect**0.5
    margin = max(a, b) * 0.8
    x, y = rng.uniform(min(margin, 0.45), max(1 - margin, 0.55), 2)
    window = _window(size, x, y, max(a, b) * 1.8)
    if window is None:
        return None
    angle = rng.uniform(-0.6, 0.6)
    dx, dy = _grid(size, window, x, y)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (dx * cos + dy * sin) / np.float32(a), (dy * cos - dx * sin) / np.float32(b)
    inside = shape_field(shape, u, v, rng)
    edge = rng.uniform(0.06, 0.5)
    alpha = np.clip(inside / edge + 0.5, 0, 1)
    found = _record(alpha > 0.5, window, size, taken)
    if found is None:
        return None
    here = float(canvas[window][alpha > 0.5].mean())
    dark = rng.random() < (0.65 if here > 0.3 else 0.2)
    factor = rng.uniform(0.25, 0.75) if dark else rng.uniform(1.3, 2.0)
    tint = rng.uniform(0.85, 1.15, 3).astype(np.float32) if canvas[..., 0].std() != canvas[..., 1].std() else np.ones(3)
    surface = np.clip(canvas[window] * np.float32(0.35) + np.float32(0.65 * here), 0, 1) * np.float32(factor) * tint
    if rng.random() < 0.3:  # a texture of its own
        surface = surface * (1 + 0.15 * noise(u.shape, rng, (1, 2, 3)))[..., None]
    canvas[window] += alpha[..., None] * (surface.astype(np.float32) - canvas[window])
    mask, cx, cy, area = found
    return SceneObject(shape, None, "soft", "dark" if dark else "bright", True, mask, cx, cy, area)


def _place_cutout(
    canvas: FloatArray, taken: BoolArray, cutout: tuple[NDArray[np.uint8], str], rng: Generator
) -> SceneObject | None:
    from PIL import Image

    size = canvas.shape[0]
    pixels, name = cutout
    height = int(size * rng.uniform(0.22, 0.5))
    width = max(8, int(height * pixels.shape[1] / pixels.shape[0] * rng.uniform(0.85, 1.18)))
    width = min(width, size)
    picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
    window = (slice(top, top + height), slice(left, left + width))
    alpha = picture[..., 3].astype(np.float32) / 255
    found = _record(alpha > 0.5, window, size, taken)
    if found is None:
        return None
    alpha = (alpha * ~taken[window])[..., None]
    canvas[window] += alpha * (picture[..., :3].astype(np.float32) / 255 - canvas[window])
    mask, cx, cy, area = found
    words = name.split()
    # "red apple" is an apple too; names of joined pictures keep their last word only.
    names = (name, words[-1]) if len(words) > 1 else (name,)
    return SceneObject("cutout", None, "cutout", None, False, mask, cx, cy, area, names)


def _finish(canvas: FloatArray, rng: Generator, soft: bool) -> None:
    """Shading, speckle and noise over the whole picture, in place."""
    size = canvas.shape[0]
    if rng.random() < (0.5 if soft else 0.2):  # vignette or one-sided light
        line = np.linspace(-1, 1, size, dtype=np.float32)
        x, y = rng.uniform(-0.6, 0.6, 2)
        fall = 1 - rng.uniform(0.1, 0.45) * ((line[None, :] - x) ** 2 + (line[:, None] - y) ** 2) / 2
        canvas *= fall[..., None]
    if soft and rng.random() < 0.6:  # multiplicative speckle
        canvas *= (1 + rng.uniform(0.05, 0.4) * noise((size, size), rng, (0, 1)))[..., None]
    if rng.random() < 0.4:
        canvas += rng.uniform(0.01, 0.06) * noise((size, size), rng, (0, 0, 1))[..., None]
    canvas *= np.float32(rng.uniform(0.85, 1.1))
