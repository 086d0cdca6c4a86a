"""How numbers look: the text of a cell, a head, a count, a time; one place for every form of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlsm_adapter.metrics import METRICS
from vlsm_adapter.metrics.aggregate import FEWEST_RESAMPLED
from vlsm_adapter.study_report.naming import display_name
from vlsm_adapter.study_report.numbers import SIGNIFICANT, Number, TableNumbers, displayed
from vlsm_adapter.study_report.results import OWN_SUBSET, SUBSET_SEED, Case
from vlsm_adapter.study_report.tables import Row, RowKey

_HEADS = {"dice": "DSC", "iou": "IoU", "hd95": "HD95", "nsd": "NSD"}
BETTER, WORSE = "*", "†"
# Two of 2^n assignments of signs are all alike: the smallest p, which is above 0.05 with five groups and below with six.
_FEWEST = 6


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as text.

    Attributes:
        mean: ``"81.23"``; ``"-"`` where there is none.
        std: ``"1.04"`` or empty.
        mark: `BETTER` or `WORSE` than the reference, significantly; else empty.
        best, second: of its column.
        seeds: how many, where they are not as many as usual in the table; else None.
        low, high: of the interval; empty where there is none.
    """

    mean: str = "-"
    std: str = ""
    mark: str = ""
    best: bool = False
    second: bool = False
    seeds: int | None = None
    low: str = ""
    high: str = ""


def cell_of(found: TableNumbers, key: RowKey, data: str, metric: str) -> Cell:
    """The cell of a row, data set and metric."""
    number = found.numbers.get((key, data, metric))
    if number is None or number.mean is None:
        return Cell()
    mark = "" if not number.significant or number.better is None else BETTER if number.better else WORSE
    usual = usual_seeds(found)
    trained = number.seeds != [None]
    return Cell(
        displayed(metric, number.mean),
        "" if number.std is None else displayed(metric, number.std),
        mark,
        number.best,
        number.second,
        len(number.seeds) if trained and len(number.seeds) != usual else None,
        "" if number.ci_low is None else displayed(metric, number.ci_low),
        "" if number.ci_high is None else displayed(metric, number.ci_high),
    )


def average_cell(found: TableNumbers, key: RowKey, metric: str) -> Cell:
    """The cell of the average over data sets."""
    about = found.average.get((key, metric))
    if about is None:
        return Cell()
    std = "" if about["std"] is None else displayed(metric, about["std"])
    count = len(about["seeds"])
    seeds = count if about["seeds"] != [None] and count != usual_seeds(found) else None
    return Cell(displayed(metric, about["mean"]), std, best=about["best"], second=about["second"], seeds=seeds)


def has_seeds(found: TableNumbers) -> bool:
    """Whether some method was trained with more than one seed: else there are no deviations."""
    return any(len(cell) > 1 for cell in found.table.cells.values())


def usual_seeds(found: TableNumbers) -> int:
    """The number of seeds that most cells have."""
    counts = [len(cell) for cell in found.table.cells.values() if not cell[0].is_zero_shot]
    return max(set(counts), key=lambda count: (counts.count(count), count)) if counts else 1


def averaged(found: TableNumbers) -> tuple[str, ...]:
    """Metrics with a column of averages: of ratios alone, pixels of different images are no measure."""
    return tuple(
        name
        for name in found.metrics[:1]
        if METRICS.get(name).unit == "ratio" and any((row.key, name) in found.average for row in found.table.rows)
    )


def head_of(found: TableNumbers, data: str, metric: str) -> str:
    """``"DSC (%)"``, ``"HD95 (px)"``."""
    unit = next((n.unit for (_, one, name), n in found.numbers.items() if (one, name) == (data, metric)), "ratio")
    return f"{_HEADS[metric]} ({'%' if METRICS.get(metric).unit == 'ratio' else unit})"


def metric_name(metric: str) -> str:
    """``"DSC"``, as the paper calls it."""
    return _HEADS[metric]


def arrow(metric: str) -> str:
    """The direction of better."""
    return "↑" if METRICS.get(metric).higher_is_better else "↓"


def points(value: float) -> str:
    """A difference of ratios in points of percent, with its sign."""
    return f"{100 * value:+.2f}"


def difference(metric: str, number: Number) -> str:
    """Difference to the reference with its interval; ``-`` where it was not compared."""
    if number.difference is None:
        return "-"
    scale = 100.0 if METRICS.get(metric).unit == "ratio" else 1.0
    text = f"{scale * number.difference:+.2f}"
    if number.diff_low is None or number.diff_high is None:
        return text
    return f"{text} [{scale * number.diff_low:+.2f}, {scale * number.diff_high:+.2f}]"


