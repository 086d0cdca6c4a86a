"""The report's content, once, for Markdown and HTML: headings, paragraphs, tables and figures in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlsm_adapter.markdown import plural
from vlsm_adapter.study_report.cells import (
    EMPTY_MASKS,
    Cell,
    arrow,
    average_cell,
    averaged,
    caption,
    cell_of,
    difference,
    duration,
    head_of,
    memory,
    metric_name,
    p_value,
    reference_name,
    sizes,
    trainable,
)
from vlsm_adapter.study_report.extras import Cost, costs_of, heard_of, peak_kinds, peak_title
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.sentences import summary_text

_TOLD = 30  # problems listed one by one


@dataclass(frozen=True)
class Heading:
    """A section's title; level 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text; ``strong`` where it must not be overlooked."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """Plain texts, one a line."""

    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; its first column names the row.

    Attributes:
        title: of the table, for people who do not see it.
        groups: (text, columns) above the head; empty where there are none.
        head: of each column.
        rows: texts and numbers.
        folded: shown on request.
        named: its title is not that of its section and must be read.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    groups: Sequence[tuple[str, int]] = ()
    folded: bool = False
    named: bool = False


@dataclass(frozen=True)
class FigureItem:
    """A figure: the name of its files, what it shows, and the same for people who do not see it."""

    name: str
    caption: str
    alt: str


Item = Heading | Paragraph | Bullets | Grid | FigureItem


@dataclass
class Facts:
    """What the document says beside its tables.

    Attributes:
        notes: of arranging and reading.
        problems: (place, reason) of what could not be read.
        unfinished: (place, state) of runs that are not evaluated.
        n_results: that are in the report.
        command: that makes it anew, or empty.
        versions: of this package.
    """

    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)
    n_results: int = 0
    command: str = ""
    version: str = ""


def build(tables: Sequence[TableNumbers], figures: Sequence[FigureItem], facts: Facts) -> list[Item]:
    """The document, from top to bottom."""
    by_name = {figure.name: figure for figure in figures}

    def shown(*names: str) -> list[Item]:
        return [figure for name, figure in by_name.items() if name.startswith(names)]

    summary = summary_text(tables)
    items: list[Item] = [Bullets(summary)] if summary else []
    items += [Paragraph(note, strong=True) for note in facts.notes]
    if facts.unfinished:
        items.append(Paragraph(f"Not finished: {plural(len(facts.unfinished), 'run')}; see the end.", strong=True))
    if facts.problems:
        items.append(Paragraph(f"Left out: {plural(len(facts.problems), 'result')}; see the end.", strong=True))
    if tables:
        items += _main_table(tables[0], "Table 1", by_name)
    items += _section("Parameters against DSC", shown("pareto"))
    items += _section("Where the adapters stand", shown("spider"))
    items += _section("Fewer labels", shown("labels"))
    items += _section("Examples", shown("qualitative"))
    for number, found in enumerate(tables[1:], start=2):
        items += _main_table(found, f"Table {number}", by_name)
    items += _section("Learning curves", shown("learning_curves"))
    items += _costs(tables, shown("costs"))
    for found in tables:
        items += _words(found)
    items += _end(facts)
    return items


def _section(title: str, items: Sequence[Item]) -> list[Item]:
    return [Heading(title), *items] if items else []


# -- tables of scores ----------------------------------------------------------------------------------------------------


def _main_table(found: TableNumbers, name: str, figures: Mapping[str, FigureItem]) -> list[Item]:
    table = found.table
    items: list[Item] = [Heading(f"{name}: {table.title}")]
    items += [Paragraph(note, strong=True) for note in found.notes]
    averages = averaged(found)
    head = ["Method", "Trainable"]
    groups = [("", 2)]
    for data in table.data:
        head += [f"{head_of(found, data, metric)} {arrow(metric)}" for metric in found.metrics]
        groups.append((data + (" (leaks)" if data in table.leaks else ""), len(found.metrics)))
    if averages:
        head += [f"{metric_name(metric)} (%) {arrow(metric)}" for metric in averages]
        groups.append(("average", len(averages)))
    rows: list[list[str | Cell]] = []
    for row in table.rows:
        cells = [cell_of(found, row.key, data, metric) for data in table.data for metric in found.metrics]
        rows.append([row.label, trainable(row), *cells, *(average_cell(found, row.key, metric) for metric in averages)])
    items.append(Grid(f"{name}: {table.title}", head, rows, groups))
    items.append(Paragraph(f"{caption(found)} {sizes(found)}"))
    if any(found.n_empty.values()):
        items.append(Paragraph(EMPTY_MASKS))
    for metric in found.metrics:
        items += _intervals(found, metric, name)
    items += _empty_masks(found, name)
    return items


def _intervals(found: TableNumbers, metric: str, name: str) -> list[Item]:
    table = found.table
    head, groups = ["Method"], [("", 1)]
    reference = reference_name(found) if found.tests.get(metric) else None
    for data in table.data:
        columns = [f"{head_of(found, data, metric)} [95 %]"]
        columns += [f"difference to {reference} [95 %]", "p (Holm)"] if reference else []
        head += columns
        groups.append((data, len(columns)))
    rows: list[list[str | Cell]] = []
    for row in table.rows:
        line: list[str | Cell] = [row.label]
        for data in table.data:
            cell, number = cell_of(found, row.key, data, metric), found.numbers.get((row.key, data, metric))
            line.append(f"{cell.mean} [{cell.low}, {cell.high}]" if cell.low else cell.mean)
            if reference:
                line += ["-", "-"] if number is None else [difference(metric, number), p_value(number.p_holm)]
        rows.append(line)
    return [
        Grid(f"{name}: {metric_name(metric)} with 95 % bootstrap intervals over cases", head, rows, groups, folded=True)
    ]


