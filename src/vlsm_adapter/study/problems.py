"""All that is wrong with a study in one answer: where its file or its grid is refused, data and models are tried all the same.

A user who mends one line, starts again and is told the next has been told too late.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlsm_adapter.study.checks import check_cells
from vlsm_adapter.study.config import Study, StudyProblems
from vlsm_adapter.study.grid import NO_RUN, combine

_NAMED = re.compile(r"\b(data|models|protocols|methods)\.([A-Za-z0-9_.+-]*[A-Za-z0-9_+-])")


def told_together(found: StudyProblems, *, dry_run: bool) -> StudyProblems:
    """``found`` with what data, models and grid say of the parts of the study that are sound.

    Args:
        dry_run: data that is not here is then no problem; models are never fetched for this.
    """
    more: list[str] = []
    # What is left of a broken study may break whatever reads it; that is no news beside what is wrong with it.
    with contextlib.suppress(Exception):
        study = _sound(found.study, found.problems)
        cells, more = combine(study)
        more = [line for line in more if not line.endswith(NO_RUN)]  # what it runs on may be what was left out
        facts = check_cells(cells, study.evaluate, absent_is_wrong=False)
        more += facts.problems
        if not dry_run:
            more += [line for line in facts.absent if line.startswith("data.")]
    return StudyProblems(found.study, [*found.problems, *more])


def _sound(study: Study, problems: Sequence[str]) -> Study:
    """``study`` without what ``problems`` name."""
    bad: dict[str, set[str]] = {}
    for problem in problems:
        for axis, path in _NAMED.findall(problem):
            # A name may hold dots itself: every beginning that is one of the study's is left out.
            words = path.split(".")
            bad.setdefault(axis, set()).update(".".join(words[: count + 1]) for count in range(len(words)))

    def kept(axis: str, entries: Mapping[str, Any]) -> dict[str, Any]:
        names = bad.get(axis, set())
        return {
            name: entry
            for name, entry in entries.items()
            if name not in names and not any(name.startswith(f"{one}_") for one in names)  # variants
        }

    return dataclasses.replace(
        study,
        data=kept("data", study.data),
        models=kept("models", study.models),
        protocols=kept("protocols", study.protocols),
        methods=kept("methods", study.methods),
        train={} if any("train." in problem for problem in problems) else study.train,
        log={},
    )
