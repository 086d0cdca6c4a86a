"""Chest radiograph, posteroanterior: the thorax as overlapping shadows, with opacities in the lungs.

Shadows add up as they do in projection: soft tissue, aerated lungs (less), heart and great vessels, spine, ribs,
clavicles, lung vessels, diaphragm and stomach bubble; then quantum noise, stronger where less light arrives, and
the window of the display. The image's left is the patient's right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vlsm_adapter.data.phantoms.shapes import (
    Field,
    Scene,
    Size,
    Style,
    branches,
    fractal_noise,
    place,
    sigmoid,
    smooth_noise,
    splat,
    text,
)

_STYLES = (
    Style(radius=(0.045, 0.12), elongation=(1.0, 1.15), roughness=(0.0, 0.04)),  # nodule or mass
    Style(radius=(0.06, 0.17), elongation=(1.2, 2.0), roughness=(0.0, 0.06)),
    Style(radius=(0.09, 0.22), elongation=(1.0, 1.7), roughness=(0.1, 0.18)),  # consolidation
)


def radiograph(rng: np.random.Generator, size: Size, lesions: int) -> Scene:
    """Draw a chest radiograph, uint8 (H, W), with up to ``lesions`` opacities."""
    height, width = size
    unit = min(size) / 256
    # Body coordinates: u across (-1 and 1 at the image edges, 0 at the spine), v down (0 to 1).
    zoom, shift = rng.uniform(0.9, 1.08), rng.uniform(-0.06, 0.06)
    lean = rng.uniform(-0.05, 0.05)
    v = ((np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - 0.5) * zoom + 0.5 + rng.uniform(-0.03, 0.03)
    u = ((np.arange(width, dtype=np.float32)[None, :] + 0.5) / width * 2 - 1) * zoom + shift
    u = u + np.float32(lean) * (v - 0.5)
    v = v - np.float32(0.5 * lean) * u
    bend = 0.012 * smooth_noise(rng, size, min(size) / 3)
    u, v = u + bend, v + 0.5 * bend[::-1]
    px = np.float32(width / 2 / zoom)  # pixels per unit of u
    py = np.float32(height / zoom)

    def soft(distance: Field, blur: float) -> Field:
        return sigmoid(distance / np.float32(blur * unit))

    # Trunk, shoulders and neck.
    shoulder = 0.07 + 0.16 * np.clip(np.abs(u) - 0.18, 0, None) ** 1.5 - rng.uniform(0.0, 0.05)
    trunk = np.minimum((v - shoulder) * py, (rng.uniform(0.96, 1.05) + 0.05 * np.cos(5 * v) - np.abs(u)) * px)
    neck = (0.2 + 0.5 * np.maximum(v - 0.05, 0) - np.abs(u)) * px
    body = soft(np.maximum(trunk, neck), 3)
    muscle = 1 - 0.35 * np.exp(-np.square((np.abs(u) - 0.45) / 0.35))
    film = body * rng.uniform(0.50, 0.6) * (0.8 + 0.3 * muscle)

    # Lungs; the left one (u > 0) makes room for the heart.
    heart_width = rng.uniform(0.3, 0.4)
    lung_level = np.full(size, np.float32(-1e3))
    base = rng.uniform(0.74, 0.82)
    domes = []
    for side in (-1, 1):
        a = side * u
        apex = rng.uniform(0.09, 0.13)
        rise = np.clip(v - apex, 0, None)
        outer = rng.uniform(0.74, 0.82) * (1 - np.exp(-rise / 0.15)) ** 0.62
        inner = 0.15 + 0.04 * np.sin(7 * v + side) + 0.05 * np.exp(-np.square((v - 0.44) / 0.07))
        dome = base + 0.02 * side + 0.5 * np.square(a - 0.36) - 0.02
        domes.append(dome)
        level = np.minimum(np.minimum((outer - a) * px, (a - inner) * px), (dome - v) * py)
        lung_level = np.maximum(lung_level, level)
    heart_row, heart_column = base - rng.uniform(0.1, 0.14), rng.uniform(0.08, 0.15)
    turned = (u - heart_column) * np.float32(0.9) + (v - heart_row) * np.float32(0.45)
    across = (v - heart_row) - np.float32(0.3) * (u - heart_column)
    heart = 1 - np.hypot(turned / heart_width, across / 0.19)
    heart_level = heart * np.float32(0.2) * py
    knob = (1 - np.hypot((u - 0.15) / 0.1, (v - rng.uniform(0.29, 0.33)) / 0.05)) * np.float32(0.05) * py
    centre_level = np.maximum(heart_level, knob)
    air = soft(lung_level, rng.uniform(1.6, 2.6)) * (1 - soft(centre_level, 2.2))
    aeration = rng.uniform(0.36, 0.46) * (1 + 0.05 * fractal_noise(rng, size, 50 * unit))
    film -= air * aeration * (1 - 0.2 * np.square(v - 0.35) / 0.1 * (v > 0.35))

    # Midline: mediastinum, spine with disc spaces, trachea.
    film += 0.13 * np.exp(-np.square(u / 0.15)) * body * sigmoid((v - 0.15) / 0.05)
    vertebra = 0.5 + 0.5 * np.cos(2 * np.pi * v / rng.uniform(0.062, 0.075))
    film += 0.05 * soft((0.085 - np.abs(u)) * px, 1.5) * (0.55 + 0.45 * np.sqrt(vertebra)) * body
    trachea = soft((0.042 - np.abs(u - 0.01)) * px, 1.6) * sigmoid((0.37 - v) / 0.015)
    film -= rng.uniform(0.08, 0.14) * trachea * body
    film += rng.uniform(0.03, 0.08) * soft(heart_level, 3) * body
    below = soft((v - domes[0] - sigmoid(u / 0.04) * (domes[1] - domes[0])) * py, 1.8)
    film += rng.uniform(0.08, 0.16) * below * body * sigmoid((0.85 - np.abs(u)) / 0.03)
    if rng.random() < 0.7:  # gas in the stomach, under the left dome
        bubble = (1 - np.hypot((u - rng.uniform(0.3, 0.5)) / 0.17, (v - base - 0.075) / 0.045)) * 0.045 * py
        film -= rng.uniform(0.08, 0.2) * soft(bubble, 2.5)

    film += _bones(rng, u, v, px, py, unit) * body * (0.55 + 0.45 * air)
    film += _lung_vessels(rng, size, u, v) * air * rng.uniform(0.5, 1.0)

    room = np.minimum(lung_level - 1, -centre_level - 1)
    room = np.minimum(room, np.minimum(v - 0.12, 0.95 - v) * py).astype(np.float32)
    edge = np.minimum(np.arange(height)[:, None], (height - 1 - np.arange(height))[:, None]).astype(np.float32)
    side_edge = np.minimum(np.arange(width), width - 1 - np.arange(width))[None, :].astype(np.float32)
    room = np.minimum(room, np.minimum(edge, side_edge) - 2)
    common = int(rng.integers(3))
    kinds = [common if rng.random() < 0.7 else int(rng.integers(3)) for _ in range(lesions)]
    ragged = fractal_noise(rng, size, 14 * unit) * np.float32(1.4 * unit)
    placed = place(rng, room, _STYLES, kinds, inside=0.8, ragged=ragged)
    cloud = fractal_noise(rng, size, 20 * unit)
    supports = []
    for kind, _shape, level in placed:
        blur = rng.uniform(0.8, 2.0) if kind == 0 else rng.uniform(1.2, 3.2)
        strength = np.float32(np.exp(rng.uniform(np.log(0.1), np.log(0.34))))
        patchy = 1 + np.float32(0.08 if kind == 0 else rng.uniform(0.1, 0.3)) * cloud
        film += strength * soft(level, blur) * np.clip(patchy, 0.35, 1.6)
        supports.append(level > 0)

    # The detector blurs a little; the processing sharpens and evens out the large-scale differences.
    film = ndimage.gaussian_filter(film, 0.5 * unit, truncate=2.5)
    film += rng.uniform(0.3, 0.9) * (film - ndimage.uniform_filter(film, max(int(9 * unit), 3)))
    film = film - np.float32(0.45) * np.maximum(film - np.float32(0.62), 0)
    grain = 0.55 * rng.standard_normal(size, dtype=np.float32) + 0.45 * smooth_noise(rng, size, 1.3)
    film += rng.uniform(0.008, 0.022) * grain * (0.6 + 0.8 * np.clip(film, 0, 1))
    grey = np.clip((film - rng.uniform(0.02, 0.07)) * rng.uniform(1.15, 1.45), 0, 1) ** rng.uniform(0.85, 1.15)
    image = np.rint(250 * grey).astype(np.uint8)
    _marker(rng, image)
    return Scene(image, supports)


def _bones(rng: np.random.Generator, u: Field, v: Field, px: np.float32, py: np.float32, unit: float) -> Field:
    """Ribs (posterior bright, anterior faint), clavicles and the edge of the shoulder blades."""
    a = np.abs(u)
    total = np.zeros(v.shape, np.float32)
    spacing = rng.uniform(0.076, 0.09)
    wide = rng.uniform(0.36, 0.46)
    start = rng.uniform(0, 1)
    wall = sigmoid((0.86 - a) / 0.02) * sigmoid((v - 0.09) / 0.02) * sigmoid((a - 0.06) / 0.02)
    # All ribs at once: a function that grows by one from rib to rib; they arch from the spine and fall at the side.
    arch = 0.16 * np.square(a - 0.2) + 0.9 * np.clip(a - 0.5, 0, None) ** 2 - 0.02
    for curve, phase, strength, cortex in (
        (arch, start, rng.uniform(0.07, 0.12), 0.5),
        (0.1 - 0.5 * np.square(np.clip(0.8 - a, 0, None)) + 0.0 * v, start + 0.5, rng.uniform(0.02, 0.05), 0.3),
    ):
        steps = (v - curve) / np.float32(spacing) + np.float32(phase)
        offset = np.abs(steps - np.floor(steps) - 0.5) / np.float32(wide / 2)
        blade = sigmoid((1 - offset) * np.float32(spacing * wide / 2) * py / np.float32(0.8 * unit))
        edges = np.exp(-np.square((offset - 0.85) / 0.2))
        total += strength * wall * (0.75 * blade + cortex * edges) * sigmoid((0.93 - v) / 0.03)
    for side in (-1, 1):
        b = side * u
        rise = rng.uniform(0.12, 0.2)
        middle = 0.205 - rise * (b - 0.1) + 0.035 * np.sin(6 * (b - 0.1)) + rng.uniform(-0.012, 0.012)
        offset = np.abs(v - middle) / np.float32(0.019)
        ends = sigmoid((b - 0.07) / 0.012) * sigmoid((0.82 - b) / 0.02)
        clavicle = sigmoid((1 - offset) * np.float32(0.019) * py / np.float32(0.8 * unit))
        total += ends * (0.12 * clavicle + 0.06 * np.exp(-np.square((offset - 0.85) / 0.25)))
        blade_level = (b - (0.66 + 0.35 * np.square(v - 0.42) + 0.25 * np.maximum(v - 0.42, 0))) * px
        total += rng.uniform(0.02, 0.06) * sigmoid(blade_level / np.float32(2 * unit)) * sigmoid((0.5 - v) / 0.02)
    return total


def _lung_vessels(rng: np.random.Generator, size: Size, u: Field, v: Field) -> Field:
    """Vessels that fan out from both hila and thin towards the pleura, and the hila themselves."""
    short = min(size)
    drawn = np.zeros(size, np.float32)
    roots, headings = [], []
    for side in (-1, 1):
        hilum = np.abs(u - side * 0.2) + np.abs(v - 0.45)
        root = np.unravel_index(int(np.argmin(hilum)), size)
        fan = np.linspace(-1.25, 1.25, 7) + rng.normal(0, 0.15, 7)
        roots.append(np.tile(np.array(root, np.float64), (7, 1)))
        headings.append(fan if side > 0 else np.pi - fan)
        drawn += 0.05 * np.exp(-np.square((u - side * 0.2) / 0.09) - np.square((v - 0.46) / 0.075))
    lengths = short * rng.uniform(0.09, 0.14, 14)
    points, share, calibre = branches(rng, np.concatenate(roots), np.concatenate(headings), lengths)
    large = calibre > 0.45
    thick = splat(points[large], (2 * share * calibre)[large], size)
    thin = splat(points[~large], (2 * share * calibre)[~large], size)
    unit = short / 256
    vessels = 0.2 * ndimage.gaussian_filter(thick, 1.5 * unit, truncate=2.5)
    vessels += 0.17 * ndimage.gaussian_filter(thin, 0.8 * unit, truncate=2.5)
    return drawn + np.minimum(vessels, 0.2)


def _marker(rng: np.random.Generator, image: NDArray[np.uint8]) -> None:
    """The lead letter of the side, in an upper corner. Drawn in place."""
    height, width = image.shape
    left_side = rng.random() < 0.5  # the patient's left is the image's right
    letter = text("L" if left_side else "R", max(min(height, width) // 96, 1))[:, :-1]
    top = int(rng.uniform(0.03, 0.08) * height)
    left = int((rng.uniform(0.88, 0.93) if left_side else rng.uniform(0.03, 0.07)) * width)
    left = min(left, width - letter.shape[1] - 1)
    region = image[top : top + letter.shape[0], left : left + letter.shape[1]]
    region[letter[: region.shape[0], : region.shape[1]]] = 245
