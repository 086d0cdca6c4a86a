"""Tables for papers: LaTeX with booktabs, in both orders, that compile whatever the names are.

Each file is a ``table*`` of its own, or several where a page is too short; the preamble needs ``\\usepackage{booktabs}``, and where a name has a letter that the
old font encoding lacks, ``\\usepackage[T1]{fontenc}``: the file's first lines say what. Names are escaped; letters that
pdfLaTeX cannot set by itself are written as their code points.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from vlsm_adapter.study_report.cells import (
    BETTER,
    WORSE,
    Cell,
    average_cell,
    averaged,
    caption,
    cell_of,
    head_of,
    metric_name,
    short_count,
    sizes,
)
from vlsm_adapter.study_report.latex_layout import Group, column, group_width, pages, panels
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.tables import Row

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # the straight mark needs another font encoding
    "[": "{[}",  # after a line break a bracket would be read as its length
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "²": r"$^{2}$",
    "³": r"$^{3}$",
    "µ": r"$\mu$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "–": "--",
    "—": "---",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "\u00a0": "~",
}
# Letters of Latin Extended-A that neither of pdfLaTeX's encodings has, and those that only T1 has.
_IN_NONE = frozenset("ĦħĸĿŀŉŦŧ")
_IN_T1 = frozenset("ÐðÞþĄąĐđĘęĮįĲĳŊŋŲų")
_MARKS = {BETTER: r"$^{*}$", WORSE: r"$^{\dagger}$", "": ""}


def tex(text: str) -> str:
    """``text`` so that LaTeX sets these very characters; control characters become spaces."""
    parts: list[str] = []
    for char in unicodedata.normalize("NFC", " ".join(str(text).split())):
        if char == "-" and parts and parts[-1].endswith("-"):
            parts.append("{}-")  # two would be set as a dash
        elif char in _ESCAPED:
            parts.append(_ESCAPED[char])
        elif " " <= char <= "~" or ("\u00c0" <= char <= "\u017e" and char.isalpha() and char not in _IN_NONE):
            parts.append(char)
        elif not unicodedata.category(char).startswith("C"):
            parts.append(f"(U+{ord(char):04X})")
    return "".join(parts)


def methods_down(found: TableNumbers, label: str) -> str:
    """Rows are methods, columns data sets by metrics; as many data sets side by side as a page is wide, the average last."""
    table = found.table
    groups: list[Group] = []
    for one in table.data:
        title = one + (" (leaks)" if one in table.leaks else "")
        heads = [head_of(found, one, metric) for metric in found.metrics]
        groups.append(
            (title, heads, [[cell_of(found, row.key, one, metric) for metric in found.metrics] for row in table.rows])
        )
    if averages := averaged(found):
        heads = [f"{metric_name(metric)} (%)" for metric in averages]
        groups.append(
            ("average", heads, [[average_cell(found, row.key, metric) for metric in averages] for row in table.rows])
        )
    counts = [_count(row) for row in table.rows]
    left = column([row.label for row in table.rows]) + column(["Trainable", *counts])
    blocks = []
    for panel in panels(groups, [group_width(group) for group in groups], left):
        heads = [tex(head) for _, heads, _ in panel for head in heads]
        lines = [rf"\begin{{tabular}}{{@{{}}lr{'r' * len(heads)}@{{}}}}", r"\toprule"]
        lines.append(_groups([(title, len(heads)) for title, heads, _ in panel], before=2))
        lines += [" & ".join(["Method", "Trainable", *heads]) + r" \\", r"\midrule"]
        for number, row in enumerate(table.rows):
            cells = [_cell(cell) for _, _, rows in panel for cell in rows[number]]
            lines.append(" & ".join([tex(row.label), counts[number], *cells]) + r" \\")
        blocks.append([*lines, r"\bottomrule", r"\end{tabular}"])
    return _floats(found, blocks, label)


def data_down(found: TableNumbers, label: str) -> str:
    """The paper's own order: rows are data sets by metrics, columns methods; as many methods side by side as a page is wide."""
    table = found.table
    names = [data + (" (leaks)" if data in table.leaks else "") for data in table.data]
    heads = {(data, metric): head_of(found, data, metric) for data in table.data for metric in found.metrics}
    left = column(["Data", *names]) + column(["Trainable", *heads.values()])
    widths = [
        column([row.label, _count(row)], [cell_of(found, row.key, data, metric) for data, metric in heads])
        for row in table.rows
    ]
    blocks = []
    for rows in panels(table.rows, widths, left):
        lines = [rf"\begin{{tabular}}{{@{{}}ll{'r' * len(rows)}@{{}}}}", r"\toprule"]
        lines.append(" & ".join(["Data", "Metric", *(tex(row.label) for row in rows)]) + r" \\")
        lines.append(" & ".join(["", "Trainable", *map(_count, rows)]) + r" \\")
        for data, name in zip(table.data, names, strict=True):
            lines.append(r"\midrule")
            for index, metric in enumerate(found.metrics):
                head = [tex(name) if index == 0 else "", tex(heads[data, metric])]
                lines.append(
                    " & ".join([*head, *(_cell(cell_of(found, row.key, data, metric)) for row in rows)]) + r" \\"
                )
        blocks.append([*lines, r"\bottomrule", r"\end{tabular}"])
    return _floats(found, blocks, label)


