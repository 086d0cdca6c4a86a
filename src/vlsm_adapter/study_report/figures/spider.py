"""The spider chart: V, VL and VLC of the dense and the shallow adapter, an axis per data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlsm_adapter.study_report.figures.style import BLUE, COLUMN, GREEN, VERMILION, new_figure
from vlsm_adapter.study_report.naming import settings_suffix
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.results import canonical
from vlsm_adapter.study_report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour says the parts, line and marker the adapter.
_PARTS = {"v": BLUE, "vl": GREEN, "vlc": VERMILION}
_ADAPTERS = {"dense": ("-", "o"), "shallow": ("--", "s")}
_RINGS = 4
# Letters of a label that needs a line of the legend for itself.
_WIDE = 24


def spider_rows(found: TableNumbers) -> dict[str, list[Row]]:
    """Variant (``"residual"``, ``"published"``, ...) to the rows of its chart; those with two parts at least.

    The rows of an adapter differ in their parts alone: of several groups of equal other settings (other widths, say) the
    one with most parts stands, of equal ones the first. Where there are several base models each has its charts, named
    after it too.
    """
    charts: dict[tuple[str, str, str], dict[str, dict[tuple[str, str], dict[str, Row]]]] = {}
    for row in found.table.rows:
        parts = row.settings.get("parts")
        if row.method in _ADAPTERS and parts in _PARTS:
            others = canonical({name: value for name, value in row.settings.items() if name != "parts"})
            # Of a run without a study the last part of the key is what differs in its training.
            group = others, row.key[-1] if row.key[0] == "plain" else ""
            model, digest = row.base
            chart = charts.setdefault((str(row.settings.get("variant", "")), model, digest), {})
            chart.setdefault(row.method, {}).setdefault(group, {}).setdefault(str(parts), row)
    several = len({chart[1:] for chart in charts}) > 1
    chosen: dict[str, list[Row]] = {}
    for (variant, model, digest), by_method in charts.items():
        groups = [max(of_method.values(), key=len) for of_method in by_method.values()]
        if len({parts for group in groups for parts in group}) < 2:
            continue
        name = ", ".join(word for word in (variant, f"on {model}" if several else "") if word)
        name = f"{name} ({digest[:6]})" if name in chosen else name
        chosen[name] = [row for group in groups for row in group.values()]
    return chosen


def left_out(found: TableNumbers, rows: Sequence[Row]) -> dict[str, str]:
    """Adapter to the settings that tell its ``rows`` from others of the table that could stand there, in words."""
    told: dict[str, str] = {}
    for row in rows:
        differing = {
            name
            for other in found.table.rows
            if (other.method, other.base) == (row.method, row.base)
            and other.settings.get("parts") in _PARTS
            and other.settings.get("variant") == row.settings.get("variant")
            for name in other.settings.keys() | row.settings.keys()
            if name != "parts" and other.settings.get(name) != row.settings.get(name)
        }
        if differing:
            told[row.method] = settings_suffix(row.settings, frozenset(differing))
    return told


def drawn_rows(found: TableNumbers, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows of a chart that are drawn, and its data sets: a shape of the web needs a corner on every axis."""
    data = [one for one in found.table.data if any(_dice(found, row, one) is not None for row in rows)]
    if not is_web(data):
        return [row for row in rows if _values(found, row, data)], data
    return [row for row in rows if len(_values(found, row, data)) == len(data)], data


def is_web(data: Sequence[str]) -> bool:
    """Whether there are axes enough for a web."""
    return len(data) >= 3


def draw_spider(found: TableNumbers, rows: Sequence[Row]) -> Figure | None:
    """The chart of ``rows``; below three data sets, where there is no web to spin, points on a line per data set.

    Every axis has its own scale, from the number at its inner end to the number at its rim.
    """
    drawn, data = drawn_rows(found, rows)
    if not drawn:
        return None
    return _web(found, drawn, data) if is_web(data) else _lines(found, drawn, data)


def scale_of(values: Sequence[float]) -> tuple[float, float]:
    """Round ends of an axis in percent: the inner one well below the smallest value, so that the web does not collapse."""
    low, high = min(values), max(values)
    step = next(size for size in (1, 2, 4, 5, 8, 10, 15, 20, 25) if size * _RINGS >= (high - low) * 1.35 or size == 25)
    top = min(100.0, math.ceil(high / step) * step)
    return top - step * _RINGS, top


