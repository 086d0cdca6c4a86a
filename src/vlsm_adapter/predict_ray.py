"""Prediction spread over a Ray cluster: an actor with the model on every place that has room, fed a few stacks at a time.

Nodes read the inputs and write the answers themselves, so all of them must see the same files under the same paths; rows and
one-line errors alone travel. Ray's actors are used as they are: Ray Data would bring pyarrow and pandas for a table of paths.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsm_adapter.console import Console
from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.imaging.base import AnswerOptions
from vlsm_adapter.predict import Origin, Predictor
from vlsm_adapter.predict_jobs import Job, Result, run_jobs
from vlsm_adapter.ray_address import why_silent
from vlsm_adapter.types import Skipped

INSTALL = "pip install 'vlsm-adapter[study]'"
_PICTURES_AT_ONCE = 16  # of one call of an actor: enough to read ahead, little to repeat when it dies
_TRIES = 2
_OBJECT_STORE = 80 << 20  # its least: jobs, rows and one-line answers pass through it


def run_on_cluster(
    address: str,
    predictor: Predictor,
    jobs: Sequence[Job],
    prompts: Sequence[str],
    out: Path,
    options: AnswerOptions,
    *,
    workers: int,
    console: Console,
) -> Generator[tuple[Job, Result | None], None, None]:
    """As :func:`vlsm_adapter.predict_jobs.run_jobs`, jobs in the order in which they end.

    An actor takes ``workers`` CPUs, and one GPU where the cluster has any. Where an actor dies its jobs are given to another
    once more, one by one; a job that is lost twice is a failure.

    Args:
        address: of the cluster (``"auto"``, ``HOST:PORT``, ``ray://HOST:PORT``), or ``"local"`` for one on this machine.

    Raises:
        UserError: Ray is not installed, the cluster does not answer, no node has room, or the predictor cannot be loaded.
    """
    origin = predictor.origin
    if origin is None:
        raise UserError("--ray needs a predictor loaded from a path: Predictor.load or Predictor.zero_shot")
    origin = _absolute(origin)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":  # its name notwithstanding: off, Ray's processes listen on the loopback interface alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise UserError(f"Ray is not installed: {INSTALL}, or leave --ray out") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        quiet |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    elif ray.is_initialized():
        raise UserError("Ray runs in this process already: end it with ray.shutdown() first")
    if why := why_silent(address):
        raise UserError(f"--ray {address}: no cluster answers ({why})")
    try:
        ray.init(address, **quiet)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, TimeoutError, ...
        raise UserError(f"--ray {address}: no cluster answers ({one_line(error)})") from error
    try:
        pool = _Pool(ray, origin, predictor.threshold, prompts, out.resolve(), options, workers, len(jobs), console)
        yield from pool.run(jobs)
    finally:
        ray.shutdown()


class Worker:
    """One process with the model; an actor of Ray.

    Args:
        origin: what to load.
        threshold, prompts, out, options, workers: as of :func:`run_on_cluster`.
    """

    def __init__(
        self, origin: Origin, threshold: float, prompts: Sequence[str], out: str, options: AnswerOptions, workers: int
    ) -> None:
        import torch

        torch.set_num_threads(workers)
        self._predictor = origin.load(threshold)
        self._arguments = (prompts, Path(out), options)
        self._workers = workers

    def ready(self) -> bool:
        """Whether the model is loaded."""
        return True

    def predict(self, jobs: Sequence[Job]) -> list[Result] | str:
        """What became of each job; or, where the rest cannot go on either, why (a full disk)."""
        try:
            running = run_jobs(self._predictor, jobs, *self._arguments, workers=self._workers)
            return [result for _, result in running if result is not None]
        except UserError as error:
            return str(error)


class _Pool:
    """The actors of one call, and which jobs each of them has."""

    def __init__(
        self,
        ray: Any,
        origin: Origin,
        threshold: float,
        prompts: Sequence[str],
        out: Path,
        options: AnswerOptions,
        workers: int,
        jobs: int,
        console: Console,
    ) -> None:
        self._ray, self._console = ray, console
        self._told = False  # that a worker is left out
        nodes = [_places(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        usable = [(cpus, gpus) for cpus, gpus in nodes if cpus]
        if not usable:
            raise UserError("--ray: the cluster has no CPU")
        if with_gpus := [(cpus, gpus) for cpus, gpus in usable if gpus]:
            usable = with_gpus
        workers = min(workers, max(cpus for cpus, _ in usable))
        # An actor stands on one node: what several have left over is room for none.
        room = sum(min(cpus // workers, gpus) if with_gpus else cpus // workers for cpus, gpus in usable)
        self._size = max(1, min(room, jobs))
        kind = ray.remote(Worker).options(num_cpus=workers, num_gpus=1 if with_gpus else 0)
        self._make = lambda: kind.remote(origin, threshold, list(prompts), str(out), options, workers)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | None]]:
        waiting = deque(_chunks(jobs, self._size))
        tries: dict[str, int] = {}
        busy: dict[Any, tuple[Any, list[Job]]] = {}
        idle: list[Any] = []
        # Jobs are for actors that have loaded the model: another may wait for its place as long as others use the cluster.
        starting: dict[Any, Any] = {}
        self._start(starting, self._size)
        while waiting or busy:
            while waiting and idle:
                actor, chunk = idle.pop(), waiting.popleft()
                yield from ((job, None) for job in chunk)
                busy[actor.predict.remote(chunk)] = (actor, chunk)
            ended, _ = self._ray.wait([*busy, *starting], num_returns=1)
            if ended[0] in starting:
                actor = starting.pop(ended[0])
                if self._loads(ended[0], last=not (busy or idle or starting)):
                    idle.append(actor)
                continue
            actor, chunk = busy.pop(ended[0])
            try:
                answer = self._ray.get(ended[0])
            except self._ray.exceptions.RayActorError as error:
                self._console.warn(f"a worker of Ray died ({one_line(error)[:120]}); its inputs are given to another")
                self._start(starting, 1)
                for job in chunk:
                    tries[job.stack.name] = tries.get(job.stack.name, 0) + 1
                    if tries[job.stack.name] < _TRIES:
                        waiting.appendleft([job])
                    else:
                        path = str(job.stack.paths[0])
                        reason = f"{path}: the worker that predicted it died, {_TRIES} times (out of memory?)"
                        yield job, Result([], [Skipped(job.stack.name, path, reason)], failed=True)
                continue
            except self._ray.exceptions.RayError as error:
                raise UserError(f"--ray: a worker failed ({one_line(error)})") from error
            if isinstance(answer, str):
                raise UserError(answer)
            idle.append(actor)
            yield from zip(chunk, answer, strict=True)

    def _start(self, starting: dict[Any, Any], count: int) -> None:
        for actor in [self._make() for _ in range(count)]:
            starting[actor.ready.remote()] = actor

    def _loads(self, call: Any, *, last: bool) -> bool:
        """Whether an actor has loaded the model; without the last of them nothing goes on."""
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            why = f"a worker cannot load the model ({one_line(getattr(error, 'cause', None) or error)})"
            fix = "nodes must see the same files and packages"
            if last:
                raise UserError(f"--ray: {why}; {fix}") from error
            if not self._told:
                self._console.warn(f"{why} and is left out; {fix}")
            self._told = True
            return False
        return True


def _places(resources: Mapping[str, float]) -> tuple[int, int]:
    """Whole CPUs and GPUs of a node."""
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def _chunks(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Jobs in turn, a few pictures each; smaller where there are few, so that every actor has work."""
    pictures = sum(job.stack.count for job in jobs)
    most = max(1, min(_PICTURES_AT_ONCE, pictures // (2 * size)))
    chunk: list[Job] = []
    held = 0
    for job in jobs:
        chunk.append(job)
        held += job.stack.count
        if held >= most:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _absolute(origin: Origin) -> Origin:
    """``origin`` as another process finds it, which stands in another folder."""
    from dataclasses import replace

    def found(path: str) -> str:
        return str(Path(path).resolve()) if Path(path).exists() else path

    return replace(origin, path=found(origin.path), base=None if origin.base is None else found(origin.base))
