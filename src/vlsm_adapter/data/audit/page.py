"""The audit as one page to look at: numbers, distributions, and every finding with its cases as pictures.

The page is a single file that asks for nothing: pictures are within it, there is no script, and its content security policy
forbids requests. Whatever comes from the data is escaped.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from vlsm_adapter.data.audit.findings import SEVERITIES, Evidence, Finding, plural
from vlsm_adapter.data.audit.pixels import THUMBNAIL, Look
from vlsm_adapter.data.audit.sizes import shares_by_split
from vlsm_adapter.fonts import drawable, drawing_font

if TYPE_CHECKING:
    from vlsm_adapter.data.audit.run import Audit, SetAudit

# Okabe and Ito's palette.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
# Pictures of a finding: instances, and cases side by side in one instance.
_INSTANCES = 12
_SIDE_BY_SIDE = 4
_SAMPLES = 24
_LISTED = 200
# Edges of the bins of foreground shares in percent; close together where most lesions are.
_EDGES = (0, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 40, 60, 80, 100)

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse}td,th{padding:.15rem .7rem;border-bottom:1px solid var(--line);text-align:right}
td:first-child,th:first-child{text-align:left}
.finding{border:1px solid var(--line);border-left-width:6px;border-radius:4px;padding:.5rem .9rem;margin:.8rem 0}
.error{border-left-color:#d55e00}.warning{border-left-color:#e69f00}.note{border-left-color:#56b4e9}
.code{font-family:ui-monospace,monospace;font-size:.85em;opacity:.75}.advice{opacity:.8}
.row{display:flex;flex-wrap:wrap;gap:.6rem}.charts{display:flex;flex-wrap:wrap;gap:1.5rem}
figure{margin:0;background:var(--soft);padding:.3rem;border-radius:4px}
figure div{display:flex;gap:2px}figcaption{font-size:.75rem;overflow-wrap:anywhere;max-width:22rem}
img{display:block;max-height:176px}svg text{fill:currentColor;font:11px system-ui,sans-serif}
summary{cursor:pointer}ul{font-size:.85rem}
"""


