"""Run-length encoded masks as COCO writes them, uncompressed (a list of counts) and compressed (a text).

The pixels of an (H, W) mask are read down the columns, the first column first. ``counts`` are the lengths of the
runs, of background and foreground in turn, the first of background (0 where the mask begins with foreground).

The compressed text holds the same counts in groups of five bits, the lowest first, each as one character from
``'0'`` (48) on: bit 6 of a character says that the count goes on, bit 5 of its last one is the sign. From the fourth
count on the difference to the count two places before is stored (COCO data format; Lin et al. 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.entries import kind_of, shown
from vlsm_adapter.data.images import MAX_PIXELS
from vlsm_adapter.errors import DataError

Mask = npt.NDArray[np.bool_]

_FIRST = 48
# Seven groups of five bits hold any count of an image that is read, with its sign.
_MOST_GROUPS = 7


def encode_counts(mask: Mask) -> list[int]:
    """The counts of a bool (H, W) mask; they sum to H * W."""
    flat = np.asarray(mask, bool).T.ravel()
    if flat.size == 0:
        return [0]
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size])))
    return [*([0] if flat[0] else []), *(int(run) for run in runs)]


def decode_counts(counts: Sequence[Any], height: int, width: int, *, where: str = "RLE") -> Mask:
    """The bool (H, W) mask of ``counts``.

    Args:
        counts: whole numbers, none negative, together ``height * width``.
        height, width: of the mask, in pixels.
        where: begins every message.

    Raises:
        DataError: the counts are not whole numbers, or do not fill the mask exactly.
    """
    area = height * width
    if height < 0 or width < 0 or area > MAX_PIXELS:
        raise DataError(f"{where}: {width} x {height} pixels; at most {MAX_PIXELS} are read")
    # More runs than this cannot be: only the first may be empty.
    if len(counts) > 2 * area + 2:
        raise DataError(f"{where}: {len(counts)} runs for {area} pixels: the annotation is damaged")
    total = 0
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int):
            raise DataError(f"{where}: the run {shown(count)} is {kind_of(count)}, not a whole number")
        if count < 0:
            raise DataError(f"{where}: a run of {shown(count)} pixels; none can be negative")
        total += count
        if total > area:
            break
    if total != area:
        raise DataError(
            f"{where}: its runs hold {'more than ' if total > area else ''}{min(total, area)} of {area} pixels "
            f"({width} x {height}): made for an image of another size?"
        )
    lengths = np.asarray(counts, np.int64)
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def compress(counts: Sequence[int]) -> str:
    """The compressed text of ``counts``."""
    text: list[str] = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            # The last group's top bit is the sign: go on until what is left is nothing but that sign.
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr(_FIRST + (group | 0x20 if more else group)))
    return "".join(text)


def decompress(text: str, *, most: int = 2 * MAX_PIXELS + 2, where: str = "RLE") -> list[int]:
    """The counts of a compressed text.

    Args:
        text: characters from ``'0'`` to ``'o'``.
        most: refuse more counts than this.
        where: begins every message.

    Raises:
        DataError: a character that cannot stand there, a count cut off, too long or negative, or too many counts.
    """
    counts: list[int] = []
    value = groups = 0
    for place, char in enumerate(text):
        bits = ord(char) - _FIRST
        if not 0 <= bits < 64:
            raise DataError(f"{where}: the character {shown(char)} at place {place} is none of a compressed RLE")
        value |= (bits & 0x1F) << (5 * groups)
        groups += 1
        if bits & 0x20:
            if groups >= _MOST_GROUPS:
                raise DataError(f"{where}: a run of more than {MAX_PIXELS} pixels: the annotation is damaged")
            continue
        if bits & 0x10:
            value -= 1 << (5 * groups)
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            raise DataError(f"{where}: a run of {value} pixels; none can be negative: the annotation is damaged")
        counts.append(value)
        if len(counts) > most:
            raise DataError(f"{where}: more than {most} runs: the annotation is damaged")
        value = groups = 0
    if groups:
        raise DataError(f"{where}: the text ends within a run: the annotation is cut off")
    return counts


def decode(rle: Mapping[str, Any], height: int, width: int, *, where: str = "RLE") -> Mask:
    """The bool (H, W) mask of an RLE object ``{"size": [H, W], "counts": [...] | "..."}``.

    Args:
        rle: the object; ``size`` may be absent.
        height, width: of the image, in pixels.
        where: begins every message.

    Raises:
        DataError: a field is missing or of another kind, ``size`` is not that of the image, or as ``decode_counts``.
    """

    def fail(problem: str) -> NoReturn:
        raise DataError(f"{where}: {problem}")

    size = rle.get("size", [height, width])
    if size != [height, width]:
        if size == [width, height]:
            fail(
                f"RLE of size {shown(size)}, the image has [{height}, {width}] (rows, columns): rows and columns swapped?"
            )
        fail(f"RLE of size {shown(size)}, the image has [{height}, {width}] (rows, columns)")
    counts = rle.get("counts")
    if isinstance(counts, str):
        counts = decompress(counts, most=2 * height * width + 2, where=where)
    if not isinstance(counts, list):
        fail(f"'counts' is {kind_of(counts)}; needed: a list of whole numbers or a compressed text")
    return decode_counts(counts, height, width, where=where)