def _groups(groups: Sequence[tuple[str, int]], before: int) -> str:
    """The line above the head, with its rules."""
    parts, rules, column = [""] * before, [], before + 1
    for text, count in groups:
        parts.append(rf"\multicolumn{{{count}}}{{c}}{{{tex(text)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + count - 1}}}")
        column += count
    return " & ".join(parts) + r" \\ " + "".join(rules)


def _cell(one: Cell) -> str:
    if one.mean == "-":
        return "--"
    text = rf"\textbf{{{one.mean}}}" if one.best else rf"\underline{{{one.mean}}}" if one.second else one.mean
    # Smaller than the mean, so that more of them stand side by side.
    text += rf"{{\tiny$\pm${one.std}}}" if one.std else ""
    text += _MARKS[one.mark]
    return text + (rf"{{\tiny~({one.seeds})}}" if one.seeds is not None else "")


def _count(row: Row) -> str:
    if row.trainable is None:
        return "--"
    low, high = row.trainable
    return short_count(high) if low == high else f"{short_count(low)}--{short_count(high)}"


def _floats(found: TableNumbers, blocks: Sequence[Sequence[str]], label: str) -> str:
    """The tabulars ``blocks`` below each other, as many as a page is long; more go into a float that continues the table."""
    notes = [note for note in found.notes if note.startswith(("Level", "Seeds", "Without"))]
    text = " ".join([f"{found.table.title}.", caption(found), sizes(found), *notes])
    if any(cell.seeds is not None for cell in _all_cells(found)):
        text += " In brackets the number of seeds, where it is another."
    body = []
    for number, page in enumerate(pages(blocks)):
        head = [rf"\caption{{{tex(text)}}}", rf"\label{{{label}}}"]
        again = [r"\addtocounter{table}{-1}", r"\caption{Continued.}"]
        body += [r"\begin{table*}[t]", r"\centering", *(again if number else head)]
        body += [r"\scriptsize", r"\setlength{\tabcolsep}{3pt}"]
        for place, block in enumerate(page):
            body += [*([r"\par\medskip"] if place else []), *block]
        body += [r"\end{table*}", ""]
    needs = [r"% \usepackage{booktabs}"]
    if letters := sorted(_IN_T1.intersection("".join(body))):
        needs.append(rf"% \usepackage[T1]{{fontenc}} % for {' '.join(letters)}")
    return "\n".join([*needs, *body])


def _all_cells(found: TableNumbers) -> list[Cell]:
    table = found.table
    return [
        cell_of(found, row.key, data, metric) for row in table.rows for data in table.data for metric in found.metrics
    ]