def html_page(audit: Audit) -> str:
    """The page, complete, as text."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Audit of {escape(audit.where)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Audit of {escape(audit.where)}</h1><p>{escape(audit.summary())}</p>",
    ]
    if len(audit.sets) > 1:
        parts.append(_contents(audit))
        parts += [_finding(finding, {}) for finding in audit.between]
    for number, one in enumerate(audit.sets):
        parts.append(f"<section id='set{number}'><h2>{escape(one.title())}</h2>")
        parts.append(_overview(one))
        parts += [_finding(finding, one.looks) for finding in one.findings] or ["<p>Nothing found.</p>"]
        parts.append("</section>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def contact_sheet(audit: Audit) -> bytes | None:
    """PNG: a sample of the cases from the smallest foreground to the largest, then those of the errors and warnings.

    None where there is no picture.
    """
    rows: list[tuple[str, list[tuple[bytes, str]]]] = []
    for one in audit.sets:
        samples = [(one.looks[case].thumbnail, case) for case in _samples(one)]
        rows += [(one.data.name, samples)] if samples else []
        for finding in one.findings:
            if finding.severity != "note":
                cells = [
                    (one.looks[case].thumbnail, case) for case in finding.cases[:8] if _has_picture(one.looks, case)
                ]
                rows += [(f"{finding.severity}: {finding.message}", cells)] if cells else []
    return _sheet(rows) if rows else None


def _sheet(rows: Sequence[tuple[str, Sequence[tuple[bytes, str]]]], across: int = 8) -> bytes:
    cell, strip = THUMBNAIL + 4, 18
    lines = [-(-len(cells) // across) for _, cells in rows]
    canvas = Image.new("RGB", (across * cell, sum(strip + count * (cell + strip) for count in lines)), "white")
    pen, font, top = ImageDraw.Draw(canvas), drawing_font(12), 0

    def write(at: tuple[int, int], text: str, width: int) -> None:
        text = drawable(text)
        while font.getlength(text) > width and len(text) > 1:
            text = text[: int(len(text) * 0.95)]
        pen.text(at, text, fill="black", font=font)

    for (title, cells), count in zip(rows, lines, strict=True):
        write((2, top + 2), title, canvas.width - 4)
        for index, (thumbnail, name) in enumerate(cells):
            left, line = (index % across) * cell, top + strip + (index // across) * (cell + strip)
            with Image.open(io.BytesIO(thumbnail), formats=("JPEG",)) as picture:
                canvas.paste(picture, (left, line))
            write((left + 2, line + THUMBNAIL + 2), name, cell - 4)
        top += strip + count * (cell + strip)
    content = io.BytesIO()
    canvas.save(content, "PNG")
    return content.getvalue()


def _samples(one: SetAudit) -> list[str]:
    """Ids of cases spread evenly over the order of foreground sizes."""
    sized = sorted(
        (facts.share, case.id) for case in one.data.cases if (facts := _facts(one.looks, case.id)) is not None
    )
    seen = [case for _, case in sized if _has_picture(one.looks, case)]
    if len(seen) <= _SAMPLES:
        return seen
    return [seen[round(index * (len(seen) - 1) / (_SAMPLES - 1))] for index in range(_SAMPLES)]


def _facts(looks: Mapping[str, Look], case: str):  # type: ignore[no-untyped-def]
    return looks[case].facts if case in looks else None


def _has_picture(looks: Mapping[str, Look], case: str) -> bool:
    return case in looks and bool(looks[case].thumbnail)


def _contents(audit: Audit) -> str:
    rows = []
    for number, one in enumerate(audit.sets):
        counts = Counter(finding.severity for finding in one.findings)
        cells = "".join(f"<td>{counts[severity]}</td>" for severity in reversed(SEVERITIES))
        rows.append(
            f"<tr><td><a href='#set{number}'>{escape(one.data.name)}</a></td><td>{len(one.data.cases)}</td>{cells}</tr>"
        )
    return f"<table><tr><th>set</th><th>cases</th><th>errors</th><th>warnings</th><th>notes</th></tr>{''.join(rows)}</table>"


def _overview(one: SetAudit) -> str:
    shares = shares_by_split(one.data.cases, one.looks)
    head = "<tr><th>split</th><th>cases</th><th>groups</th>"
    measured = bool(shares)
    head += (
        "<th>empty masks</th><th>median foreground</th><th>smallest</th><th>largest</th></tr>" if measured else "</tr>"
    )
    rows = []
    for split, count in one.counts().items():
        cases = [case for case in one.data.cases if case.split == split]
        groups = len({case.record.group for case in cases if case.record.group})
        cells = f"<td>{escape(split)}</td><td>{count}</td><td>{groups or '-'}</td>"
        if measured:
            empty = sum((facts := _facts(one.looks, case.id)) is not None and facts.empty for case in cases)
            values = 100 * shares[split] if split in shares else None
            numbers = (
                "".join(f"<td>{value:.2f} %</td>" for value in (np.median(values), values.min(), values.max()))
                if values is not None
                else "<td>-</td>" * 3
            )
            cells += f"<td>{empty}</td>{numbers}"
        rows.append(f"<tr>{cells}</tr>")
    parts = [f"<table>{head}{''.join(rows)}</table>"]
    if measured:
        parts.append(f"<div class='charts'>{_histogram(shares)}{_map(one)}{_image_sizes(one)}</div>")
    pictures = "".join(_figure(Evidence((case,)), one.looks) for case in _samples(one))
    if pictures:
        parts.append(
            f"<details open><summary>Cases from the smallest foreground to the largest</summary><div class='row'>{pictures}</div></details>"
        )
    return "\n".join(parts)


def _histogram(shares: Mapping[str, np.ndarray]) -> str:
    """Part of the cases of each split in bins of foreground size, as grouped bars."""
    width, height, left, bottom = 560, 220, 34, 34
    bins = len(_EDGES) - 1
    heights = {split: np.histogram(100 * values, _EDGES)[0] / len(values) for split, values in shares.items()}
    highest = max(float(values.max()) for values in heights.values()) or 1.0
    step = (width - left) / bins
    bar = step * 0.85 / len(heights)
    parts = [
        f"<svg viewBox='0 0 {width} {height + 20}' width='{width}' role='img'><title>Foreground sizes by split</title>"
    ]
    for number, (split, values) in enumerate(heights.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for index, value in enumerate(values):
            tall = (height - bottom - 16) * float(value) / highest
            x = left + index * step + number * bar
            parts.append(
                f"<rect x='{x:.1f}' y='{height - bottom - tall:.1f}' width='{bar:.1f}' height='{tall:.1f}' fill='{colour}'/>"
            )
        parts.append(f"<rect x='{left + 90 * number}' y='2' width='10' height='10' fill='{colour}'/>")
        parts.append(f"<text x='{left + 90 * number + 14}' y='11'>{escape(split)}</text>")
    for index, edge in enumerate(_EDGES):
        parts.append(
            f"<text x='{left + index * step:.1f}' y='{height - bottom + 14}' text-anchor='middle'>{edge:g}</text>"
        )
    parts.append(f"<text x='{width / 2}' y='{height + 8}' text-anchor='middle'>foreground, % of the image</text>")
    parts.append(f"<text x='2' y='24'>{100 * highest:.0f} %</text><text x='2' y='{height - bottom}'>0</text></svg>")
    return "".join(parts)


def _map(one: SetAudit) -> str:
    """How often each cell of the image holds foreground."""
    grids = [facts.grid for look in one.looks.values() if (facts := look.facts) is not None and not facts.empty]
    mean = np.mean(grids, axis=0)
    cell, size = 15, len(mean)
    parts = [
        f"<svg viewBox='0 0 {size * cell} {size * cell + 20}' width='{size * cell}' role='img'><title>Where the foreground lies</title>"
    ]
    parts += [
        f"<rect x='{column * cell}' y='{row * cell}' width='{cell}' height='{cell}' fill='#0072b2' fill-opacity='{share:.2f}'/>"
        for (row, column), share in np.ndenumerate(mean)
    ]
    parts.append(
        f"<rect width='{size * cell}' height='{size * cell}' fill='none' stroke='currentColor' stroke-opacity='.4'/>"
        f"<text x='0' y='{size * cell + 14}'>where the foreground lies</text></svg>"
    )
    return "".join(parts)


def _image_sizes(one: SetAudit) -> str:
    sizes = Counter(look.size for look in one.looks.values() if look.size is not None)
    rows = "".join(f"<tr><td>{w} x {h}</td><td>{count}</td></tr>" for (w, h), count in sizes.most_common(8))
    more = f"<tr><td>{plural(len(sizes) - 8, 'other size')}</td><td></td></tr>" if len(sizes) > 8 else ""
    return f"<table><tr><th>pixels</th><th>images</th></tr>{rows}{more}</table>"


def _finding(finding: Finding, looks: Mapping[str, Look]) -> str:
    pictures = "".join(_figure(one, looks) for one in finding.evidence[:_INSTANCES])
    listed = "".join(
        f"<li>{escape(', '.join(one.cases))}{escape(': ' + one.why if one.why else '')}</li>"
        for one in finding.evidence[:_LISTED]
    )
    if len(finding.evidence) > _LISTED:
        listed += f"<li>... and {len(finding.evidence) - _LISTED} more in findings.json</li>"
    details = (
        f"<details><summary>{plural(len(finding.evidence), 'instance')}</summary><ul>{listed}</ul></details>"
        if listed
        else ""
    )
    advice = f"<div class='advice'>&rarr; {escape(finding.advice)}</div>" if finding.advice else ""
    return (
        f"<div class='finding {finding.severity}'><span class='code'>{finding.severity} &middot; {escape(finding.code)}</span>"
        f"<div>{escape(finding.message)}</div>{advice}<div class='row'>{pictures}</div>{details}</div>"
    )


def _figure(one: Evidence, looks: Mapping[str, Look]) -> str:
    images = "".join(
        f"<img alt='{escape(case, quote=True)}' src='data:image/jpeg;base64,{base64.b64encode(looks[case].thumbnail).decode()}'>"
        for case in one.cases[:_SIDE_BY_SIDE]
        if _has_picture(looks, case)
    )
    if not images:
        return ""
    caption = ", ".join(one.cases[:_SIDE_BY_SIDE]) + (f": {one.why}" if one.why else "")
    return f"<figure><div>{images}</div><figcaption>{escape(caption)}</figcaption></figure>"
