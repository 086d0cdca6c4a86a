"""Decoding image and mask files of any mode, bit depth and orientation.

Only raster formats that Pillow decodes by itself are opened. Sizes are checked before pixels are decoded, and
whatever a damaged file makes the decoder raise becomes one ``DataError`` that names the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vlsm_adapter.data import masks
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

# Pillow's own limit against decompression bombs, twice 256 MiB of RGB; we hold to it whatever the process has set.
MAX_PIXELS = 178_956_970
MAX_PAGES = 100_000
# A list, because Pillow also opens formats that start other programs (EPS) or may run long (fonts, videos).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "TGA")
_LOSSY = frozenset({"JPEG", "MPO", "WEBP", "JPEG2000"})
_EXIF_ORIENTATION = 0x0112
# What a PNG may state its orientation in, and how far from its end this is looked for: more than an EXIF block can hold.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_PNG_END = 128 * 1024


def read_image(
    path: str | os.PathLike[str],
    *,
    at_least: tuple[int, int] | None = None,
    content: bytes | None = None,
    most_pixels: int = MAX_PIXELS,
    page: int = 0,
) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, at its native size, upright.

    EXIF orientation is applied. Transparent parts are laid on black. Of an animation the first frame is taken, of a file
    of several pages ``page``.
    Single-channel images with more than 8 bits are windowed linearly from their own smallest to their largest
    value; where all values fit 8 bits they are kept, and floating point from 0 to 1 is scaled to 0..255.

    Args:
        path: the file.
        at_least: (h, w) that suffices: a JPEG is decoded at a half, quarter or eighth of its size (in its own frequency
            domain, several times faster) as long as that is no smaller than this. Give twice the size that the image
            will be resized to: the result is then within a grey level, on average, of that from the native size.
        content: the file's bytes, where they are in memory; ``path`` is then only what messages call it.
        most_pixels: refuse more, where that is less than 178,956,970.
        page: of a TIFF, from 0; :func:`page_sizes` counts them.

    Raises:
        DataError: missing, empty, truncated, not an image, or larger than ``most_pixels``.
    """
    with _opened(Path(path), content, min(most_pixels, MAX_PIXELS)) as picture:
        if page:
            picture.seek(page)
            _check_size(path, picture.size, min(most_pixels, MAX_PIXELS))
        if at_least is not None and picture.format == "JPEG":
            turned = picture.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
            picture.draft(None, at_least if turned else at_least[::-1])
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        if upright.mode == "F" or upright.mode.startswith("I"):
            grey = _to_8_bit(np.asarray(upright))
            return np.repeat(grey[:, :, None], 3, axis=2)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            ground = Image.new("RGBA", layer.size, (0, 0, 0, 255))
            upright = Image.alpha_composite(ground, layer)
        return np.array(upright.convert("RGB"))


def read_mask(path: str | os.PathLike[str], mask_value: int | None = None) -> np.ndarray:
    """A mask file as bool (H, W), at its native size, upright like its image.

    Binary masks are told by their values: 0/255 with or without JPEG halos or smoothed edges (foreground is
    above 127), 0/1, 16-bit, a palette of two colours, one colour on black, or the alpha channel where that alone
    varies. A constant file is an empty mask (0, black) or a full one.

    Args:
        path: the file.
        mask_value: in a multi-label mask the value (palette index; 0xRRGGBB of a colour mask) of the foreground.

    Raises:
        DataError: unreadable, a picture instead of a mask, several labels and no ``mask_value``, or colours of 16 bits that
            say something in the lower eight.
    """
    with _opened(Path(path)) as picture:
        lossy = picture.format in _LOSSY or "jpeg" in str(picture.info.get("compression", ""))
        halved = _is_halved(picture)
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        mask = _mask_of(upright, str(path), lossy, mask_value)
        if halved and (mask_value is not None or not mask.any()):
            _refuse_lost_bits(Path(path), picture, labels=mask_value is not None)
        return mask


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """A label file as whole numbers (H, W), upright: what ``mask_value`` of ``read_mask`` is compared with.

    That is the value, the palette index, or 0xRRGGBB of a colour file (the plain value where all of it is grey).

    Raises:
        DataError: unreadable, in a lossy format, with values that are not whole numbers, or colours that need 16 bits.
    """
    with _opened(Path(path)) as picture:
        if picture.format in _LOSSY or "jpeg" in str(picture.info.get("compression", "")):
            raise DataError(f"{path}: labels cannot be told apart in a lossy file: save the mask as PNG")
        halved = _is_halved(picture)
        picture.load()
        if halved:
            _refuse_lost_bits(Path(path), picture, labels=True)
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("1", "L", "P", "F") or upright.mode.startswith("I"):
            return masks.whole_labels(np.asarray(upright), str(path))
        return masks.colour_labels(np.asarray(upright.convert("RGB")))


