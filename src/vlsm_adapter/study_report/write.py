"""The report of a study: read what is there, compute, draw, write; files alone, never a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vlsm_adapter import files
from vlsm_adapter.errors import ConfigError, UserError, nearest
from vlsm_adapter.markdown import plural
from vlsm_adapter.metrics.aggregate import DEFAULT_RESAMPLES
from vlsm_adapter.study_report.alike import trained_alike
from vlsm_adapter.study_report.data_forms import report_json, table_rows, to_csv
from vlsm_adapter.study_report.document import Facts, FigureItem, Item, build
from vlsm_adapter.study_report.extras import run_rows
from vlsm_adapter.study_report.latex import data_down, methods_down
from vlsm_adapter.study_report.markdown_form import render_markdown
from vlsm_adapter.study_report.numbers import TableNumbers, check_metrics, compute
from vlsm_adapter.study_report.page import render_page
from vlsm_adapter.study_report.reading import REPORT_FILE, REPORT_FORMAT, Found, find_results
from vlsm_adapter.study_report.references import check_reference
from vlsm_adapter.study_report.results import Result
from vlsm_adapter.study_report.sentences import summary_text
from vlsm_adapter.study_report.small import distinct, read_small, write_small
from vlsm_adapter.study_report.tables import MAIN_SPLITS, Row, arrange

DEFAULT_METRICS = ("dice", "iou", "hd95")
_SMALL_TABLE = "table.json"
_TITLE = "Study report"


@dataclass
class StudyReport:
    """What was written.

    Attributes:
        folder: of the report.
        small: of the small form, or None.
        notes: one line each, for people at the command line.
    """

    folder: Path
    small: Path | None = None
    notes: list[str] = field(default_factory=list)


def write_study_report(
    roots: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    small: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    reference: str | None = None,
    splits: Sequence[str] | None = None,
    common: bool = False,
    images: bool = True,
    n_boot: int = DEFAULT_RESAMPLES,
) -> StudyReport:
    """Report on every run below ``roots``.

    Args:
        roots: folders that hold run folders, evaluations or the small form, at any depth.
        out: folder of the report; by default ``report`` in the first root.
        small: also write the small form there. What it holds already is part of the report.
        metrics: of the tables, by default Dice, IoU and HD95; ``nsd`` beside them.
        reference: method to test the others against; by default decoder_only of the same base model, else
            the first.
        splits: of the evaluations, by default test, and all cases of other data.
        common: compare the cases that all have, in place of leaving out results of other cases.
        images: draw the grid of images; without it the report has no image of the data.
        n_boot: bootstrap resamples.

    Raises:
        UserError: there is nothing to report on, two results of one cell and seed differ, a name or a split is unknown,
            or the folder cannot be written.
    """
    chosen = check_metrics(metrics or DEFAULT_METRICS)
    folder = Path(out) if out is not None else Path(roots[0]) / "report"
    _check_folder(folder)
    places = [Path(root) for root in roots]
    small_folder = None if small is None else Path(small)
    if small_folder is not None:
        _check_small(small_folder)
        if small_folder.is_dir() and small_folder.resolve() not in {place.resolve() for place in places}:
            places.append(small_folder)
    found = find_results(places)
    results, notes = _gather(found, places)
    _check_splits(results, splits)
    averaged, otherwise = trained_alike(results)
    found.problems += otherwise
    tables, rows, told = arrange(averaged, splits=splits or MAIN_SPLITS, common=common)
    notes += told
    if reference is not None:
        check_reference(rows, reference)
    numbers = [compute(table, chosen, reference=reference, n_boot=n_boot) for table in tables]
    labels = {
        run.key: row.label for table in tables for row in table.rows for data in table.data
        for run in table.cells.get((row.key, data), ())
    }  # fmt: skip
    runs = to_csv(run_rows(results, labels))
    report = StudyReport(folder, small_folder)
    pictures: list[tuple[FigureItem, dict[str, bytes]]] = []
    try:
        pictures = _draw(numbers, rows, images)
    except ConfigError as error:  # the tables are worth having without it
        report.notes.append(str(error))
        notes.append(str(error))
    facts = Facts(notes, found.problems, found.unfinished, len(averaged), version=_version())
    items = build(numbers, [item for item, _ in pictures], facts)
    _write(folder, numbers, items, pictures, facts, runs)
    if small_folder is not None:
        write_small(results, small_folder)
        # First the one that tells whose files the others are.
        files.write_json(small_folder / _SMALL_TABLE, _json(numbers, facts, []))
        files.write_bytes(small_folder / "runs.csv", runs)
        files.write_bytes(small_folder / "table.csv", to_csv(table_rows(numbers)))
    report.notes += _told(report, found, averaged, numbers)
    return report


def _gather(found: Found, places: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Distinct results of run folders and of the small form."""
    results = list(found.results)
    for path in dict.fromkeys(found.small_files):
        try:
            results.append(read_small(path))
        except UserError as error:
            found.problems.append((path.name, str(error).removeprefix(f"{path.name}: ")))
    if not results:
        where = ", ".join(map(str, places))
        if found.problems:
            place, reason = found.problems[0]
            more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
            raise UserError(f"{where}: no evaluation can be used; {place}: {reason}{more}")
        if found.unfinished:
            raise UserError(
                f"{where}: {plural(len(found.unfinished), 'run')}, none evaluated yet: run 'vlsm evaluate' on them"
            )
        raise UserError(f"{where}: no run folder and no result of a study below it; give a folder that holds some")
    return distinct(results)


