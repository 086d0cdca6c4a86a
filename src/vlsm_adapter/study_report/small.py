"""The small form: one compressed JSON file per result, from which every table is rebuilt without the run folders.

::

    SMALL/runs/DATA-METHOD-sSEED-KEY.result.json.gz    a result: what it is, the score of every case, its learning curve
          runs.csv, table.csv, table.json              the numbers made of them, for people and other programs

A file's name ends in the digest of what the result is, so that results of several machines lie in one folder, are
written as they come, and the same one is never counted twice. Results that claim to be the same and have other numbers
are refused. No pictures, no paths and no names of machines are in it.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.errors import UserError, one_line
from vlsm_adapter.markdown import plural
from vlsm_adapter.study_report.reading import SMALL_SUFFIX
from vlsm_adapter.study_report.results import PRECISION, UNKNOWN_PRECISION, Case, Result, same_numbers, six_digits
from vlsm_adapter.study_report.small_checks import check_result, is_number

FORMAT = "vlsm-study-result"
FORMAT_VERSION = 1
# A result of 100,000 cases is about 10 MB; a bomb is not unpacked.
_LARGEST = 1 << 28
_TOLD = 5  # conflicts named in one message
# One run of a study: whatever else two results of it differ in, one of them is not of this study.
_CELL = (
    *("name", "protocol", "model", "model_hash", "data", "trained_on", "split", "level", "fraction", "seed"),
    *("threshold", "nsd_tolerance"),
)


def distinct(results: Iterable[Result]) -> tuple[list[Result], list[str]]:
    """Results without repetitions, and what is to be said of those left out.

    Zero-shot scores are measured again with every run; the first count, and others than these are told.

    Raises:
        UserError: two results are of one cell and seed, but have other numbers or were trained in another way.
    """
    kept: dict[str, Result] = {}
    notes: list[str] = []
    conflicts: list[str] = []
    odd: list[str] = []
    divided: list[str] = []
    for result in results:
        before = kept.setdefault(result.key, result)
        if before is result:
            continue
        difference = same_numbers(before, result)
        if difference is None:
            # Of equal ones the fuller counts: the small form has no pictures, a run folder may lack its curve.
            if _fullness(result) > _fullness(before):
                kept[result.key] = result
        elif result.is_zero_shot and result.cases != before.cases:
            divided.append(f"{result.place} and {before.place}")
        elif result.is_zero_shot:
            odd.append(f"{result.place} and {before.place}: {difference}")
        else:
            conflicts.append(f"{before.place} and {result.place} are both {result}, but {difference}")
    merged = _with_known_precision(list(kept.values()), conflicts)
    by_cell: dict[tuple[Any, ...], Result] = {}
    for result in merged:
        if not result.name or result.is_zero_shot:
            continue
        cell = tuple(getattr(result, key) for key in _CELL)
        before = by_cell.setdefault(cell, result)
        if before is not result:
            conflicts.append(f"{before.place} and {result.place} are both {result}, but {_difference(before, result)}")
    if conflicts:
        more = f"\nand {len(conflicts) - _TOLD} more such pairs" if len(conflicts) > _TOLD else ""
        raise UserError(
            "\n".join(conflicts[:_TOLD]) + f"{more}\nkeep one of each: move the other out of the folders given"
        )
    if odd:
        notes.append(
            f"Zero-shot scores were measured several times and differ in {len(odd)} of these (another machine or "
            f"version?); the first count. First: {odd[0]}."
        )
    if divided:
        notes.append(
            f"Zero-shot scores of one data set are of several sets of cases, as where protocols divide it otherwise; the first "
            f"count, and {plural(len(divided), 'other')} {'is' if len(divided) == 1 else 'are'} left out. To have all, make each "
            f"division a data set of its own in the study. First: {divided[0]}."
        )
    return merged, notes


def _with_known_precision(results: Sequence[Result], conflicts: list[str]) -> list[Result]:
    """Results whose precision is not known joined to the same one of which it is; ``conflicts`` gets what contradicts it."""
    known: dict[str, list[Result]] = {}
    for result in results:
        if result.recipe.get(PRECISION, UNKNOWN_PRECISION) != UNKNOWN_PRECISION:
            known.setdefault(_unknown(result).key, []).append(result)
    fuller: dict[str, Result] = {}
    joined: set[str] = set()
    for result in results:
        others = known.get(result.key)
        if others is None:
            continue
        joined.add(result.key)
        same = next((other for other in others if same_numbers(result, other) is None), None)
        if same is None:
            what = same_numbers(others[0], result)
            conflicts.append(f"{others[0].place} and {result.place} are both {result}, but {what}")
        elif _fullness(result) > _fullness(same):
            fuller[same.key] = replace(result, recipe=same.recipe)
    return [fuller.get(result.key, result) for result in results if result.key not in joined]


def _unknown(result: Result) -> Result:
    """``result`` as it was kept before the precision really used was."""
    return replace(result, recipe={**result.recipe, PRECISION: UNKNOWN_PRECISION})


def _difference(one: Result, other: Result) -> str:
    for name in ("method", "settings", "full_recipe", "train_level"):
        a, b = getattr(one, name), getattr(other, name)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            key = next(key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key))
            return f"{key} is {a.get(key)!r} in one and {b.get(key)!r} in the other"
        return f"{name} is {a!r} in one and {b!r} in the other"
    return "their data differ"


def _fullness(result: Result) -> int:
    return (
        (result.examples is not None) + bool(result.curve) + bool(result.resources) + (result.sensitivity is not None)
    )


# -- files ---------------------------------------------------------------------------------------------------------------


def write_small(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write a file per result that has none yet; the files of all.

    A file of the same result that does not know its precision (see `distinct`) is replaced.
    """
    paths = []
    for result in results:
        path = folder / "runs" / _name(result)
        paths.append(path)
        # No time stamp: equal results are equal bytes, and nothing changes under version control.
        content = gzip.compress(
            json.dumps(to_json(result), allow_nan=False, separators=(",", ":")).encode(), 9, mtime=0
        )
        if not (path.is_file() and path.read_bytes() == content):
            files.write_bytes(path, content)
    for result in results:
        if PRECISION in result.recipe and (before := folder / "runs" / _name(_unknown(result))) not in paths:
            before.unlink(missing_ok=True)
    return paths