def read_pair(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (H, W, 3), and the mask, bool (H, W), of one case.

    Raises:
        DataError: either is unusable, they differ in size, or the case has no mask.
    """
    if record.mask is None:
        raise DataError(f"{record.image}: has no mask: give one, or use the image for prediction only")
    image, mask = read_image(record.image), read_mask(record.mask, record.mask_value)
    check_same_size(record, (image.shape[1], image.shape[0]), (mask.shape[1], mask.shape[0]))
    return image, mask


def header_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels as the upright image will have them, from the header alone.

    Raises:
        DataError: as ``read_image``, as far as the header shows.
    """
    with _opened(Path(path)) as picture:
        width, height = picture.size
        if picture.format == "TIFF":  # Pillow gives its size upright already
            return width, height
        if picture.format == "PNG":
            if _orientation_may_follow(picture):
                picture.load()  # reads what stands behind the pixels
            # That of PNG decodes every file that has no EXIF before its pixels.
            turned = Image.Image.getexif(picture).get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
        else:
            turned = picture.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def _orientation_may_follow(picture: ImageFile.ImageFile) -> bool:
    """Whether a PNG may state its orientation behind its pixels, as programs do that add EXIF or XMP to a file they keep."""
    stream = picture.fp
    if stream is None or "exif" in picture.info:
        return False
    place = stream.tell()
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - _PNG_END))
    end = stream.read()
    stream.seek(place)
    return any(name in end for name in _PNG_ORIENTATION)


