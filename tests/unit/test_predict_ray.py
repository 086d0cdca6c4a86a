"""Jobs handed to actors and taken back, with a stand-in for Ray; tests/e2e/test_predict_ray.py has a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlsm_adapter.console import Console
from vlsm_adapter.errors import UserError
from vlsm_adapter.imaging.base import AnswerOptions, OutputNames
from vlsm_adapter.imaging.pictures_in import PictureStack
from vlsm_adapter.predict import Origin
from vlsm_adapter.predict_jobs import Job, Result
from vlsm_adapter.predict_ray import _chunks, _Pool


class Died(Exception):
    """An actor's end."""


class FakeRay:
    """Calls run when they are got; ``answer`` gives or raises what an actor answers to its jobs."""

    exceptions = SimpleNamespace(RayActorError=Died, RayError=Died)

    def __init__(self, answer: Callable[[list[Job]], Any], cpus: int = 4, gpus: int = 0) -> None:
        self.answer, self.resources = answer, {"CPU": cpus, "GPU": gpus}
        self.asked: dict[str, float] = {}
        self.made = 0

    def cluster_resources(self) -> dict[str, int]:
        return self.resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}]

    def remote(self, kind: type) -> FakeRay:
        return self

    def options(self, **asked: float) -> Any:
        self.asked = asked
        return SimpleNamespace(remote=self._make)

    def _make(self, *_: object) -> Any:
        self.made += 1
        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: tuple),
            predict=SimpleNamespace(remote=lambda jobs: (self, tuple(jobs))),
        )

    def wait(self, calls: list[Any], *, num_returns: int) -> tuple[list[Any], list[Any]]:
        return calls[:1], calls[1:]

    def get(self, call: Any) -> Any:
        return True if call is tuple else self.answer(list(call[1]))


def jobs(count: int) -> list[Job]:
    stacks = [PictureStack(Path(f"p{number}.png")) for number in range(count)]
    return [Job(stack, OutputNames(stack.name, (stack.name,)), (f"{stack.name}.png",)) for stack in stacks]


def run(ray: FakeRay, given: list[Job], workers: int = 1) -> list[tuple[str, Result | None]]:
    pool = _Pool(
        ray, Origin("x"), 0.5, ["polyp"], Path("out"), AnswerOptions(), workers, len(given), Console(quiet=True)
    )
    return [(job.stack.name, result) for job, result in pool.run(given)]


def good(given: list[Job]) -> list[Result]:
    return [Result([{"mask": job.stack.name}], []) for job in given]


def test_every_job_begins_and_ends_once() -> None:
    ray = FakeRay(good)
    events = run(ray, jobs(100))
    begun = [name for name, result in events if result is None]
    ended = [name for name, result in events if result is not None]
    assert sorted(begun) == sorted(ended) == sorted(f"p{number}" for number in range(100))
    for name in ended:
        assert events.index((name, None)) < next(
            place for place, (one, result) in enumerate(events) if one == name and result is not None
        )
    assert (ray.made, ray.asked) == (4, {"num_cpus": 1, "num_gpus": 0})


def test_no_more_actors_than_jobs_or_room() -> None:
    ray = FakeRay(good, cpus=64)
    run(ray, jobs(3))
    assert ray.made == 3
    ray = FakeRay(good, cpus=16, gpus=2)
    run(ray, jobs(30), workers=4)
    assert (ray.made, ray.asked) == (2, {"num_cpus": 4, "num_gpus": 1})
    with pytest.raises(UserError, match="no CPU"):
        run(FakeRay(good, cpus=0), jobs(1))


def test_what_kills_its_worker_is_a_failure_and_the_rest_is_done() -> None:
    def answer(given: list[Job]) -> list[Result]:
        if any(job.stack.name == "p7" for job in given):
            raise Died("out of memory")
        return good(given)

    ray = FakeRay(answer)
    ended = {name: result for name, result in run(ray, jobs(40)) if result is not None}
    assert len(ended) == 40
    assert [name for name, result in ended.items() if result.failed] == ["p7"]
    assert "p7.png: the worker that predicted it died, 2 times" in ended["p7"].failures[0].reason
    assert ray.made == 4 + 2


def test_what_stops_one_stops_all() -> None:
    with pytest.raises(UserError, match="No space left"):
        run(FakeRay(lambda given: "out/p0.png: cannot be written (No space left on device)"), jobs(5))


def test_chunks_are_small_where_there_is_little() -> None:
    assert [len(chunk) for chunk in _chunks(jobs(4), 4)] == [1, 1, 1, 1]
    assert {len(chunk) for chunk in _chunks(jobs(1000), 2)} == {16, 8}
    assert sum(len(chunk) for chunk in _chunks(jobs(1000), 2)) == 1000