def p_value(value: float | None) -> str:
    """``0.0031``; ``-`` where nothing was tested."""
    if value is None:
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def trainable(row: Row) -> str:
    """Trainable parameters in full; a range where the row's runs differ."""
    if row.trainable is None:
        return "-"
    low, high = row.trainable
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def short_count(value: float) -> str:
    """``894k``, ``5.19M``, to three digits."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """``45 s``, ``6.3 min``, ``2.1 h``."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def memory(value: float | None) -> str:
    """``1.48 GB``; ``-`` where it was not measured."""
    if value is None:
        return "-"
    return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.0f} MB"


def reference_name(found: TableNumbers) -> str | None:
    """The row that others are tested against, or what those of several base models are; None where there is none."""
    rows = found.reference_rows
    if len(rows) < 2:
        return rows[0].label if rows else None
    names = {row.name for row in rows}
    which = display_name(rows[0].name) if len(names) == 1 else "the first method"
    return f"{which} of the same base model"


def caption(found: TableNumbers) -> str:
    """What every number of the table is; one paragraph."""
    seeds = usual_seeds(found)
    several = has_seeds(found)
    text = f"Mean {'± standard deviation over seeds' if several else '(one seed)'} of the mean over cases"
    text += f" ({seeds} seeds unless stated)" if several else ""
    drawn = {one.recipe.get(SUBSET_SEED) for cell in found.table.cells.values() for one in cell if one.seed is not None}
    text += "; each seed has its own part of the training cases" if several and drawn == {OWN_SUBSET} else ""
    text += "; best in bold, second underlined"
    if found.average and averaged(found):
        text += "; averages are over the seeds that every data set has"
    reference = reference_name(found)
    if reference is not None and any(found.tests.values()):
        unit = "groups (patients, videos)" if "group" in found.resampled.values() else "cases"
        if len(set(found.resampled.values())) > 1:
            unit = "groups (patients, videos) or cases"
        count = max(found.tests.values())
        text += (
            f"; {BETTER} significantly better, {WORSE} significantly worse than {reference} (paired permutation "
            f"test over {unit}, seeds averaged, p < 0.05 after Holm's correction over the {count} "
            f"comparison{'' if count == 1 else 's'} of a metric in this table)"
        )
        if any(row.key not in found.references for row in found.table.rows):
            text += "; what is on a base model without it is not tested"
        if few := _too_few(found):
            text += (
                f"; on {', '.join(few)} no difference can be significant: with fewer than {_FEWEST} {unit} no p is below "
                f"{SIGNIFICANT:g}"
            )
        if count >= SIGNIFICANT * (found.permutations + 1):
            text += (
                f"; with {found.permutations:,} permutations and so many comparisons no difference can be significant"
            )
    return f"{text}."


def _too_few(found: TableNumbers) -> list[str]:
    """Data sets that are tested over so few groups or cases that even all signs alike are no rare event."""
    tested = {data for (_, data, _), number in found.numbers.items() if number.p is not None}
    return [data for data in found.table.data if data in tested and _units(found.table.cases[data]) < _FEWEST]


def _units(cases: Sequence[Case]) -> int:
    """What a test permutes: groups, and cases without one."""
    groups = {case.group for case in cases if case.group is not None}
    return len(groups) + sum(case.group is None for case in cases)


def sizes(found: TableNumbers) -> str:
    """Cases of each data set: those compared, and where it is known, those of training and validation."""
    parts = []
    for data in found.table.data:
        empty = found.n_empty.get(data, 0)
        told = [f"{empty} with an empty true mask"] if empty else []
        told += [
            f"{what} {_range(counts)}"
            for what, name in (("training", "train_cases"), ("validation", "val_cases"))
            if (counts := cases_of_training(found, data, name))
        ]
        parts.append(f"{data} {len(found.table.cases[data])}" + (f" ({', '.join(told)})" if told else ""))
    text = "Cases: " + "; ".join(parts) + "."
    if few := [data for data in found.table.data if 1 < _units(found.table.cases[data]) < FEWEST_RESAMPLED]:
        text += (
            f" Intervals over cases of {', '.join(few)} are too narrow: with fewer than {FEWEST_RESAMPLED} to resample."
        )
    return text


def cases_of_training(found: TableNumbers, data: str, name: str) -> list[int]:
    """The distinct numbers of ``train_cases`` or ``val_cases`` of a column's runs, as far as known."""
    runs = (run for (_, column), cell in found.table.cells.items() if column == data for run in cell)
    return sorted({int(run.resources[name]) for run in runs if name in run.resources})


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


EMPTY_MASKS = (
    "Empty masks: both empty counts as DSC, IoU and NSD 100 % and HD95 0; one of the two empty as 0 % and an HD95 of the "
    "image diagonal. No case is left out for it."
)


def setting_values(found: TableNumbers) -> dict[str, Any]:
    """The table's setting as plain values, for JSON and CSV."""
    setting = found.table.setting
    return {name: getattr(setting, name) for name in type(setting).__slots__}
