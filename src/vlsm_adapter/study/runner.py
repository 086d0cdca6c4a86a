"""``vlsm compare``: read the study, check it whole, run what is not finished, say what came of it.

Finished runs are known by what is on disk, so the same command continues after any interruption, on this machine or
another.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlsm_adapter import files
from vlsm_adapter.config import RunConfig
from vlsm_adapter.console import Console
from vlsm_adapter.errors import UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.interrupt import Interrupted, StopSignal
from vlsm_adapter.study.config import StudyProblems
from vlsm_adapter.study.drive import Task, drive
from vlsm_adapter.study.estimate import free_memory_gb, gpus, side_by_side, spell
from vlsm_adapter.study.folder import CellFolder, StudyFolder, best_validation
from vlsm_adapter.study.grid import Cell
from vlsm_adapter.study.plan import Plan, absolute, check, make_plan, settle, write_status
from vlsm_adapter.study.precision import mixed_precision
from vlsm_adapter.study.preview import lacking, preview, room
from vlsm_adapter.study.problems import told_together
from vlsm_adapter.study.processes import Executor, LocalExecutor, Outcome
from vlsm_adapter.study.ray_executor import need_ray, ray_missing
from vlsm_adapter.study.reader import load_study
from vlsm_adapter.study.trials import run_searches
from vlsm_adapter.train import absolute_paths


def compare(
    file: str | Path,
    out: str | Path | None = None,
    *,
    dry_run: bool = False,
    jobs: int | None = None,
    address: str | None = None,
    retries: int = 1,
    only: str | None = None,
    local: bool = False,
    console: Console | None = None,
) -> int:
    """Run a study, or go on with it.

    Args:
        file: study.yaml.
        out: the study's folder; by default one of the name of ``file``, without its ending, where the command runs.
        dry_run: print what would run and how long it would take; nothing is written or downloaded.
        jobs: runs at once; by default as many as cores and memory allow (with ``local``, one).
        address: of a Ray cluster whose nodes see the same files.
        retries: further attempts at a run that fails or is killed.
        only: a pattern of runs, see ``grid.select``.
        local: in processes of this machine, without Ray.

    Returns:
        Exit code: 0, or 1 where runs failed.

    Raises:
        UserError: the study, its data, models or folder cannot be used; nothing was started.
        Interrupted: by Ctrl-C; every run has saved its state.
    """
    console = console or Console(quiet=True)
    if local and address is not None:
        raise UserError("--local and --address: give one of them")
    out = Path(file).stem if out is None else out
    try:
        plan = make_plan(load_study(file), StudyFolder(Path(out)), only)
    except StudyProblems as found:
        raise told_together(found, dry_run=dry_run) from found
    if dry_run:
        for line in preview(plan, jobs=jobs, local=local):
            print(line)
        if not local and (why := ray_missing()):
            console.warn(why)
        if not local and address is None and (less := lacking(plan)):
            console.warn(less)
        if not _can_be_made(plan.folder.path):
            console.warn(f"{out}: cannot be written to; choose another --out")
        _warn_of_precision(plan, console)
        return 0
    if plan.todo or plan.searching:
        if not local:
            need_ray()
        check(plan, absent_is_wrong=True)
        _warn_of_precision(plan, console)
    busy = f"{out}: another 'vlsm compare' works on this study; wait for it or stop it"
    try:
        plan.folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise UserError(f"{out}: cannot be made ({why.strerror or why}); choose another --out") from why
    with files.locked(plan.folder.lock_file, busy):
        plan.folder.stop_file.unlink(missing_ok=True)
        files.write_text(plan.folder.study_file, absolute(plan.study).to_yaml())
        write_status(plan)
        failures: dict[str, str] = {}
        if plan.todo or plan.searching:
            executor = _executor(plan, jobs, address, local, console)
            stop = StopSignal(console)
            try:
                with stop.listening():
                    failures = _run(
                        plan, executor, stop, retries, console, at_once=None if address else executor.capacity
                    )
            finally:
                executor.close()
                write_status(plan)
            if stop.requested:
                given = {"--jobs": jobs, "--address": address, "--only": only}
                options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
                options += ["--retries", str(retries)] if retries != 1 else []
                options += ["--local"] if local else []
                command = shlex.join(["vlsm", "compare", str(file), "--out", str(out), *options])
                raise Interrupted(f"stopped; the same command continues: {command}")
    for label, error in failures.items():
        console.warn(f"{label}: {error}")
    done = sum(plan.finished(cell) for cell in plan.selected)
    console.say(f"{done} of {len(plan.selected)} runs finished" + (f", {len(failures)} failed" if failures else ""))
    return 1 if failures else 0


def _can_be_made(folder: Path) -> bool:
    """Whether a folder, or the first above it that is there, may be written to, as far as permissions say."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _warn_of_precision(plan: Plan, console: Console) -> None:
    if told := mixed_precision(plan):
        console.warn(told)


