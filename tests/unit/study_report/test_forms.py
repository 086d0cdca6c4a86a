"""Markdown, LaTeX, CSV, JSON and the page: complete, well formed, and closed to what names may hold."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsm_adapter.study_report.cells import Cell, duration, memory, p_value, short_count
from vlsm_adapter.study_report.data_forms import report_json, table_rows, to_csv
from vlsm_adapter.study_report.document import Facts, FigureItem, Grid, build
from vlsm_adapter.study_report.latex import data_down, methods_down, tex
from vlsm_adapter.study_report.latex_layout import PAGE_WIDTH, panels
from vlsm_adapter.study_report.markdown_form import render_markdown, shown
from vlsm_adapter.study_report.numbers import TableNumbers, compute
from vlsm_adapter.study_report.page import render_page
from vlsm_adapter.study_report.reading import find_results
from vlsm_adapter.study_report.sentences import summary_text
from vlsm_adapter.study_report.small import distinct
from vlsm_adapter.study_report.tables import arrange

HOSTILE = "<script>alert(1)</script> a_b & 100% $x$ #1 ^~ {} \\input{/etc/passwd} | `\"' [link](x) é 中"


def numbers_of(root: Path) -> list[TableNumbers]:
    tables, _, _ = arrange(distinct(find_results([root]).results)[0])
    return [compute(table, ("dice", "iou", "hd95"), n_boot=60, permutations=200) for table in tables]


@pytest.fixture(scope="module")
def numbers(study: Path) -> list[TableNumbers]:
    return numbers_of(study)


@pytest.fixture
def hostile(fake: ModuleType, tmp_path: Path) -> list[TableNumbers]:
    """A study whose names are as bad as names can be."""
    cell = {"data": HOSTILE, "protocol": HOSTILE, "model": HOSTILE, "fraction": "100%"}
    for number, name in enumerate((HOSTILE, f"{HOSTILE}2")):
        fake.FakeRun(tmp_path / f"r{number}", [0.5, 0.6, 0.1 * number], cell={**cell, "method": name}).write()
    return numbers_of(tmp_path)


# -- LaTeX ---------------------------------------------------------------------------------------------------------------


def check_latex(text: str) -> None:
    """Balanced braces and environments, the right number of columns in every row, no bare special sign."""
    plain = re.sub(r"\\[{}%&_#$]", "", text)
    depth = 0
    for char in plain:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    floats = re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, re.S)
    for part in floats:
        assert re.findall(r"\\begin\{(\w+\*?)\}", part) == ["table*", *["tabular"] * part.count(r"\begin{tabular}")]
        assert part.count(r"\caption{") == 1
    assert text.count(r"\label{") == 1
    assert text.count(r"\addtocounter{table}{-1}") == len(floats) - 1
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert plain.count("$") % 2 == 0
    body = plain.split("\n", 1)[1]
    assert "#" not in body
    assert "%" not in body
    assert all(ord(char) < 0x180 for char in text)
    for block in re.findall(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}(.*?)\\end\{tabular\}", text, re.S):
        columns = len(block[0])
        for line in block[1].splitlines():
            if not line.endswith(r"\\") and r"\\ \cmidrule" not in line:
                continue
            cells = re.sub(r"\\&", "", line.split(r"\\ \cmidrule")[0]).split("&")
            spans = [int(count) for count in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(cells) + sum(spans) - len(spans) == columns, line
            assert not line.startswith("[")
        assert block[1].count(r"\toprule") == block[1].count(r"\bottomrule") == 1


def test_latex_tables(numbers: list[TableNumbers]) -> None:
    for found in numbers:
        for text in (methods_down(found, "tab:one"), data_down(found, "tab:two")):
            check_latex(text)
            assert r"\textbf{" in text
            assert r"kvasir\_polyp" in text
    assert r"(IA)" not in methods_down(numbers[0], "t")
    bold = re.findall(r"\\textbf\{([\d.]+)\}", methods_down(numbers[0], "t"))
    assert len(bold) == 3 * len(numbers[0].table.data) + 1  # one of each column, no ties in these numbers


def test_latex_of_hostile_names(hostile: list[TableNumbers]) -> None:
    for found in hostile:
        check_latex(methods_down(found, "tab:x"))
        check_latex(data_down(found, "tab:y"))


def test_letters_that_need_another_font_encoding_say_so(fake: ModuleType, tmp_path: Path) -> None:
    """OT1, which a document has unless it asks for T1, ends with an error at an ogonek or a barred d."""
    fake.FakeRun(tmp_path / "a", [0.5, 0.6], data="zażółć").write()
    (found,) = numbers_of(tmp_path)
    assert "fontenc" not in methods_down(found, "tab:x")
    fake.FakeRun(tmp_path / "b", [0.5, 0.6], data="gęś, đ, ŋ").write()
    (found,) = numbers_of(tmp_path)
    for text in (methods_down(found, "tab:x"), data_down(found, "tab:y")):
        assert text.splitlines()[:2] == [r"% \usepackage{booktabs}", r"% \usepackage[T1]{fontenc} % for đ ę ŋ"]
        assert "gęś, đ, ŋ" in text
    assert tex("ħ ŧ ŀ") == "(U+0127) (U+0167) (U+0140)"  # T1 lacks them too


def test_many_data_sets_go_into_panels(fake: ModuleType, tmp_path: Path) -> None:
    for data in "abcdefg":
        fake.FakeRun(tmp_path / data, [0.5, 0.6], data=data).write()
    (found,) = numbers_of(tmp_path)
    text = methods_down(found, "tab:x")
    check_latex(text)
    columns = [len(kinds) for kinds in re.findall(r"\\begin\{tabular\}\{@\{\}lr(\w+)@", text)]
    assert sum(columns) == 3 * 7 + 1
    assert len(columns) > 1
    assert max(columns) - min(columns) <= 6  # about equally wide


def test_panels_are_few_and_about_equally_wide() -> None:
    assert panels("abcde", [100.0] * 5, 100.0) == [["a", "b", "c"], ["d", "e"]]
    assert panels("abcd", [90.0] * 4, 100.0) == [["a", "b", "c", "d"]]
    assert panels("ab", [900.0, 10.0], 100.0) == [["a"], ["b"]]  # too wide for any page, and still there
    assert panels("", [], 100.0) == [[]]


@given(st.lists(st.floats(1, 600), max_size=8), st.floats(0, 400))
def test_panels_keep_everything_and_fit(widths: list[float], left: float) -> None:
    items = list(enumerate(widths))
    found = panels(items, widths, left)
    assert [item for panel in found for item in panel] == items
    for panel in found:
        assert len(panel) <= 1 or sum(width for _, width in panel) + left <= PAGE_WIDTH + 1e-6


def test_long_tables_go_on_in_another_float(fake: ModuleType, tmp_path: Path) -> None:
    """LaTeX loses nothing of a float that is longer than a page, but it runs off it."""
    for data in "abcdefghijkl":
        for method in range(12):
            cell = {"data": data, "protocol": "p", "model": "tiny", "fraction": "100%", "method": f"m{method}"}
            fake.FakeRun(tmp_path / f"{data}{method}", [0.5, 0.6], data=data, cell=cell).write()
    (found,) = numbers_of(tmp_path)
    text = methods_down(found, "tab:x")
    check_latex(text)
    assert text.count(r"\begin{table*}") > 1
    for part in text.split(r"\end{table*}"):
        assert part.count(r" \\") <= 70


def test_hyphens_stay_hyphens() -> None:
    assert tex("a--b---c-d") == "a-{}-b-{}-{}-c-d"
    assert tex("1–2") == "1--2"


@given(st.text())
def test_escaped_text_has_no_special_sign(text: str) -> None:
    found = tex(text)
    bare = re.sub(r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|ldots)\{\}", "", found)
    bare = re.sub(r"\\[{}%&_#$]", "", bare)
    bare = re.sub(r"\$(\^\{[23]\}|\\\w+)\$", "", bare).replace("{[}", "").replace("{]}", "").replace("{*}", "")
    bare = bare.replace("{}-", "-")
    assert not set(bare) & set('\\{}$&#%_^~<>|"') or bare.count("~") == text.count("\u00a0")
    assert "\n" not in found


def test_escapes() -> None:
    assert tex("a_b & 5% of {x}") == r"a\_b \& 5\% of \{x\}"
    assert tex("(IA)³ ± é") == r"(IA)$^{3}$ $\pm$ é"
    assert tex("中") == "(U+4E2D)"
    assert tex("a\nb\0") == "a b"


# -- Markdown ------------------------------------------------------------------------------------------------------------


def test_markdown_tables_are_whole(numbers: list[TableNumbers], hostile: list[TableNumbers]) -> None:
    for found in (numbers, hostile):
        text = render_markdown("Study report", build(found, [], Facts()))
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, block
        assert "<script" not in text
    assert "**Level p6 leaks" not in render_markdown("x", build(numbers, [], Facts()))


def test_cells() -> None:
    assert shown(Cell("81.23", "1.04", "*", best=True)) == r"**81.23** ± 1.04\*"
    assert shown(Cell("80.00", mark="†", second=True, seeds=1)) == "<ins>80.00</ins>† (1 seed)"
    assert shown(Cell()) == "-"
    assert [short_count(n) for n in (999, 2_048, 894_080, 5_189_346, 999_999)] == [
        "999",
        "2.05k",
        "894k",
        "5.19M",
        "1M",
    ]
    assert [duration(s) for s in (None, 45, 380, 7560)] == ["-", "45 s", "6.3 min", "2.1 h"]
    assert [memory(b) for b in (None, 5e7, 1.48e9)] == ["-", "50 MB", "1.48 GB"]
    assert [p_value(p) for p in (None, 0.00001, 0.0312)] == ["-", "< 0.0001", "0.0312"]


# -- the page ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks nesting, gathers what matters."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


PICTURE = FigureItem("pareto", f"caption {HOSTILE}", f"alt {HOSTILE}")


def test_the_page_asks_for_nothing_and_is_accessible(numbers: list[TableNumbers], hostile: list[TableNumbers]) -> None:
    for found in (numbers, hostile):
        text = render_page("Study report", build(found, [PICTURE], Facts()), {"pareto": ("image/svg+xml", b"<svg/>")})
        page = Page(text)
        assert "http://" not in text
        assert "https://" not in text
        sources = [attrs[name] or "" for _, attrs in page.tags for name in ("src", "href") if name in attrs]
        assert all(source.startswith(("data:", "#")) for source in sources)
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        (policy,) = [attrs["content"] or "" for _, attrs in page.tags if "http-equiv" in attrs]
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in policy
        assert "base-uri 'none'; form-action 'none'" in policy
        assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
        assert all(attrs.get("scope") in ("col", "row", "colgroup") for tag, attrs in page.tags if tag == "th")
        assert ("html", {"lang": "en"}) in page.tags
        assert any(tag == "meta" and attrs.get("name") == "viewport" for tag, attrs in page.tags)
        assert "prefers-color-scheme: dark" in text
        names = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(set(names)) == len(names)
        assert {source[1:] for source in sources if source.startswith("#")} <= set(names)
    assert "<script>alert" not in text
    assert "alert(1)" in page.words


def test_columns_sort_by_their_numbers(numbers: list[TableNumbers]) -> None:
    grid = Grid("t", ["a", "b"], [["x", "1,048 to 2,000"], ["y", "6.3 min"], ["z", "-"], ["w", Cell("81.23", "1")]])
    text = render_page("t", [grid], {})
    values = re.findall(r'<td data-value="([^"]*)"', text)
    assert values == ["1048", "378", "", "81.23"]


# -- CSV and JSON --------------------------------------------------------------------------------------------------------


def test_csv_and_json_hold_the_same_numbers(numbers: list[TableNumbers]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table_rows(numbers)).decode())))
    values = report_json(numbers, summary=[], notes=[], problems=[("a", "b")], unfinished=[], written=["x"])
    values = json.loads(json.dumps(values, allow_nan=False))
    assert len(rows) == sum(len(found.numbers) for found in numbers)
    for row in rows:
        table = values["tables"][int(row["table"]) - 1]
        (about,) = [one for one in table["rows"] if one["label"] == row["label"]]
        assert about["data"][row["data"]][row["metric"]]["mean"] == pytest.approx(float(row["mean"]))
    assert {row["leaks"] for row in rows} == {"0"}
    assert to_csv([]) == b""


# -- sentences -----------------------------------------------------------------------------------------------------------


def test_the_summary_follows_the_numbers(numbers: list[TableNumbers]) -> None:
    text = summary_text(numbers)
    main = numbers[0]
    for data in main.table.data:
        best = next(row for row in main.table.rows if main.numbers[row.key, data, "dice"].best)
        mean = main.numbers[best.key, data, "dice"].mean or 0
        line = next(line for line in text if line.startswith(f"{data}:"))
        assert f"{best.label} has the highest DSC, {100 * mean:.2f}" in line
        assert f"{len(main.table.cases[data])} cases, 2 seeds" in line
    tested = next(line for line in text if line.startswith("DSC against Decoder only"))
    assert "Zero-shot" in tested
    assert any(line.startswith("With 10 % of labels") for line in text)
    assert all(set(line) <= {*string.printable, "±", "³"} for line in text)


def test_the_summary_of_little(fake: ModuleType, tmp_path: Path) -> None:
    assert summary_text([]) == ["There is no score yet."]
    fake.FakeRun(tmp_path / "one", [0.5, 0.6], leaks=True, level="p6").write()
    text = summary_text(numbers_of(tmp_path))
    assert text[0].startswith("kvasir_polyp: Dense alone, DSC 55.00 %")
    assert "no leak-free result" in text[-1]
    fake.FakeRun(tmp_path / "one", [float("nan")] * 2).write()
    fake.FakeRun(tmp_path / "two", [float("nan")] * 2, method="lora").write()
    assert "kvasir_polyp: no score yet." in summary_text(numbers_of(tmp_path))[0] or summary_text(numbers_of(tmp_path))


@pytest.mark.parametrize(
    ("leaking", "says", "not_says"),
    [
        (
            [0.8, 0.9],
            "+20.00 points of DSC on average (1 pair of runs of the same seed and data set): not evidence of better",
            "no higher",
        ),
        (
            [0.5, 0.6],
            "-10.00 points of DSC on average (1 pair of runs of the same seed and data set): the words may have been drawn",
            "not evidence",
        ),
        (
            [0.6, 0.7],
            "+0.00 points of DSC on average (1 pair of runs of the same seed and data set): the words may have been drawn",
            "not evidence",
        ),
    ],
)
def test_what_leaking_words_changed(
    fake: ModuleType, tmp_path: Path, leaking: list[float], says: str, not_says: str
) -> None:
    fake.FakeRun(tmp_path / "plain", [0.6, 0.7]).write()
    fake.FakeRun(tmp_path / "told", leaking, level="p6", train_level="p6", leaks=True).write()
    text = summary_text(numbers_of(tmp_path))[-1]
    assert says in text
    assert not_says not in text