def _dice(found: TableNumbers, row: Row, data: str) -> float | None:
    number = found.numbers.get((row.key, data, "dice"))
    return None if number is None or number.mean is None else 100 * number.mean


def _values(found: TableNumbers, row: Row, data: Sequence[str]) -> list[float]:
    return [value for one in data if (value := _dice(found, row, one)) is not None]


def _web(found: TableNumbers, rows: Sequence[Row], data: Sequence[str]) -> Figure:
    from matplotlib.patheffects import withStroke

    figure = new_figure(COLUMN, 3.3)
    axis: Axes = figure.add_subplot()
    axis.set_aspect("equal")
    axis.axis("off")
    angles = [math.pi / 2 - 2 * math.pi * index / len(data) for index in range(len(data))]
    scales = [scale_of([v for row in rows for v in _values(found, row, [one])]) for one in data]
    inner = 0.16  # the lowest ring is not a point: shapes near it stay readable

    halo = [withStroke(linewidth=1.8, foreground="white")]

    def at(angle: float, share: float) -> tuple[float, float]:
        reach = inner + (1 - inner) * share
        return reach * math.cos(angle), reach * math.sin(angle)

    for ring in range(_RINGS + 1):
        corners = [at(angle, ring / _RINGS) for angle in [*angles, angles[0]]]
        axis.plot(*zip(*corners, strict=True), color="#cfcfcf", lw=0.8 if ring == _RINGS else 0.5, zorder=1)
    for angle, (low, high), name in zip(angles, scales, data, strict=True):
        axis.plot(*zip(at(angle, 0), at(angle, 1), strict=True), color="#cfcfcf", lw=0.5, zorder=1)
        side = "center" if abs(math.cos(angle)) < 0.3 else "left" if math.cos(angle) > 0 else "right"
        end = 1.07 * math.cos(angle), 1.07 * math.sin(angle)
        up = "bottom" if math.sin(angle) > 0.3 else "top" if math.sin(angle) < -0.3 else "center"
        axis.text(*end, name, ha=side, va=up, fontweight="bold", fontsize=7)
        for ring in range(0, _RINGS + 1, 2):
            x, y = at(angle, ring / _RINGS)
            # Beside the axis, on its left as seen from the centre.
            x, y = x - 0.06 * math.sin(angle), y + 0.06 * math.cos(angle)
            text = f"{low + (high - low) * ring / _RINGS:.0f}"
            axis.text(x, y, text, ha="center", va="center", fontsize=6, color="#444444", zorder=5, path_effects=halo)
    for row in rows:
        colour = _PARTS[str(row.settings["parts"])]
        line, marker = _ADAPTERS[row.method]
        shares = [
            (value - low) / (high - low) for value, (low, high) in zip(_values(found, row, data), scales, strict=True)
        ]
        corners = [at(angle, max(0.0, share)) for angle, share in zip(angles, shares, strict=True)]
        axis.plot(
            *zip(*[*corners, corners[0]], strict=True), color=colour, ls=line, marker=marker, ms=3.6, lw=1.1, mew=0.8,
            mfc=colour if line == "-" else "white", label=row.label, zorder=3,
        )  # fmt: skip
    columns = 1 if max(len(row.label) for row in rows) > _WIDE else 2 if len({row.method for row in rows}) == 2 else 3
    figure.legend(loc="outside lower center", ncols=columns, columnspacing=2)
    axis.margins(0.06)
    return figure


def _lines(found: TableNumbers, rows: Sequence[Row], data: Sequence[str]) -> Figure:
    figure = new_figure(COLUMN, 0.9 + 0.16 * len(rows) * len(data))
    axes = figure.subplots(len(data), 1, squeeze=False)[:, 0]
    for axis, one in zip(axes, data, strict=True):
        shown = [row for row in rows if _dice(found, row, one) is not None]
        for place, row in enumerate(shown):
            colour = _PARTS[str(row.settings["parts"])]
            line, marker = _ADAPTERS[row.method]
            number = found.numbers[row.key, one, "dice"]
            low, high = number.ci_low, number.ci_high
            if low is not None and high is not None:
                axis.plot([100 * low, 100 * high], [place, place], color=colour, ls=line, lw=1)
            axis.plot([100 * (number.mean or 0)], [place], marker, color=colour, mfc=colour if line == "-" else "white")
        axis.set_yticks(range(len(shown)), [row.label for row in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.set_title(one, loc="left")
    axes[-1].set_xlabel("DSC (%) with 95 % interval over cases")
    return figure
