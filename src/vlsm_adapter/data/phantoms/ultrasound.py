"""Breast ultrasound, linear probe: speckle of the right statistics over layered tissue, with hypoechoic tumours.

A tissue map of scatterer strength is filled with complex Gaussian scatterers and seen through a point spread that
widens away from the focus; the envelope of that is Rayleigh distributed where the tissue is uniform (mean over
standard deviation 1.91). Attenuation is summed along depth, so shadow and enhancement follow from the lesion itself.
Envelope statistics: Wagner, Smith, Sandrik and Lopez, IEEE Trans. Sonics Ultrason. 30(3), 1983.
"""

from __future__ import annotations

import math

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
    profile,
    sigmoid,
    smooth_noise,
    text,
    threads,
)

_CYST = Style(radius=(0.05, 0.2), elongation=(1.0, 1.35), roughness=(0.0, 0.03), tilt=0.5)
_BENIGN = Style(radius=(0.05, 0.21), elongation=(1.15, 2.0), roughness=(0.01, 0.06), tilt=0.3)
_MALIGNANT = Style(radius=(0.055, 0.2), elongation=(1.0, 1.5), roughness=(0.11, 0.2), harmonics=9)
_KINDS = (_CYST, _BENIGN, _MALIGNANT)
# dB against the tissue around, least and most; attenuation behind (dB per pixel of a 256-pixel depth, < 0 enhances)
_ECHO = ((-42.0, -20.0), (-19.0, -6.0), (-22.0, -7.0))
_BEHIND = ((-0.12, -0.03), (-0.05, 0.03), (0.02, 0.15))


def _kernel(sigma: float) -> Field:
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return (taps / np.sqrt(np.sum(taps**2))).astype(np.float32)


