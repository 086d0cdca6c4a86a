"""Colonoscopy: folded, wet, vascular mucosa around a dark lumen, with polyps, seen through a cut-off field of view.

Light comes from the camera: brightness falls with the distance into the lumen, relief is shaded by its slope towards
the axis of view, and wet surfaces glint. A polyp is a dome on the wall; its support is the dome's projection.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vlsm_adapter.data.phantoms.shapes import (
    Field,
    Outline,
    Scene,
    Size,
    Style,
    branches,
    fractal_noise,
    grid,
    place,
    rgb,
    sigmoid,
    smooth_noise,
    splat,
    text,
    to_image,
)

_STYLES = (
    Style(radius=(0.055, 0.25), elongation=(1.0, 1.2), roughness=(0.0, 0.03)),
    Style(radius=(0.055, 0.25), elongation=(1.25, 1.8), roughness=(0.0, 0.05)),
    Style(radius=(0.08, 0.25), elongation=(1.0, 1.6), roughness=(0.07, 0.12), harmonics=4),
)
# How a polyp's colour stands to the mucosa's, per channel; the last is faint, the hardest to see.
_TINTS = np.array(
    [[1.02, 0.70, 0.66], [1.10, 1.26, 1.30], [1.10, 1.09, 0.86], [1.02, 0.86, 0.80], [1.04, 1.03, 1.03]], np.float32
)[:, :, None, None]


def endoscopy(rng: np.random.Generator, size: Size, lesions: int) -> Scene:
    """Draw a colonoscopic picture, uint8 (H, W, 3), with up to ``lesions`` polyps."""
    height, width = size
    short = min(size)
    unit = short / 256
    rows, columns = grid(size)
    view = _field_of_view(rng, size)

    away, bearing = rng.uniform(0.0, 0.42), rng.uniform(0, 2 * np.pi)
    lumen_row = height / 2 + away * short * math.sin(bearing)
    lumen_column = width / 2 + away * short * math.cos(bearing)
    warp = 0.035 * short * smooth_noise(rng, size, short / 3.5)
    down, across = rows - lumen_row + warp, columns - lumen_column + warp[::-1]
    squash, turn = rng.uniform(0.75, 1.3), rng.uniform(0, np.pi)
    along = (down * math.sin(turn) + across * math.cos(turn)) * squash
    beside = (down * math.cos(turn) - across * math.sin(turn)) / squash
    radius = np.hypot(along, beside) / short
    opening = rng.uniform(0.05, 0.17) if rng.random() < 0.75 else 0.0  # none: the wall is seen face on
    light = 1 / (1 + np.float32(1.6 * opening**2) / np.maximum(radius, 0.01) ** 2)
    light = (0.04 + 0.96 * light**0.8).astype(np.float32)

    # Haustral folds ring the lumen: bright at the crest, in shadow just behind it, further apart the nearer they are.
    relief = fractal_noise(rng, size, 70 * unit, octaves=2)
    pitch = rng.uniform(0.5, 0.9)
    ring = np.log(np.maximum(radius, 0.02)) / pitch + 0.22 * smooth_noise(rng, size, 60 * unit) + rng.random()
    part = ring - np.floor(ring)
    strength = np.clip(0.5 + 0.8 * smooth_noise(rng, size, 80 * unit), 0, 1) * rng.uniform(0.2, 0.7)
    strength = strength * sigmoid((radius - 2.0 * opening - 0.1) / np.float32(0.03))
    fold = 1 - strength * part**1.6 + 0.35 * strength * np.exp(-part / 0.07)
    fold = ndimage.gaussian_filter(fold, 1.3 * unit, truncate=2.5)
    fine = fractal_noise(rng, size, 9 * unit, octaves=2)
    height_map = 9 * unit * relief + 0.5 * unit * fine
    slope_down, slope_across = np.gradient(height_map)
    toward = np.hypot(down, across) + 1
    slope = np.clip((slope_down * down + slope_across * across) / toward, -0.6, 0.6)
    brightness = light * fold * (1 + rng.uniform(0.4, 0.9) * slope)

    mucosa = rgb(0.86, 0.48, 0.40)
    mucosa = mucosa * (1 + rng.uniform(-1, 1) * rgb(0.02, 0.13, 0.12))
    mucosa = mucosa * (1 + rng.uniform(0, 1) ** 2 * rgb(0.0, 0.1, -0.18))
    tint = 1 + 0.05 * fractal_noise(rng, size, 45 * unit) * rgb(-0.3, 1, 0.8)
    vessels = _vessels(rng, size, int(rng.choice([0, 2, 4, 7])))
    tint = tint * (1 - (rng.uniform(0.2, 0.5) * vessels) * rgb(0.35, 1, 0.9))

    room = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns)) + 1
    room = np.minimum(room, view - 1)
    common = int(rng.integers(3))
    kinds = [common if rng.random() < 0.6 else int(rng.integers(3)) for _ in range(lesions)]
    placed = place(rng, room, _STYLES, kinds, inside=0.88, avoid=radius < 1.1 * opening)
    shared = int(rng.integers(len(_TINTS)))
    glint_map = 0.8 * smooth_noise(rng, size, (2.4 * unit, 3.4 * unit)) + 0.9 * smooth_noise(rng, size, 26 * unit)
    wet = rng.uniform(2.5, 3.6)
    glints = sigmoid(9 * (glint_map + 1.2 * slope - wet)) * sigmoid(20 * (light - 0.3))
    supports = []
    for kind, shape, level in placed:
        soft = sigmoid(level / np.float32(rng.uniform(0.6, 1.6) * unit))
        shade, glint = _dome(rng, shape, level, fine if kind < 2 else fine + relief, glint_map)
        flat = np.float32(rng.uniform(0.3, 1.0) ** 0.6)  # 1 is a full dome, towards 0 a flat lesion
        shade = 1 + flat * (shade - 1)
        shadow = _shadow(rng, shape, soft) * flat
        brightness = brightness * (1 - shadow * (1 - soft))
        around = np.float32(np.mean(brightness[level > 0]))
        local = np.maximum(0.25 * brightness + 0.75 * around, np.float32(rng.uniform(0.5, 0.75)))
        brightness = brightness + soft * (local * shade - brightness)
        colour = _TINTS[shared if rng.random() < 0.7 else int(rng.integers(len(_TINTS)))]
        colour = 1 + (colour - 1) * np.float32(rng.uniform(0.5, 1.35))
        grain = 1 + np.float32(rng.uniform(0.02, 0.1)) * fine
        own = colour * (1 + (grain - 1) * rgb(0.4, 1.2, 1.0))
        tint = tint + soft * (own * (0.8 + 0.2 * tint) - tint)
        glints = glints * (1 - 0.7 * soft) + flat * soft * glint
        supports.append(level > 0)

    brightness = np.clip(brightness * rng.uniform(0.95, 1.25), 0.015, 1.5)
    falloff = rgb(0.85, 1.1, 1.2)
    picture = mucosa * tint * np.exp(np.log(brightness) * falloff)
    _residue(rng, size, picture)
    picture = picture + np.minimum(glints, 1) * (rgb(1.0, 0.97, 0.93) - picture)
    picture += 0.012 * rng.standard_normal(size, dtype=np.float32)
    picture = picture / (1 + np.maximum(picture - 0.7, 0) * 0.5)  # soft shoulder of the camera
    picture *= sigmoid(view / np.float32(0.7 * unit))
    image = to_image(picture)
    _overlay(rng, image, view)
    return Scene(image, supports)


def _field_of_view(rng: np.random.Generator, size: Size) -> Field:
    """Distance in pixels to the edge of the picture the endoscope shows: octagon, cut circle or full frame."""
    height, width = size
    rows, columns = grid(size)
    down, across = np.abs(rows - (height - 1) / 2), np.abs(columns - (width - 1) / 2)
    short = min(size)
    kind = rng.random()
    if kind < 0.6:
        edge = np.minimum(0.487 * height - down, 0.487 * width - across)
        cut = rng.uniform(0.7, 0.8) - down / height - across / width
        return np.minimum(edge, cut * short / math.sqrt(2))
    if kind < 0.92:
        circle = rng.uniform(0.52, 0.62) * math.sqrt(height * width) - np.hypot(down, across)
        return np.minimum(circle, np.minimum(0.487 * height - down, 0.487 * width - across))
    return np.minimum(height - down, width - across) + np.float32(0)


def _vessels(rng: np.random.Generator, size: Size, number: int) -> Field:
    """Fine branching vessels under the mucosa, (H, W) in [0, 1]."""
    if not number:
        return np.zeros(size, np.float32)
    short = min(size)
    roots = rng.uniform(0, 1, (number, 2)) * size
    headings, lengths = rng.uniform(0, 2 * np.pi, number), short * rng.uniform(0.1, 0.22, number)
    points, share, calibre = branches(rng, roots, headings, lengths, generations=5, bend=0.09, spread=0.9)
    drawn = splat(points, 2 * share * calibre, size)
    return np.minimum(ndimage.gaussian_filter(drawn, 0.7 * short / 256, truncate=3) * 1.4, 1).astype(np.float32)


def _dome(
    rng: np.random.Generator, shape: Outline, level: Field, bumps: Field, glint_map: Field
) -> tuple[Field, Field]:
    """Shading (about 1 on the top) and glints of a dome over the support of ``level``."""
    inward = np.clip(level / np.float32(max(shape.radius, 1)), 0, 1)
    surface = np.float32(shape.radius * rng.uniform(0.6, 1.1)) * np.sqrt(np.maximum(1 - (1 - inward) ** 2, 0.02))
    surface = ndimage.gaussian_filter(surface, max(0.05 * shape.radius, 0.8), truncate=2.5)
    slope_down, slope_across = np.gradient(surface + np.float32(0.02 * shape.radius) * bumps)
    bearing = rng.uniform(0, 2 * np.pi)
    lean = rng.uniform(0.1, 0.5)
    normal = 1 / np.sqrt(1 + slope_down**2 + slope_across**2)
    facing = normal * (1 - lean * (math.sin(bearing) * slope_down + math.cos(bearing) * slope_across))
    facing = np.clip(facing / math.sqrt(1 + lean**2), 0, 1)
    glint = sigmoid(9 * (glint_map + 14 * (facing - 1) + rng.uniform(-1.9, -0.3)))
    return (0.25 + 0.9 * facing).astype(np.float32), glint


def _shadow(rng: np.random.Generator, shape: Outline, soft: Field) -> Field:
    """The shadow a polyp throws on the wall beside it, (H, W) in [0, 1)."""
    bearing, reach = rng.uniform(0, 2 * np.pi), 0.16 * shape.radius
    offset = np.rint([reach * math.sin(bearing), reach * math.cos(bearing)]).astype(int)
    moved = np.roll(soft, (int(offset[0]), int(offset[1])), axis=(0, 1))
    blurred = ndimage.uniform_filter(moved, max(int(0.25 * shape.radius), 1))
    return np.float32(rng.uniform(0.25, 0.65)) * blurred


def _residue(rng: np.random.Generator, size: Size, picture: NDArray[np.float32]) -> None:
    """Yellow-green patches of fluid, now and then. Drawn in place."""
    if rng.random() < 0.2:
        unit = min(size) / 256
        spread = sigmoid(5 * (smooth_noise(rng, size, 40 * unit) - rng.uniform(1.6, 2.3))) * np.float32(0.5)
        light = picture[:1] * rgb(0.95, 0.80, 0.25)
        picture += spread * (light - picture)


def _overlay(rng: np.random.Generator, image: NDArray[np.uint8], view: Field) -> None:
    """Date and time in the black corner, as a video processor burns them in. Drawn in place, outside the view."""
    height, width = view.shape
    if rng.random() < 0.4:
        scale = max(min(height, width) // 256, 1)
        date = f"{rng.integers(1, 29):02d}/{rng.integers(1, 13):02d}"
        clock = f"{rng.integers(8, 18):02d}:{rng.integers(0, 60):02d}"
        for line, letters in enumerate((date, clock)):
            label = text(letters, scale)
            top, left = (6 + 8 * line) * scale, 3 * scale
            if top + label.shape[0] <= height and left + label.shape[1] <= width:
                region = (slice(top, top + label.shape[0]), slice(left, left + label.shape[1]))
                if np.all(view[region] < -1):
                    image[region][label] = 200