def _empty_masks(found: TableNumbers, name: str) -> list[Item]:
    """For data with empty true masks: Dice where there is something to find, and how emptiness was met."""
    data = [one for one in found.table.data if found.n_empty.get(one)]
    if not data:
        return []
    head, groups = ["Method"], [("", 1)]
    for one in data:
        head += ["DSC (%), foreground only [95 %]", "rightly empty", "missed", "false alarms"]
        groups.append((f"{one}, {found.n_empty[one]} of {len(found.table.cases[one])} empty", 4))
    rows: list[list[str | Cell]] = []
    for row in found.table.rows:
        line: list[str | Cell] = [row.label]
        for one in data:
            about, counts = found.foreground.get((row.key, one)), found.emptiness.get((row.key, one))
            text = "-"
            if about is not None and about["mean"] is not None:
                text = f"{100 * about['mean']:.2f}"
                if about["ci_low"] is not None:
                    text += f" [{100 * about['ci_low']:.2f}, {100 * about['ci_high']:.2f}]"
            line.append(text)
            line += [f"{counts[kind]:.1f}" for kind in ("both", "missed", "false_alarm")] if counts else ["-"] * 3
        rows.append(line)
    return [Grid(f"{name}: empty masks, counts are means over seeds", head, rows, groups, folded=True)]


# -- beside the scores ---------------------------------------------------------------------------------------------------


def _costs(tables: Sequence[TableNumbers], figures: Sequence[Item]) -> list[Item]:
    found = next(((one, costs) for one in tables if (costs := costs_of(one.table))), None)
    if found is None:
        return []
    table, costs = found[0].table, found[1]
    both = len(peak_kinds(costs)) > 1
    head = ["Method", "Trainable", *(f"{data}, training" for data in table.data), peak_title(costs)]
    rows: list[list[str | Cell]] = [_cost_row(cost, table.data, both) for cost in costs]
    machines = sorted(set().union(*(cost.machines for cost in costs)))
    text = f"Time of training a run, mean over seeds, and the largest {peak_title(costs)} of a run."
    text += (
        " Peaks are of the GPU where a run had one, else of its process; the two cannot be compared." if both else ""
    )
    if machines:
        text += f" Measured on: {'; '.join(machines)}."
    if len(machines) > 1:
        text += " Times of different machines cannot be compared."
    return [Heading("Time and memory"), *figures, Grid(f"Time and memory. {table.title}", head, rows), Paragraph(text)]


def _cost_row(cost: Cost, data: Sequence[str], both: bool) -> list[str | Cell]:
    peak = memory(cost.peak) + (f" ({cost.peak_of})" if both and cost.peak is not None else "")
    times = [duration(cost.seconds.get(one)) for one in data]
    return [cost.row.label, trainable(cost.row), *times, peak]


def _words(found: TableNumbers) -> list[Item]:
    """Sensitivity to words and the prompt levels, where the evaluations asked probes."""
    table = found.table
    heard, levels = heard_of(table)
    if not heard:
        return []
    data = [one for one in table.data if one in levels]
    items: list[Item] = [Heading(f"Words. {table.title}")]
    head = ["Method", *data]
    rows: list[list[str | Cell]] = []
    for row in table.rows:
        if not any((row.key, one) in heard for one in data):
            continue
        line: list[str | Cell] = [row.label]
        for one in data:
            about = heard.get((row.key, one))
            if about is None or about.value is None:
                line.append("-" if about is None else "not measurable")
            else:
                line.append(f"{about.value:.3f}" + (f" ± {about.std:.3f}" if about.std is not None else ""))
        rows.append(line)
    items.append(Grid("Prompt sensitivity", head, rows, named=True))
    items.append(
        Paragraph(
            "Prompt sensitivity from 0 (deaf to words) to 1 (marks the object only when asked for it), mean over seeds."
        )
    )
    for one in data:
        names = list(levels[one])
        head = ["Method", *(f"{name}{' (leaks)' if levels[one][name] else ''}" for name in names)]
        rows = [
            [row.label, *(f"{100 * about.levels[name]:.2f}" if name in about.levels else "-" for name in names)]
            for row in table.rows
            if (about := heard.get((row.key, one))) is not None
        ]
        items.append(Grid(f"DSC (%) by prompt level, {one}", head, rows, named=True))
    return items


def _end(facts: Facts) -> list[Item]:
    items: list[Item] = []
    for title, listed in (("Not finished", facts.unfinished), ("Left out", facts.problems)):
        if listed:
            rows: list[list[str | Cell]] = [list(pair) for pair in listed[:_TOLD]]
            if len(listed) > _TOLD:
                rows.append([f"and {len(listed) - _TOLD} more", ""])
            items += [Heading(title), Grid(title, ["place", "why"], rows)]
    items.append(Heading("How this was made"))
    how = f"From {plural(facts.n_results, 'result')} in run folders or their small form, without a model"
    how += f", by vlsm-adapter {facts.version}" if facts.version else ""
    items.append(
        Paragraph(
            f"{how}. Scores per case at each image's own size; numbers per run in runs.csv, those of the tables in table.csv and report.json."
        )
    )
    return items
