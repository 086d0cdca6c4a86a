"""Reading MetaImage files (.mhd with .raw or .zraw, or .mha), the format of CAMUS' first release.

Only what images of one channel need: the header is lines ``Key = Value`` up to ``ElementDataFile``; the pixels are
the elements of the array, the first dimension fastest, possibly compressed by zlib (MetaIO documentation, Insight
Software Consortium).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.entries import shown, unsafe_name
from vlsm_adapter.data.images import MAX_PIXELS
from vlsm_adapter.errors import DataError

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
MAX_HEADER = 64 * 1024


@dataclass(frozen=True)
class Slice:
    """One 2D image: ``pixels`` (H, W) and ``spacing`` (row, column) in mm, None where it is not told."""

    pixels: npt.NDArray[np.generic]
    spacing: tuple[float, float] | None


def read_metaimage(content: bytes, where: str, beside: Callable[[str], bytes]) -> Slice:
    """The single slice of a MetaImage.

    Args:
        content: the bytes of the ``.mhd`` or ``.mha`` file.
        where: the file, for messages.
        beside: from the name of a file in the same folder to its bytes; raises DataError where there is none.

    Raises:
        DataError: not a MetaImage, of a kind that is not read, or with too few pixels; one line.
    """
    header, rest = _header(content, where)

    def fail(problem: str) -> DataError:
        return DataError(f"{where}: {problem}")

    sizes = _numbers(header.get("dimsize", ""), where, "DimSize")
    if not sizes or any(size != int(size) or size < 1 for size in sizes):
        raise fail(f"DimSize {shown(header.get('dimsize', ''))} is not a list of whole numbers")
    dims = [int(size) for size in sizes]
    if len(dims) < 2 or math.prod(dims[2:]) != 1:
        raise fail(f"has {' x '.join(str(size) for size in dims)} elements; needed: one 2D slice")
    width, height = dims[0], dims[1]
    if width * height > MAX_PIXELS:
        raise fail(f"{width} x {height} pixels; at most {MAX_PIXELS} are read")
    if header.get("elementnumberofchannels", "1") != "1":
        raise fail("has several channels; needed: one")
    kind = _TYPES.get(header.get("elementtype", "").upper())
    if kind is None:
        raise fail(f"ElementType {shown(header.get('elementtype', ''))} is not read; known: {', '.join(_TYPES)}")
    big = _true(header.get("elementbyteordermsb", header.get("binarydatabyteordermsb", "False")))
    dtype = np.dtype((">" if big else "<") + kind)
    needed = width * height * dtype.itemsize
    data = _data(header, rest, needed, where, beside)
    pixels = np.frombuffer(data, dtype, count=width * height).reshape(height, width)
    return Slice(pixels.astype(dtype.newbyteorder("=")), _spacing(header, where))


def metaimage_spacing(content: bytes, where: str) -> tuple[float, float] | None:
    """(row, column) in mm per pixel by the header of a MetaImage alone, None where it does not tell.

    Args:
        content: at least the first 64 KiB of the ``.mhd`` or ``.mha`` file.
        where: the file, for messages.

    Raises:
        DataError: not a MetaImage, or its spacing is no list of numbers.
    """
    return _spacing(_header(content, where)[0], where)


def _header(content: bytes, where: str) -> tuple[dict[str, str], bytes]:
    header: dict[str, str] = {}
    place = 0
    while True:
        end = content.find(b"\n", place, MAX_HEADER)
        line = content[place : end if end >= 0 else min(len(content), MAX_HEADER)]
        place = end + 1
        key, sign, value = line.partition(b"=")
        if not sign and line.strip():
            raise DataError(f"{where}: not a MetaImage: a line of its header is not 'Key = Value'")
        if sign:
            header[key.strip().decode("latin-1").lower()] = value.strip().decode("latin-1")
        if "elementdatafile" in header:
            return header, content[place:] if end >= 0 else b""
        if end < 0:
            raise DataError(f"{where}: not a MetaImage: its header has no ElementDataFile")


def _data(header: dict[str, str], rest: bytes, needed: int, where: str, beside: Callable[[str], bytes]) -> bytes:
    name = header["elementdatafile"]
    if name.upper() == "LOCAL":
        data = rest
    elif name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{where}: its pixels lie in several files, which is not read")
    elif "/" in name or (problem := unsafe_name(name)):
        raise DataError(
            f"{where}: ElementDataFile {shown(name)} {problem if '/' not in name else 'lies in another folder'}"
        )
    else:
        data = beside(name)
    if _true(header.get("compresseddata", "False")):
        try:
            # One byte more than needed shows that there is more; a bomb is not unpacked.
            data = zlib.decompressobj().decompress(data, needed + 1)
        except zlib.error as error:
            raise DataError(f"{where}: its compressed pixels cannot be unpacked ({error}): fetch it again") from None
        if len(data) != needed:
            raise DataError(
                f"{where}: its pixels unpack to {'more than ' if len(data) > needed else ''}{min(len(data), needed)} bytes, needed: {needed}"
            )
        return data
    skip = _numbers(header.get("headersize", "0"), where, "HeaderSize")[0]
    data = data[-needed:] if skip == -1 else data[max(0, int(skip)) :]
    if len(data) < needed:
        raise DataError(f"{where}: has {len(data)} bytes of pixels, needed: {needed}: cut off; fetch it again")
    return data[:needed]


def _spacing(header: dict[str, str], where: str) -> tuple[float, float] | None:
    text = header.get("elementspacing") or header.get("elementsize")
    if text is None:
        return None
    values = _numbers(text, where, "ElementSpacing")
    if len(values) < 2 or not all(1e-6 <= value <= 1e6 for value in values[:2]):
        return None
    return values[1], values[0]


def _numbers(text: str, where: str, key: str) -> list[float]:
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) for value in values):
        raise DataError(f"{where}: {key} {shown(text)} is not a list of numbers")
    return values


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1")
