"""From logits to what is sent: maps at the picture's own size as PNG, and areas."""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import DataError
from vlsm_adapter.inference import probability_at_size
from vlsm_adapter.serve.problems import Refused

Form = Literal["probability", "mask"]


@dataclass(frozen=True)
class Asked:
    """One row of the answer: a prompt, who was asked, and the row of logits (h, w) that is the answer."""

    prompt: str
    adapter: str | None
    threshold: float
    logits: torch.Tensor


def results(
    asked: Sequence[Asked], size: tuple[int, int], spacing: tuple[float, float] | None, form: Form
) -> Iterator[dict[str, Any]]:
    """Results as they are sent, one at a time, so that one prompt's maps of a large picture are in memory.

    Args:
        asked: prompts with their logits.
        size: (H, W) of the picture.
        spacing: (row, column) in mm, for areas.
        form: what the PNG holds: probability times 255, rounded; or the mask, 0 and 255.
    """
    for one in asked:
        probability = probability_at_size(one.logits, size)
        mask = probability > one.threshold
        area = int(np.count_nonzero(mask))
        grey = np.rint(probability * 255).astype(np.uint8) if form == "probability" else mask.astype(np.uint8) * 255
        yield {
            "prompt": one.prompt,
            "adapter": one.adapter,
            "threshold": one.threshold,
            "area_px": area,
            "area_mm2": round(area * spacing[0] * spacing[1], 4) if spacing else None,
            "png": base64.b64encode(png(grey)).decode("ascii"),
        }


def png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W) grey or (H, W, 3) RGB as a PNG; compressed fast rather than small."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return stream.getvalue()


def mask_of(text: str, size: tuple[int, int], field: str) -> np.ndarray:
    """A client's mask, bool (H, W), from base64 of a PNG: foreground is above 127.

    Raises:
        Refused: 422, not base64, not a PNG of at most 8 bits, or of another size than the picture.
    """
    try:
        content = base64.b64decode(text.removeprefix("data:image/png;base64,"), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "the mask is not base64: send a PNG in base64", field=field) from None
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise Refused(422, "the mask is not a PNG: send an 8-bit grey PNG in base64", field=field)
    if content[24:25] == b"\x10":  # bits of a sample: they would be windowed, and a full mask be shown as an empty one
        raise Refused(422, "the mask has 16 bits a sample: send an 8-bit grey PNG", field=field)
    height, width = size
    try:
        # Anything of another size is refused by its header, before its pixels are decoded.
        pixels = read_image("mask", content=content, most_pixels=height * width)
    except DataError as error:
        raise Refused(422, str(error), field=field) from None
    if pixels.shape[:2] != size:
        raise Refused(
            422,
            f"the mask has {pixels.shape[1]} x {pixels.shape[0]} pixels, the picture {width} x {height}",
            field=field,
        )
    return pixels[:, :, 0] > 127
