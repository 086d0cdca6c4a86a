"""The leak-free result that heads the report of a level whose words are drawn from the ground truth.

It is taken from the probes of the same evaluation, which asked every level of the same cases, else from another
evaluation in the same parent folder: of the same run, base model, data, division, split, threshold and number of cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsm_adapter.errors import UserError
from vlsm_adapter.evaluation_folder import EvaluationFolder
from vlsm_adapter.markdown import code

_MAIN = "p1"
#: Asks nothing: leak-free, but nobody's result.
_EMPTY = "p0"


@dataclass(frozen=True)
class LeakFree:
    """Scores at a leak-free level.

    Attributes:
        level: the level, p1 where it was measured.
        metrics: variant (``"adapter"``, ``"zero_shot"``) to metric to its statistics, as in ``summary.json``.
        paired: metric to the paired difference, or None where it was not measured.
        source: where it was measured, in Markdown.
    """

    level: str
    metrics: Mapping[str, Mapping[str, Any]]
    paired: Mapping[str, Any] | None
    source: str


def of_probes(sensitivity: Mapping[str, Any]) -> LeakFree | None:
    """The leak-free level in what ``sensitivity.json`` holds; Dice alone."""
    levels = [level for level in sensitivity["levels"] if not level["leaks"] and level["level"] != _EMPTY]
    if not levels:
        return None
    level = min(levels, key=lambda level: level["level"] != _MAIN)
    head = {"display_name": "Dice", "higher_is_better": True, "unit": "ratio"}
    metrics = {
        name: {
            "dice": {**head, "mean": level[name]["dice"], **{end: level[name][end] for end in ("ci_low", "ci_high")}}
        }
        for name in ("adapter", "zero_shot")
        if name in level
    }
    return LeakFree(level["level"], metrics, None, "measured by the probes, on the same cases")


def of_neighbours(folder: Path, summary: Mapping[str, Any]) -> LeakFree | None:
    """The leak-free result among the evaluations beside ``folder``, whose ``summary.json`` is ``summary``."""
    here, found = folder.resolve(), []
    for file in sorted(here.parent.glob("*/summary.json")):
        if file.parent == here:
            continue
        try:
            about = EvaluationFolder(file.parent).summary()
            if about["prompts"]["leaks"] or about["level"] == _EMPTY or _conditions(about) != _conditions(summary):
                continue
            if len({_weights(about), _weights(summary)} - {None}) > 1:  # trained further in between
                continue
            names = [name for name in ("adapter", "zero_shot") if name in summary and name in about]
            metrics: dict[str, Mapping[str, Any]] = {name: about[name]["metrics"] for name in names}
            source = f"evaluated apart, in {code(file.parent.name)}"
            paired = about.get("paired_difference") if len(names) == 2 else None
            found.append(LeakFree(about["level"], metrics, paired, source))
        except (UserError, OSError, KeyError, TypeError, AttributeError):
            continue  # somebody else's file, or a damaged one: this report does without
    return min(found, key=lambda one: one.level != _MAIN, default=None)


def _conditions(summary: Mapping[str, Any]) -> list[Any]:
    """What two evaluations must share for one to stand in the other's report."""
    main = summary["adapter" if "adapter" in summary else "zero_shot"]
    return [
        *(summary[key] for key in ("run", "split", "threshold", "nsd_tolerance")),
        *(summary["data"].get(key) for key in ("path", "name", "division")),
        summary["base"]["sha256"],
        {key: value for key, value in (summary["trained_adapter"] or {}).items() if key != "sha256"},
        main["n_cases"],
    ]


def _weights(summary: Mapping[str, Any]) -> str | None:
    """The hash of the adapter's weights; None where there are none, or an earlier version did not say."""
    found: str | None = (summary["trained_adapter"] or {}).get("sha256")
    return found