def read_small(path: Path) -> Result:
    """A result of the small form.

    Raises:
        UserError: damaged, or of another format.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError("larger than any result")
        return replace(from_json(json.loads(content), str(path)), file=str(path))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        # What a check says is for people; of other errors the kind says more than the words.
        said = one_line(error) if type(error) is ValueError else f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{path.name}: damaged ({said}); write it anew from its run, or remove it") from error
    except Exception as error:  # zlib.error derives from nothing else
        raise UserError(f"{path.name}: damaged ({one_line(error)})") from error


def to_json(result: Result) -> dict[str, Any]:
    """A result as valid JSON; NaN becomes null."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "identity": result.identity,
        "source": result.source,
        "leaks": result.leaks,
        "trainable": result.trainable,
        "parameters": result.parameters,
        "reveal_emptiness": result.reveal_emptiness,
        "machine": result.machine,
        "resources": {name: six_digits(value) for name, value in result.resources.items()},
        "sensitivity": result.sensitivity,
        "curve": {name: [_null(value) for value in column] for name, column in result.curve.items()},
        "cases": {
            "case_id": [case.case_id for case in result.cases],
            "group": _packed([case.group for case in result.cases]),
            "unit": _packed([case.unit for case in result.cases]),
            "truth_area": [case.truth_area for case in result.cases],
            "emptiness": _packed(list(result.emptiness)),
        },
        "values": {name: [_null(value) for value in column] for name, column in result.values.items()},
    }


def from_json(values: Mapping[str, Any], source: str) -> Result:
    """A result from what `to_json` made.

    Raises:
        UserError: of another format.
        KeyError, TypeError, ValueError: not such values.
    """
    if values.get("format") != FORMAT:
        raise UserError(f"{source}: not a result of a study")
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{source}: format_version {values.get('format_version')!r} is not known to this version, which reads "
            f"{FORMAT_VERSION}; update vlsm-adapter"
        )
    check_result(values)
    table = values["cases"]
    count = len(table["case_id"])
    columns = {name: _unpacked(table[name], count) for name in ("group", "unit", "emptiness", "truth_area")}
    cases = tuple(
        Case(str(case_id), None if group is None else str(group), str(unit), int(area))
        for case_id, group, unit, area in zip(
            table["case_id"], columns["group"], columns["unit"], columns["truth_area"], strict=True
        )
    )
    scores = {str(name): _scores(name, _unpacked(column, count)) for name, column in values["values"].items()}
    identity = dict(values["identity"])
    return Result(
        **identity,
        source=str(values.get("source") or source),
        leaks=bool(values["leaks"]),
        trainable=values["trainable"],
        parameters=values["parameters"],
        cases=cases,
        values=scores,
        emptiness=tuple(columns["emptiness"]),
        reveal_emptiness=int(values.get("reveal_emptiness") or 0),
        curve=dict(values.get("curve") or {}),
        resources={name: float(value) for name, value in (values.get("resources") or {}).items()},
        sensitivity=values.get("sensitivity"),
        machine=str(values.get("machine") or ""),
    )


def _scores(name: str, column: Sequence[Any]) -> tuple[float, ...]:
    for value in column:
        if value is not None and not is_number(value):
            raise ValueError(f"{name} is {value!r}: allowed is a number or null")
    return tuple(math.nan if value is None else float(value) for value in column)


def _packed(column: list[Any]) -> Any:
    """One value where all are equal."""
    return {"all": column[0]} if column and all(value == column[0] for value in column) else column


def _unpacked(column: Any, count: int) -> list[Any]:
    if isinstance(column, Mapping):
        return [column["all"]] * count
    if len(column) != count:
        raise ValueError(f"{len(column)} values for {count} cases")
    return list(column)


def _null(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else six_digits(value)


def _name(result: Result) -> str:
    parts = [result.data, result.protocol or "", result.name or result.method]
    parts += [result.fraction or "", result.split, result.level, "" if result.seed is None else f"s{result.seed}"]
    words = [re.sub(r"[^a-z0-9_.]+", "_", part.lower()).strip("_.")[:40] for part in parts]
    return "-".join([word for word in words if word] + [result.key]) + SMALL_SUFFIX
