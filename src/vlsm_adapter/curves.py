"""A line chart as SVG text, for reports; no plotting library needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeGuard

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 120, 28, 34
# Okabe and Ito, in an order of falling contrast to white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
# A loss that has run away would flatten everything else.
_LARGEST = 1e6
_DASHES = ("none", "6 3", "2 2", "8 3 2 3")


def line_chart(title: str, x_label: str, x: Sequence[float], series: Mapping[str, Sequence[float | None]]) -> str:
    """An SVG of one or several series over ``x``; gaps where a value is not finite, or beyond a million.

    Args:
        x: ascending positions, at least one.
        series: name to values, as many as ``x``; None is no value, the line goes on to the next one.
    """
    shown = [value for values in series.values() for value in values if _can_be_shown(value)]
    ticks = _ticks(min(shown, default=0.0), max(shown, default=1.0))
    low, high = ticks[0], ticks[-1]
    first, last = x[0], x[-1]

    def place(position: float, value: float) -> tuple[float, float]:
        across = (position - first) / (last - first) if last > first else 0.5
        up = (value - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in ticks:
        _, y = place(first, tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for position in sorted({first, last}):
        across, _ = place(position, low)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{position:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for number, (name, values) in enumerate(series.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        for run in _runs(x, values):
            points = [place(position, value) for position, value in run]
            if len(points) == 1:
                parts.append(f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" fill="{colour}"/>')
            else:
                path = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
                parts.append(f'<polyline points="{path}" {stroke}/>')
        y = _TOP + 16 * number + 8
        parts.append(f'<line x1="{_WIDTH - _RIGHT + 8}" x2="{_WIDTH - _RIGHT + 30}" y1="{y}" y2="{y}" {stroke}/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 35}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _runs(x: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """Stretches without gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for position, value in zip(x, values, strict=True):
        if value is None:
            continue
        if _can_be_shown(value):
            found[-1].append((position, value))
        else:
            found.append([])
    return [run for run in found if run]


def _can_be_shown(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST


def _ticks(low: float, high: float) -> list[float]:
    """About five round values that span ``low`` to ``high``."""
    if high - low < 1e-6 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(start, end + 1)]
