"""Time and memory of training, a point per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlsm_adapter.study_report.extras import Cost, peak_kinds, peak_title
from vlsm_adapter.study_report.figures.style import PAGE, Look, new_figure
from vlsm_adapter.study_report.tables import RowKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_costs(costs: Sequence[Cost], looks: Mapping[RowKey, Look]) -> Figure | None:
    """Time of training a run, averaged over data sets and seeds, and peak memory; None where neither is known.

    Where some peaks are of a GPU and some of a process, every number says which.
    """
    panels: list[tuple[str, list[float | None]]] = []
    both = len(peak_kinds(costs)) > 1
    if any(cost.total is not None for cost in costs):
        longest = max(cost.total or 0 for cost in costs)
        unit, size = ("h", 3600) if longest >= 6000 else ("min", 60) if longest >= 120 else ("s", 1)
        panels.append((f"training of a run ({unit})", [None if c.total is None else c.total / size for c in costs]))
    if any(cost.peak is not None for cost in costs):
        panels.append((f"{peak_title(costs)} (GB)", [None if c.peak is None else c.peak / 1e9 for c in costs]))
    if not panels:
        return None
    figure = new_figure(PAGE if len(panels) > 1 else PAGE * 0.6, 0.6 + 0.155 * len(costs))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, values) in zip(axes, panels, strict=True):
        largest = max(value for value in values if value is not None)
        for place, (cost, value) in enumerate(zip(costs, values, strict=True)):
            if value is None:
                continue
            look = looks[cost.row.key]
            axis.plot([0, value], [place, place], color=look.colour, lw=1.2, alpha=0.55, zorder=2)
            axis.plot([value], [place], "o", color=look.colour, ms=4.2, zorder=3)
            whose = f" {cost.peak_of}" if both and title.startswith("peak") else ""
            axis.annotate(
                f"{value:.3g}{whose}", (value, place), xytext=(4.5, 0), textcoords="offset points", va="center", fontsize=6, color="#444444"
            )  # fmt: skip
        axis.set_xlim(0, largest * (1.3 if both else 1.14))
        axis.set_ylim(len(costs) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(title)
    axes[0].set_yticks(range(len(costs)), [cost.row.label for cost in costs])
    return figure
