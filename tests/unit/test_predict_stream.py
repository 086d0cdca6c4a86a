"""Pictures decoded ahead: in order, each once, in bounded memory, whatever fails."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vlsm_adapter import Predictor
from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import Kind, PictureAnswer, Stack
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.predict_stream import Stream, Unreadable


class Fake(Stack):
    """Pictures of noise; picture ``bad`` cannot be read."""

    kind: Kind = "frames"
    spacing = None

    def __init__(self, number: int, count: int, *, bad: int | None = None, resident: int = 0) -> None:
        self.name, self.count, self.size = str(number), count, (9 + number, 12)
        self.paths = (Path(f"stack{number}.png"),)
        self._bad, self._resident = bad, resident
        self.read: list[int] = []
        self.closed = 0
        self._lock = threading.Lock()

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            self.read.append(index)
        if index == self._bad:
            raise ZeroDivisionError("a decoder's own fault")
        seed = 100 * int(self.name) + index
        return np.random.default_rng(seed).integers(0, 256, (*self.size, 3), np.uint8)

    def resident_bytes(self) -> int:
        return self._resident

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def predictor(model: PromptSegmenter) -> Predictor:
    return Predictor(model)


@pytest.mark.parametrize("batch", [1, 3])
def test_in_order_and_the_same_as_one_by_one(predictor: Predictor, batch: int) -> None:
    stacks = [Fake(0, 4), Fake(1, 1), Fake(2, 3, bad=1)]
    stream = Stream(predictor, ["polyp", "skin lesion"], stacks, workers=3)
    stream._batch = batch
    got = list(stream)
    assert [(number, one.index) for number, one in got] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (2, 0),
        (2, 1),
        (2, 2),
    ]
    for number, one in got:
        if (number, one.index) == (2, 1):
            assert isinstance(one, Unreadable)
            assert "stack2.png: cannot be read (ZeroDivisionError" in str(one.error)
            continue
        assert isinstance(one, PictureAnswer)
        predictor.set_image(one.picture)
        expected = predictor.probabilities(["polyp", "skin lesion"])
        assert len(one.maps) == 2
        np.testing.assert_allclose(np.stack(list(one.maps)), expected, atol=1e-5)
        np.testing.assert_array_equal(one.maps[-1], one.maps[1])
        with pytest.raises(IndexError):
            one.maps[2]


def test_reading_ahead_is_bounded(predictor: Predictor) -> None:
    stack = Fake(0, 50)
    answers = iter(Stream(predictor, ["polyp"], [stack], workers=2))
    next(answers)
    assert len(stack.read) <= 8
    answers.close()
    assert len(stack.read) <= 8


def test_two_large_volumes_are_not_open_at_once(predictor: Predictor) -> None:
    stacks = [Fake(0, 2, resident=1 << 30), Fake(1, 2, resident=1 << 30)]
    stream = Stream(predictor, ["polyp"], stacks, workers=4)
    answers = iter(stream)
    for _ in range(2):
        next(answers)
    assert stacks[1].read == []
    stream.done(0)
    assert stacks[0].closed == 1
    assert len(list(answers)) == 2


def test_what_is_skipped_comes_unread(predictor: Predictor) -> None:
    stacks = [Fake(0, 60), Fake(1, 1)]
    stream = Stream(predictor, ["polyp"], stacks, workers=1)
    answers = iter(stream)
    next(answers)
    stream.skip(0)
    rest = list(answers)
    assert len(rest) == 60
    assert len(stacks[0].read) < 10
    assert isinstance(rest[-1][1], PictureAnswer)
    assert isinstance(rest[-2][1], Unreadable)
    assert isinstance(rest[-2][1].error, DataError)
