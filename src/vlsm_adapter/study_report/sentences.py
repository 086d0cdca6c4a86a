"""The reading of the numbers in words; every word follows from the numbers, none is written beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlsm_adapter.study_report.cells import has_seeds, points, reference_name, short_count
from vlsm_adapter.study_report.naming import listed, percent_or_cases
from vlsm_adapter.study_report.numbers import TableNumbers
from vlsm_adapter.study_report.tables import Row, Setting

#: A method "about as good" loses less than this of Dice.
_NEAR = 0.01


def summary_text(tables: Sequence[TableNumbers]) -> list[str]:
    """Sentences on the main table, then on labels and leaking words where the study varies them."""
    if not tables or not any(number.mean is not None for found in tables for number in found.numbers.values()):
        return ["There is no score yet."]
    main = tables[0]
    return [
        *_best(main),
        *_against_reference(main),
        *_averages(main),
        *_fewer_labels(tables),
        *_leaks(tables),
    ]


def _best(found: TableNumbers) -> list[str]:
    if "dice" not in found.metrics:
        return []  # not asked for, which is not the same as not there yet
    lines = []
    for data in found.table.data:
        numbers = {
            row.label: number
            for row in found.table.rows
            if (number := found.numbers.get((row.key, data, "dice"))) is not None and number.mean is not None
        }
        if not numbers:
            lines.append(f"{data}: no score yet.")
            continue
        cases = len(found.table.cases[data])
        if len(numbers) == 1:
            label, number = next(iter(numbers.items()))
            lines.append(
                f"{data}: {label} alone, DSC {_mean(number.mean, number.std, number.ci_low, number.ci_high)} ({cases} cases)."
            )
            continue
        best = [label for label, number in numbers.items() if number.best]
        first = numbers[best[0]]
        text = f"{data}: {listed(best)} {'has' if len(best) == 1 else 'have'} the highest DSC, "
        text += (
            f"{_mean(first.mean, first.std, first.ci_low, first.ci_high)} ({cases} cases, {_seeds(len(first.seeds))})"
        )
        if (lead := found.lead.get(data)) is not None and lead["mean_difference"] is not None:
            low, high = lead["ci_low"], lead["ci_high"]
            text += f"; {points(lead['mean_difference'])} points"
            text += f" [{points(low)}, {points(high)}]" if low is not None else ""
            text += f" to the second, {lead['second']}"
            if low is not None and low <= 0 <= high:
                text += ", an interval that includes no difference"
        lines.append(f"{text}.")
    return lines


def _against_reference(found: TableNumbers) -> list[str]:
    reference = reference_name(found)
    if reference is None or not found.tests.get("dice"):
        return []
    better: list[str] = []
    mixed: list[str] = []
    worse: list[str] = []
    none: list[str] = []
    data = found.table.data
    for row in found.table.rows:
        numbers = [found.numbers.get((row.key, one, "dice")) for one in data]
        tested = [number for number in numbers if number is not None and number.p_holm is not None]
        if not tested:
            continue
        ups = sum(number.significant and number.better is True for number in tested)
        downs = sum(number.significant and number.better is False for number in tested)
        if ups == len(tested):
            better.append(row.label)
        elif downs == len(tested):
            worse.append(row.label)
        elif ups or downs:
            told = ([f"better on {ups}"] if ups else []) + ([f"worse on {downs}"] if downs else [])
            mixed.append(f"{row.label} ({' and '.join(told)} of {len(tested)})")
        else:
            none.append(row.label)
    where = "the data set" if len(data) == 1 else "every data set compared"
    parts = [f"better on {where}: {listed(better)}"] if better else []
    parts += [f"on some: {listed(mixed)}"] if mixed else []
    parts += [f"worse on {where}: {listed(worse)}"] if worse else []
    parts += [f"no significant difference: {listed(none)}"] if none else []
    count = found.tests["dice"]
    return [
        f"DSC against {reference} (p < 0.05 after Holm's correction over {count} "
        f"comparison{'' if count == 1 else 's'}): {'; '.join(parts)}. These tests say whether a difference holds for other "
        "cases; whether it holds for other seeds, "
        + ("the deviations over seeds say." if has_seeds(found) else "one seed cannot say.")
    ]


def _averages(found: TableNumbers) -> list[str]:
    ranked = sorted(
        (
            (found.average[row.key, "dice"]["mean"], row)
            for row in found.table.rows
            if (row.key, "dice") in found.average
        ),
        key=lambda item: -item[0],
    )
    if len(ranked) < 2:
        return []
    top, best = ranked[0]
    text = f"On average over the {len(found.table.data)} data sets {best.label} is best, DSC {100 * top:.2f} %"
    text += f", with {_size(best)}"
    near = [row for mean, row in ranked if mean >= top - _NEAR and row.trainable is not None and row.trainable[1] > 0]
    smallest = min(near, key=lambda row: row.trainable[1] if row.trainable else 0, default=None)
    if smallest is not None and smallest is not best and best.trainable and smallest.trainable:
        mean = next(mean for mean, row in ranked if row is smallest)
        text += (
            f"; within a point of it, the fewest are trained by {smallest.label}: {_size(smallest)} "
            f"({100 * smallest.trainable[1] / best.trainable[1]:.3g} % of those), DSC {100 * mean:.2f} %"
        )
    return [f"{text}."]


def _fewer_labels(tables: Sequence[TableNumbers]) -> list[str]:
    """What every further table of the main one's kind, with other labels, says in comparison."""
    main, lines = tables[0], []
    for other in tables[1:]:
        if _without(other.table.setting, "fraction") != _without(main.table.setting, "fraction"):
            continue
        losses = _changes(main, other, main.table.data)
        if not losses:
            continue
        kept = max(losses, key=lambda one: one.points)
        lost = min(losses, key=lambda one: one.points)
        mean = float(np.mean([one.points for one in losses]))
        text = (
            f"With {percent_or_cases(other.table.setting.fraction)}, DSC changes by {points(mean)} points on average over "
            f"methods and data sets ({_paired(losses)})"
        )
        if len(losses) > 1:
            text += f"; {kept.label} keeps most ({points(kept.points)}), {lost.label} least ({points(lost.points)})"
        best = _best_average(other)
        text += f"; the best average is that of {best[1]}, {100 * best[0]:.2f} %" if best else ""
        lines.append(f"{text}.")
    return lines