def page_sizes(path: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """(width, height) of every page of a TIFF file, from the headers alone; of another file those of its one picture.

    Raises:
        DataError: as ``read_image``, as far as the headers show; or more than ``MAX_PAGES`` pages.
    """
    with _opened(Path(path)) as picture:
        sizes = [picture.size]
        if picture.format != "TIFF":
            return sizes
        while True:
            if len(sizes) > MAX_PAGES:  # the pages are a chain, which a made-up file makes as long as it likes
                raise DataError(f"{path}: more than {MAX_PAGES} pages: split the file")
            try:
                picture.seek(len(sizes))
            except EOFError:
                return sizes
            sizes.append(picture.size)


def check_same_size(record: Record, image: tuple[int, int], mask: tuple[int, int]) -> None:
    """Compare the (width, height) of a case's image and mask.

    Raises:
        DataError: they differ; the message names both files and sizes.
    """
    if image == mask:
        return
    turned = " (one of them is turned by its EXIF orientation?)" if image == mask[::-1] else ""
    raise DataError(
        f"{record.image} has {image[0]} x {image[1]} pixels but its mask {record.mask} has {mask[0]} x {mask[1]}{turned}: "
        "a mask must have the size of its image"
    )


@contextlib.contextmanager
def _opened(path: Path, content: bytes | None = None, most_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """The open file; every way in which decoding fails, also in the body of the ``with``, becomes a DataError."""
    try:
        if content is None and not path.is_file():
            what = "is a folder, not an image" if path.is_dir() else "no such file"
            raise DataError(f"{path}: {what}: check the path")
        if not (path.stat().st_size if content is None else content):
            raise DataError(f"{path}: is empty (0 bytes): fetch the file again")
        with warnings.catch_warnings():
            # Pillow warns from half our limit on, and about oddities in metadata that change no pixel.
            warnings.simplefilter("ignore")
            # A stream, not the path: Pillow (seen in 13.0) maps an uncompressed TIFF by its path with rows and columns
            # swapped when its orientation turns it by a quarter.
            with (
                path.open("rb") if content is None else io.BytesIO(content) as stream,
                Image.open(stream, formats=FORMATS) as picture,
            ):
                _check_size(path, picture.size, most_pixels)
                yield picture
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: not an image that can be read (known: PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, JPEG 2000, TGA): convert it to PNG"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: more than {MAX_PIXELS} pixels: make the image smaller") from None
    except MemoryError:
        raise DataError(f"{path}: too large for the memory of this machine: make the image smaller") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read: check its permissions") from None
    except Exception as error:
        # Decoders raise nearly anything on damaged files (OSError, SyntaxError, struct.error, ...).
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: cannot be decoded ({reason}): damaged or truncated; fetch the file again") from None


def _check_size(path: str | os.PathLike[str], size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        raise DataError(f"{path}: {width} x {height} pixels; at most {most_pixels} are read: make the image smaller")
    if width == 0 or height == 0:
        raise DataError(f"{path}: has no pixels ({width} x {height}): fetch the file again")


def _is_halved(picture: ImageFile.ImageFile) -> bool:
    """Whether only the upper eight of the sixteen bits of each colour will be decoded, as Pillow does with all but grey."""
    return picture.mode in ("RGB", "RGBA") and any(";16" in str(tile.args) for tile in picture.tile)


def _refuse_lost_bits(path: Path, upper: Image.Image, *, labels: bool) -> None:
    """Refuse a mask of colours of 16 bits whose lower eight say what ``upper``, decoded from the file, does not.

    Raises:
        DataError: labels that need more than eight bits; or foreground in the lower bits, where the upper have none.
    """
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    high, low = np.asarray(upper)[..., :3], None
    with _opened(path) as picture:
        # As if the bytes of each number stood the other way round, which Pillow knows of colours and not of grey with alpha.
        for number, tile in enumerate(picture.tile):
            name, *rest = tile.args if isinstance(tile.args, tuple) else (str(tile.args),)
            turned = f"{name[:-1]}{swapped.get(name[-1], name[-1])}"
            picture.tile[number] = tile._replace(args=(turned, *rest) if rest else turned)
        with contextlib.suppress(ValueError):
            low = np.asarray(picture)[..., :3]
    # Stretched from 8 bits (the same byte twice) or moved up (zeros below) nothing is lost.
    if low is not None and (not low.any() or (labels and np.array_equal(low, high))):
        return
    raise DataError(
        f"{path}: colours of 16 bits, of which the upper eight alone are read and do not hold all of the mask: save it as 8-bit PNG"
    )


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """(H, W) numbers to uint8 by the rule of ``read_image``."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        # A stray NaN must not decide the window; it is shown as the darkest value.
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if low >= 0 and high <= 1 and not whole:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(values).astype(np.uint8)


def _mask_of(picture: Image.Image, name: str, lossy: bool, mask_value: int | None) -> np.ndarray:
    mode = picture.mode
    if mode == "1":
        values = np.asarray(picture)
        return values.copy() if mask_value is None else values == (mask_value != 0)
    if mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        layers = np.asarray(picture.convert("RGBA"))
        alpha, colours = layers[..., 3], layers[..., :3]
        if mask_value is None and alpha.min() != alpha.max():
            visible = colours[alpha > 0]
            if (colours == colours[:1, :1]).all() or (
                visible.size and (visible == visible[:1]).all() and visible.max() == 0
            ):
                return masks.from_alpha(alpha, name)
            colours = np.rint(colours * (alpha[..., None] / 255.0)).astype(np.uint8)
        return masks.from_colours(colours, name, lossy=lossy, mask_value=mask_value)
    if mode == "P":
        palette = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return masks.from_palette(np.asarray(picture), palette, name, mask_value=mask_value)
    if mode == "L" or mode == "F" or mode.startswith("I"):
        return masks.from_values(np.asarray(picture), name, lossy=lossy, mask_value=mask_value)
    return masks.from_colours(np.asarray(picture.convert("RGB")), name, lossy=lossy, mask_value=mask_value)
