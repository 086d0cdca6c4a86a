"""``vlsm compare --dry-run``: the grid, what is finished, and how long the rest will take. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlsm_adapter.data.subsets import subset_size
from vlsm_adapter.study.checks import Probe
from vlsm_adapter.study.estimate import cores, free_memory_gb, gpus, side_by_side, spell, time_step
from vlsm_adapter.study.grid import WHOLE, Cell
from vlsm_adapter.study.plan import Plan, check
from vlsm_adapter.study.search import GroupSearch

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

_SOURCES = {
    "finished": "from finished runs like it",
    "scaled": "scaled from finished runs of the same method",
    "timed": "from a step timed here",
}


def preview(plan: Plan, *, jobs: int | None, local: bool) -> Iterator[str]:
    """The lines of a dry run; data and models that are not on this machine are listed, not fetched.

    Raises:
        ConfigError: as ``plan.check``.
    """
    check(plan, absent_is_wrong=False, probe=_timer(plan))
    study, cells = plan.study, plan.selected
    own = " (each seed its own cases)" if study.subsets == "per_seed" and set(study.fractions) != {WHOLE} else ""
    yield (
        f"{len(cells)} runs, {len(cells) - len(plan.todo)} finished: data sets {', '.join(study.data)}; protocols "
        f"{', '.join(study.protocols)}; label fractions {', '.join(study.fractions)}"
        f"{own}; seeds {', '.join(map(str, study.seeds))}"
    )
    yield from _grid(plan)
    for search in plan.searches:
        left = bool(search.round())
        over = sum(trial.over for trial in search.trials) if left else search.count
        failed = sum(trial.state == "failed" for trial in search.trials)
        yield (
            f"  search {search.label}: {search.count} trials, {over - failed} finished"
            + (f", {failed} failed" if failed else "")
        )
    for line in plan.facts.absent:
        yield f"  not on this machine: {line}"
    at_once, why = room(plan, jobs=jobs, local=local)
    yield why
    yield from _time(plan, at_once)


def room(plan: Plan, *, jobs: int | None, local: bool) -> tuple[int, str]:
    """Runs at once on this machine, and a line on why so many."""
    gb, source = plan.memory_gb()
    if jobs is not None:
        return jobs, f"{jobs} at once, as asked; memory of a run {gb:.1f} GB ({source})"
    if local:
        return 1, f"one after another (--jobs N for more); memory of a run {gb:.1f} GB ({source})"
    free = free_memory_gb()
    count = max(1, min(cores() // plan.cpus, int(0.85 * free / gb)))
    why = f"{cores()} cores at {plan.cpus} a run, {free:.1f} GB of memory free at {gb:.1f} GB a run ({source})"
    there, each = gpus(), plan.study.resources.gpus
    each = float(plan.devices) if each is None else each
    if there and each:  # Ray starts no more than have one
        count = max(1, min(count, int(there / each)))
        why += f", {there} GPU at {each:g} a run"
    return count, f"{count} at once: {why}"


def lacking(plan: Plan) -> str | None:
    """What this machine has too little of for a run of the study, or None; Ray would start none here."""
    asked = plan.study.resources.gpus or 0
    wanted = (("cpus", plan.cpus, cores(), "cores"), ("gpus", asked, gpus(), "GPUs"))
    short = [
        f"resources.{key}: {want:g}, this machine has {have} {what}" for key, want, have, what in wanted if want > have
    ]
    return f"{'; '.join(short)}: lower it, or give the --address of a cluster" if short else None


def _timer(plan: Plan) -> Probe:
    """Times a step of every method that has no finished run to go by."""
    known = {(cell.model, cell.method) for cell, _ in plan.estimator.done}

    def probe(model: PromptSegmenter, cell: Cell) -> None:
        if (cell.model, cell.method) not in known:
            plan.estimator.steps[cell.model, cell.method] = time_step(model, cell.config, plan.threads)

    return probe


def _grid(plan: Plan) -> Iterator[str]:
    """A line per method: runs and finished ones by data set, and what trains."""
    todo = {cell.path for cell in plan.todo}
    counts = Counter((cell.data, cell.method) for cell in plan.selected)
    finished = Counter((cell.data, cell.method) for cell in plan.selected if cell.path not in todo)
    width = max(len(name) for name in plan.study.methods)
    for name in plan.study.methods:
        parts = [
            f"{data} {counts[data, name]}" + (f" ({finished[data, name]} finished)" if finished[data, name] else "")
            for data in plan.study.data
            if counts[data, name]
        ]
        alike = {(counts[data, name], finished[data, name]) for data in plan.study.data}
        if len(alike) == 1 and len(plan.study.data) > 1:
            number, done = alike.pop()
            parts = [f"{number} on each data set" + (f" ({done} finished)" if done else "")]
        reports = plan.facts.reports.items()
        trainable = sorted(
            {report.trainable for (_, method), report in reports if method == name and report is not None}
        )
        told = f"; {' or '.join(f'{number:,}' for number in trainable)} parameters train" if trainable else ""
        if parts:
            yield f"  {name:<{width}}  {', '.join(parts)}{told}"


def spell_runs(runs: int, with_trials: int) -> str:
    """``1 run``, ``9 runs``, ``9 runs and 20 trials``."""
    trials = with_trials - runs
    more = f" and {trials} trial{'' if trials == 1 else 's'}" if trials else ""
    return f"{runs} run{'' if runs == 1 else 's'}{more}"


def _trial_seconds(plan: Plan, search: GroupSearch) -> float:
    """Seconds of a trial, whose label fraction and epochs may be those of no run; 0 where they are not known."""
    trial = Cell(*search.group, search.fraction, search.settings.seed, search.config_of({}))
    like = next((cell for cell in plan.selected if cell.group == search.group and cell.path in plan.facts.cases), None)
    if like is not None:
        trained = subset_size(search.fraction, plan.facts.training[like.data])
        plan.facts.cases.setdefault(trial.path, Counter({**plan.facts.cases[like.path], "train": trained}))
    found = plan.estimator.seconds(trial)
    return 0.0 if found is None else found[0]


def _time(plan: Plan, at_once: int) -> Iterator[str]:
    estimates = [(cell, plan.estimator.seconds(cell)) for cell in plan.todo]
    known = [found for _, found in estimates if found is not None]
    lengths = [found[0] for found in known]
    for search in plan.searches:
        if not search.round():
            continue
        left = search.count - sum(trial.over for trial in search.trials)
        lengths += [_trial_seconds(plan, search)] * left
    told = ", ".join(f"{count} {_SOURCES[name]}" for name, count in Counter(found[1] for found in known).items())
    if lengths:
        yield f"time: about {spell(side_by_side(lengths, at_once))} for {spell_runs(len(known), len(lengths))}{f' ({told})' if told else ''}"
    if unknown := len(estimates) - len(known):
        yield f"  {spell_runs(unknown, unknown)} without an estimate: data or model is not on this machine"
