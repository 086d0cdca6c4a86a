"""MetaImage files: what the writer of the format makes is read back, and what is none is refused in one line."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsm_adapter.data.sources.metaimage import read_metaimage
from vlsm_adapter.errors import DataError

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def nothing(name: str) -> bytes:
    raise DataError(f"{name} is not there")


def header(**changes: object) -> bytes:
    values: dict[str, object] = {
        "ObjectType": "Image",
        "NDims": 2,
        "DimSize": "4 3",
        "ElementSpacing": "0.3 0.1",
        "ElementType": "MET_UCHAR",
        "ElementDataFile": "a.raw",
    }
    values = {**values, **changes}
    values["ElementDataFile"] = values.pop("ElementDataFile")  # it ends the header
    return "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None).encode()


def read(content: bytes, data: bytes = PIXELS.tobytes()):  # type: ignore[no-untyped-def]
    return read_metaimage(content, "a.mhd", lambda name: data)


def test_rows_columns_and_spacing() -> None:
    found = read(header())
    assert (found.pixels == PIXELS).all()
    assert found.spacing == (0.1, 0.3), "row first"


@pytest.mark.parametrize("dims", ["4 3 1", "4 3 1 1"])
def test_one_slice_of_a_volume(dims: str) -> None:
    assert read(header(DimSize=dims, ElementSpacing="0.3 0.1 1.5 1")).pixels.shape == (3, 4)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("MET_CHAR", "i1"),
        ("MET_SHORT", "i2"),
        ("MET_USHORT", "u2"),
        ("MET_INT", "i4"),
        ("MET_FLOAT", "f4"),
        ("MET_DOUBLE", "f8"),
    ],
)
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_kinds_of_elements(kind: str, dtype: str, big: bool, packed: bool) -> None:
    values = (PIXELS.astype(dtype) - np.array(5).astype(dtype)) if dtype[0] != "u" else PIXELS.astype(dtype)
    data = values.astype((">" if big else "<") + dtype).tobytes()
    content = header(ElementType=kind, BinaryDataByteOrderMSB=big, CompressedData=packed)
    found = read(content, zlib.compress(data) if packed else data)
    assert (found.pixels == values).all()
    assert found.pixels.dtype == np.dtype(dtype)


def test_pixels_in_the_same_file() -> None:
    content = header(ElementDataFile="LOCAL") + PIXELS.tobytes()
    assert (read_metaimage(content, "a.mha", nothing).pixels == PIXELS).all()


@pytest.mark.parametrize(("skip", "data"), [(5, b"xxxxx" + PIXELS.tobytes()), (-1, b"any length" + PIXELS.tobytes())])
def test_a_header_before_the_pixels(skip: int, data: bytes) -> None:
    assert (read(header(HeaderSize=skip), data).pixels == PIXELS).all()


@pytest.mark.parametrize("spacing", [None, "0 0", "-1 1", "1e30 1"])
def test_no_spacing(spacing: str | None) -> None:
    assert read(header(ElementSpacing=spacing)).spacing is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DimSize": "4 3 2"}, "needed: one 2D slice"),
        ({"DimSize": "4"}, "needed: one 2D slice"),
        ({"DimSize": "4 x"}, "not a list of numbers"),
        ({"DimSize": "0 3"}, "whole numbers"),
        ({"DimSize": "4.5 3"}, "whole numbers"),
        ({"DimSize": "nan 3"}, "not a list of numbers"),
        ({"DimSize": None}, "not a list of numbers"),
        ({"DimSize": "1000000 1000000"}, "at most"),
        ({"ElementType": "MET_ODD"}, "known: MET_CHAR"),
        ({"ElementNumberOfChannels": "3"}, "several channels"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "slice%03d.raw 1 2 1"}, "several files"),
        ({"ElementDataFile": "../a.raw"}, "another folder"),
        ({"ElementDataFile": "/etc/passwd"}, "another folder"),
        ({"ElementDataFile": "..\\a.raw"}, "backslash"),
        ({"HeaderSize": "x"}, "not a list of numbers"),
        ({"CompressedData": "True"}, "cannot be unpacked"),
    ],
)
def test_what_is_not_read(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(header(**changes))
    assert str(caught.value).startswith("a.mhd: ")
    assert "\n" not in str(caught.value)


def test_too_few_and_too_many_pixels() -> None:
    with pytest.raises(DataError, match="has 11 bytes of pixels, needed: 12"):
        read(header(), PIXELS.tobytes()[:-1])
    with pytest.raises(DataError, match="unpack to 11 bytes"):
        read(header(CompressedData=True), zlib.compress(PIXELS.tobytes()[:-1]))
    with pytest.raises(DataError, match="more than 12 bytes"):
        read(header(CompressedData=True), zlib.compress(bytes(10_000_000)))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0" * 100_000, b"NDims = 2\n" * 20_000, b"ElementDataFile = a.raw", b"DimSize = 4 3\n"]
)
def test_other_files(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.mhd: "):
        read(content)


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    finish: Callable[[], object] = lambda: read_metaimage(content, "a.mhd", nothing)  # noqa: E731
    with pytest.raises(DataError):
        finish()


@settings(deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.booleans(),
    st.floats(0.001, 10),
    st.floats(0.001, 10),
    st.integers(0, 2**32 - 1),
)
def test_any_image_comes_back(height: int, width: int, packed: bool, row: float, column: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)
    data = zlib.compress(pixels.tobytes()) if packed else pixels.tobytes()
    found = read(header(DimSize=f"{width} {height}", ElementSpacing=f"{column!r} {row!r}", CompressedData=packed), data)
    assert (found.pixels == pixels).all()
    assert found.spacing == (row, column)
