"""Trainable parameters against Dice: what each further parameter buys, and which methods nothing beats at their size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlsm_adapter.study_report.cells import short_count
from vlsm_adapter.study_report.figures.labels import Box, leader, place_labels
from vlsm_adapter.study_report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    Look,
    new_figure,
    percent_range,
)
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.tables import RowKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Point:
    """A method: trainable parameters, Dice and its deviation in percent (None: one seed)."""

    key: RowKey
    label: str
    parameters: int
    dice: float
    std: float | None


def points_of(found: TableNumbers, data: str | None) -> list[Point]:
    """Methods with a known size, on one data set or on average (``None``); smallest first."""
    points = []
    for row in found.table.rows:
        if data is None:
            about = found.average.get((row.key, "dice"))
            mean, std = (about["mean"], about["std"]) if about else (None, None)
        else:
            number = found.numbers.get((row.key, data, "dice"))
            mean, std = (number.mean, number.std) if number else (None, None)
        if mean is not None and row.trainable is not None:
            points.append(Point(row.key, row.label, row.trainable[1], 100 * mean, None if std is None else 100 * std))
    return sorted(points, key=lambda point: (point.parameters, -point.dice, point.label))


def front_of(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: points that none with as few parameters or fewer reaches."""
    front: list[Point] = []
    for point in points:
        if not front or point.dice > front[-1].dice:
            front.append(point)
    return front


@dataclass(frozen=True, slots=True)
class Frame:
    """What of a panel's points lies within its axis.

    Attributes:
        low, high: ends of the axis in percent.
        below: methods that lie below it, and are drawn at its edge.
        near: base models as they came, within it; away: those that are only told.
    """

    low: float
    high: float
    below: tuple[Point, ...]
    near: tuple[Point, ...]
    away: tuple[Point, ...]


def frame_of(points: Sequence[Point]) -> Frame:
    """The axis around all points but those so far below the others that these would have no room."""
    sized = [point for point in points if point.parameters > 0]
    outliers = _far_below(sized)
    while True:
        shown = [point for point in sized if point not in outliers]
        dice = [p.dice for p in shown]
        untrained = [point for point in points if point.parameters == 0]
        near = [p for p in untrained if p.dice > min(dice) - 1.2 * (max(dice) - min(dice)) - 2]
        ends = [value for p in [*shown, *near] for value in (p.dice - (p.std or 0), p.dice + (p.std or 0))]
        low, high = percent_range(ends, margin=0.12)
        below = [point for point in outliers if point.dice < low]
        if below == outliers:
            away = [point for point in untrained if point not in near]
            return Frame(low, high, tuple(below), tuple(near), tuple(away))
        outliers = below  # the bars of the others make the axis long enough for some


def _far_below(points: Sequence[Point]) -> list[Point]:
    """Below a gap wider than the range of what is above it and than bars; at least two thirds of the points stay, and four."""
    ordered = sorted(points, key=lambda point: -point.dice)
    for count in range(max(4, math.ceil(2 * len(ordered) / 3)), len(ordered)):
        best, last, following = ordered[0].dice, ordered[count - 1], ordered[count]
        bars = 2 * ((last.std or 0) + (following.std or 0))
        if last.dice - following.dice > max(best - last.dice, bars, 2.0):
            return ordered[count:]
    return []


def draw_pareto(found: TableNumbers, looks: Mapping[RowKey, Look], *, by_data: bool = False) -> Figure | None:
    """The plot; on average over data sets in one column, or a panel per data set across the page; None without points."""
    columns: list[str | None]
    average = len(found.table.data) > 1 and any(metric == "dice" for _, metric in found.average)
    columns = list(found.table.data) if by_data else [None] if average else list(found.table.data[:1])
    candidates = [(data, points_of(found, data)) for data in columns]
    panels = [(data, points) for data, points in candidates if any(point.parameters for point in points)]
    if not panels:
        return None
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    size = (PAGE if across > 1 else COLUMN, 2.75 * down)
    figure = new_figure(*size)
    axes = figure.subplots(down, across, squeeze=False)
    flat = [one for line in axes for one in line]
    for one in flat[len(panels) :]:
        one.set_visible(False)
    for axis, (data, points) in zip(flat, panels, strict=False):
        _panel(axis, points, looks)
        if by_data:
            axis.set_title(str(data), loc="left")
            axis.set_ylabel("DSC (%)")
        else:
            several = data is None
            axis.set_ylabel(f"DSC (%), mean of {len(found.table.data)} data sets" if several else f"DSC (%), {data}")
        axis.set_xlabel("trainable parameters")
    figure.draw_without_rendering()  # labels are placed in the final frame
    figure.set_layout_engine("none")
    for axis, (_, points) in zip(flat, panels, strict=False):
        _label(axis, points, looks)
    return figure


