"""Letters with accents are drawn as such, or without them; never as boxes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import ImageFont

from vlsm_adapter import fonts


@pytest.fixture(autouse=True)
def _looked_for_anew() -> Iterator[None]:
    fonts.drawing_font.cache_clear()
    yield
    fonts.drawing_font.cache_clear()


def shape(text: str) -> bytes:
    return bytes(fonts.drawing_font(13).getmask(fonts.drawable(text)))


def test_umlauts_are_no_boxes() -> None:
    drawn = [shape(letter) for letter in "\u00e4\u00f6\u00fc\u00df\u00e9\u00f1"]
    assert len(set(drawn)) == len(drawn)  # boxes are all alike


def test_without_a_font_that_has_them_accents_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> ImageFont.FreeTypeFont:
        raise OSError("cannot open resource")

    default = ImageFont.load_default(13)
    monkeypatch.setattr(fonts.ImageFont, "truetype", none)
    monkeypatch.setattr(fonts.ImageFont, "load_default", lambda _: default)
    assert fonts.drawable("M\u00fcller \u8d85") == "Muller ?"
    assert shape("M\u00fcller") == shape("Muller")


def test_pictures_and_the_audit_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from vlsm_adapter.data.audit import page
    from vlsm_adapter.overlays import Panel, figure

    asked: list[str] = []
    for module in ("overlays", "data.audit.page"):
        monkeypatch.setattr(f"vlsm_adapter.{module}.drawable", lambda text: asked.append(text) or text)
    figure(np.zeros((40, 40, 3), np.uint8), [Panel("\u00fc")], "\u00f6")
    page._sheet([("\u00e4", [])])
    assert asked == ["\u00fc", "\u00f6", "\u00e4"]
