"""The words of a phantom's prompts, each measured on the mask (and, for colour, on the picture) that it describes.

Prompt levels follow the published layout: p0 nothing, p1 the class name, p2 + shape, p3 + colour, p4 + size,
p5 + number, p6 + position. Only p0 and p1 are free of leaks: the rest tell what the mask looks like.

=========  ==========================================================================================================
word       true when
=========  ==========================================================================================================
round      the lesion covers its ellipse of equal second moments with IoU >= 0.88, long axis <= 1.25 x short axis
oval       the same IoU, long axis longer than that
irregular  IoU below 0.88
colour     colour pictures: the nearest of the modality's reference colours (CIE 1976 L*a*b*) to the lesion's mean;
           ultrasound "dark", radiograph "bright": the mean is at least 4 grey levels below, or above, that of the
           tissue 3 to 10 px around; otherwise nothing is said
small      area below 2.5 % of the image
medium     2.5 % to 10 %
large      10 % and more
one, two   number of lesions (8-connected regions of the mask); "no" for an empty mask, from p5 on
position   cell of the 3 x 3 grid of equal parts that holds the centroid: "top left", "top", ..., "center", ...
=========  ==========================================================================================================

With several lesions, a shape, colour or size is said only if it is true of every one; positions are all listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

ROUND_IOU = 0.88
ROUND_AXIS_RATIO = 1.25
SMALL_BELOW = 0.025
LARGE_FROM = 0.10
GREY_DIFFERENCE = 4.0
NUMBERS = ("no", "one", "two", "three")

_GREY_WORDS = {"ultrasound": ("dark", -1), "radiograph": ("bright", 1)}
#: Reference colours as sRGB (0 to 255); several may share a word.
PALETTES: Mapping[str, Sequence[tuple[str, tuple[int, int, int]]]] = {
    "dermoscopy": (
        ("black", (54, 38, 35)),
        ("brown", (92, 55, 42)),
        ("brown", (132, 84, 62)),
        ("light brown", (176, 128, 98)),
        ("pink", (205, 128, 122)),
        ("red", (170, 72, 72)),
        ("gray", (105, 98, 104)),
    ),
    "endoscopy": (
        ("pink", (205, 122, 108)),
        ("pink", (165, 98, 88)),
        ("red", (180, 62, 48)),
        ("red", (120, 45, 38)),
        ("orange", (205, 112, 55)),
        ("yellow", (205, 155, 80)),
        ("pale", (228, 190, 168)),
    ),
}


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion, as measured on its mask.

    Attributes:
        centre: centroid (row, column) in pixels, pixel centres at whole numbers.
        area: pixels.
        shape, size, position: words of the table above.
        colour: a word, or "" where none holds.
    """

    centre: tuple[float, float]
    area: int
    shape: str
    colour: str
    size: str
    position: str


def describe(mask: NDArray[np.bool_], image: NDArray[np.uint8], modality: str) -> Lesion:
    """Measure one lesion: ``mask`` bool (H, W) not empty, ``image`` uint8 (H, W) or (H, W, 3)."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    centre = float(rows.mean()), float(columns.mean())
    area = len(rows)
    share = area / mask.size
    size = "small" if share < SMALL_BELOW else "large" if share >= LARGE_FROM else "medium"
    return Lesion(
        centre=centre,
        area=area,
        shape=_shape(mask, rows, columns),
        colour=_colour(mask, image, modality),
        size=size,
        position=_position((centre[0] + 0.5) / height, (centre[1] + 0.5) / width),
    )


def _shape(mask: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> str:
    down, across = rows - rows.mean(), columns - columns.mean()
    # 1/12 is the second moment of a pixel's own square.
    a, b, c = float(np.mean(down**2)) + 1 / 12, float(np.mean(down * across)), float(np.mean(across**2)) + 1 / 12
    middle, half = (a + c) / 2, float(np.hypot((a - c) / 2, b))
    long, short = middle + half, max(middle - half, 1e-9)
    # The ellipse of equal second moments: x' S^-1 x <= 4, written out for the 2 x 2 matrix S.
    grid_rows, grid_columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    y, x = grid_rows - rows.mean(), grid_columns - columns.mean()
    ellipse = (c * y * y - 2 * b * y * x + a * x * x) <= 4 * (a * c - b * b)
    iou = np.count_nonzero(mask & ellipse) / np.count_nonzero(mask | ellipse)
    if iou < ROUND_IOU:
        return "irregular"
    return "round" if np.sqrt(long / short) <= ROUND_AXIS_RATIO else "oval"


def _position(down: float, across: float) -> str:
    vertical = "top" if down < 1 / 3 else "bottom" if down > 2 / 3 else ""
    horizontal = "left" if across < 1 / 3 else "right" if across > 2 / 3 else ""
    return f"{vertical} {horizontal}".strip() or "center"


def _colour(mask: NDArray[np.bool_], image: NDArray[np.uint8], modality: str) -> str:
    if modality in PALETTES:
        mean = image[mask].mean(axis=0)
        references = PALETTES[modality]
        points = _lab(np.array([mean, *(colour for _, colour in references)], np.float64))
        return references[int(np.argmin(np.linalg.norm(points[1:] - points[0], axis=1)))][0]
    grey = image if image.ndim == 2 else image[..., 0]
    box = tuple(
        slice(max(part.start - 10, 0), part.stop + 10) for part in ndimage.find_objects(mask.astype(np.uint8))[0]
    )
    inner, grey = mask[box], grey[box]
    distance = ndimage.distance_transform_edt(~inner)
    around = (distance > 3) & (distance <= 10)
    difference = float(grey[inner].mean()) - float(grey[around].mean()) if around.any() else 0.0
    word, sign = _GREY_WORDS[modality]
    return word if sign * difference >= GREY_DIFFERENCE else ""


def _lab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB (N, 3) in 0 to 255 to CIE 1976 L*a*b*, white point D65 (IEC 61966-2-1, CIE 15)."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear[:, 0], linear[:, 1], linear[:, 2]
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    fx, fy, fz = (np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=1)


def prompts(lesions: Sequence[Lesion], noun: str, plural: str) -> dict[str, tuple[str, ...]]:
    """The prompts p0 to p6 that are true of ``lesions``; p1 is ``noun`` whatever the mask holds."""
    if not lesions:
        levels: list[str] = ["", noun, noun, noun, noun, f"no {noun}", f"no {noun}"]
        return {f"p{level}": (text,) for level, text in enumerate(levels)}

    def shared(words: list[str]) -> str:
        return words[0] if len(set(words)) == 1 else ""

    def join(*words: str) -> str:
        return " ".join(word for word in words if word)

    shape = shared([lesion.shape for lesion in lesions])
    colour = shared([lesion.colour for lesion in lesions])
    size = shared([lesion.size for lesion in lesions])
    number = NUMBERS[len(lesions)]
    name = noun if len(lesions) == 1 else plural
    positions = list(dict.fromkeys(lesion.position for lesion in lesions))
    where = positions[0] if len(positions) == 1 else ", ".join(positions[:-1]) + " and " + positions[-1]
    counted = join(number, size, colour, shape, name)
    levels = [
        "",
        noun,
        join(shape, noun),
        join(colour, shape, noun),
        join(size, colour, shape, noun),
        counted,
        f"{counted}, located in {where} of the image",
    ]
    return {f"p{level}": (text,) for level, text in enumerate(levels)}
