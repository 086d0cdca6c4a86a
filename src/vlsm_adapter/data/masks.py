"""Deciding what is foreground in the pixels of a mask file, when a file is no mask, and resizing what is one.

Published masks come as 0/255, as 0/1, as JPEG with halos, with a palette, in colour, or as the alpha channel of a
cut-out. Each is told by its values alone. What cannot be told for sure is refused with the fix, never guessed:
a wrong mask trains a wrong model and scores it with wrong numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlsm_adapter.errors import DataError

Mask = npt.NDArray[np.bool_]

# In a grey mask with halos (JPEG, or edges smoothed by resizing) the values crowd at both ends. Measured on masks of
# polyps, tumours, moles, nuclei and everyday things saved as JPEG at quality 10 to 95, at least 0.59 of the bright and
# 0.89 of the dark pixels lie within 16 of the end and at most 0.04 in the middle; photographs reach 0.38 on one of the
# first two and mostly have half their pixels in the middle.
_NEAR_END = 16
_MIN_BRIGHT_AT_END = 0.5
_MIN_DARK_AT_END = 0.75
_MAX_MIDDLE = 0.15
# More different values than this are not a list of labels.
_MAX_LABELS = 64
# Channels of a grey picture saved as colour JPEG differ by rounding.
_GREY_TOLERANCE = 12
# The same for a colour mask in a JPEG, which keeps the colour channels at half the resolution: the foreground is of one
# strong colour, which that of a photograph is not.
_COLOUR_NEAR = 8
_MIN_OF_ONE_COLOUR = 0.4
_MIN_DARK_OF_COLOUR = 0.5
_MIN_COLOUR = 170
_MAX_SECOND_HUE = 0.1


def from_values(values: np.ndarray, name: str, *, lossy: bool, mask_value: int | None = None) -> Mask:
    """Foreground of a single-channel mask.

    Args:
        values: (H, W) numbers of any kind, 8-bit, 16-bit or floating point.
        name: the file, for messages.
        lossy: the file format is lossy, so that values stray.
        mask_value: the label that means foreground; None for a binary mask.

    Returns:
        bool (H, W).

    Raises:
        DataError: the values are those of a picture, or of several labels and ``mask_value`` is None.
    """
    if mask_value is not None:
        if lossy:
            raise DataError(_lossy_labels(name))
        return values == mask_value
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{name}: holds values that are not finite: save the mask as 8-bit PNG")
    found = _different(values)
    if len(found) == 1:
        return _constant(float(found[0]), values.shape, name, lossy=lossy)
    low, high = float(found[0]), float(found[-1])
    if low < 0:
        raise DataError(
            f"{name}: holds negative values (lowest {low:g}): not a mask; save it as 8-bit PNG with 0 and 255"
        )
    if not lossy and len(found) == 2 and low == 0:
        return values == found[1]
    if not lossy and len(found) <= 8 and not _noise_about_ends(found):
        raise DataError(_several(name, found))
    top = 255.0 if high <= 255 else high
    scaled = values.astype(np.float32) * np.float32(255.0 / top)
    if _two_heaps(scaled):
        return scaled > 127
    if not lossy and len(found) <= _MAX_LABELS:
        raise DataError(_several(name, found))
    if lossy and high < 64:
        raise DataError(
            f"{name}: values 0 to {high:g} in a lossy file cannot be told from compression noise: save the mask as PNG with 0 and 255"
        )
    raise DataError(
        f"{name}: not a mask: {len(found)} different values spread from {low:g} to {high:g}, as in a picture; "
        "a mask has foreground 255 (or 1) and background 0 (check that image and mask are not swapped)"
    )


def from_palette(indices: np.ndarray, palette: np.ndarray, name: str, *, mask_value: int | None = None) -> Mask:
    """Foreground of a mask with a palette.

    With two colours, black is background, else index 0 is; with a palette of greys the greys are read as values;
    more colours are labels, told by index.

    Args:
        indices: (H, W) uint8.
        palette: (N, 3) uint8 colours.
        name: the file, for messages.
        mask_value: the index that means foreground, or None.

    Raises:
        DataError: several labels and no ``mask_value``.
    """
    if mask_value is not None:
        return indices == mask_value
    used = _different(indices)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette[:256]
    black = [int(index) for index in used if colours[index].max() <= 2]
    if len(used) <= 2:
        if len(black) == 1:
            return indices != black[0]
        if len(used) == 1:
            return np.full(indices.shape, bool(used[0] != 0))
        if used[0] == 0:
            return indices != 0
        raise DataError(_several(name, used))
    shades = colours[used]
    if (shades == shades[:, :1]).all():
        return from_values(colours[:, 0][indices], name, lossy=False)
    raise DataError(_several(name, used))


def from_colours(pixels: np.ndarray, name: str, *, lossy: bool, mask_value: int | None = None) -> Mask:
    """Foreground of a colour mask: one colour on black, or greys saved as colour.

    Args:
        pixels: (H, W, 3) uint8.
        name: the file, for messages.
        lossy: the file format is lossy, so that values stray.
        mask_value: the foreground colour as 0xRRGGBB (as a plain value where all channels are equal), or None.

    Raises:
        DataError: several colours and no ``mask_value``, no black background, or a picture.
    """
    spread = _strongest(pixels) - np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    if not lossy and spread.any():
        packed = (pixels[..., 0].astype(np.int32) << 16) | (pixels[..., 1].astype(np.int32) << 8) | pixels[..., 2]
        if mask_value is not None:
            return packed == mask_value
        found = np.unique(packed)
        if len(found) == 1 or (len(found) == 2 and found[0] == 0):
            return packed != 0
        if len(found) <= _MAX_LABELS:
            listed = ", ".join(f"{colour} = #{colour:06x}" for colour in found[:4]) + (
                ", ..." if len(found) > 4 else ""
            )
            raise DataError(
                f"{name}: {len(found)} colours ({listed}), one of which must be chosen: give its number as mask_value in "
                f"the manifest, bring all with vlsm data import --classes '#{int(found[-1]):06x}=polyp,...', or save a mask with 0 and 255"
            )
        lossy = True  # smoothed edges, or a JPEG saved again
    if np.mean(spread <= _GREY_TOLERANCE) >= 0.999:
        # Luminance (ITU-R BT.601), not one channel: the noise of the three partly cancels.
        red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
        grey = ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).astype(np.uint8)
        if mask_value is not None and mask_value % 0x010101 == 0:
            mask_value //= 0x010101
        return from_values(grey, name, lossy=lossy, mask_value=mask_value)
    if mask_value is not None:
        raise DataError(_lossy_labels(name))
    return _lossy_colour(pixels, name)


def whole_labels(values: np.ndarray, name: str) -> np.ndarray:
    """Labels (H, W) of a single-channel file as whole numbers.

    Raises:
        DataError: values that are not finite or not whole.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.rint(values)).any() or np.abs(values).max() >= 2**31:
            raise DataError(f"{name}: labels must be whole numbers: save them as 8-bit or 16-bit PNG")
        return values.astype(np.int32)
    return values


