"""The parts of Markdown that reports are made of; text from outside cannot break out of its cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def interval(about: Mapping[str, Any], key: str = "mean", *, signed: bool = False) -> str:
    """A statistic with its bootstrap interval: ``0.8000 [0.7500, 0.8500]``; ``-`` where it is not defined.

    Args:
        about: of ``metrics.summarise`` or ``metrics.paired_difference``.
        key: the statistic.
        signed: show a plus.
    """
    value, low, high = about[key], about["ci_low"], about["ci_high"]
    if value is None:
        return "-"
    digits = 4 if about["unit"] == "ratio" else 2
    sign = "+" if signed else ""
    shown = f"{value:{sign}.{digits}f}"
    return shown if low is None else f"{shown} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the cells are Markdown already."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def cell(text: str) -> str:
    """Text from outside as plain text of a table cell."""
    flat = " ".join(str(text).split())
    for char, safe in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
        ("_", "\\_"),
    ):
        flat = flat.replace(char, safe)
    return flat.replace("[", "\\[")


def code(text: str) -> str:
    """Text from outside as code."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = "``" if "`" in flat else "`"
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}" if flat else "(empty)"


def plural(count: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
