"""All figures of a study, each with what it shows in words and the same for people who do not see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vlsm_adapter.study_report.cells import duration, memory, short_count
from vlsm_adapter.study_report.document import FigureItem
from vlsm_adapter.study_report.extras import costs_of, peak_kinds, peak_title
from vlsm_adapter.study_report.figures.costs import draw_costs
from vlsm_adapter.study_report.figures.grid import draw_grid, strips_of
from vlsm_adapter.study_report.figures.lines import draw_curves, draw_labels
from vlsm_adapter.study_report.figures.pareto import draw_pareto, front_of, points_of
from vlsm_adapter.study_report.figures.spider import draw_spider, left_out, spider_rows
from vlsm_adapter.study_report.figures.style import FORMATS, check_matplotlib, looks_of, saved, style
from vlsm_adapter.study_report.naming import percent_or_cases
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        if (figure := draw_labels(alike, looks)) is not None:
            yield _labels(alike), figure
    if images and (strips := strips_of(main.table)) and (figure := draw_grid(strips)) is not None:
        yield _grid(strips), figure
    if (figure := draw_curves(main, looks)) is not None:
        text = "Validation DSC per epoch: mean over seeds, the band is from the lowest to the highest; other methods in grey"
        item = FigureItem("learning_curves", f"{text}. {title}.", f"Line charts. {text}, one panel per data set.")
        yield item, figure
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


def _differs_in_labels_alone(one: TableNumbers, other: TableNumbers) -> bool:
    a, b = one.table.setting, other.table.setting
    names = [name for name in type(a).__slots__ if name != "fraction"]
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _pareto(found: TableNumbers, title: str) -> FigureItem:
    several = len(found.table.data) > 1 and bool(found.average)
    points = [point for point in points_of(found, None if several else found.table.data[0]) if point.parameters]
    told = "; ".join(f"{p.label} {short_count(p.parameters)}, {p.dice:.1f} %" for p in points)
    front = ", ".join(p.label for p in front_of(points))
    of_what = f"mean over {len(found.table.data)} data sets" if several else found.table.data[0]
    caption = (
        f"Trainable parameters against DSC ({of_what}), bars are the standard deviation over seeds. Filled points, joined by "
        f"the dashed line, are reached by no method with as few parameters: {front}. {title}."
    )
    return FigureItem(
        "pareto", caption, f"Scatter plot of DSC against trainable parameters: {told}. Pareto front: {front}."
    )


def _pareto_by_data(found: TableNumbers, title: str) -> FigureItem:
    told = []
    for data in found.table.data:
        points = [point for point in points_of(found, data) if point.parameters]
        told.append(f"{data}: {', '.join(point.label for point in front_of(points)) or 'no method'}")
    text = f"Pareto fronts per data set: {'; '.join(told)}"
    return FigureItem(
        "pareto_by_data", f"{text}. {title}.", f"Scatter plots of DSC against trainable parameters. {text}."
    )


def _spider(found: TableNumbers, rows: Sequence[Row], variant: str, name: str, title: str) -> FigureItem:
    whole = len(found.table.data) >= 3
    parts = [name.upper() for name in ("v", "vl", "vlc") if any(row.settings["parts"] == name for row in rows)]
    text = f"{', '.join(parts[:-1])} and {parts[-1]} of the {' and '.join(dict.fromkeys(row.method for row in rows))} adapter"
    text += f" ({variant})" if variant else ""
    for method, settings in left_out(found, rows).items():
        text += f", {method} with {settings} alone" if settings else ""
    text += ", DSC in percent; every axis has its own scale, written beside it" if whole else ", DSC in percent"
    told = []
    for row in rows:
        numbers = [
            (data, number.mean)
            for data in found.table.data
            if (number := found.numbers.get((row.key, data, "dice"))) is not None
        ]
        told.append(
            f"{row.label}: " + ", ".join(f"{data} {100 * mean:.1f}" for data, mean in numbers if mean is not None)
        )
    kind = "Spider chart" if whole else "Dot chart"
    return FigureItem(name, f"{text}. {title}.", f"{kind}. {text}. {'; '.join(told)}.")


def _labels(tables: Sequence[TableNumbers]) -> FigureItem:
    names = ", ".join(percent_or_cases(found.table.setting.fraction) for found in tables)
    text = f"DSC with {names}, mean over seeds"
    return FigureItem("labels", f"{text}.", f"Dot or line charts, one panel per data set: {text}, per method.")


def _grid(strips: Sequence[object]) -> FigureItem:
    text = (
        "Image, ground truth (yellow line) and predictions (blue area, the number is the DSC of this case in percent)"
    )
    why = "The cases were chosen by a hash of their ids, before anything was scored; masks are of the lowest seed"
    count = len(strips)
    return FigureItem(
        "qualitative",
        f"{text}. {why}.",
        f"Pictures of {count} case{'' if count == 1 else 's'}. {text}, for every method.",
    )
