"""Tables for papers: LaTeX with booktabs, in both orders, that compile whatever the names are.

Each file is a ``table*`` of its own; the preamble needs ``\\usepackage{booktabs}``, and where a name has a letter that the
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
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.tables import Row

#: Data sets side by side; more go into further panels of the same table.
ACROSS = 3
_METHODS_ACROSS = 6
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
    """Rows are methods, columns data sets by metrics; at most three data sets side by side."""
    table = found.table
    averages = averaged(found)
    panels = [table.data[start : start + ACROSS] for start in range(0, len(table.data), ACROSS)] or [[]]
    lines: list[str] = []
    for number, data in enumerate(panels):
        last = number == len(panels) - 1
        shown = averages if last else ()
        groups = [(one + (" (leaks)" if one in table.leaks else ""), len(found.metrics)) for one in data]
        groups += [("average", len(shown))] if shown else []
        columns = sum(count for _, count in groups)
        if number:
            lines.append(r"\par\medskip")
        lines += [rf"\begin{{tabular}}{{@{{}}lr{'r' * columns}@{{}}}}", r"\toprule"]
        lines.append(_groups(groups, before=2))
        heads = [tex(head_of(found, one, metric)) for one in data for metric in found.metrics]
        heads += [f"{tex(metric_name(metric))} ({tex('%')})" for metric in shown]
        lines += [" & ".join(["Method", "Trainable", *heads]) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = [_cell(cell_of(found, row.key, one, metric)) for one in data for metric in found.metrics]
            cells += [_cell(average_cell(found, row.key, metric)) for metric in shown]
            lines.append(" & ".join([tex(row.label), _count(row), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
    return _float(found, lines, label)


def data_down(found: TableNumbers, label: str) -> str:
    """The paper's own order: rows are data sets by metrics, columns methods; at most six methods side by side."""
    table = found.table
    panels = [table.rows[start : start + _METHODS_ACROSS] for start in range(0, len(table.rows), _METHODS_ACROSS)] or [
        []
    ]
    lines: list[str] = []
    for number, rows in enumerate(panels):
        if number:
            lines.append(r"\par\medskip")
        lines += [rf"\begin{{tabular}}{{@{{}}ll{'r' * len(rows)}@{{}}}}", r"\toprule"]
        lines.append(" & ".join(["Data", "Metric", *(tex(row.label) for row in rows)]) + r" \\")
        lines.append(" & ".join(["", "Trainable", *map(_count, rows)]) + r" \\")
        for data in table.data:
            lines.append(r"\midrule")
            for index, metric in enumerate(found.metrics):
                name = data + (" (leaks)" if data in table.leaks else "")
                head = [tex(name) if index == 0 else "", tex(head_of(found, data, metric))]
                lines.append(
                    " & ".join([*head, *(_cell(cell_of(found, row.key, data, metric)) for row in rows)]) + r" \\"
                )
        lines += [r"\bottomrule", r"\end{tabular}"]
    return _float(found, lines, label)


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
    # Smaller than the mean, so that nine of them stand side by side.
    text += rf"{{\tiny$\pm${one.std}}}" if one.std else ""
    text += _MARKS[one.mark]
    return text + (rf"{{\tiny~({one.seeds})}}" if one.seeds is not None else "")


def _count(row: Row) -> str:
    if row.trainable is None:
        return "--"
    low, high = row.trainable
    return short_count(high) if low == high else f"{short_count(low)}--{short_count(high)}"


def _float(found: TableNumbers, lines: Sequence[str], label: str) -> str:
    notes = [note for note in found.notes if note.startswith(("Level", "Seeds", "Without"))]
    text = " ".join([f"{found.table.title}.", caption(found), sizes(found), *notes])
    if any(cell.seeds is not None for cell in _all_cells(found)):
        text += " In brackets the number of seeds, where it is another."
    body = "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{tex(text)}}}",
            rf"\label{{{label}}}",
            r"\scriptsize",
            r"\setlength{\tabcolsep}{3pt}",
            *lines,
            r"\end{table*}",
            "",
        ]
    )
    needs = [r"% \usepackage{booktabs}"]
    if letters := sorted(_IN_T1.intersection(body)):
        needs.append(rf"% \usepackage[T1]{{fontenc}} % for {' '.join(letters)}")
    return "\n".join([*needs, body])


def _all_cells(found: TableNumbers) -> list[Cell]:
    table = found.table
    return [
        cell_of(found, row.key, data, metric) for row in table.rows for data in table.data for metric in found.metrics
    ]