def _run(
    plan: Plan, executor: Executor, stop: StopSignal, retries: int, console: Console, *, at_once: int | None
) -> dict[str, str]:
    """The searches, then the grid with what they chose; path to error of the runs that failed.

    Args:
        at_once: runs that share this machine; None on a cluster.
    """
    options: dict[str, Any] = {"retries": retries, "stop": stop, "stop_file": plan.folder.stop_file}
    if plan.searches:
        run_searches(plan, executor, console, options)
        if stop.requested:
            return {}
        settle(plan)
    failures = {cell.path: "not run: its search has no result" for cell in plan.todo if cell.group in plan.undecided}
    cells = {plan.folder.runs / cell.path: cell for cell in plan.todo if cell.path not in failures}
    total = len(plan.selected)

    def ended(task: Task, outcome: Outcome) -> Iterable[Task]:
        cell, folder = cells.pop(task.run), CellFolder(task.run)
        number = f"[{total - len(cells)}/{total}]"
        if outcome.state == "finished":
            plan.estimator.done.append((cell, folder.resources()))
            console.say(f"{number} {task.label}: {_result(folder)}{_time_left(plan, cells.values(), at_once)}")
        elif not stop.requested:
            failures[cell.path] = f"{outcome.state}: {outcome.error or 'by a signal'}"
            console.say(f"{number} {task.label}: {failures[cell.path]}")
        write_status(plan)
        return ()

    tasks = [
        Task(
            CellFolder(run),
            cell.path,
            {"study": plan.study.source, **cell.about()},
            _shared_memory(absolute_paths(cell.config), at_once),
            plan.study.evaluate,
        )
        for run, cell in cells.items()
    ]
    drive(tasks, executor, console=console, ended=ended, **options)
    return failures


def _executor(plan: Plan, jobs: int | None, address: str | None, local: bool, console: Console) -> Executor:
    stop_file = plan.folder.stop_file.resolve()
    at_once, why = room(plan, jobs=jobs, local=local)
    if local:
        console.say(f"without Ray, {why}")
        return LocalExecutor(
            at_once,
            stop_file,
            plan.threads,
            gpus=plan.study.resources.gpus,
            devices=plan.devices,
            there=gpus(),
        )
    from vlsm_adapter.study.ray_executor import RayExecutor

    gb, source = plan.memory_gb()
    if address is not None:
        trials = sum(search.count for search in plan.searches)
        at_once = jobs or max(1, len(plan.todo) + trials)
        why = f"as many at once as it has room for, at {plan.cpus} cores and {gb:.1f} GB a run ({source})"
    console.say(f"Ray {'at ' + address if address else 'on this machine'}, {why}")
    return RayExecutor(
        at_once,
        stop_file,
        plan.threads,
        cpus=plan.cpus,
        gpus=plan.study.resources.gpus,
        devices=plan.devices,
        memory_gb=gb,
        address=address,
    )


def _shared_memory(config: RunConfig, at_once: int | None) -> RunConfig:
    """``config`` with memory for features of frozen encoders as of one of ``at_once`` runs; results do not depend on it."""
    if at_once is None or at_once == 1 or config.train.feature_cache_mb is not None or torch.cuda.is_available():
        return config
    megabytes = int(free_memory_gb() * 1024 / 4 / at_once)
    return replace(config, train=replace(config.train, feature_cache_mb=megabytes))


def _result(folder: CellFolder) -> str:
    """The run's result in a few words."""
    said = []
    if best := best_validation(folder.path):
        said.append(f"validation Dice {best[0]:.4f}")
    for place in sorted((folder.path / "evaluation").glob("*/summary.json")):
        with contextlib.suppress(UserError, KeyError, TypeError):  # one that somebody else put there
            summary = EvaluationFolder(place.parent).summary()
            scores = summary.get("adapter") or summary["zero_shot"]
            said.append(f"{place.parent.name} Dice {scores['metrics']['dice']['mean']:.4f}")
    return f"{', '.join(said[:3])}; {spell(folder.status().seconds)}"


def _time_left(plan: Plan, cells: Iterable[Cell], at_once: int | None) -> str:
    found = [plan.estimator.seconds(cell) for cell in cells]
    known = [one[0] for one in found if one is not None]
    if at_once is None or not known or len(known) < 0.5 * len(found):
        return ""
    # Runs of methods of which none has finished yet are taken to be like the others.
    return f"; about {spell(side_by_side(known, at_once) * len(found) / len(known))} left"
