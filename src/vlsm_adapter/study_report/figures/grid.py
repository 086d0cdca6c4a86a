"""The qualitative grid: image, ground truth and the mask of every method, of cases chosen before any was scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlsm_adapter.errors import UserError
from vlsm_adapter.examples import Example, read_examples
from vlsm_adapter.overlays import draw_masks
from vlsm_adapter.study_report.figures.style import BLUE, PAGE, in_groups, new_figure
from vlsm_adapter.study_report.tables import RowKey, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 8  # panels side by side
_LETTERS = 8 * 22  # of titles side by side in _FONT
_FONT, _SMALLER_FONT = 5.6, 4.9
_DOWN = 4  # cases of a figure; more go into further ones
_YELLOW = "#F0E442"


@dataclass(frozen=True)
class Strip:
    """A case with the masks of every method that kept it.

    Attributes:
        data: its data set.
        example: image and truth.
        masks: row label to mask and Dice, in the order of the table.
        lacking: labels of methods that kept no mask of it.
    """

    data: str
    example: Example
    masks: dict[str, tuple[np.ndarray, float]]
    lacking: list[str]


def strips_of(table: Table) -> list[Strip]:
    """One or two cases per data set, of the runs of the lowest seed: the first that all methods kept, else most."""
    per_data = 2 if len(table.data) <= 2 else 1
    found: list[Strip] = []
    for data in table.data:
        kept: dict[RowKey, dict[str, tuple[Example, str]]] = {}
        order: dict[str, int] = {}
        for row in table.rows:
            for run in table.cells.get((row.key, data), ()):
                if run.examples is None or row.key in kept:
                    continue
                variant = "zero_shot" if run.is_zero_shot else "adapter"
                try:
                    examples = read_examples(run.examples)
                except UserError:
                    continue  # the picture is made of the others
                own = {one.case_id: (one, variant) for one in examples if variant in one.masks}
                if own:
                    kept[row.key] = own
                    for place, case_id in enumerate(own):
                        order[case_id] = min(order.get(case_id, place), place)
        if not kept:
            continue
        count = {case_id: sum(case_id in own for own in kept.values()) for case_id in order}
        chosen = sorted(order, key=lambda one: (-count[one], order[one], one))[:per_data]
        found += [_strip(table, data, case_id, kept) for case_id in chosen]
    return found


def _strip(table: Table, data: str, case_id: str, kept: dict[RowKey, dict[str, tuple[Example, str]]]) -> Strip:
    masks: dict[str, tuple[np.ndarray, float]] = {}
    lacking: list[str] = []
    first: Example | None = None
    for row in table.rows:
        if case_id not in kept.get(row.key, {}):
            if (row.key, data) in table.cells:
                lacking.append(row.label)
            continue
        example, variant = kept[row.key][case_id]
        first = first or example
        # A mask of another size would be of another version of the image.
        if example.masks[variant].shape == first.image.shape[:2]:
            masks[row.label] = (example.masks[variant], example.dice.get(variant, float("nan")))
        else:
            lacking.append(row.label)
    assert first is not None
    return Strip(data, first, masks, lacking)


def draw_grids(strips: Sequence[Strip]) -> Iterator[tuple[list[Strip], Figure]]:
    """The strips, a few to a figure."""
    for some in in_groups(strips, _DOWN) if strips else []:
        yield some, draw_grid(some)


def draw_grid(strips: Sequence[Strip]) -> Figure:
    """Panels in lines of eight; the truth is a yellow line, a prediction a blue area, its DSC stands above it."""
    across = min(_ACROSS, max(2 + len(strip.masks) for strip in strips))
    lines: list[tuple[int, float]] = []  # of each: its strip, its height over its width
    for number, strip in enumerate(strips):
        shape = strip.example.image.shape
        count = -(-(2 + len(strip.masks)) // across)
        lines += [(number, min(shape[0] / shape[1], 1.3))] * count
    width, title = (PAGE - 0.25) / across, 0.15
    figure = new_figure(PAGE, sum(width * ratio + title for _, ratio in lines) + 0.05 * len(lines))
    figure.set_layout_engine("constrained", w_pad=0.012, h_pad=0.012, wspace=0, hspace=0)
    axes = figure.subplots(
        len(lines), across, squeeze=False, gridspec_kw={"height_ratios": [ratio + title / width for _, ratio in lines]}
    )
    for axis in axes.flat:
        axis.set_axis_off()
    line = 0
    for strip in strips:
        panels = _panels(strip)
        for index, panel in enumerate(panels):
            _show(axes[line + index // across][index % across], *panel, letters=_LETTERS // across)
        # The data set's name stands upright at the left of its first line.
        axes[line][0].text(
            -0.04, 0.5, strip.data, rotation=90, ha="right", va="center", transform=axes[line][0].transAxes, fontsize=6.5,
            fontweight="bold",
        )  # fmt: skip
        line += -(-len(panels) // across)
    return figure


_Panel = tuple[str, str, np.ndarray, np.ndarray | None, np.ndarray | None]


def _panels(strip: Strip) -> list[_Panel]:
    """Title, score, picture, and prediction and truth to outline on it."""
    image, truth = strip.example.image, strip.example.truth
    panels: list[_Panel] = [("image", "", image, None, None), ("ground truth", "", image, None, truth)]
    for label, (mask, dice) in strip.masks.items():
        score = "" if np.isnan(dice) else f" {100 * dice:.0f}"
        panels.append((label, score, draw_masks(image, None, mask), mask, truth))
    return panels


def _show(
    axis: Axes,
    name: str,
    score: str,
    picture: np.ndarray,
    mask: np.ndarray | None,
    truth: np.ndarray | None,
    *,
    letters: int,
) -> None:
    axis.imshow(picture, aspect="equal")
    # Lines, not pixels: sharp at every size. The truth's is black below, to be seen on any ground.
    for area, width, colour in ((mask, 0.7, BLUE), (truth, 1.3, "#000000"), (truth, 0.7, _YELLOW)):
        if area is not None and area.any() and not area.all():
            axis.contour(area, levels=[0.5], colors=[colour], linewidths=width)
    room = int(letters * _FONT / _SMALLER_FONT) - len(score)  # a long name is cut, its score never
    name = name if len(name) <= room else f"{name[: room - 1]}…"
    size = min(_FONT, _FONT * letters / len(name + score))
    axis.set_title(f"{name}{score}", fontsize=size, fontweight="normal", pad=1.5)