def _leaks(tables: Sequence[TableNumbers]) -> list[str]:
    main, lines = tables[0], []
    if main.table.leaks:
        level, leaking = main.table.setting.level, [data for data in main.table.data if data in main.table.leaks]
        if len(leaking) == len(main.table.data):
            return [
                f"There is no leak-free result of this kind: the words of level {level} may have been drawn from the true "
                "masks, and all of this flatters."
            ]
        return [
            f"The words of level {level} may have been drawn from the true masks of {listed(leaking)}: what is said of "
            f"{'it' if len(leaking) == 1 else 'them'}, and averages with {'it' if len(leaking) == 1 else 'them'}, flatters."
        ]
    for other in tables[1:]:
        setting, mine = other.table.setting, main.table.setting
        if (
            not other.table.leaks
            or (setting.fraction, setting.split) != (mine.fraction, mine.split)
            or setting.trained_on
        ):
            continue
        leaking = [data for data in other.table.data if data in other.table.leaks]
        changes = _changes(main, other, leaking)
        if changes:
            mean = float(np.mean([one.points for one in changes]))
            if round(100 * mean, 2) > 0:
                means = "not evidence of better segmentation"
            else:
                means = "the words may have been drawn from the true masks, and yet the scores are no higher"
            where = "" if len(leaking) == len(other.table.data) else f"on {listed(leaking)}, where they do, "
            lines.append(
                f"With words that leak ({other.table.title[0].lower()}{other.table.title[1:]}) {where}the same methods score "
                f"{points(mean)} points of DSC on average ({_paired(changes)}): {means}."
            )
    return lines


# -- small parts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a method's Dice in another table: the mean over ``runs`` pairs of one data set and seed each."""

    points: float
    label: str
    runs: int


def _changes(main: TableNumbers, other: TableNumbers, data: Sequence[str]) -> list[_Change]:
    """Mean change of Dice per trained method over those of ``data`` that both tables have, first over the seeds of each.

    Only a data set's seeds that both tables have count: between means of different seeds lies the seeds' difference too.
    """
    found = []
    for row in other.table.rows:
        by_data = [seeds for one in data if (seeds := _by_seed(main, other, row, one))]
        if by_data:
            mean = float(np.mean([np.mean(seeds) for seeds in by_data]))
            found.append(_Change(mean, row.label, sum(map(len, by_data))))
    return found


def _by_seed(main: TableNumbers, other: TableNumbers, row: Row, data: str) -> list[float]:
    """The change of every seed that a trained method has in both tables."""
    before, after = (_seed_means(found, row, data) for found in (main, other))
    return [after[seed] - before[seed] for seed in before if seed in after]


def _seed_means(found: TableNumbers, row: Row, data: str) -> dict[int, float]:
    number = found.numbers.get((row.key, data, "dice"))
    pairs = [] if number is None else zip(number.seeds, number.by_seed, strict=True)
    return {seed: mean for seed, mean in pairs if seed is not None and mean is not None}


def _paired(changes: Sequence[_Change]) -> str:
    count = sum(one.runs for one in changes)
    return f"{count} pair{'' if count == 1 else 's'} of runs of the same seed and data set"


def _best_average(found: TableNumbers) -> tuple[float, str] | None:
    ranked = [
        (found.average[row.key, "dice"]["mean"], row.label)
        for row in found.table.rows
        if (row.key, "dice") in found.average
    ]
    return max(ranked, default=None)


def _without(setting: Setting, name: str) -> list[object]:
    return [getattr(setting, key) for key in type(setting).__slots__ if key != name]


def _mean(mean: float | None, std: float | None, low: float | None, high: float | None) -> str:
    if mean is None:
        return "-"
    text = f"{100 * mean:.2f}"
    text += f" ± {100 * std:.2f}" if std is not None else ""
    text += " %"
    return text + (f" [{100 * low:.2f}, {100 * high:.2f}]" if low is not None and high is not None else "")


def _size(row: Row) -> str:
    return (
        "an unknown number of trainable parameters"
        if row.trainable is None
        else f"{short_count(row.trainable[1])} trainable parameters"
    )


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"
