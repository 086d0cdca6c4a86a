"""The numbers of a table: mean and deviation over seeds, intervals over cases, tests against a reference.

Per case the metric is first averaged over the seeds. The interval is the percentile bootstrap of the mean over cases
(groups are resampled whole), so it says how far other cases would move the number; the standard deviation over seeds how
far another training would. Tests are paired permutation tests over cases or groups, corrected by Holm over all
comparisons of one metric in one table, with as many permutations as so many comparisons need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlsm_adapter.errors import UserError, nearest
from vlsm_adapter.metrics import METRICS, compare_runs, paired_difference, summarise
from vlsm_adapter.metrics.aggregate import DEFAULT_RESAMPLES
from vlsm_adapter.metrics.compare import DEFAULT_PERMUTATIONS, holm
from vlsm_adapter.study_report.references import choose_references
from vlsm_adapter.study_report.results import METRIC_NAMES, Case, Result
from vlsm_adapter.study_report.tables import Row, RowKey, Table
from vlsm_adapter.types import CaseScore

SIGNIFICANT = 0.05
# Corrected over many comparisons, the smallest p that the permutations can give must be well below the threshold: this
# many times; up to a number that still takes minutes, not hours.
_FINER = 20
MAX_PERMUTATIONS = 100_000
_TOLD = 6  # runs named in one note


@dataclass
class Number:
    """One metric of one cell. Ratios are from 0 to 1, distances in ``unit``; None is what is not defined.

    Attributes:
        seeds: of the runs; ``by_seed`` the mean over cases of each.
        mean, std: over seeds; std has ddof 1 and needs two.
        ci_low, ci_high: 95 % bootstrap interval over cases of the mean.
        n_cases: with a value in every seed; ``n_undefined`` without.
        unit: ``"ratio"``, ``"mm"``, ``"px"``; ``"mixed"`` where a mean would mean nothing.
        best, second: rank in its column, as displayed.
        difference, diff_low, diff_high: mean difference to the reference on the same cases, with its interval.
        p, p_holm: of the permutation test against the reference, alone and corrected.
        better: whether the difference is for the better; None without a difference.
    """

    seeds: list[int | None]
    by_seed: list[float | None]
    mean: float | None
    std: float | None
    ci_low: float | None
    ci_high: float | None
    n_cases: int
    n_undefined: int
    unit: str
    best: bool = False
    second: bool = False
    difference: float | None = None
    diff_low: float | None = None
    diff_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    better: bool | None = None

    @property
    def significant(self) -> bool:
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


@dataclass
class TableNumbers:
    """A table with its numbers.

    Attributes:
        table: what they are of.
        metrics: shown, in order.
        references: row key to the row that it is tested against, which may be itself; absent for rows that are not
            tested, because their base model has no reference.
        numbers: (row key, data, metric) to its number; absent for a missing cell.
        average: (row key, metric) to the average of the means over all data sets, of rows that have all of them, where
            there are at least two; ``mean`` and ``std`` over ``seeds``, those that all of the data sets have.
        foreground: (row key, data) to Dice of the cases with something to find, for data with empty masks.
        emptiness: (row key, data) to mean counts over seeds of ``both``, ``missed``, ``false_alarm``.
        n_empty: data to cases with an empty true mask.
        lead: data to the paired difference in Dice of the best row to the second, with ``best`` and ``second`` (labels);
            absent where two rows share a rank.
        tests: metric to the number of comparisons that Holm's correction is over.
        permutations: of each test.
        resampled: data to ``"case"`` or ``"group"``.
        lacking: metric to the runs (row key, data, seed) that were not scored so and are not in its cells.
    """

    table: Table
    metrics: tuple[str, ...]
    references: dict[RowKey, Row]
    numbers: dict[tuple[RowKey, str, str], Number] = field(default_factory=dict)
    average: dict[tuple[RowKey, str], dict[str, Any]] = field(default_factory=dict)
    foreground: dict[tuple[RowKey, str], dict[str, Any]] = field(default_factory=dict)
    emptiness: dict[tuple[RowKey, str], dict[str, float]] = field(default_factory=dict)
    n_empty: dict[str, int] = field(default_factory=dict)
    lead: dict[str, dict[str, Any]] = field(default_factory=dict)
    tests: dict[str, int] = field(default_factory=dict)
    resampled: dict[str, str] = field(default_factory=dict)
    permutations: int = DEFAULT_PERMUTATIONS
    lacking: dict[str, list[tuple[RowKey, str, int | None]]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the table, and of the metrics that some of its runs lack."""
        labels = {row.key: row.label for row in self.table.rows}
        told = []
        for metric, runs in self.lacking.items():
            names = [f"{labels[key]}{'' if seed is None else f' seed {seed}'} on {data}" for key, data, seed in runs]
            more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
            told.append(
                f"Without {metric}, and not in its numbers: {', '.join(names[:_TOLD])}{more}. Evaluate them anew."
            )
        return [*self.table.notes, *told]

    @property
    def reference_rows(self) -> list[Row]:
        """The rows that others are tested against, in the order of the table."""
        keys = {row.key for row in self.references.values()}
        return [row for row in self.table.rows if row.key in keys]


