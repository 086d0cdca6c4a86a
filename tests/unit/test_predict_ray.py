"""Jobs handed to actors and taken back, with a stand-in for Ray; tests/e2e/test_predict_ray.py has a real cluster."""

from __future__ import annotations

from collections.abc import Callable, Container
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
    """Calls run when they are got; ``answer`` gives or raises what an actor answers to its jobs.

    Args:
        cpus, gpus: of the only node, or of each of several.
        placed: actors that find a place, by number; the others wait for one for ever. By default all do.
        broken: actors that cannot load the model.
    """

    exceptions = SimpleNamespace(RayActorError=Died, RayError=Died)

    def __init__(
        self,
        answer: Callable[[list[Job]], Any],
        cpus: int | list[int] = 4,
        gpus: int | list[int] = 0,
        placed: Container[int] | None = None,
        broken: Container[int] = (),
    ) -> None:
        cpus = [cpus] if isinstance(cpus, int) else cpus
        gpus = [gpus] * len(cpus) if isinstance(gpus, int) else gpus
        self.answer, self.placed, self.broken = answer, placed, broken
        self.each = [{"CPU": own, "GPU": beside} for own, beside in zip(cpus, gpus, strict=True)]
        self.asked: dict[str, float] = {}
        self.made = 0

    def cluster_resources(self) -> dict[str, int]:
        return {name: sum(node[name] for node in self.each) for name in ("CPU", "GPU")}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.each]

    def remote(self, kind: type) -> FakeRay:
        return self

    def options(self, **asked: float) -> Any:
        self.asked = asked
        return SimpleNamespace(remote=self._make)

    def _make(self, *_: object) -> Any:
        number, self.made = self.made, self.made + 1
        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: (number, None)),
            predict=SimpleNamespace(remote=lambda jobs: (number, tuple(jobs))),
        )

    def wait(self, calls: list[Any], *, num_returns: int) -> tuple[list[Any], list[Any]]:
        ended = [call for call in calls if self.placed is None or call[0] in self.placed]
        assert ended, "waits for ever"
        return ended[:1], [call for call in calls if call is not ended[0]]

    def get(self, call: Any) -> Any:
        number, given = call
        assert self.placed is None or number in self.placed, "waits for ever"
        if number in self.broken:
            raise Died("no such folder")
        return True if given is None else self.answer(list(given))


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


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "actors", "asked"),
    [
        ([3, 3], 0, 2, 2, {"num_cpus": 2, "num_gpus": 0}),  # what is left on each node makes no third
        ([16, 2], [0, 1], 8, 1, {"num_cpus": 2, "num_gpus": 1}),  # the many CPUs are not where the GPU is
        ([4], [8], 2, 2, {"num_cpus": 2, "num_gpus": 1}),  # CPUs for two of eight GPUs
        ([4, 0], [0, 1], 2, 2, {"num_cpus": 2, "num_gpus": 0}),  # a GPU without a CPU is of no use
    ],
)
def test_an_actor_needs_room_on_one_node(
    cpus: list[int], gpus: int | list[int], workers: int, actors: int, asked: dict[str, float]
) -> None:
    ray = FakeRay(good, cpus=cpus, gpus=gpus)
    run(ray, jobs(100), workers=workers)
    assert (ray.made, ray.asked) == (actors, asked)


@pytest.mark.parametrize("placed", [{0, 1}, {2}])
def test_actors_that_find_no_place_keep_no_one_waiting(placed: set[int]) -> None:
    """The rest of the cluster is in use by others."""
    ended = [name for name, result in run(FakeRay(good, placed=placed), jobs(100)) if result is not None]
    assert len(ended) == 100


def test_a_node_that_cannot_load_the_model_leaves_the_others() -> None:
    ended = [name for name, result in run(FakeRay(good, broken={0, 2}), jobs(100)) if result is not None]
    assert len(ended) == 100
    with pytest.raises(UserError, match="no such folder"):
        run(FakeRay(good, broken=range(4)), jobs(100))


def test_without_a_worker_that_loads_nothing_goes_on() -> None:
    def answer(given: list[Job]) -> list[Result]:
        raise Died("out of memory")

    with pytest.raises(UserError, match="cannot load the model"):
        run(FakeRay(answer, cpus=1, broken=range(1, 9)), jobs(1))


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
