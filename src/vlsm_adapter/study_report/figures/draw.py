"""All figures of a study, each with what it shows in words and the same for people who do not see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vlsm_adapter.study_report.cells import duration, has_seeds, memory, short_count
from vlsm_adapter.study_report.document import FigureItem
from vlsm_adapter.study_report.extras import costs_of, peak_kinds, peak_title
from vlsm_adapter.study_report.figures.costs import draw_costs
from vlsm_adapter.study_report.figures.grid import Strip, draw_grids, strips_of
from vlsm_adapter.study_report.figures.lines import draw_curves, draw_labels
from vlsm_adapter.study_report.figures.pareto import draw_pareto, frame_of, front_of, points_of
from vlsm_adapter.study_report.figures.spider import draw_spider, drawn_rows, is_web, left_out, spider_rows
from vlsm_adapter.study_report.figures.style import FORMATS, check_matplotlib, looks_of, saved, style
from vlsm_adapter.study_report.naming import listed, percent_or_cases
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Shown = TypeVar("_Shown", str, Strip)  # what a figure has a panel or a line of panels for


def draw_all(
    tables: Sequence[TableNumbers], rows: Sequence[Row], *, images: bool = True
) -> Iterator[tuple[FigureItem, dict[str, bytes]]]:
    """Every figure that the results allow, with its files by ending (``"svg"``, ``"pdf"``, ``"png"``).

    Args:
        tables: the main one first.
        rows: of all tables; a method has one look in all figures.
        images: also the grid of images.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    check_matplotlib()
    with style():
        for item, figure in drawn(tables, rows, images):
            yield item, {ending: saved(figure, ending) for ending in FORMATS}


def drawn(tables: Sequence[TableNumbers], rows: Sequence[Row], images: bool) -> Iterator[tuple[FigureItem, Figure]]:
    """The figures themselves; to be drawn and saved inside of `style`."""
    if not tables:
        return
    main, looks = tables[0], looks_of(rows)
    title = main.table.title
    if "dice" in main.metrics:
        if (figure := draw_pareto(main, looks)) is not None:
            yield _pareto(main, title), figure
        if len(main.table.data) > 1 and (figure := draw_pareto(main, looks, by_data=True)) is not None:
            yield _pareto_by_data(main, title), figure
        for number, (variant, chosen) in enumerate(spider_rows(main).items()):
            if (figure := draw_spider(main, chosen)) is not None:
                yield _spider(main, chosen, variant, f"spider{number or ''}", title), figure
        alike = [main, *(found for found in tables[1:] if _differs_in_labels_alone(main, found))]
        yield from _figures(draw_labels(alike, looks), lambda data, part: _labels(alike, data, part), main.table.data)
    strips = strips_of(main.table) if images else []
    yield from _figures(draw_grids(strips), lambda some, part: _grid(some, part), main.table.data)
    yield from _figures(draw_curves(main, looks), lambda data, part: _curves(main, title, data, part), main.table.data)
    costs = costs_of(main.table)
    if (figure := draw_costs(costs, looks)) is not None:
        both = len(peak_kinds(costs)) > 1
        text = f"Time of training a run, mean over data sets and seeds, and the largest {peak_title(costs)}"
        text += " (of the GPU where a run had one, else of its process)" if both else ""
        told = "; ".join(
            f"{one.row.label} {duration(one.total)}, {memory(one.peak)}{f' ({one.peak_of})' if both else ''}"
            for one in costs
        )
        yield FigureItem("costs", f"{text}. {title}.", f"Dot charts. {text}: {told}."), figure


@dataclass(frozen=True)
class _Part:
    """Which of several figures of one kind it is, for its name and its words.

    Attributes:
        ending: of its name: empty for the first.
        several: there are others, so that its data sets are named.
        lacking: data sets that are in none of them, told with the last.
    """

    ending: str
    several: bool
    lacking: Sequence[str]

    def about(self, data: Sequence[str]) -> str:
        """The data sets of this figure, where it does not show all that there are; else nothing."""
        told = [f"data sets: {', '.join(dict.fromkeys(data))}"] if self.several or self.lacking else []
        told += [f"there is nothing of {', '.join(self.lacking)}"] if self.lacking else []
        return "".join(f"; {one}" for one in told)


def _figures(
    figures: Iterable[tuple[list[_Shown], Figure]],
    words: Callable[[list[_Shown], _Part], FigureItem],
    data: Sequence[str],
) -> Iterator[tuple[FigureItem, Figure]]:
    """Figures that share the data sets, each with its words."""
    every = list(figures)
    shown = {one if isinstance(one, str) else getattr(one, "data", "") for some, _ in every for one in some}
    lacking = [one for one in data if one not in shown]
    for number, (some, figure) in enumerate(every):
        last = number == len(every) - 1
        yield words(some, _Part(str(number or ""), len(every) > 1, lacking if last else ())), figure