def colour_labels(pixels: np.ndarray) -> np.ndarray:
    """Labels (H, W) of an (H, W, 3) uint8 colour file: 0xRRGGBB, or the plain value where all of it is grey."""
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0].copy()
    return (pixels[..., 0].astype(np.int32) << 16) | (pixels[..., 1].astype(np.int32) << 8) | pixels[..., 2]


def from_alpha(alpha: np.ndarray, name: str) -> Mask:
    """Foreground of a cut-out, bool (H, W): opaque (above half of the strongest alpha) is foreground."""
    top = int(alpha.max())
    return alpha > top / 2 if top else np.zeros(alpha.shape, bool)


def _constant(value: float, shape: tuple[int, ...], name: str, *, lossy: bool) -> Mask:
    if value == 0:
        return np.zeros(shape, bool)
    if (value == 1 and not lossy) or value > 127:
        return np.ones(shape, bool)
    raise DataError(
        f"{name}: every pixel is {value:g}, neither background (0) nor foreground (255): not a mask, or a label that "
        "mask_value in the manifest must name"
    )


def _noise_about_ends(found: np.ndarray) -> bool:
    """Whether a few values are 0 and 255 with noise, and not labels.

    0, 1, 255 are labels: with many programs 1 is foreground and 255 not annotated. Noise strays from 255 as well.
    """
    low, high = found[found <= _NEAR_END], found[(found > 127) & (found >= found[-1] - _NEAR_END)]
    return len(low) + len(high) == len(found) and found[0] == 0 and len(high) > 0 and (len(low) == 1 or len(high) > 1)