def envelope(rng: np.random.Generator, amplitude: Field, *, focus: float = 0.4) -> Field:
    """Echo envelope (H, W) of scatterers of strength ``amplitude`` (H, W), before attenuation and log compression.

    The point spread is Gaussian, 1 px along depth; its width across grows from about 1.1 px at the ``focus``
    (fraction of the depth) to 2.6 px half an image away. Uniform tissue of strength a gives a Rayleigh envelope of
    mean square 2 a**2 at every depth.
    """
    size = amplitude.shape[0], amplitude.shape[1]
    axial, narrow, wide = _kernel(0.9), _kernel(1.1), _kernel(2.6)
    rows, _ = grid(size)
    blend = np.clip(np.abs(rows / size[0] - np.float32(focus)) / np.float32(0.5), 0, 1)
    # Variances of the two filtered fields are 1; their covariance is that of the kernels, needed to keep the sum at 1.
    overlap = float(np.sum(narrow * wide[(len(wide) - len(narrow)) // 2 :][: len(narrow)]))
    scale = 1 / np.sqrt(blend**2 + (1 - blend) ** 2 + 2 * overlap * blend * (1 - blend))
    power = np.zeros(size, np.float32)
    for _part in ("in phase", "quadrature"):
        scatter = rng.standard_normal(size, dtype=np.float32) * amplitude
        scatter = ndimage.correlate1d(scatter, axial, axis=0, mode="reflect")
        near = ndimage.correlate1d(scatter, narrow, axis=1, mode="reflect")
        far = ndimage.correlate1d(scatter, wide, axis=1, mode="reflect")
        power += np.square(scale * ((1 - blend) * near + blend * far))
    return np.sqrt(power)


def ultrasound(rng: np.random.Generator, size: Size, lesions: int) -> Scene:
    """Draw a breast ultrasound, uint8 (H, W), with up to ``lesions`` hypoechoic tumours."""
    height, width = size
    rows, columns = grid(size)
    depth = rows / np.float32(height)
    sharp = np.float32(height / 1.5)
    tilt = rng.uniform(-0.06, 0.06) * (columns[0] / width - 0.5)

    def boundary(at: float, wave: float, scale: float) -> Field:
        return (at + tilt * (at > 0.1) + wave * profile(rng, width, width * scale)).astype(np.float32)

    skin = boundary(rng.uniform(0.03, 0.06), 0.002, 0.4)
    fat = skin + np.abs(boundary(rng.uniform(0.06, 0.2), 0.025, 0.22))
    gland = np.maximum(boundary(rng.uniform(0.5, 0.74), 0.02, 0.35), fat + 0.12)
    muscle = gland + np.abs(boundary(rng.uniform(0.1, 0.22), 0.01, 0.5))

    # Tissue echo in dB. Streaks follow the layers: noise long across and short along depth, bent with the boundary.
    echo = np.full(size, np.float32(rng.uniform(-21, -15)))
    echo += 3.5 * smooth_noise(rng, size, (height / 60, width / 3))
    in_muscle = sigmoid((muscle - depth) * sharp)
    bent = np.clip(rows - (gland * height)[None, :] + height / 2, 0, height - 1).astype(np.intp)
    streaks = smooth_noise(rng, size, (height / 110 + 1, width / 2.5))[bent, columns.astype(np.intp)]
    echo += in_muscle * (rng.uniform(-19, -13) + 6.5 * np.maximum(streaks, -0.8) - echo)
    in_gland = sigmoid((gland - depth) * sharp)
    lobular = fractal_noise(rng, size, width / 9)
    fibres = smooth_noise(rng, size, (height / 70 + 1, width / 12))
    lobules = sigmoid(4 * (smooth_noise(rng, size, (height / 11, width / 6)) - rng.uniform(0.7, 1.6)))
    glandular = (
        rng.uniform(-8, -3)
        + 2.0 * lobular
        + 2.6 * fibres
        - rng.uniform(4, 11) * lobules
        + rng.uniform(0, 6) * threads(lobular, 0.15)
    )
    echo += in_gland * (glandular - echo)
    in_fat = sigmoid((fat - depth) * sharp)
    septa = threads(smooth_noise(rng, size, (height / 12, width / 6)), 0.16)
    echo += in_fat * (rng.uniform(-19, -12) + 1.5 * fibres + rng.uniform(6, 13) * septa - echo)
    in_skin = sigmoid((skin - depth) * sharp)
    echo += in_skin * (rng.uniform(-5, 0) - echo)
    for border, strength in ((skin, 7.0), (gland, 9.0), (muscle, rng.uniform(2, 12)), (fat, 3.0)):
        glint = np.clip(1 + 0.7 * profile(rng, width, width / 8), 0, 1.8) * strength
        echo += glint * np.exp(-np.square((depth - border) * np.float32(height / 1.6)))

    loss = np.full(size, np.float32(rng.uniform(0.0, 0.035)))
    loss += np.float32(rng.uniform(0.05, 0.2)) * (depth > muscle)
    room = np.minimum(depth - (skin + 0.02), gland + 0.04 - depth) * height
    room = np.minimum(room, np.minimum(columns, width - 1 - columns) + 1)
    common = int(rng.integers(3))
    kinds = [common if rng.random() < 0.7 else int(rng.integers(3)) for _ in range(lesions)]
    ragged = fractal_noise(rng, size, height / 40) * np.float32(height / 256)
    placed = place(rng, room, _KINDS, kinds, inside=0.97, ragged=ragged)
    supports = []
    for kind, shape, level in placed:
        soft = sigmoid(level / np.float32(rng.uniform(0.5, 1.4 if kind else 0.7)))
        contrast = np.float32(rng.uniform(*_ECHO[kind]))
        inner = contrast + (2.5 if kind else 0.8) * lobular
        surround = np.float32(np.mean(echo[np.abs(level) < 4]))
        echo += soft * (np.float32(0.6) * (surround - echo) + inner)
        rim = np.exp(-np.square((level + 1.5) / np.float32(1.6)))
        echo += (rng.uniform(1, 5) if kind != 2 else rng.uniform(2, 6)) * rim * (1 + 0.6 * fibres)
        loss += np.float32(rng.uniform(*_BEHIND[kind])) * soft
        if kind != 2:  # refraction at the flanks throws two thin shadows
            reach = shape.radius * math.sqrt(shape.elongation)
            flank = np.exp(-np.square((np.abs(columns - shape.centre[1]) - reach) / np.float32(0.02 * width)))
            loss += np.float32(rng.uniform(0, 0.06)) * flank * sigmoid((rows - shape.centre[0]) / 3)
        supports.append(level > 0)

    # Poor contact and gas darken whole columns; the gain curve darkens the far field.
    shade = np.clip(profile(rng, width, width / 6) - rng.uniform(1.0, 2.4), 0, 2) * 8
    shade += rng.uniform(0, 14) * np.exp(-np.minimum(columns[0], width - 1 - columns[0]) / (0.03 * width))
    gain = -np.cumsum(loss, axis=0) * np.float32(256 / height)
    gain -= shade[None, :].astype(np.float32) * np.minimum(depth / 0.15, 1)
    gain -= np.float32(rng.uniform(0, 16)) * np.square(np.maximum(depth - rng.uniform(0.3, 0.6), 0) / 0.5)
    gain = ndimage.uniform_filter1d(gain, max(width // 60, 1), axis=1)

    seen = envelope(rng, np.power(np.float32(10), echo / 20), focus=rng.uniform(0.25, 0.6))
    decibel = 20 * np.log10(seen + np.float32(1e-4)) + gain
    # Scanners compound and smooth what they show; the envelope itself stays Rayleigh.
    decibel = ndimage.gaussian_filter(decibel, rng.uniform(0.45, 0.8), truncate=2.5)
    span = rng.uniform(46, 60)
    grey = np.clip((decibel + span - rng.uniform(7, 13)) / span, 0, 1) ** rng.uniform(1.3, 2.0)
    grey *= np.minimum(1, rows / 2 + 0.2)
    image = np.rint(255 * grey).astype(np.uint8)
    _marks(rng, image)
    return Scene(image, supports)


def _marks(rng: np.random.Generator, image: np.ndarray) -> None:
    """Depth ticks along one edge and, on some, a side label: what a scanner burns in. Drawn in place."""
    height, width = image.shape
    if rng.random() < 0.7:
        spacing = height / rng.integers(4, 8)
        for tick in np.arange(spacing, height - 2, spacing).astype(int):
            image[tick, width - 4 : width - 1] = 190
    if rng.random() < 0.4:
        label = text(("L" if rng.random() < 0.5 else "R") + str(rng.integers(1, 13)), max(min(height, width) // 160, 1))
        top, left = int(0.9 * height), int(rng.uniform(0.04, 0.3) * width)
        region = image[top : top + label.shape[0], left : left + label.shape[1]]
        region[label[: region.shape[0], : region.shape[1]]] = 230
