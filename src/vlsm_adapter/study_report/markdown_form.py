"""The document as Markdown, for repositories and issue threads."""

from __future__ import annotations

from collections.abc import Sequence

from vlsm_adapter.markdown import cell, table
from vlsm_adapter.study_report.cells import Cell
from vlsm_adapter.study_report.document import Bullets, FigureItem, Grid, Heading, Item, Paragraph


def render_markdown(title: str, items: Sequence[Item], *, figures: str = "figures") -> str:
    """Markdown of the document; pictures are linked from the folder ``figures`` as SVG, the grid of images as PNG."""
    blocks = [[f"# {cell(title)}"], *(_block(item, figures) for item in items)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _block(item: Item, figures: str) -> list[str]:
    if isinstance(item, Heading):
        return [f"{'#' * item.level} {cell(item.text)}"]
    if isinstance(item, Paragraph):
        return [f"**{cell(item.text)}**" if item.strong else cell(item.text)]
    if isinstance(item, Bullets):
        return [f"- {cell(text)}" for text in item.items]
    if isinstance(item, FigureItem):
        ending = "png" if item.name.startswith("qualitative") else "svg"
        return [f"![{cell(item.alt)}]({figures}/{item.name}.{ending})", "", f"*{cell(item.caption)}*"]
    return _grid(item)


def _grid(grid: Grid) -> list[str]:
    # Markdown has one head: the group's name goes before each of its columns.
    above = [text for text, count in grid.groups for _ in range(count)]
    head = [
        f"{cell(group)} {cell(text)}".strip()
        for group, text in zip(above or [""] * len(grid.head), grid.head, strict=True)
    ]
    rows = [[text if index else cell(text) for index, text in enumerate(map(shown, row))] for row in _as_text(grid)]
    lines = table(head, rows)
    if grid.folded:
        return [f"<details><summary>{cell(grid.title)}</summary>", "", *lines, "", "</details>"]
    return [f"{cell(grid.title)}:", "", *lines] if grid.named else lines


def _as_text(grid: Grid) -> list[list[str | Cell]]:
    return [
        [one if isinstance(one, Cell) or not index else cell(one) for index, one in enumerate(row)] for row in grid.rows
    ]


def shown(one: str | Cell) -> str:
    """A cell: ``**81.23** ± 1.04 \\*``, the second best underlined."""
    if not isinstance(one, Cell):
        return one
    text = f"**{one.mean}**" if one.best else f"<ins>{one.mean}</ins>" if one.second else one.mean
    text += f" ± {one.std}" if one.std else ""
    text += cell(one.mark)
    return text + (f" ({one.seeds} seed{'' if one.seeds == 1 else 's'})" if one.seeds is not None else "")
