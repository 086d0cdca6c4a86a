"""Masks, label maps and probability maps as PNG, folders of PNG and multi-page TIFF."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.errors import UserError

Pictures = Callable[[int], npt.NDArray[Any]]
# Okabe and Ito's colours, told apart with every common form of colour blindness, then shades of them.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def label_colour(number: int) -> tuple[int, int, int]:
    """RGB of label ``number``, from 1: Okabe and Ito's seven, then darker ones of them, again and again."""
    turn, place = divmod(number - 1, len(_COLOURS))
    shade = 1 - 0.6 * (turn % 36) / 36
    red, green, blue = (round(part * shade) for part in _COLOURS[place])
    return red, green, blue


def image(values: npt.NDArray[Any], *, labels: bool = False) -> Image.Image:
    """uint8 or uint16 (H, W) as a picture: grey, or 8-bit labels in colours, black for the background."""
    found = Image.fromarray(values)
    if labels and values.dtype == np.uint8:
        found.putpalette([0, 0, 0, *(part for number in range(1, 256) for part in label_colour(number))])
    return found


def write_png(path: Path, picture: Image.Image) -> None:
    """Write one PNG, atomically."""
    with files.atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def write_tiff(path: Path, count: int, picture: Pictures) -> None:
    """Write ``count`` pictures, uint8 or uint16 (H, W), as the pages of one TIFF (Deflate), atomically."""

    from PIL.TiffImagePlugin import AppendingTiffWriter

    # Page by page: Pillow's own saving of many pages holds all of them.
    with files.atomic_path(path) as temporary, AppendingTiffWriter(str(temporary), new=True) as writer:
        for index in range(count):
            image(picture(index)).save(writer, format="TIFF", compression="tiff_adobe_deflate")
            writer.newFrame()


def write_folder(path: Path, pictures: Iterable[tuple[str, Image.Image]]) -> None:
    """Write PNG files, names with pictures, as the whole content of a folder, which appears when it is complete.

    Raises:
        UserError: it cannot be written; what stood there is intact.
    """
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        fresh.mkdir()
        for name, picture in pictures:
            write_png(fresh / name, picture)
        if path.is_dir():
            old = fresh.with_suffix(".old")
            path.rename(old)
            fresh.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space or choose another folder"
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
