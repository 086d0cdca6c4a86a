"""Pictures of many stacks decoded ahead by threads and answered in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlsm_adapter.errors import DataError
from vlsm_adapter.imaging.base import PictureAnswer, Stack
from vlsm_adapter.imaging.inputs import unusable

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.predict import Predictor

# Decoded pictures that wait, in bytes; those being decoded, one for each thread, come on top.
_WAITING_BYTES = 256 << 20
# Voxels that open volumes hold, in bytes; one volume may always be open.
_RESIDENT_BYTES = 1 << 30
# Pictures times prompts of one pass of a GPU; on a CPU pictures go one by one, which is as fast there.
_BATCH_PICTURES = 8
_BATCH_MAPS = 64


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be read.

    Attributes:
        index: of the picture in its stack.
        error: says which file and why.
    """

    index: int
    error: DataError


@dataclass(frozen=True)
class _Decoded:
    number: int
    index: int
    picture: npt.NDArray[np.uint8]
    prepared: torch.Tensor  # (1, 3, h, w)


class Stream:
    """Iterates over ``(number of the stack, answer)``, exactly one for each picture of each stack, in order.

    While one picture is with the model, the next ones are decoded and resized by threads.

    Args:
        predictor: with the model; the image set on it stays.
        prompts: texts.
        stacks: what to read.
        workers: threads that decode.
    """

    def __init__(self, predictor: Predictor, prompts: Sequence[str], stacks: Sequence[Stack], *, workers: int) -> None:
        self._predictor = predictor
        self._prompts = list(prompts)
        self._stacks = list(stacks)
        self._workers = workers
        self._open: set[int] = set()
        self._skipped: set[int] = set()
        on_cpu = predictor.model.device.type == "cpu"
        self._batch = 1 if on_cpu else max(1, min(_BATCH_PICTURES, _BATCH_MAPS // len(self._prompts)))

    def skip(self, number: int) -> None:
        """Read no more pictures of a stack: those that are left come as unreadable."""
        self._skipped.add(number)

    def done(self, number: int) -> None:
        """Let go of what reading a stack holds, once all its answers came."""
        self._stacks[number].close()
        self._open.discard(number)

    def __iter__(self) -> Generator[tuple[int, PictureAnswer | Unreadable], None, None]:
        together: list[_Decoded] = []
        for number, one in self._decoded():
            if isinstance(one, Unreadable):
                yield from self._answers(together)
                together = []
                yield number, one
                continue
            together.append(one)
            if len(together) == self._batch:
                yield from self._answers(together)
                together = []
        yield from self._answers(together)

    def _answers(self, decoded: Sequence[_Decoded]) -> Iterator[tuple[int, PictureAnswer]]:
        if not decoded:
            return
        import torch

        pixels = torch.cat([one.prepared for one in decoded])
        sizes = [(one.picture.shape[0], one.picture.shape[1]) for one in decoded]
        for one, maps in zip(decoded, self._predictor.maps(pixels, sizes, self._prompts), strict=True):
            yield one.number, PictureAnswer(one.index, one.picture, maps)

    def _decoded(self) -> Iterator[tuple[int, _Decoded | Unreadable]]:
        tasks = ((number, index) for number, stack in enumerate(self._stacks) for index in range(stack.count))
        following = next(tasks, None)
        waiting: deque[tuple[int, Future[_Decoded | Unreadable]]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        try:
            while following is not None or waiting:
                while following is not None and self._has_room(following[0], waiting):
                    number, index = following
                    self._open.add(number)
                    waiting.append((number, pool.submit(self._decode, number, index)))
                    following = next(tasks, None)
                if waiting:
                    number, future = waiting.popleft()
                    yield number, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _has_room(self, number: int, waiting: deque[tuple[int, Future[_Decoded | Unreadable]]]) -> bool:
        if not waiting:
            return True
        if len(waiting) >= 2 * self._workers + self._batch:
            return False
        if number not in self._open and (size := self._stacks[number].resident_bytes()):
            held = sum(self._stacks[one].resident_bytes() for one in self._open)
            if held and held + size > _RESIDENT_BYTES:
                return False
        decoded = (future.result() for _, future in waiting if future.done() and not future.exception())
        return sum(one.picture.nbytes for one in decoded if isinstance(one, _Decoded)) < _WAITING_BYTES

    def _decode(self, number: int, index: int) -> _Decoded | Unreadable:
        stack = self._stacks[number]
        try:
            if number in self._skipped:
                raise DataError(f"{stack.name}: left out after an error")
            picture = stack.picture(index)
            return _Decoded(number, index, picture, self._predictor.model.preprocess([picture]))
        except Exception as error:  # a decoder may raise anything; a fault of ours is one file's, too
            return Unreadable(index, unusable(error, stack.paths[min(index, len(stack.paths) - 1)]))