def _two_heaps(scaled: np.ndarray) -> bool:
    bright = scaled > 127
    middle = np.mean((scaled > 63) & (scaled < 192))
    if middle > _MAX_MIDDLE or not bright.any():
        return False
    at_top = np.mean(scaled[bright] >= 255 - _NEAR_END)
    at_bottom = np.mean(scaled[~bright] <= _NEAR_END) if not bright.all() else 1.0
    return bool(at_top >= _MIN_BRIGHT_AT_END and at_bottom >= _MIN_DARK_AT_END)


def _lossy_colour(pixels: np.ndarray, name: str) -> Mask:
    strongest = _strongest(pixels)
    bright = strongest > 127
    share = float(np.mean(bright))
    if share == 0 or np.mean((strongest > 63) & (strongest < 192)) > _MAX_MIDDLE:
        raise DataError(_no_colour_mask(name))
    if share < 1 and np.mean(strongest[~bright] <= _NEAR_END) < _MIN_DARK_OF_COLOUR:
        raise DataError(_no_colour_mask(name))
    foreground = pixels[bright]
    hues = (foreground > 127) @ np.array([4, 2, 1])
    shares = np.bincount(hues, minlength=8) / len(hues)
    of_main_hue = foreground[hues == shares.argmax()].astype(np.int16)
    colour = np.median(of_main_hue, axis=0)
    # Of a small foreground most is edge. Where nearly all is foreground, all of it must be of the colour.
    judged, wanted = (of_main_hue, _MIN_OF_ONE_COLOUR if share > 0.3 else _MIN_OF_ONE_COLOUR / 2)
    if share >= 0.98:
        judged, wanted = foreground, 0.98
    if np.mean(np.abs(judged - colour).max(axis=1) <= _COLOUR_NEAR) < wanted or colour.max() < _MIN_COLOUR:
        raise DataError(_no_colour_mask(name))
    # Along edges the colour channels, which JPEG keeps at half the resolution, mix; a second label is more than that.
    if np.sort(shares)[-2] > _MAX_SECOND_HUE:
        raise DataError(
            f"{name}: several colours in a lossy file, labels that cannot be told apart: save the mask as PNG with one of them"
        )
    return bright


def _lossy_labels(name: str) -> str:
    return f"{name}: labels cannot be told apart in a lossy file: save the mask as PNG, or leave mask_value out"


def _no_colour_mask(name: str) -> str:
    return (
        f"{name}: not a mask but a colour picture; a mask has one colour on black, or 255 (or 1) and 0 "
        "(check that image and mask are not swapped)"
    )


def _strongest(pixels: np.ndarray) -> np.ndarray:
    # The strongest channel of each pixel; reducing over an axis of three is ten times slower.
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def _different(values: np.ndarray) -> np.ndarray:
    """The values that occur, ascending; counting is far faster than sorting where there are few."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).astype(np.uint8)
    return np.unique(values)


def _several(name: str, found: np.ndarray | Sequence[int]) -> str:
    listed = ", ".join(f"{value:g}" for value in found[:8]) + (", ..." if len(found) > 8 else "")
    return (
        f"{name}: {len(found)} different values ({listed}), one of which must be chosen: give it as mask_value in the manifest, "
        f"bring all with vlsm data import --classes '{found[-1]:g}=polyp,...', or save a mask with 0 and 255"
    )


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch a mask: a pixel of the result is foreground when at least half of its area is.

    The area is exact, also for ratios that are no whole numbers; taking the nearest pixel instead would lose or
    thicken thin structures.

    Args:
        mask: bool (H, W).
        size: (h, w).

    Returns:
        bool (h, w).
    """
    if mask.shape == size:
        return mask.copy()
    area = _area_sums(_area_sums(mask.astype(np.float64), size[0]).T, size[1]).T
    share = area * (size[0] * size[1] / (mask.shape[0] * mask.shape[1]))
    return share >= 0.5 - 1e-9


def _area_sums(values: np.ndarray, count: int) -> np.ndarray:
    """Sums of (N, M) over ``count`` equal stretches of the first axis, parts of rows counted in part."""
    length = values.shape[0]
    running = np.zeros((length + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=running[1:])
    cuts = np.arange(count + 1) * (length / count)
    whole = np.minimum(cuts.astype(np.int64), length - 1)
    at_cuts = running[whole] + (cuts - whole)[:, None] * values[whole]
    return np.diff(at_cuts, axis=0)
