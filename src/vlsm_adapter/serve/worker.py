"""The one thread that owns the model, and the bounded queue before it.

Questions that wait for the same adapter are taken out together: those about one picture share its encoding, and all their
prompts go through the decoder in one pass.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from vlsm_adapter.serve.engine import Question
from vlsm_adapter.serve.problems import Refused, busy, log_fault

T = TypeVar("T")
_Task = tuple[Callable[[], Any], Future]


class Worker:
    """Runs questions and tasks, one after the other, in a thread of its own.

    Args:
        answer: given questions to one adapter, sets the future of each.
        most: questions that may wait.
        together: pictures, and prompts, that are decoded together at most.
        on_batch: told the number of questions taken together, and the seconds each of them had waited.

    Attributes:
        pace: seconds that a question took of late, to say how long the waiting ones will.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], None],
        most: int,
        *,
        together: tuple[int, int] = (8, 32),
        on_batch: Callable[[int, Sequence[float]], None] = lambda *_: None,
    ) -> None:
        self.pace = 0.05
        self._paces = deque([self.pace] * 9, maxlen=9)
        self._answer = answer
        self._most = most
        self._together = together
        self._on_batch = on_batch
        self._waiting: deque[Question | _Task] = deque()
        self._questions = 0
        self._change = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="vlsm-model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Questions that wait."""
        return self._questions

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def ask(self, questions: Sequence[Question]) -> None:
        """Queue all of ``questions`` or none.

        Raises:
            Refused: 503, the queue is full, their turn would come too late, or the service is stopping.
        """
        with self._change:
            if self._stopping:
                raise busy("the service is stopping", 5)
            seconds = self._questions * self.pace
            if self._questions + len(questions) > self._most:
                raise busy(
                    f"{self._questions} questions are waiting, at most {self._most} may: ask again later", seconds
                )
            if self._questions and time.monotonic() + seconds > min(question.deadline for question in questions):
                raise busy(
                    f"{self._questions} questions are waiting, for about {seconds:.0f} s: ask again later", seconds / 2
                )
            self._waiting.extend(questions)
            self._questions += len(questions)
            self._change.notify()

    def run(self, task: Callable[[], T]) -> Future[T]:
        """Have ``task`` done by the thread, in its turn.

        Raises:
            Refused: 503, the service is stopping.
        """
        future: Future[T] = Future()
        with self._change:
            if self._stopping:
                raise busy("the service is stopping", 5)
            self._waiting.append((task, future))
            self._change.notify()
        return future

    def stop(self) -> None:
        """Do what is queued, take nothing more, end the thread."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._stopping:
                    self._change.wait()
                if not self._waiting:
                    return
                first = self._waiting.popleft()
                batch = self._with_its_like(first) if isinstance(first, Question) else []
                self._questions -= len(batch)
            if not isinstance(first, Question):
                _do(first)
                continue
            self._answer_in_time(batch)

    def _with_its_like(self, first: Question) -> list[Question]:
        """``first`` and the waiting questions that are answered with it; they leave the queue."""
        batch, pictures, prompts = [first], {first.picture}, len(first.prompts)
        most_pictures, most_prompts = self._together
        left: list[Question | _Task] = []
        for waiting in self._waiting:
            if (
                isinstance(waiting, Question)
                and waiting.adapter == first.adapter
                and (waiting.picture in pictures or len(pictures) < most_pictures)
                and prompts + len(waiting.prompts) <= most_prompts
            ):
                batch.append(waiting)
                pictures.add(waiting.picture)
                prompts += len(waiting.prompts)
            else:
                left.append(waiting)
        self._waiting = deque(left)
        return batch

    def _answer_in_time(self, batch: Sequence[Question]) -> None:
        now = time.monotonic()
        wanted = []
        for question in batch:
            if not question.future.set_running_or_notify_cancel():
                continue  # who asked is gone
            if question.deadline < now:
                question.future.set_exception(busy("the question waited too long: ask again later", self.pace))
                continue
            wanted.append(question)
        if not wanted:
            return
        self._on_batch(len(wanted), [now - question.asked for question in wanted])
        try:
            self._answer(wanted)
        except BaseException as error:  # the thread must live, and nobody may wait for ever
            log_fault("a question", error)
            for question in wanted:
                if not question.future.done():
                    question.future.set_exception(error if isinstance(error, Exception) else Refused(503, "stopped"))
        self._paces.append((time.monotonic() - now) / len(wanted))
        self.pace = statistics.median(self._paces)  # one that took long, such as the first, says nothing of the next


def _do(task: _Task) -> None:
    call, future = task
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
