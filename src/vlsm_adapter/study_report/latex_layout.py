"""How wide the columns of a LaTeX table will be, so that it is broken into panels before it runs over its page.

Points of Computer Modern in ``\\scriptsize`` and, for deviations, ``\\tiny``, of a document in 10 points, a little more than
measured: text in other fonts of the field (Times) is narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vlsm_adapter.study_report.cells import Cell

#: Title, heads of its columns, and a row of cells for every row of the table.
Group = tuple[str, Sequence[str], Sequence[Sequence[Cell]]]
Item = TypeVar("Item")

#: Both columns of a page together: 482 on A4 with margins of 2 cm, 496 and 516 in the styles of large conferences.
PAGE_WIDTH = 480.0
_PAGE_LINES = 66  # of 8 points, with a caption of five lines above them
_LINES_OF_A_PANEL = 4  # rules, space
_LETTER, _DIGIT, _POINT = 3.7, 4.2, 2.3  # bold digits are wider, a column has few
_SMALL_DIGIT, _SMALL_POINT, _PLUS_MINUS, _MARK = 3.4, 1.9, 5.3, 4.0
_BETWEEN = 6.0  # twice \\tabcolsep


def column(texts: Sequence[str], cells: Sequence[Cell] = ()) -> float:
    """Width of a column of ``texts`` and ``cells`` in points, with the space beside it."""
    widths = [len(text) * _LETTER for text in texts] + [_width(cell) for cell in cells]
    return max(widths, default=0.0) + _BETWEEN


def group_width(group: Group) -> float:
    """Width of columns under one title."""
    title, heads, rows = group
    columns = [column([head], [row[number] for row in rows]) for number, head in enumerate(heads)]
    return max(sum(columns), column([title]))


def panels(items: Sequence[Item], widths: Sequence[float], left: float) -> list[list[Item]]:
    """``items`` in their order, divided into as few panels as fit a page beside a ``left`` part, and those about equally wide."""
    most = PAGE_WIDTH - left
    needed = len(_divided(items, widths, most))
    sums = sorted({sum(widths[start:end]) for end in range(len(widths) + 1) for start in range(end)})
    limits = (limit for limit in sums if limit <= most and len(_divided(items, widths, limit)) == needed)
    return _divided(items, widths, next(limits, most))


def pages(blocks: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """``blocks`` of lines, divided so that none but a single long one is longer than a page."""
    # The begin and end of a block are no lines.
    return _divided(blocks, [len(block) + _LINES_OF_A_PANEL - 2 for block in blocks], _PAGE_LINES)


def _divided(items: Sequence[Item], sizes: Sequence[float], most: float) -> list[list[Item]]:
    """``items`` in their order, each part as full as ``most`` allows; one that is larger stands alone."""
    found: list[list[Item]] = [[]]
    taken = 0.0
    for item, size in zip(items, sizes, strict=True):
        if found[-1] and taken + size > most:
            found.append([])
            taken = 0.0
        found[-1].append(item)
        taken += size
    return found


def _width(cell: Cell) -> float:
    points = _DIGIT * (len(cell.mean) - cell.mean.count(".")) + _POINT * cell.mean.count(".")
    if cell.std:
        points += _PLUS_MINUS + _SMALL_DIGIT * (len(cell.std) - 1) + _SMALL_POINT
    if cell.seeds is not None:
        points += _SMALL_DIGIT * (len(str(cell.seeds)) + 3)
    return points + (_MARK if cell.mark else 0.0)
