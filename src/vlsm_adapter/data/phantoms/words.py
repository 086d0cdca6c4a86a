"""The words of a phantom's prompts, each measured on the mask (and, for colour, on the picture) that it describes.

Prompt levels follow the published layout: p0 nothing, p1 the class name, p2 + shape, p3 + colour, p4 + size,
p5 + number, p6 + position. Only p0 and p1 are free of leaks: the rest tell what the mask looks like.

=========  ==========================================================================================================
word       true when
=========  ==========================================================================================================
round      the lesion covers its ellipse of equal second moments with IoU >= 0.88, long axis <= 1.25 x short axis
oval       the same IoU, long axis longer than that
irregular  IoU below 0.88
colour     colour pictures: the nearest of the modality's reference colours (CIE 1976 L*a*b*) to the lesion's mean, 3
           Delta E*ab before that of any other name; ultrasound "dark", radiograph "bright": the mean is at least 4
           grey levels below, or above, that of the tissue 3 to 10 px around; otherwise nothing is said
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

from vlsm_adapter.data.describing.colours import Palette, contrast, nearest_word
from vlsm_adapter.data.describing.measure import LARGE_FROM, NUMBERS, SMALL_BELOW, Moments, grid_word, overlap

ROUND_IOU = 0.88
ROUND_AXIS_RATIO = 1.25
GREY_DIFFERENCE = 4.0
COLOUR_MARGIN = 3.0

_GREY_WORDS = {"ultrasound": ("dark", -1), "radiograph": ("bright", 1)}
#: Reference colours as sRGB (0 to 255); several may share a word.
PALETTES: Mapping[str, Palette] = {
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
    moments = Moments.of(mask)
    height, width = mask.shape
    share = moments.area / mask.size
    position = grid_word((moments.row + 0.5) / height, (moments.column + 0.5) / width)
    assert position is not None  # without a margin every place has its word
    return Lesion(
        centre=(moments.row, moments.column),
        area=moments.area,
        shape=_shape(mask, moments),
        colour=_colour(mask, image, modality),
        size="small" if share < SMALL_BELOW else "large" if share >= LARGE_FROM else "medium",
        position=position,
    )


def _shape(mask: NDArray[np.bool_], moments: Moments) -> str:
    if overlap(mask, moments.ellipse(mask.shape[0], mask.shape[1])) < ROUND_IOU:
        return "irregular"
    return "round" if moments.axis_ratio <= ROUND_AXIS_RATIO else "oval"


def _colour(mask: NDArray[np.bool_], image: NDArray[np.uint8], modality: str) -> str:
    if modality in PALETTES:
        return nearest_word(image[mask].mean(axis=0), PALETTES[modality], margin=COLOUR_MARGIN) or ""
    grey = image if image.ndim == 2 else image[..., 0]
    word, sign = _GREY_WORDS[modality]
    return word if sign * (contrast(mask, grey, inner=3, outer=10) or 0.0) >= GREY_DIFFERENCE else ""


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
