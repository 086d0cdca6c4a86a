"""The font of drawn pictures. Pillow's own has boxes for umlauts and accents, so one that has them is looked for."""

from __future__ import annotations

import importlib.util
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

_NAME = "DejaVuSans.ttf"


@lru_cache(maxsize=8)
def drawing_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, of matplotlib or of the system; Pillow's own where there is none."""
    for place in (_of_matplotlib(), _NAME):
        if place is not None:
            try:
                return ImageFont.truetype(place, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def drawable(text: str) -> str:
    """``text`` with what the font cannot draw replaced: question marks, or letters without their accents."""
    if _has_accents():
        return text.encode("latin-1", "replace").decode("latin-1")
    letters = (char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return "".join(letters).encode("ascii", "replace").decode("ascii")


def _of_matplotlib() -> str | None:
    """Its font's file, without importing it, which takes long."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return None
    return str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / _NAME)


def _has_accents() -> bool:
    font = drawing_font(12)
    return isinstance(font, ImageFont.FreeTypeFont) and font.getname()[0] == "DejaVu Sans"
