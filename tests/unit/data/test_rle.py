"""RLE: round trips, texts written by another program, and what is damaged or made to do harm."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vlsm_adapter.data import rle
from vlsm_adapter.data.images import MAX_PIXELS
from vlsm_adapter.errors import DataError

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@settings(deadline=None)
@given(masks)
def test_counts_round_trip(mask: np.ndarray) -> None:
    counts = rle.encode_counts(mask)
    assert sum(counts) == mask.size
    assert all(count > 0 for count in counts[1:])
    assert sum(counts[1::2]) == mask.sum()
    assert (rle.decode_counts(counts, *mask.shape) == mask).all()


@settings(deadline=None)
@given(masks)
def test_compressed_round_trip(mask: np.ndarray) -> None:
    counts = rle.encode_counts(mask)
    text = rle.compress(counts)
    assert rle.decompress(text) == counts
    assert (rle.decode({"size": list(mask.shape), "counts": text}, *mask.shape) == mask).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, MAX_PIXELS), max_size=30))
def test_any_counts_are_compressed_without_loss(counts: list[int]) -> None:
    assert rle.decompress(rle.compress(counts)) == counts


def test_texts_of_another_program() -> None:
    """Written by the reference implementation of COCO (pycocotools 2.0.11) from the masks built here."""
    square = np.zeros((4, 5), bool)
    square[1:3, 1:4] = True
    rows, columns = np.mgrid[:200, :300]
    ellipse = (rows - 90) ** 2 / 60**2 + (columns - 170) ** 2 / 45**2 < 1
    written = {
        "5220003": square,
        "e0": np.zeros((3, 7), bool),
        "0e0": np.ones((3, 7), bool),
        "neh0i0Z5:G8I6J6K4K6K4M2M4L4M2M4M2N2N2N2N2N2N2N2N2N2N2O0O2O0O2N2O0O2O000O2O000O2O00000000000000000000000000000001"
        "N10001N10001N101N2N101N101N2N2N2N2N2N2N2N2N2N2N3L3N3L4L3N3L5J5L5J6J7H9Fo``0": ellipse,
    }
    for text, mask in written.items():
        assert (rle.decode({"size": list(mask.shape), "counts": text}, *mask.shape) == mask).all()
        assert rle.compress(rle.encode_counts(mask)) == text


def test_columns_come_first() -> None:
    mask = rle.decode_counts([1, 2, 3], 3, 2)
    assert mask.tolist() == [[False, False], [True, False], [True, False]]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([4, 3], "hold more than 6 of 6"),
        ([4, 1], "hold 5 of 6"),
        ([], "hold 0 of 6"),
        ([7, -1], "more than 6 of 6"),
        ([2, -1, 5], "none can be negative"),
        ([2.0, 4], "not a whole number"),
        ([True, 5], "not a whole number"),
        (["2", 4], "not a whole number"),
        ([10**30], "more than 6 of 6"),
        ([0] * 20, "20 runs for 6 pixels"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts: list, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        rle.decode_counts(counts, 2, 3, where="x.json: annotation 3")
    assert str(caught.value).startswith("x.json: annotation 3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5 2", "is none of a compressed RLE"),
        ("5é", "is none of a compressed RLE"),
        ("5p", "is none of a compressed RLE"),
        ("P", "ends within a run"),
        ("oooooooooooooooooooo0", "more than 178956970"),
        ("O", "none can be negative"),
        ("0" * 50, "more than 14 runs"),
    ],
)
def test_damaged_texts_are_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        rle.decode({"size": [2, 3], "counts": text}, 2, 3)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"size": [3, 2], "counts": [6]}, "rows and columns swapped"),
        ({"size": [9, 9], "counts": [81]}, r"RLE of size \[9, 9\]"),
        ({"size": "2x3", "counts": [6]}, "RLE of size"),
        ({"size": [2, 3]}, "'counts' is null"),
        ({"size": [2, 3], "counts": {"a": 1}}, "'counts' is an object"),
    ],
)
def test_objects_that_are_none_are_refused(value: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        rle.decode(value, 2, 3)


def test_size_may_be_absent() -> None:
    assert rle.decode({"counts": [0, 6]}, 2, 3).all()


def test_absurd_sizes_take_no_memory_and_no_time() -> None:
    start = time.perf_counter()
    with pytest.raises(DataError, match="at most"):
        rle.decode_counts([10**12], 10**6, 10**6)
    assert time.perf_counter() - start < 1


@settings(deadline=None)
@given(st.text(max_size=50), st.integers(1, 9), st.integers(1, 9))
def test_any_text_is_a_mask_or_one_line(text: str, height: int, width: int) -> None:
    said = ""
    try:
        mask = rle.decode({"counts": text}, height, width)
    except DataError as error:
        said = str(error)
    else:
        assert mask.shape == (height, width)
        assert mask.dtype == bool
    assert "\n" not in said