def compute(
    table: Table,
    metrics: Sequence[str],
    *,
    reference: str | None = None,
    n_boot: int = DEFAULT_RESAMPLES,
    permutations: int = DEFAULT_PERMUTATIONS,
) -> TableNumbers:
    """All numbers of a table.

    Args:
        table: its results.
        metrics: of `METRIC_NAMES`.
        reference: name or label of the row to test against; by default decoder_only of the same base model, else the
            model's first row.
        n_boot, permutations: of bootstrap and test; with many comparisons there are more permutations, up to
            ``MAX_PERMUTATIONS``.
    """
    found = TableNumbers(table, tuple(metrics), choose_references(table.rows, reference))
    family = sum(
        reference.key != key and (key, data) in table.cells and (reference.key, data) in table.cells
        for key, reference in found.references.items()
        for data in table.data
    )
    found.permutations = max(permutations, min(math.ceil(_FINER * family / SIGNIFICANT), MAX_PERMUTATIONS))
    merged = {data: _column(found, data, n_boot) for data in table.data}
    for metric in metrics:
        _correct(found, metric)
        for data in table.data:
            _rank({row.key: found.numbers.get((row.key, data, metric)) for row in table.rows}, metric)
        _averages(found, metric)
    if "dice" in metrics:
        for data in table.data:
            _lead(found, data, merged[data], n_boot)
    return found


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` without repetitions, in the order of tables.

    Raises:
        UserError: one is not shown in tables.
    """
    for name in names:
        if name not in METRIC_NAMES:
            raise UserError(f"--metric '{name}': {nearest(name, METRIC_NAMES)}")
    return tuple(name for name in METRIC_NAMES if name in names)


# -- a column ------------------------------------------------------------------------------------------------------------


def _groups(cases: Sequence[Case]) -> dict[str, str | None] | None:
    """Case id to group; None where there is none, so that cases are resampled."""
    groups = {case.case_id: case.group for case in cases}
    return groups if any(group is not None for group in groups.values()) else None


def _column(found: TableNumbers, data: str, n_boot: int) -> dict[RowKey, list[CaseScore]]:
    """Fill in the numbers of one data set; row key to its scores per case, averaged over seeds."""
    table = found.table
    cases = table.cases[data]
    by_group = _groups(cases)
    found.resampled[data] = "group" if by_group else "case"
    found.n_empty[data] = sum(case.truth_area == 0 for case in cases)
    rows = [row for row in table.rows if (row.key, data) in table.cells]
    merged: dict[RowKey, list[CaseScore]] = {}
    for row in rows:
        results = table.cells[row.key, data]
        scored = {name: [result for result in results if name in result.values] for name in found.metrics}
        for name in scored:
            if lacking := [(row.key, data, one.seed) for one in results if name not in one.values]:
                found.lacking.setdefault(name, []).extend(lacking)
        present = {name: _values(runs, name, cases) for name, runs in scored.items() if runs}
        merged[row.key] = _merged(cases, present)
        about = summarise(merged[row.key], groups=by_group, n_boot=n_boot)
        for name, values in present.items():
            found.numbers[row.key, data, name] = _number(scored[name], values, about["metrics"][name])
        found.emptiness[row.key, data] = _emptiness(results, cases)
        if found.n_empty[data] and "dice" in present:
            found.foreground[row.key, data] = about["truth_foreground"]["metrics"]["dice"]
    for row in rows:
        reference = found.references.get(row.key)
        if reference is not None and reference.key != row.key and reference.key in merged:
            _compare(found, data, row.key, reference.key, merged, by_group, n_boot)
    return merged


def _values(results: Sequence[Result], metric: str, cases: Sequence[Case]) -> np.ndarray:
    """Values (seeds, cases) of a metric that all ``results`` have, NaN where one seed has none."""
    columns = []
    for result in results:
        place = {case.case_id: index for index, case in enumerate(result.cases)}
        values = result.values[metric]
        columns.append([values[place[case.case_id]] for case in cases])
    table = np.array(columns, dtype=np.float64)
    # A case counts where every seed has a value, so that the mean of the seeds' means is the mean of the cases' means.
    table[:, ~np.isfinite(table).all(axis=0)] = np.nan
    return table


def _merged(cases: Sequence[Case], values: Mapping[str, np.ndarray]) -> list[CaseScore]:
    """A score per case: the mean over seeds."""
    means = {name: table.mean(axis=0) for name, table in values.items()}
    return [
        CaseScore(
            case.case_id,
            "",
            {name: float(column[index]) for name, column in means.items()},
            case.unit,
            "none",  # of the mean of several predictions there is no such kind; it is counted apart
            case.truth_area,
            0,
        )
        for index, case in enumerate(cases)
    ]


def _number(results: Sequence[Result], values: np.ndarray, about: Mapping[str, Any]) -> Number:
    defined = np.isfinite(values).all(axis=0)
    comparable = about["unit"] != "mixed" and bool(defined.any())
    by_seed: list[float | None] = [float(np.mean(row[defined])) if comparable else None for row in values]
    numbers = [value for value in by_seed if value is not None]
    return Number(
        seeds=[result.seed for result in results],
        by_seed=by_seed,
        mean=float(np.mean(numbers)) if numbers else None,
        std=float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
        ci_low=about["ci_low"] if comparable else None,
        ci_high=about["ci_high"] if comparable else None,
        n_cases=int(defined.sum()),
        n_undefined=int((~defined).sum()),
        unit=about["unit"],
    )


def _emptiness(results: Sequence[Result], cases: Sequence[Case]) -> dict[str, float]:
    compared = {case.case_id for case in cases}
    kinds = ("both", "missed", "false_alarm")
    counts = {
        kind: [
            sum(
                found == kind and case.case_id in compared
                for case, found in zip(result.cases, result.emptiness, strict=True)
            )
            for result in results
        ]
        for kind in kinds
    }
    return {kind: sum(found) / len(found) for kind, found in counts.items()}


def _compare(
    found: TableNumbers,
    data: str,
    key: RowKey,
    reference: RowKey,
    merged: Mapping[RowKey, Sequence[CaseScore]],
    groups: Mapping[str, str | None] | None,
    n_boot: int,
) -> None:
    """The paired test of one row against its reference, on one data set, for every metric that both have."""
    names = [
        name
        for name in found.metrics
        if all((one, data, name) in found.numbers for one in (key, reference))
        and found.numbers[key, data, name].unit != "mixed"
    ]
    if not names:
        return
    pair = {"reference": merged[reference], "row": merged[key]}
    about = compare_runs(pair, metrics=names, groups=groups, n_boot=n_boot, permutations=found.permutations)
    for row in about["rows"]:
        number = found.numbers[key, data, row["metric"]]
        number.difference, number.diff_low, number.diff_high = (
            row[name] for name in ("mean_difference", "ci_low", "ci_high")
        )
        number.p = row["p_sign_flip"]
        if number.difference is not None and number.difference != 0:
            number.better = (number.difference > 0) == METRICS.get(row["metric"]).higher_is_better


def _correct(found: TableNumbers, metric: str) -> None:
    tested = [number for (_, _, name), number in found.numbers.items() if name == metric and number.p is not None]
    found.tests[metric] = len(tested)
    for number, corrected in zip(tested, holm([number.p for number in tested]), strict=True):
        number.p_holm = corrected


def _rank(column: Mapping[RowKey, Number | None], metric: str) -> None:
    """Mark the best and the second of a column; what is displayed alike shares its rank."""
    shown = {
        key: displayed(metric, number.mean) for key, number in column.items() if number and number.mean is not None
    }
    if len(shown) < 2:
        return
    ranked = sorted({float(text) for text in shown.values()}, reverse=METRICS.get(metric).higher_is_better)
    for key, text in shown.items():
        number = column[key]
        assert number is not None
        number.best = float(text) == ranked[0]
        number.second = len(ranked) > 1 and float(text) == ranked[1]


def _lead(found: TableNumbers, data: str, merged: Mapping[RowKey, Sequence[CaseScore]], n_boot: int) -> None:
    ranked = {row.key: found.numbers.get((row.key, data, "dice")) for row in found.table.rows}
    best = [key for key, number in ranked.items() if number and number.best]
    second = [key for key, number in ranked.items() if number and number.second]
    if len(best) != 1 or len(second) != 1:
        return
    labels = {row.key: row.label for row in found.table.rows}
    groups = _groups(found.table.cases[data])
    about = paired_difference(merged[best[0]], merged[second[0]], "dice", groups=groups, n_boot=n_boot)
    found.lead[data] = {"best": labels[best[0]], "second": labels[second[0]], **about}


def displayed(metric: str, value: float) -> str:
    """A mean as it stands in tables: percent for ratios, two decimals."""
    return f"{value * 100:.2f}" if METRICS.get(metric).unit == "ratio" else f"{value:.2f}"


def _averages(found: TableNumbers, metric: str) -> None:
    """Average over data sets, of rows that have all of them, with a seed in common."""
    table = found.table
    if len(table.data) < 2:
        return
    for row in table.rows:
        numbers = [found.numbers.get((row.key, data, metric)) for data in table.data]
        present = [number for number in numbers if number is not None and number.mean is not None]
        if len(present) < len(numbers) or len({number.unit for number in present}) > 1:
            continue
        by_seed = [dict(zip(number.seeds, number.by_seed, strict=True)) for number in present]
        seeds = [seed for seed in by_seed[0] if all(seed in one for one in by_seed)]
        if not seeds:
            continue
        means = [float(np.mean([one[seed] for one in by_seed])) for seed in seeds]
        found.average[row.key, metric] = {
            "mean": float(np.mean(means)),
            "std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
            "seeds": seeds,
            "unit": present[0].unit,
        }
    ranked: dict[RowKey, Number | None] = {
        row.key: Number([], [], found.average[row.key, metric]["mean"], None, None, None, 0, 0, "")
        for row in table.rows
        if (row.key, metric) in found.average
    }
    _rank(ranked, metric)
    for key, number in ranked.items():
        assert number is not None
        found.average[key, metric].update(best=number.best, second=number.second)
