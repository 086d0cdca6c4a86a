"""Pictures of masks on images, for reports and for a quick look at predictions.

Colours are of Okabe and Ito's palette, told apart with every common form of colour blindness: the truth is a yellow line
(black beside it, to be seen on any ground), a prediction a sky-blue area with a blue edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vlsm_adapter.fonts import drawable, drawing_font

YELLOW = (240, 228, 66)
SKY_BLUE = (86, 180, 233)
BLUE = (0, 114, 178)
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)

SHORT_SIDE = 256
LONG_SIDE = 640
_FILL = 0.45
_FONT = 13
_STRIP = 20
_GAP = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a figure.

    Attributes:
        title: the line above it.
        truth: bool (H, W) drawn as a line, or None.
        prediction: bool (H, W) drawn as an area, or None.
    """

    title: str
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None


def figure(image: np.ndarray, panels: Sequence[Panel], caption: str, *, short_side: int = SHORT_SIDE) -> Image.Image:
    """The image once per panel, side by side, each with its masks and title, and a caption below.

    Args:
        image: uint8 (H, W, 3).
        panels: at least one; masks of the image's size.
        caption: one line, cut where it is too long.
        short_side: shorter side of a panel in pixels; a very long image is made smaller still.
    """
    width, height = _panel_size(image, short_side)
    ground = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    total = len(panels) * width + (len(panels) - 1) * _GAP
    canvas = Image.new("RGB", (total, height + 2 * _STRIP), WHITE)
    pen = ImageDraw.Draw(canvas)
    for number, panel in enumerate(panels):
        left = number * (width + _GAP)
        canvas.paste(Image.fromarray(draw_masks(ground, panel.truth, panel.prediction)), (left, _STRIP))
        _text(pen, (left + 2, 2), panel.title, width - 4)
    _text(pen, (2, height + _STRIP + 2), caption, total - 4)
    return canvas


def prediction_overlay(image: np.ndarray, mask: np.ndarray, *, title: str, short_side: int = 512) -> Image.Image:
    """A predicted mask on its image, with a title; for a look, not for measuring.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W).
        title: one line; "(nothing found)" is added to it where the mask is empty.
        short_side: the image is shown at most this large, and a small one larger than it is, as in a figure.
    """
    note = "" if mask.any() else " (nothing found)"
    width, height = _panel_size(image, min(short_side, max(SHORT_SIDE, min(image.shape[:2]))))
    ground = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    canvas = Image.new("RGB", (width, height + _STRIP), WHITE)
    canvas.paste(Image.fromarray(draw_masks(ground, None, mask)), (0, _STRIP))
    _text(ImageDraw.Draw(canvas), (2, 2), _shortened(title, width - 4, note), width - 4)
    return canvas


def draw_masks(ground: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray | None) -> np.ndarray:
    """Draw masks of any size on ``ground`` uint8 (h, w, 3); returns a new array."""
    size = (ground.shape[0], ground.shape[1])
    drawn = ground.astype(np.float32)
    if prediction is not None:
        area = shown_mask(prediction, size)
        drawn[area] = (1 - _FILL) * drawn[area] + _FILL * np.array(SKY_BLUE, np.float32)
        drawn[_edge(area)] = BLUE
    if truth is not None:
        area = shown_mask(truth, size)
        edge = _edge(area)
        drawn[_grown(edge) & ~area] = BLACK
        drawn[edge] = YELLOW
    return np.rint(drawn).astype(np.uint8)


def shown_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``mask`` bool (H, W) at the size (h, w) it is shown in; foreground too small to be seen becomes a pixel."""
    height, width = size
    if mask.shape == size:
        return mask
    box = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    shown = np.asarray(box) > 127
    if not shown.any() and mask.any():
        rows, columns = np.nonzero(mask)
        shown = np.zeros(size, bool)
        shown[rows * height // mask.shape[0], columns * width // mask.shape[1]] = True
    return shown


def _panel_size(image: np.ndarray, short_side: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = min(short_side / min(height, width), max(short_side, LONG_SIDE) / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _edge(area: np.ndarray) -> np.ndarray:
    """Pixels of ``area`` with a neighbour (of four) outside; the image's border does not count as outside."""
    inner = np.pad(area, 1, mode="edge")
    return area & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])


def _grown(area: np.ndarray) -> np.ndarray:
    outer = np.pad(area, 1)
    return outer[:-2, 1:-1] | outer[2:, 1:-1] | outer[1:-1, :-2] | outer[1:-1, 2:] | area


def _text(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int) -> None:
    pen.text(at, _shortened(text, width), fill=BLACK, font=drawing_font(_FONT))


def _shortened(text: str, width: int, ending: str = "") -> str:
    """``text`` on one line of at most ``width`` pixels, ``ending`` kept."""
    text = drawable(" ".join(text.split()))
    font = drawing_font(_FONT)
    if font.getlength(text + ending) <= width:
        return text + ending
    fitting, too_long = 0, len(text)
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        fits = font.getlength(f"{text[:middle]}...{ending}") <= width
        fitting, too_long = (middle, too_long) if fits else (fitting, middle)
    return f"{text[:fitting]}...{ending}"
