"""Keeping an executor busy until all runs have ended: what fails or is killed is tried again, then let be."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.study.config import Evaluation
from vlsm_adapter.study.folder import CellFolder
from vlsm_adapter.study.processes import Executor, Outcome

_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """A run to be done.

    Attributes:
        folder: of the run; it is made when the run starts.
        label: for messages.
        about, config, evaluation: what the run's process reads, see ``CellFolder.prepare``.
    """

    folder: CellFolder
    label: str
    about: Mapping[str, Any]
    config: RunConfig
    evaluation: Evaluation | None

    @property
    def run(self) -> Path:
        """The folder's path."""
        return self.folder.path


class Stop(Protocol):
    """Says whether to stop."""

    requested: bool


def drive(
    tasks: Iterable[Task],
    executor: Executor,
    *,
    retries: int,
    stop: Stop,
    stop_file: Path,
    console: Console,
    ended: Callable[[Task, Outcome], Iterable[Task]],
) -> None:
    """Do all ``tasks`` in their order, and those that come up.

    Args:
        retries: further attempts at a run that failed, was killed, or stopped by itself.
        stop: once it is requested, no run is started, and those under way are asked to save their state and stop.
        stop_file: made to ask them.
        ended: called with each run that has ended for good; gives tasks to be done next.
    """
    queue, running, tries = deque(tasks), dict[Path, Task](), Counter[Path]()
    while True:
        if stop.requested:
            queue.clear()
            if running:
                stop_file.touch()
        while queue and len(running) < executor.capacity:
            task = queue.popleft()
            tries[task.run] += 1
            task.folder.prepare(task.about, task.config, task.evaluation)
            executor.submit(task.run)
            running[task.run] = task
        if not running:
            break
        for run, outcome in executor.wait(_WAIT_SECONDS):
            task = running.pop(run)
            if outcome.state != "finished" and not stop.requested and tries[run] <= retries:
                console.say(f"{task.label}: {outcome.error or outcome.state}; tried again")
                queue.appendleft(task)
            else:
                queue.extend(ended(task, outcome))
    with contextlib.suppress(FileNotFoundError):
        stop_file.unlink()