def _panel(axis: Axes, points: Sequence[Point], looks: Mapping[RowKey, Look]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    sized = [point for point in points if point.parameters > 0]
    low, high = min(p.parameters for p in sized), max(p.parameters for p in sized)
    axis.set_xscale("log")
    reach = max(math.log10(high / low), 1.0)
    axis.set_xlim(low / 10 ** (0.09 * reach), high * 10 ** (0.09 * reach))
    frame = frame_of(points)
    floor = frame.low
    axis.set_ylim(frame.low, frame.high)
    front = front_of(sized)
    # Beyond its last point the front goes on: more parameters bought nothing more.
    steps_x = [p.parameters for p in front] + [axis.get_xlim()[1]]
    axis.step(
        steps_x, [max(p.dice, floor) for p in front] + [front[-1].dice], where="post", color=GREY, lw=0.9, ls=(0, (4, 2)),
        zorder=1,
    )  # fmt: skip
    for point in sized:
        look = looks[point.key]
        if point.std and point not in frame.below:
            axis.errorbar(
                point.parameters,
                point.dice,
                yerr=point.std,
                color=look.colour,
                lw=0.7,
                capsize=1.5,
                capthick=0.7,
                zorder=2,
            )
        on_front = point in front
        axis.plot(
            [point.parameters], [max(point.dice, floor)], look.marker, ms=5, mew=0.9, zorder=3, mec=look.colour,
            mfc=look.colour if on_front else "white", clip_on=False,
        )  # fmt: skip
    for point in frame.near:
        axis.axhline(point.dice, color=GREY, lw=0.8, ls=":", zorder=1)
    if frame.away:
        text = "; ".join(f"{point.label} {point.dice:.1f} %" for point in frame.away)
        # On the side where no method stands at the edge.
        left = any(point.parameters**2 > low * high for point in frame.below)
        axis.text(
            0.02 if left else 0.98, 0.02, f"↓ {text}", transform=axis.transAxes, ha="left" if left else "right", va="bottom",
            fontsize=6, color=GREY,
        )  # fmt: skip
    for point in frame.near:
        axis.text(
            0.99, point.dice, point.label, transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=6, color=GREY
        )  # fmt: skip
    steps = (1.0, 2.0, 5.0) if math.log10(high / low) < 1.5 else (1.0,)  # else a narrow range has one number
    axis.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _label(axis: Axes, points: Sequence[Point], looks: Mapping[RowKey, Look]) -> None:
    from matplotlib.patheffects import withStroke

    sized = [point for point in points if point.parameters > 0]
    within = frame_of(points)
    below, floor = within.below, within.low
    names = [f"{point.label} ↓ {point.dice:.1f} %" if point in below else point.label for point in sized]
    heights = [max(point.dice, floor) for point in sized]
    figure: Any = axis.figure
    scale, renderer = 72 / figure.dpi, figure.canvas.get_renderer()
    window = axis.get_window_extent()
    # A label may reach a little beyond the axes, never beyond the page or into a panel beside it.
    alone = len(figure.axes) == 1
    right = min(window.x1 * scale + (10 if alone else 1), 72 * float(figure.get_size_inches()[0]) - 1)
    frame = Box(window.x0 * scale + 1, window.y0 * scale + 1, right, window.y1 * scale + 2)
    places = [
        tuple(scale * float(v) for v in axis.transData.transform((p.parameters, y)))
        for p, y in zip(sized, heights, strict=True)
    ]
    texts = [axis.text(p.parameters, y, name, fontsize=6) for p, y, name in zip(sized, heights, names, strict=True)]
    boxes = [text.get_window_extent(renderer) for text in texts]
    # Letters are a little wider where they are drawn finer than they are measured here.
    sizes = [(1.04 * box.width * scale, box.height * scale) for box in boxes]
    for text in texts:
        text.remove()
    bars = []
    for point, (x, y) in zip(sized, places, strict=True):
        if point.std and point not in below:
            top = scale * float(axis.transData.transform((point.parameters, point.dice + point.std))[1])
            bars.append(Box(x - 1.5, 2 * y - top, x + 1.5, top))
    notes = [text.get_window_extent(renderer) for text in axis.texts]
    bars += [Box(*(scale * end for end in (box.x0, box.y0, box.x1, box.y1))) for box in notes]
    front = [
        tuple(scale * float(v) for v in axis.transData.transform((p.parameters, max(p.dice, floor))))
        for p in front_of(sized)
    ]
    for index, (x, y) in enumerate(front):  # a step: along at this height, then up to the next
        right, up = front[index + 1] if index + 1 < len(front) else (frame.right, y)
        bars += [Box(x, y - 1, right, y + 1), Box(right - 1, y, right + 1, up)]
    placed = place_labels([(x, y) for x, y in places], sizes, frame, obstacles=bars)
    for name, (x, y), box in zip(names, places, placed, strict=True):
        end = leader(box, (x, y))
        if end is not None:
            axis.annotate(
                "", xy=(x, y), xytext=end, xycoords=("figure points"), textcoords="figure points", zorder=1.5,
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip
        axis.annotate(
            name, xy=(box.left, (box.bottom + box.top) / 2), xycoords="figure points", fontsize=6, va="center", ha="left",
            annotation_clip=False, zorder=4, color="#222222", path_effects=[withStroke(linewidth=1.6, foreground="white")],
        )  # fmt: skip
