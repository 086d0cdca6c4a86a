"""The document as one HTML file that asks for nothing else: pictures inside it, dark and light, sortable, for small screens."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape

from vlsm_adapter.study_report.cells import Cell
from vlsm_adapter.study_report.document import Bullets, FigureItem, Grid, Heading, Item, Paragraph

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c1e21; --soft: #5c6470; --line: #d8dce2; --stripe: #f5f7f9;
  --best: #e3f0fa; --link: #0060a8; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #e4e7eb; --soft: #a0a8b4; --line: #363c45;
  --stripe: #1c2026; --best: #17354c; --link: #6db8f2; --warn: #f0a868; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem clamp(0.75rem, 3vw, 2.5rem) 4rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; line-height: 1.3; }
h3 { font-size: 1rem; } p { max-width: 75ch; margin: 0.6rem 0; } li { max-width: 75ch; margin: 0.35rem 0; }
nav ul { columns: 18rem; padding-left: 1.2rem; font-size: 0.9rem; } a { color: var(--link); }
.note { border-left: 3px solid var(--warn); padding-left: 0.75rem; }
.small { color: var(--soft); font-size: 0.875rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; padding: 0.5rem 0.75rem; color: var(--soft); font-size: 0.8125rem; }
th, td { padding: 0.3rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1px solid var(--soft); vertical-align: bottom; font-weight: 600; }
thead tr.groups th { text-align: center; border-bottom: 1px solid var(--line); }
thead tr.groups th + th { border-left: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tbody th { position: sticky; left: 0; background: var(--ground); font-weight: 500; }
tbody tr:nth-child(even) th, tbody tr:nth-child(even) td { background: var(--stripe); }
td.best, tbody tr:nth-child(even) td.best { background: var(--best); } td.text { white-space: normal; text-align: left; }
td.best b { font-weight: 700; } td.second u { text-underline-offset: 3px; }
td small, td .ci { color: var(--soft); } td .ci { display: block; font-size: 0.75rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th button::after { content: " \\2195"; color: var(--soft); font-size: 0.75em; }
th[aria-sort="ascending"] button::after { content: " \\2191"; color: var(--ink); }
th[aria-sort="descending"] button::after { content: " \\2193"; color: var(--ink); }
details { margin: 0.5rem 0; } summary { cursor: pointer; font-size: 0.9rem; padding: 0.25rem 0; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 0.5rem;
  border: 1px solid var(--line); } figcaption { color: var(--soft); font-size: 0.875rem; max-width: 75ch; }
@media (max-width: 40rem) { th, td { padding: 0.25rem 0.4rem; font-size: 0.8125rem; }
  tbody th { max-width: 9rem; white-space: normal; } }
@media print { body { max-width: none; } .scroll { overflow: visible; border: 0; } th button::after { content: ""; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows].at(-1).cells;
  [...heads].forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = column ? "descending" : "ascending", other = column ? "ascending" : "descending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    for (const one of heads) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const value = row => row.cells[column].dataset.value ?? "";
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return way === "ascending" ? order : -order;
    });
    body.append(...rows);
  }));
}
"""


# A browser that keeps to it loads nothing from anywhere and runs no script but the one above, whatever a name in the data
# tries.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'"
)


def render_page(title: str, items: Sequence[Item], pictures: Mapping[str, tuple[str, bytes]]) -> str:
    """The whole page.

    Args:
        title: of the page.
        items: the document.
        pictures: name of a figure to its media type and its content.
    """
    places = {id(item): f"s{number}" for number, item in enumerate(items) if isinstance(item, Heading)}
    links = "".join(
        f'<li><a href="#{places[id(item)]}">{escape(item.text)}</a></li>'
        for item in items
        if isinstance(item, Heading) and item.level == 2
    )
    first = next((number for number, item in enumerate(items) if isinstance(item, Heading)), len(items))
    blocks = [_block(item, pictures, places) for item in items]
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{escape(title)}</h1></header>",
            "<main>",
            *blocks[:first],
            contents,
            *blocks[first:],
            "</main>",
            f"<script>{_SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _block(item: Item, pictures: Mapping[str, tuple[str, bytes]], places: Mapping[int, str]) -> str:
    if isinstance(item, Heading):
        return f'<h{item.level} id="{places[id(item)]}">{escape(item.text)}</h{item.level}>'
    if isinstance(item, Paragraph):
        return f'<p class="{"note" if item.strong else "small"}">{escape(item.text)}</p>'
    if isinstance(item, Bullets):
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in item.items) + "</ul>"
    if isinstance(item, FigureItem):
        return _figure(item, pictures)
    table = _table(item)
    return f"<details><summary>{escape(item.title)}</summary>{table}</details>" if item.folded else table


def _figure(item: FigureItem, pictures: Mapping[str, tuple[str, bytes]]) -> str:
    kind, content = pictures[item.name]
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img src="data:{kind};base64,{data}" alt="{escape(item.alt)}">'
        f"<figcaption>{escape(item.caption)}</figcaption></figure>"
    )


def _table(grid: Grid) -> str:
    groups = ""
    if grid.groups:
        cells = "".join(
            f'<th scope="colgroup" colspan="{count}">{escape(text)}</th>' if text else f'<td colspan="{count}"></td>'
            for text, count in grid.groups
        )
        groups = f'<tr class="groups">{cells}</tr>'
    head = "".join(f'<th scope="col"><button type="button">{escape(text)}</button></th>' for text in grid.head)
    rows = "".join("<tr>" + "".join(_cell(one, index) for index, one in enumerate(row)) + "</tr>" for row in grid.rows)
    # Scrolling by keyboard needs the focus.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(grid.title)}"><table class="sortable">'
        f"<caption>{escape(grid.title)}</caption><thead>{groups}<tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(one: str | Cell, index: int) -> str:
    if isinstance(one, Cell):
        value = "" if one.mean == "-" else one.mean
        text = f"<b>{one.mean}</b>" if one.best else f"<u>{one.mean}</u>" if one.second else one.mean
        text += f" <small>± {one.std}</small>" if one.std else ""
        text += one.mark
        text += f" <small>({one.seeds} seed{'' if one.seeds == 1 else 's'})</small>" if one.seeds is not None else ""
        text += f'<span class="ci">[{one.low}, {one.high}]</span>' if one.low else ""
        kind = ' class="best"' if one.best else ' class="second"' if one.second else ""
        return f'<td data-value="{value}"{kind}>{text}</td>'
    value = _sorted_by(one)
    if index == 0:
        return f'<th scope="row" data-value="{escape(value)}">{escape(one)}</th>'
    kind = ' class="text"' if len(one) > 40 else ""
    return f'<td data-value="{escape(value)}"{kind}>{escape(one)}</td>'


def _sorted_by(text: str) -> str:
    """The number that a text begins with, for sorting; else the text; nothing for a missing value."""
    if text == "-":
        return ""
    plain = text.replace(",", "").removeprefix("< ").split(" ")
    try:
        value = float(plain[0])
    except ValueError:
        return text
    factor = {"min": 60, "h": 3600, "GB": 1000}.get(plain[1], 1) if len(plain) > 1 else 1
    return f"{value * factor:g}"