def _check_splits(results: Sequence[Result], wanted: Sequence[str] | None) -> None:
    """Refuse to report on splits of which there is nothing.

    Raises:
        UserError: with the splits there are.
    """
    there = {result.split for result in results}
    for split in wanted or ():
        if split not in there:
            raise UserError(f"--split '{split}': no result is of this split; {nearest(split, there)}")
    if wanted is None and there.isdisjoint(MAIN_SPLITS):
        main = " or ".join(MAIN_SPLITS)
        raise UserError(f"no result is of split {main}: choose with --split one of {', '.join(sorted(there))}")


def _draw(
    numbers: Sequence[TableNumbers], rows: Sequence[Row], images: bool
) -> list[tuple[FigureItem, dict[str, bytes]]]:
    from vlsm_adapter.study_report.figures.draw import draw_all

    return list(draw_all(numbers, rows, images=images))


# -- files ---------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    numbers: Sequence[TableNumbers],
    items: Sequence[Item],
    pictures: Sequence[tuple[FigureItem, dict[str, bytes]]],
    facts: Facts,
    runs: bytes,
) -> None:
    """Every file of the report, ``report.json`` last; files of an earlier report that this one lacks are removed.

    Where no report stands, one without tables comes first: a command that is killed leaves a folder which the next one
    knows as a report's.
    """
    content: dict[str, bytes] = {}
    for item, by_ending in pictures:
        content |= {f"figures/{item.name}.{ending}": data for ending, data in by_ending.items()}
    for number, found in enumerate(numbers, start=1):
        content[f"tables/table{number}.tex"] = methods_down(found, f"tab:study{number}").encode()
        content[f"tables/table{number}_by_data.tex"] = data_down(found, f"tab:study{number}-data").encode()
    content["table.csv"] = to_csv(table_rows(numbers))
    content["runs.csv"] = runs
    content["report.md"] = render_markdown(_TITLE, items).encode("utf-8", "backslashreplace")
    shown = {item.name: _embedded(item.name, by_ending) for item, by_ending in pictures}
    content["report.html"] = render_page(_TITLE, items, shown).encode("utf-8", "backslashreplace")
    before = _files_before(folder)
    if not (folder / REPORT_FILE).is_file():
        files.write_json(folder / REPORT_FILE, _json([], Facts(), sorted(content)))
    for name, data in content.items():
        files.write_bytes(folder / name, data)
    files.write_json(folder / REPORT_FILE, _json(numbers, facts, sorted(content)))
    for name in before - content.keys():
        (folder / name).unlink(missing_ok=True)


def _embedded(name: str, by_ending: dict[str, bytes]) -> tuple[str, bytes]:
    """A figure for the page: lines as SVG, photographs as PNG, each the smaller of the two for its kind."""
    if name.startswith("qualitative"):
        return "image/png", by_ending["png"]
    return "image/svg+xml", by_ending["svg"]


def _json(numbers: Sequence[TableNumbers], facts: Facts, written: Sequence[str]) -> dict[str, object]:
    return report_json(
        numbers,
        summary=summary_text(numbers),
        notes=facts.notes,
        problems=facts.problems,
        unfinished=facts.unfinished,
        written=written,
    )


def _check_folder(folder: Path) -> None:
    """Refuse to write among files that are not a report's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder for the report with --out")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder / REPORT_FILE):
        raise UserError(f"{folder}: is not empty and holds no report of a study; choose another --out")


def _check_small(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder for the small form with --small")
    ours = ("table.csv", "runs.csv", _SMALL_TABLE)
    taken = next((name for name in ours if (folder / name).exists()), None)
    if taken is not None and not _is_ours(folder / _SMALL_TABLE):
        raise UserError(f"{folder / taken}: is there already and not of a study's small form; choose another --small")


def _is_ours(file: Path) -> bool:
    return file.is_file() and _read(file).get("format") == REPORT_FORMAT


def _read(file: Path) -> dict[str, object]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _files_before(folder: Path) -> set[str]:
    """Files of the report that stands there, as far as they lie in its folder."""
    listed = _read(folder / REPORT_FILE).get("files")
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    parts = {name: PurePosixPath(name).parts for name in names}
    return {name for name in names if name and not name.startswith("/") and ".." not in parts[name]}


def _told(report: StudyReport, found: Found, results: Sequence[Result], numbers: Sequence[TableNumbers]) -> list[str]:
    lines = [f"{plural(len(results), 'result')} in {plural(len(numbers), 'table')}"]
    if found.unfinished:
        lines[0] += f"; {plural(len(found.unfinished), 'run')} not finished"
    lines += [f"left out {place}: {reason}" for place, reason in found.problems[:5]]
    if len(found.problems) > 5:
        lines.append(f"and {len(found.problems) - 5} more left out; the report lists them")
    lines.append(f"report: {report.folder / 'report.html'}")
    if report.small is not None:
        lines.append(f"small form: {report.small}")
    return lines


def _version() -> str:
    from vlsm_adapter import __version__

    return __version__
