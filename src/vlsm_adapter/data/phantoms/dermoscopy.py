"""Dermoscopy: skin with hairs, vessels and skin lines under polarised light, with pigmented lesions.

Colour follows a transmittance model: the light that returns from the skin is multiplied by exp(-density * absorption)
of melanin (brown, through the pigment network, dots and blotches) and haemoglobin (pink), as Beer and Lambert have it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vlsm_adapter.data.phantoms.shapes import (
    Field,
    Scene,
    Size,
    Style,
    fractal_noise,
    grid,
    place,
    rgb,
    sigmoid,
    smooth_noise,
    splat,
    threads,
    to_image,
)

_STYLES = (
    Style(radius=(0.06, 0.28), elongation=(1.0, 1.2), roughness=(0.0, 0.04)),
    Style(radius=(0.06, 0.27), elongation=(1.25, 1.9), roughness=(0.0, 0.06)),
    Style(radius=(0.08, 0.27), elongation=(1.0, 1.7), roughness=(0.09, 0.16)),
)
# Optical density per channel (red, green, blue) of unit amounts.
_MELANIN = rgb(0.75, 1.25, 1.7)
_SHALLOW_MELANIN = rgb(0.45, 1.05, 1.75)
_DEEP_MELANIN = rgb(1.45, 1.15, 0.85)  # seen through scattering dermis: slate blue
_BLOOD = rgb(0.12, 0.75, 0.6)


def dermoscopy(rng: np.random.Generator, size: Size, lesions: int) -> Scene:
    """Draw a dermoscopic picture, uint8 (H, W, 3), with up to ``lesions`` pigmented lesions."""
    height, width = size
    short = min(size)
    unit = short / 256
    rows, columns = grid(size)
    down, across = (rows - (height - 1) / 2) / short, (columns - (width - 1) / 2) / short
    centre_distance = np.hypot(down - rng.uniform(-0.04, 0.04), across - rng.uniform(-0.04, 0.04))

    skin = rgb(0.93, 0.76, 0.70) * rng.uniform(0.88, 1.16)
    skin = skin - rng.uniform(0, 1) * rgb(0.05, 0.07, 0.10)  # sallow to pink
    skin = skin * (1 + rng.uniform(-0.7, 1) * rgb(-0.07, 0.0, 0.14))  # white balance
    mottle = fractal_noise(rng, size, 40 * unit)
    blood = 0.05 + 0.05 * np.maximum(mottle + 0.5, 0)
    blood += rng.uniform(0, 0.16) * threads(smooth_noise(rng, size, 22 * unit), 0.09) * (mottle > 0.2)
    melanin = 0.03 + 0.02 * np.maximum(fractal_noise(rng, size, 60 * unit), -1)
    lines = threads(smooth_noise(rng, size, (7 * unit, 10 * unit)), 0.25)
    melanin += rng.uniform(0.0, 0.02) * lines
    deep = np.zeros(size, np.float32)
    shallow = np.zeros(size, np.float32)

    scope = rng.random() < 0.35  # the round rim of the dermatoscope is in view
    rim = rng.uniform(0.49, 0.56) if scope else 9.0
    room = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns)) + 1
    room = np.minimum(room, (rim - 0.04 - centre_distance) * short)
    common = int(rng.integers(3))
    kinds = [common if rng.random() < 0.7 else int(rng.integers(3)) for _ in range(lesions)]
    rough = fractal_noise(rng, size, rng.uniform(9, 22) * unit) * np.float32(rng.uniform(0.8, 3.2) * unit)
    placed = place(rng, room, _STYLES, kinds, inside=0.98 if scope else 0.95, ragged=rough)
    supports = []
    patches = fractal_noise(rng, size, 34 * unit)
    cells = smooth_noise(rng, size, rng.uniform(2.0, 3.6) * unit)
    for _kind, _shape, level in placed:
        density, inner = _pigment(rng, level, patches, cells, unit)
        hue = rng.random()
        tone = np.clip(0.5 + 0.9 * patches + rng.normal(), 0, 1)
        if hue < 0.18:  # amelanotic: pink, little pigment
            blood += np.float32(rng.uniform(0.25, 0.8)) * inner * (1 + 0.25 * patches)
            melanin += np.float32(rng.uniform(0.05, 0.25)) * density
        else:
            strength = np.float32(np.exp(rng.uniform(np.log(0.17), np.log(1.6))))
            melanin += strength * density * tone
            shallow += strength * density * (1 - tone)
            if hue > 0.6:
                veil = sigmoid(4 * (fractal_noise(rng, size, 26 * unit) - rng.uniform(0.1, 1.0)))
                deep += np.float32(rng.uniform(0.2, 0.8)) * veil * inner * sigmoid((level - 5 * unit) / (2 * unit))
            blood += np.float32(rng.uniform(0, 0.18)) * sigmoid((level + 6 * unit) / (4 * unit))
        supports.append(level > 0)

    spots = np.maximum(smooth_noise(rng, size, 6 * unit) - rng.uniform(2.3, 3.4), 0)  # freckles
    melanin += 0.12 * spots
    optical = melanin * _MELANIN + shallow * _SHALLOW_MELANIN + deep * _DEEP_MELANIN + blood * _BLOOD
    picture = skin * np.exp(-optical)
    picture += 0.05 * sigmoid(4 * (deep - 0.4)) * rgb(0.2, 0.5, 1.0)

    light = 1 - rng.uniform(0.05, 0.5) * np.square(centre_distance) * 1.6
    light += rng.uniform(-0.12, 0.12) * down + rng.uniform(-0.12, 0.12) * across
    hair = _hairs(rng, size, int(rng.choice([0, 0, 4, 10, 22, 36])))
    hair_colour = rgb(0.16, 0.10, 0.08) * rng.uniform(0.7, 2.6)
    picture = picture * light
    picture += hair * (hair_colour - picture)
    picture += rng.uniform(0.1, 0.3) * _gel(rng, size, unit)
    if scope:
        edge = sigmoid((rim - centre_distance) * np.float32(short / rng.uniform(4, 12)))
        halo = np.exp(-np.square((centre_distance - rim + 0.03) / 0.03))
        picture = (picture + 0.05 * halo * rgb(0.3, 0.5, 0.9)) * edge + 0.02
    picture += 0.013 * rng.standard_normal((3, *size), dtype=np.float32)
    return Scene(to_image(picture), supports)


def _pigment(rng: np.random.Generator, level: Field, patches: Field, cells: Field, unit: float) -> tuple[Field, Field]:
    """Relative pigment density of a lesion, about 1 inside, and its plain soft support."""
    softness = np.float32(rng.uniform(0.8, 3.2) * unit)
    inner = sigmoid(level / softness)
    network = ndimage.gaussian_filter(threads(cells, rng.uniform(0.35, 0.6)), 0.7 * unit, truncate=2)
    globules = sigmoid(6 * (cells - rng.uniform(1.0, 1.6)))
    weight = rng.uniform(0.1, 0.55)  # of the mesh against the even brown between
    texture = 1 - weight + 1.6 * weight * network + rng.uniform(0, 0.6) * globules
    blotches = np.clip(1 + rng.uniform(0.15, 0.6) * patches + 0.12 * cells, 0.3, 2.2)
    reach = max(float(level.max()), 1.0)
    centre = 1 + rng.uniform(-0.35, 0.6) * np.clip(level / np.float32(reach), 0, 1)
    return inner * texture * blotches * centre, inner


def _hairs(rng: np.random.Generator, size: Size, number: int) -> Field:
    """Cover (H, W) in [0, 1] of ``number`` bent hairs that mostly run one way."""
    if not number:
        return np.zeros(size, np.float32)
    short = min(size)
    main = rng.uniform(0, np.pi)
    t = np.linspace(0, 1, 3 * max(size))[None, :]
    start = rng.uniform(-0.1, 1.1, (number, 2)) * size
    heading = main + rng.normal(0, 0.6, (number, 1))
    length = short * rng.uniform(0.3, 1.1, (number, 1))
    bend = rng.normal(0, 0.7, (number, 1))
    angle = heading + bend * t
    step = length / t.shape[1]
    rows = start[:, :1] + np.cumsum(np.sin(angle) * step, axis=1)
    columns = start[:, 1:] + np.cumsum(np.cos(angle) * step, axis=1)
    cover = step * np.minimum(1, 6 * (1 - t)) * rng.uniform(0.4, 1.0, (number, 1))
    points = np.stack([rows.ravel(), columns.ravel()], axis=1)
    drawn = splat(points, np.broadcast_to(cover, rows.shape).ravel(), size)
    drawn = ndimage.gaussian_filter(drawn, max(0.55 * short / 256, 0.4), truncate=3)
    return np.minimum(1.6 * drawn, 0.92).astype(np.float32)


def _gel(rng: np.random.Generator, size: Size, unit: float) -> Field:
    """Small bright rings of air bubbles in the immersion gel, now and then."""
    drawn = np.zeros(size, np.float32)
    if rng.random() < 0.2:
        rows, columns = grid(size)
        for _ in range(int(rng.integers(1, 4))):
            distance = np.hypot(rows - rng.uniform(0, size[0]), columns - rng.uniform(0, size[1]))
            drawn += np.exp(-np.square((distance - rng.uniform(2.5, 8) * unit) / (0.7 * unit)))
    return drawn
