"""Learning curves, and Dice by the number of labels: lines of many methods, a few to a panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vlsm_adapter.study_report.extras import Curve, curves_of
from vlsm_adapter.study_report.figures.style import (
    GREY,
    PAGE,
    Look,
    in_groups,
    new_figure,
    percent_range,
)
from vlsm_adapter.study_report.naming import fraction_size
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.results import ALL_LABELS
from vlsm_adapter.study_report.tables import Row, RowKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_DATA = 4  # panels side by side; more data sets go into further figures


def draw_curves(found: TableNumbers, looks: Mapping[RowKey, Look]) -> Iterator[tuple[list[str], Figure]]:
    """Validation Dice per epoch, mean and range over seeds: a figure for every few data sets, with their names.

    A column is a data set, a line of panels a few methods.
    """
    curves = curves_of(found.table)
    known = [one for one in found.table.data if any(place == one for _, place in curves)]
    for data in in_groups(known, _MOST_DATA):
        rows = [row for row in found.table.rows if any((row.key, one) in curves for one in data)]
        if rows:
            yield data, _curves(curves, rows, data, looks)


def _curves(
    curves: Mapping[tuple[RowKey, str], Curve], rows: Sequence[Row], data: Sequence[str], looks: Mapping[RowKey, Look]
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    groups = in_groups(rows)
    figure = new_figure(PAGE, 0.35 + 1.55 * len(groups))
    axes = figure.subplots(len(groups), len(data), squeeze=False, sharex="col", sharey="col")
    for column, one in enumerate(data):
        axes[0][column].set_title(one, loc="left")
        axes[-1][column].set_xlabel("epoch")
        axes[-1][column].xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    for line, group in zip(axes, groups, strict=True):
        for axis, one in zip(line, data, strict=True):
            for row in rows:
                if (row.key, one) in curves and row not in group:
                    curve = curves[row.key, one]
                    axis.plot(curve.epochs, _percent(curve.mean), color="#dcdcdc", lw=0.6, zorder=1)
            for row in group:
                if (row.key, one) in curves:
                    _curve(axis, curves[row.key, one], looks[row.key], row.label)
        line[0].set_ylabel("validation DSC (%)")
        _legend(line[-1], group, looks)
    for axis, one in zip(axes[0], data, strict=True):
        every = [curves[row.key, one] for row in rows if (row.key, one) in curves]
        # The first epochs would flatten all the rest.
        late = [value for curve in every for value in (*curve.low[len(curve.low) // 4 :], max(curve.high))]
        axis.set_ylim(*percent_range(_percent(late)))
    return figure


def _curve(axis: Axes, curve: Curve, look: Look, label: str) -> None:
    if curve.seeds > 1:
        axis.fill_between(
            curve.epochs, _percent(curve.low), _percent(curve.high), color=look.colour, alpha=0.13, lw=0, zorder=2
        )
    axis.plot(
        curve.epochs, _percent(curve.mean), color=look.colour, ls=look.line, marker=look.marker, ms=3,
        markevery=max(1, len(curve.epochs) // 6), label=label, zorder=3,
    )  # fmt: skip


def draw_labels(tables: Sequence[TableNumbers], looks: Mapping[RowKey, Look]) -> Iterator[tuple[list[str], Figure]]:
    """Dice against the part of labels used, of tables that differ in it alone; a figure for every few data sets.

    Two parts are drawn as two points on a line per method, three and more as curves.
    """
    tables = [found for found in tables if found.table.setting.fraction is not None]
    sizes = sorted({_share(found) for found in tables})
    if len(sizes) < 2:
        return
    by_size = {_share(found): found for found in tables}
    data = [one for one in by_size[sizes[-1]].table.data if any(one in by_size[size].table.data for size in sizes[:-1])]
    names = [_fraction_name(by_size[size]) for size in sizes]
    for some in in_groups(data, _MOST_DATA):
        rows = [
            row
            for row in by_size[sizes[-1]].table.rows
            if sum(_dice(by_size[size], row, one) is not None for size in sizes for one in some) >= 2
            and row.method != "zero_shot"
        ]
        if not rows:
            continue
        if len(sizes) == 2:
            yield some, _two(by_size[sizes[0]], by_size[sizes[1]], rows, some, names, looks)
        else:
            yield some, _several([by_size[size] for size in sizes], rows, some, names, looks)


def _two(
    few: TableNumbers,
    many: TableNumbers,
    rows: Sequence[Row],
    data: Sequence[str],
    names: Sequence[str],
    looks: Mapping[RowKey, Look],
) -> Figure:
    figure = new_figure(PAGE, 0.85 + 0.155 * len(rows))
    axes = figure.subplots(1, len(data), squeeze=False, sharey=True)[0]
    for axis, one in zip(axes, data, strict=True):
        for place, row in enumerate(rows):
            ends = [_dice(few, row, one), _dice(many, row, one)]
            colour = looks[row.key].colour
            present = [end for end in ends if end is not None]
            axis.plot(
                present, [place] * len(present), color=colour, lw=1.4, alpha=0.6, solid_capstyle="round", zorder=2
            )
            for end, fill in zip(ends, ("white", colour), strict=True):
                if end is not None:
                    axis.plot([end], [place], "o", ms=4.6, mec=colour, mfc=fill, mew=1.1, zorder=3)
        axis.set_title(one, loc="left")
        axis.set_xlabel("DSC (%)")
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
    handles = [_dot(fill) for fill in ("white", GREY)]
    figure.legend(handles, [f"{name} of labels" for name in names], loc="outside upper right", ncols=2)
    return figure


def _several(
    tables: Sequence[TableNumbers],
    rows: Sequence[Row],
    data: Sequence[str],
    names: Sequence[str],
    looks: Mapping[RowKey, Look],
) -> Figure:
    groups = in_groups(rows)
    figure = new_figure(PAGE, 0.35 + 1.6 * len(groups))
    axes = figure.subplots(len(groups), len(data), squeeze=False, sharex=True, sharey="col")
    for line, group in zip(axes, groups, strict=True):
        for axis, one in zip(line, data, strict=True):
            for row in [*(row for row in rows if row not in group), *group]:
                values = [
                    (place, value)
                    for place, found in enumerate(tables)
                    if (value := _dice(found, row, one)) is not None
                ]
                if not values:
                    continue
                x, y = zip(*values, strict=True)
                if row not in group:
                    axis.plot(x, y, color="#dcdcdc", lw=0.6, zorder=1)
                    continue
                look = looks[row.key]
                axis.plot(x, y, color=look.colour, ls=look.line, marker=look.marker, ms=4, zorder=3)
        line[0].set_ylabel("DSC (%)")
        _legend(line[-1], group, looks)
    for axis, one in zip(axes[0], data, strict=True):
        axis.set_title(one, loc="left")
    for axis in axes[-1]:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("labels used")
    return figure


def _legend(axis: Axes, group: Sequence[Row], looks: Mapping[RowKey, Look]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=looks[row.key].colour, ls=looks[row.key].line, marker=looks[row.key].marker, ms=3.5)
        for row in group
    ]
    axis.legend(handles, [row.label for row in group], loc="center left", bbox_to_anchor=(1.0, 0.5))


def _dot(fill: str):  # type: ignore[no-untyped-def]
    from matplotlib.lines import Line2D

    return Line2D([], [], ls="", marker="o", ms=4.6, mec=GREY, mfc=fill, mew=1.1)


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _dice(found: TableNumbers, row: Row, data: str) -> float | None:
    number = found.numbers.get((row.key, data, "dice"))
    return None if number is None or number.mean is None else 100 * number.mean


def _share(found: TableNumbers) -> float:
    """Of labels; all of them are more than any number of cases."""
    fraction = found.table.setting.fraction or ALL_LABELS
    if fraction == ALL_LABELS:
        return float("inf")
    return fraction_size(fraction)


def _fraction_name(found: TableNumbers) -> str:
    fraction = found.table.setting.fraction or ALL_LABELS
    return f"{fraction[:-1]} %" if fraction.endswith("%") else fraction
