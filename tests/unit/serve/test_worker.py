"""The queue: bounded, merged by adapter, in time, and never stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.serve.engine import Loaded, Question
from vlsm_adapter.serve.problems import Refused
from vlsm_adapter.serve.worker import Worker

FIRST, SECOND = (Loaded(name, name, 0.5, Preprocessing()) for name in ("first", "second"))


def question(adapter: Loaded = FIRST, image: int = 0, prompts: int = 1, seconds: float = 60) -> Question:
    return Question(("x", image), adapter, ["p"] * prompts, None, None, time.monotonic() + seconds)


class Model:
    """Answers only while the gate is open; remembers what was taken together."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.taken: list[list[Question]] = []

    def answer(self, questions: Sequence[Question]) -> None:
        self.taken.append(list(questions))
        assert self.gate.wait(10)
        for one in questions:
            one.future.set_result(None)  # type: ignore[arg-type]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def worker(model: Model) -> Iterator[Worker]:
    worker = Worker(model.answer, 8, together=(2, 4))
    yield worker
    model.gate.set()
    worker.stop()


def hold(worker: Worker, model: Model) -> None:
    """Have the thread busy with one question, so that the others wait."""
    worker.ask([question()])
    while not model.taken:
        time.sleep(0.001)


def test_the_queue_is_bounded_and_takes_all_or_none(worker: Worker, model: Model) -> None:
    hold(worker, model)
    worker.ask([question() for _ in range(7)])
    with pytest.raises(Refused) as refused:
        worker.ask([question(), question()])
    assert refused.value.status == 503
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    assert len(worker) == 7
    worker.ask([question()])


def test_a_question_whose_turn_would_come_too_late_is_refused_at_once(worker: Worker, model: Model) -> None:
    hold(worker, model)
    worker.pace = 4.0
    worker.ask([question() for _ in range(3)])
    with pytest.raises(Refused, match="for about 12 s") as refused:
        worker.ask([question(seconds=11)])
    assert (refused.value.status, refused.value.retry_after) == (503, 6)
    worker.ask([question(seconds=13)])
    assert len(worker) == 4


def test_questions_to_one_adapter_are_taken_together_within_bounds(worker: Worker, model: Model) -> None:
    hold(worker, model)
    asked = [
        question(FIRST, 0),
        question(SECOND, 0),
        question(FIRST, 1, prompts=2),
        question(FIRST, 2),  # a third picture: too many
        question(FIRST, 0, prompts=2),  # five prompts: too many
        question(FIRST, 1),
    ]
    worker.ask(asked)
    model.gate.set()
    for one in asked:
        one.future.result(timeout=10)
    order = [[asked.index(one) for one in taken] for taken in model.taken[1:]]
    assert order == [[0, 2, 5], [1], [3, 4]]
    assert len(worker) == 0


def test_who_has_gone_or_waited_too_long_is_not_answered(worker: Worker, model: Model) -> None:
    hold(worker, model)
    gone, late, good = question(), question(seconds=0), question()
    worker.ask([gone, late, good])
    assert gone.future.cancel()
    time.sleep(0.01)
    model.gate.set()
    good.future.result(timeout=10)
    with pytest.raises(Refused, match="too long"):
        late.future.result(timeout=10)
    assert model.taken[1] == [good]


def test_an_error_reaches_who_asked_and_the_thread_lives(model: Model) -> None:
    def fail(questions: Sequence[Question]) -> None:
        raise RuntimeError("broken")

    worker = Worker(fail, 8)
    one = question()
    worker.ask([one])
    with pytest.raises(RuntimeError, match="broken"):
        one.future.result(timeout=10)
    assert worker.alive
    assert worker.run(lambda: 5).result(timeout=10) == 5
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 / 0).result(timeout=10)
    worker.stop()


def test_stopping_finishes_what_waits_and_takes_nothing_new(worker: Worker, model: Model) -> None:
    hold(worker, model)
    waiting = question()
    worker.ask([waiting])
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    time.sleep(0.02)
    with pytest.raises(Refused, match="stopping"):
        worker.ask([question()])
    with pytest.raises(Refused, match="stopping"):
        worker.run(lambda: None)
    model.gate.set()
    stopping.join(timeout=10)
    assert waiting.future.done()
    assert not worker.alive
