"""Whether the seeds of a cell were trained alike; those that were not are no repetitions and leave the mean.

A study's configuration may change while it runs: what was trained before then has the same name, and only its method,
settings and recipe tell it from the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from vlsm_adapter.markdown import plural
from vlsm_adapter.study_report.results import Result, canonical

# All of a named cell but its seed; not its training level, which must be one too.
_CELL = (
    *("name", "protocol", "model", "model_hash", "data", "trained_on", "split", "level", "fraction"),
    *("threshold", "nsd_tolerance"),
)
# How it was computed, not what: the same gradients. Later versions of the program may have called them a recipe.
_IMMATERIAL = frozenset(
    f"train.{name}"
    for name in ("seed", "workers", "save_seconds", "feature_cache", "feature_cache_mb", "feature_cache_gb", "checkpointing")
)  # fmt: skip
_TOLD = 4  # differences of one run


def trained_alike(results: Sequence[Result]) -> tuple[list[Result], list[tuple[str, str]]]:
    """The results whose seeds can be averaged, in their order; and (place, reason) of the others.

    Of a cell's runs those stay that most are trained like, of equally many those with the lowest seed. What one run says
    of its training and another does not is no difference: other versions of the program know other settings. Runs without
    a study are not looked at: their rows are made of their settings.
    """
    cells: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        if result.name and not result.is_zero_shot:
            cells[tuple(getattr(result, name) for name in _CELL)].append(result)
    left_out: list[tuple[str, str]] = []
    odd: set[str] = set()
    for members in cells.values():
        ways = _ways(members)
        main = max(ways, key=lambda way: (len(way), -min(result.seed or 0 for result in way)))
        for result in sorted((one for way in ways if way is not main for one in way), key=lambda one: one.seed or 0):
            odd.add(result.key)
            left_out.append((result.source, _reason(result, main)))
    return [result for result in results if result.key not in odd], left_out


def _ways(members: Sequence[Result]) -> list[list[Result]]:
    """``members`` in groups that agree throughout; those that say most come first, one that says less joins the most."""
    ways: list[list[Result]] = []
    for result in sorted(members, key=lambda one: (-len(_training(one)), one.seed or 0)):
        fitting = [way for way in ways if not any(_differing(result, other) for other in way)]
        if fitting:
            max(fitting, key=len).append(result)
        else:
            ways.append([result])
    return ways


def _training(result: Result) -> dict[str, Any]:
    """Everything that must be equal between the seeds of a cell, by the name it has in messages."""
    recipe = {name: value for name, value in result.known_recipe.items() if name not in _IMMATERIAL}
    return {"method": result.method, **result.settings, **recipe, "training level": result.train_level}


def _differing(one: Result, other: Result) -> list[str]:
    mine, theirs = _training(one), _training(other)
    return [name for name in mine if name in theirs and canonical(mine[name]) != canonical(theirs[name])]


def _reason(result: Result, main: Sequence[Result]) -> str:
    others: dict[str, Any] = {}
    for other in main:
        training = _training(other)
        others |= {name: training[name] for name in _differing(result, other)}
    mine = _training(result)
    told = [f"{name} {mine[name]}, {_whose(main)} {value}" for name, value in list(others.items())[:_TOLD]]
    more = f"; and {plural(len(others) - _TOLD, 'more difference')}" if len(others) > _TOLD else ""
    return (
        f"{result}: trained otherwise than the {plural(len(main), 'run')} shown: seed {result.seed}: {'; '.join(told)}{more}. "
        "Train it as the others, or give what is trained otherwise a name of its own in the study"
    )


def _whose(main: Sequence[Result]) -> str:
    return "the others" if len(main) > 1 else f"seed {main[0].seed}"
