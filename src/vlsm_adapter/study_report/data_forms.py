"""The report's numbers for other programs: CSV in long form, and JSON with everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsm_adapter import files
from vlsm_adapter.study_report.cells import cases_of_training, reference_name, setting_values
from vlsm_adapter.study_report.extras import heard_of
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.reading import REPORT_FORMAT
from vlsm_adapter.study_report.tables import Row

REPORT_VERSION = 1


def table_rows(tables: Sequence[TableNumbers]) -> list[dict[str, Any]]:
    """A row per table, method, data set and metric: everything that stands in the tables, as numbers."""
    return [
        {
            "table": number,
            **{key: "" if value is None else value for key, value in setting_values(found).items()},
            "data": data,
            "leaks": int(data in found.table.leaks),
            "label": row.label,
            "method": row.name,
            "model": row.model,
            "trainable_parameters": "" if row.trainable is None else row.trainable[1],
            "metric": metric,
            "unit": about.unit,
            "mean": about.mean,
            "std": about.std,
            "n_seeds": len([seed for seed in about.seeds if seed is not None]),
            "seeds": " ".join(str(seed) for seed in about.seeds if seed is not None),
            "ci_low": about.ci_low,
            "ci_high": about.ci_high,
            "n_cases": about.n_cases,
            "n_undefined": about.n_undefined,
            "best": int(about.best),
            "reference": _reference(found, row) or "",
            "difference": about.difference,
            "difference_low": about.diff_low,
            "difference_high": about.diff_high,
            "p": about.p,
            "p_holm": about.p_holm,
        }
        for number, found in enumerate(tables, start=1)
        for row in found.table.rows
        for data in found.table.data
        for metric in found.metrics
        if (about := found.numbers.get((row.key, data, metric))) is not None
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """CSV with a head; None is an empty field. Empty where there is no row."""
    if not rows:
        return b""
    return files.csv_text(list(rows[0]), rows).encode("utf-8", "backslashreplace")


def report_json(
    tables: Sequence[TableNumbers],
    *,
    summary: Sequence[str],
    notes: Sequence[str],
    problems: Sequence[tuple[str, str]],
    unfinished: Sequence[tuple[str, str]],
    written: Sequence[str],
) -> dict[str, Any]:
    """Everything that the report says, as valid JSON; ``files`` are those of the report, relative to its folder."""
    return {
        "format": REPORT_FORMAT,
        "format_version": REPORT_VERSION,
        "summary": list(summary),
        "notes": list(notes),
        "unfinished": [{"place": place, "state": state} for place, state in unfinished],
        "left_out": [{"place": place, "reason": reason} for place, reason in problems],
        "tables": [_table_json(found) for found in tables],
        "files": list(written),
    }


def _reference(found: TableNumbers, row: Row) -> str | None:
    """The label of the row that ``row`` is tested against; None where it is not."""
    reference = found.references.get(row.key)
    return None if reference is None else reference.label


def _table_json(found: TableNumbers) -> dict[str, Any]:
    table = found.table
    heard, _ = heard_of(table)
    rows = []
    for row in table.rows:
        data: dict[str, Any] = {}
        for one in table.data:
            numbers = {
                metric: vars(found.numbers[row.key, one, metric])
                for metric in found.metrics
                if (row.key, one, metric) in found.numbers
            }
            if numbers:
                data[one] = {**numbers, "emptiness": found.emptiness.get((row.key, one))}
            if (about := heard.get((row.key, one))) is not None:
                data.setdefault(one, {})["prompt_sensitivity"] = vars(about)
        rows.append(
            {
                "label": row.label,
                "method": row.name,
                "model": row.model,
                "trainable_parameters": row.trainable,
                "reference": _reference(found, row),
                "data": data,
                "average": {
                    metric: found.average[row.key, metric]
                    for metric in found.metrics
                    if (row.key, metric) in found.average
                },
            }
        )
    return {
        "title": table.title,
        "setting": setting_values(found),
        "leaks": sorted(table.leaks),
        "notes": found.notes,
        "reference": reference_name(found),
        "tests": found.tests,
        "permutations": found.permutations,
        "resampled": found.resampled,
        "n_cases": {data: len(cases) for data, cases in table.cases.items()},
        "n_empty": found.n_empty,
        "n_training": {data: cases_of_training(found, data, "train_cases") for data in table.data},
        "n_validation": {data: cases_of_training(found, data, "val_cases") for data in table.data},
        "reveal_emptiness": table.reveals,
        "rows": rows,
    }
