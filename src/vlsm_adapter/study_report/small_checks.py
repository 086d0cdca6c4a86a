"""What a file of the small form may hold: such a file comes from elsewhere, and one that is damaged is left out by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

_TEXTS = ("name", "model", "model_hash", "method", "data", "split", "level")
_TEXTS_OR_NONE = ("protocol", "trained_on", "train_level", "fraction")
_NUMBERS = ("threshold", "nsd_tolerance")
_COUNTS_OR_NONE = ("seed",)
_EMPTINESS = frozenset({"none", "both", "missed", "false_alarm"})


def check_result(values: Mapping[str, Any]) -> None:
    """Refuse what no result is: other kinds of values, a case twice.

    Args:
        values: the content of a file, before its columns are unpacked.

    Raises:
        ValueError: the value at fault and what is allowed.
        KeyError, TypeError, AttributeError: a part is missing, or no mapping.
    """
    identity = values["identity"]
    for name in _TEXTS:
        _check(identity[name], isinstance(identity[name], str), name, "text")
    for name in _TEXTS_OR_NONE:
        _check(identity[name], identity[name] is None or isinstance(identity[name], str), name, "text or null")
    for name in _NUMBERS:
        _check(identity[name], is_number(identity[name]), name, "a number")
    for name in ("settings", "recipe"):
        _check(identity[name], isinstance(identity[name], Mapping), name, "an object")
    for name, value in (*((name, identity[name]) for name in _COUNTS_OR_NONE),
                        *((name, values[name]) for name in ("trainable", "parameters"))):  # fmt: skip
        _check(value, value is None or (_is_whole(value) and value >= 0), name, "a whole number of at least 0, or null")
    _check(values["leaks"], isinstance(values["leaks"], bool), "leaks", "true or false")
    _check_cases(values["cases"])
    for name, value in (values.get("resources") or {}).items():
        _check(value, is_number(value) and value >= 0, f"resources.{name}", "a number of at least 0")
    for name, column in (values.get("curve") or {}).items():
        for value in column:
            _check(value, value is None or is_number(value), f"curve.{name}", "numbers and null")
    _check_sensitivity(values.get("sensitivity"))


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number, and neither text nor a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(value: object, holds: bool, name: str, allowed: str) -> None:
    if not holds:
        text = repr(value)
        raise ValueError(f"{name} is {text if len(text) <= 40 else text[:37] + '...'}: allowed is {allowed}")


def _check_cases(table: Mapping[str, Any]) -> None:
    ids: Sequence[Any] = table["case_id"]
    _check(ids, bool(ids), "case_id", "at least one case")
    seen: set[str] = set()
    for case_id in ids:
        _check(case_id, isinstance(case_id, str), "case_id", "text")
        if case_id in seen:
            raise ValueError(f"case '{case_id}' is there twice: every case is allowed once")
        seen.add(case_id)
    for name, allowed in (("unit", None), ("emptiness", _EMPTINESS)):
        for value in _values(table[name]):
            fits = isinstance(value, str) and (allowed is None or value in allowed)
            _check(value, fits, name, "text" if allowed is None else f"one of {', '.join(sorted(allowed))}")
    for value in _values(table["group"]):
        _check(value, value is None or isinstance(value, str), "group", "text or null")
    for value in _values(table["truth_area"]):
        _check(value, _is_whole(value) and value >= 0, "truth_area", "a whole number of at least 0")


def _values(column: Any) -> Sequence[Any]:
    """A column's values, whether it is packed or not."""
    return [column["all"]] if isinstance(column, Mapping) else column


def _check_sensitivity(about: Any) -> None:
    if about is None:
        return
    for value in chain(
        (about.get(name) for name in ("value", "ci_low", "ci_high")), (about.get("kinds") or {}).values()
    ):
        _check(value, value is None or is_number(value), "sensitivity", "numbers and null")
    for level in about.get("levels", ()):
        _check(level["level"], isinstance(level["level"], str), "sensitivity level", "text")
        _check(level["dice"], level["dice"] is None or is_number(level["dice"]), "sensitivity dice", "a number or null")
