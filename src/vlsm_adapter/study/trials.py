"""Running the trials of all searches, each in its rounds, all searches beside each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlsm_adapter.console import Console
from vlsm_adapter.study.drive import Task, drive
from vlsm_adapter.study.folder import CellFolder
from vlsm_adapter.study.grid import Group
from vlsm_adapter.study.plan import Plan
from vlsm_adapter.study.processes import Executor, Outcome
from vlsm_adapter.study.search import GroupSearch, write_report
from vlsm_adapter.train import absolute_paths


def run_searches(plan: Plan, executor: Executor, console: Console, options: dict[str, Any]) -> None:
    """Run what is left of the searches; ``search/trials.csv`` and ``search.json`` are written as they go on.

    A trial that fails is a trial that failed: its values are not chosen. One that is killed again and again ends its
    search for now.

    Args:
        options: of :func:`drive`.
    """
    under_way: dict[Path, GroupSearch] = {}
    given_up: set[Group] = set()

    def begin(search: GroupSearch) -> list[Task]:
        trials = search.round()
        write_report(plan.folder.search, plan.searches)
        if not trials:
            _tell(search, console)
        tasks = []
        for trial in trials:
            folder = CellFolder(search.run_of(trial.number))
            about = {"study": plan.study.source, **search.about(trial)}
            config = absolute_paths(search.config_of(trial.params))
            under_way[folder.path] = search
            tasks.append(Task(folder, f"search {search.label}/{folder.path.name}", about, config, None))
        return tasks

    def ended(task: Task, outcome: Outcome) -> Iterable[Task]:
        search = under_way.pop(task.run)
        if outcome.state == "failed":
            console.say(f"{task.label}: failed: {outcome.error}")
        elif outcome.state != "finished":
            given_up.add(search.group)
            console.say(f"{task.label}: {outcome.error or outcome.state}")
        busy = any(other is search for other in under_way.values())
        return () if busy or search.group in given_up else begin(search)

    open_ones = [search for search in plan.searches if search.round()]
    drive([task for search in open_ones for task in begin(search)], executor, console=console, ended=ended, **options)
    if plan.searches:
        write_report(plan.folder.search, plan.searches)


def _tell(search: GroupSearch, console: Console) -> None:
    best = search.best()
    if best is None or best.value is None:
        console.say(f"search {search.label}: no trial finished")
        return
    values = ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in best.params.items()
    )
    console.say(f"search {search.label}: {values} (validation Dice {best.value:.4f}, trial {best.number})")
