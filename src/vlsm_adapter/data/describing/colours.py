"""Naming colours: CIE 1976 L*a*b*, the nearest named reference colour with a margin, and light or dark against the
surroundings.

Conversion from sRGB follows IEC 61966-2-1 and CIE 15 (white point D65); the distance is that of CIE 1976 (Delta E*ab).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Palette = Sequence[tuple[str, tuple[int, int, int]]]

#: Basic colour terms as sRGB (0 to 255), several shades to a word. Chosen by eye to cover tissue, skin and stains.
BASIC: Palette = (
    ("black", (20, 18, 18)),
    ("gray", (75, 75, 75)),
    ("gray", (128, 128, 128)),
    ("gray", (175, 175, 175)),
    ("white", (235, 235, 232)),
    ("red", (200, 40, 40)),
    ("red", (150, 35, 30)),
    ("red", (190, 75, 65)),
    ("pink", (225, 150, 150)),
    ("pink", (205, 120, 120)),
    ("pink", (240, 190, 190)),
    ("orange", (230, 130, 50)),
    ("orange", (205, 105, 50)),
    ("yellow", (230, 200, 60)),
    ("yellow", (235, 215, 130)),
    ("brown", (65, 40, 28)),
    ("brown", (105, 65, 42)),
    ("brown", (140, 95, 65)),
    ("beige", (200, 165, 130)),
    ("beige", (225, 200, 170)),
    ("green", (60, 140, 60)),
    ("green", (120, 170, 90)),
    ("blue", (50, 80, 180)),
    ("blue", (110, 150, 205)),
    ("purple", (110, 60, 140)),
    ("purple", (160, 120, 180)),
)


def lab(colours: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """sRGB (N, 3) in 0 to 255 to CIE 1976 L*a*b* (N, 3), white point D65."""
    value = np.asarray(colours, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear[:, 0], linear[:, 1], linear[:, 2]
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    fx, fy, fz = (np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=1)


def nearest_word(
    colour: Sequence[float] | NDArray[np.float64], palette: Palette, *, margin: float, reach: float = np.inf
) -> str | None:
    """The name of the reference colour nearest to ``colour``.

    Args:
        colour: sRGB (red, green, blue) in 0 to 255.
        palette: names and their reference colours.
        margin: how much farther (Delta E*ab) the nearest colour of any other name must be.
        reach: the farthest that the nearest may be.

    Returns:
        The name, or None where another name is as near within ``margin`` or none is within ``reach``.
    """
    points = lab(np.array([colour, *(reference for _, reference in palette)], np.float64))
    distances = np.linalg.norm(points[1:] - points[0], axis=1)
    by_word: dict[str, float] = {}
    for (word, _), distance in zip(palette, distances, strict=True):
        by_word[word] = min(by_word.get(word, np.inf), float(distance))
    order = sorted(by_word, key=by_word.__getitem__)
    first = by_word[order[0]]
    second = by_word[order[1]] if len(order) > 1 else np.inf
    return order[0] if second - first >= margin and first <= reach else None


def contrast(
    region: NDArray[np.bool_],
    grey: NDArray[np.uint8],
    *,
    inner: float,
    outer: float,
    exclude: NDArray[np.bool_] | None = None,
) -> float | None:
    """Mean grey level of a region less that of the ring around it, in grey levels.

    Args:
        region: bool (H, W), not empty.
        grey: uint8 (H, W).
        inner, outer: the ring is what lies farther than ``inner`` and at most ``outer`` pixels from the region.
        exclude: bool (H, W) of pixels that are no surroundings, other findings say.

    Returns:
        The difference, or None where there is no ring (the region fills the picture).
    """
    reach = int(np.ceil(outer))
    box = tuple(
        slice(max(part.start - reach, 0), part.stop + reach)
        for part in ndimage.find_objects(region.astype(np.uint8))[0]
    )
    inside, levels = region[box], grey[box]
    distance = ndimage.distance_transform_edt(~inside)
    around = (distance > inner) & (distance <= outer)
    if exclude is not None:
        around &= ~exclude[box]
    return float(levels[inside].mean()) - float(levels[around].mean()) if around.any() else None