def _differs_in_labels_alone(one: TableNumbers, other: TableNumbers) -> bool:
    a, b = one.table.setting, other.table.setting
    names = [name for name in type(a).__slots__ if name != "fraction"]
    return all(getattr(a, name) == getattr(b, name) for name in names)


_BARS = ", bars are the standard deviation over seeds"
_EDGE = "A point at the lower edge lies below it, where its label says. "


def _pareto(found: TableNumbers, title: str) -> FigureItem:
    several = len(found.table.data) > 1 and bool(found.average)
    every = points_of(found, None if several else found.table.data[0])
    points = [point for point in every if point.parameters]
    told = "; ".join(f"{p.label} {short_count(p.parameters)}, {p.dice:.1f} %" for p in points)
    front = ", ".join(p.label for p in front_of(points))
    of_what = f"mean over {len(found.table.data)} data sets" if several else found.table.data[0]
    caption = (
        f"Trainable parameters against DSC ({of_what}){_BARS if any(p.std is not None for p in points) else ''}. Filled points, "
        f"joined by the dashed line, are reached by no method with as few parameters: {front}. "
        + (_EDGE if points and frame_of(every).below else "")
        + f"{title}."
    )
    return FigureItem(
        "pareto", caption, f"Scatter plot of DSC against trainable parameters: {told}. Pareto front: {front}."
    )


def _pareto_by_data(found: TableNumbers, title: str) -> FigureItem:
    told, edge = [], ""
    for data in found.table.data:
        every = points_of(found, data)
        points = [point for point in every if point.parameters]
        edge = _EDGE if points and frame_of(every).below else edge
        told.append(f"{data}: {', '.join(point.label for point in front_of(points)) or 'no method'}")
    text = f"Pareto fronts per data set: {'; '.join(told)}"
    return FigureItem(
        "pareto_by_data", f"{text}. {edge}{title}.", f"Scatter plots of DSC against trainable parameters. {text}."
    )


def _spider(found: TableNumbers, rows: Sequence[Row], variant: str, name: str, title: str) -> FigureItem:
    missing = list(rows)
    rows, data = drawn_rows(found, rows)
    missing = [row for row in missing if row not in rows]
    whole = is_web(data)
    parts = [name.upper() for name in ("v", "vl", "vlc") if any(row.settings["parts"] == name for row in rows)]
    text = f"{listed(parts)} of the {listed(list(dict.fromkeys(row.method for row in rows)))} adapter"
    text += f" ({variant})" if variant else ""
    for method, settings in left_out(found, rows).items():
        text += f", {method} with {settings} alone" if settings else ""
    text += ", DSC in percent; every axis has its own scale, written beside it" if whole else ", DSC in percent"
    if missing:
        names = listed([row.label for row in missing])
        text += f"; {names} {'has' if len(missing) == 1 else 'have'} no score on one of the data sets and {'is' if len(missing) == 1 else 'are'} not drawn"
    told = []
    for row in rows:
        numbers = [
            (one, number.mean) for one in data if (number := found.numbers.get((row.key, one, "dice"))) is not None
        ]
        told.append(
            f"{row.label}: " + ", ".join(f"{one} {100 * mean:.1f}" for one, mean in numbers if mean is not None)
        )
    kind = "Spider chart" if whole else "Dot chart"
    return FigureItem(name, f"{text}. {title}.", f"{kind}. {text}. {'; '.join(told)}.")


def _labels(tables: Sequence[TableNumbers], data: Sequence[str], part: _Part) -> FigureItem:
    names = ", ".join(percent_or_cases(found.table.setting.fraction) for found in tables)
    over = ", mean over seeds" if any(map(has_seeds, tables)) else ""
    text, shown = f"DSC with {names}{over}", part.about(data)
    alt = f"Dot or line charts, one panel per data set: {text}, per method{shown}."
    return FigureItem(f"labels{part.ending}", f"{text}{shown}.", alt)


def _curves(found: TableNumbers, title: str, data: Sequence[str], part: _Part) -> FigureItem:
    band = "mean over seeds, the band is from the lowest to the highest; " if has_seeds(found) else ""
    text = f"Validation DSC per epoch: {band}other methods in grey"
    name, shown = f"learning_curves{part.ending}", part.about(data)
    return FigureItem(name, f"{text}{shown}. {title}.", f"Line charts. {text}, one panel per data set{shown}.")


def _grid(strips: Sequence[Strip], part: _Part) -> FigureItem:
    text = (
        "Image, ground truth (yellow line) and predictions (blue area, the number is the DSC of this case in percent)"
    )
    shown = part.about([strip.data for strip in strips])
    why = "The cases were chosen by a hash of their ids, before anything was scored; masks are of the lowest seed"
    count = len(strips)
    return FigureItem(
        f"qualitative{part.ending}",
        f"{text}{shown}. {why}.",
        f"Pictures of {count} case{'' if count == 1 else 's'}. {text}, for every method{shown}.",
    )
