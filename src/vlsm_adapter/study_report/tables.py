"""Which results stand in which table, row and column, and that those of a column are of the same cases.

A table is one way of training and asking: split, prompt levels, labels, threshold. Its rows are methods, its columns
data sets, its cells the runs of several seeds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlsm_adapter.markdown import plural
from vlsm_adapter.study_report.naming import (
    display_name,
    fraction_size,
    order,
    percent_or_cases,
    settings_suffix,
)
from vlsm_adapter.study_report.results import ALL_LABELS, Case, Result, canonical

RowKey = tuple[str, ...]
# External data are evaluated on all of their cases.
MAIN_SPLITS = ("test", "all")


@dataclass(frozen=True, slots=True)
class Setting:
    """What the results of one table share."""

    split: str
    level: str
    protocol: str | None
    train_level: str | None
    fraction: str | None
    threshold: float
    nsd_tolerance: float
    trained_on: str | None


@dataclass(frozen=True)
class Row:
    """A method on a base model.

    Attributes:
        key: what its results share.
        label: as in tables, unlike that of any other row.
        name: the method's name in its study, else of the method.
        method, settings: of its results.
        model: the base.
        trainable: smallest and largest number of trainable parameters over its results; None where it is not known.
    """

    key: RowKey
    label: str
    name: str
    method: str
    settings: Mapping[str, Any]
    model: str
    trainable: tuple[int, int] | None

    @property
    def base(self) -> RowKey:
        """The base model's name and the digest of its weights."""
        return self.key[1:3]


@dataclass
class Table:
    """Results arranged.

    Attributes:
        setting: what they share.
        rows: in order.
        data: columns in order.
        cells: (row key, data) to the results of its seeds, in their order.
        leaks: the data sets whose words may have been drawn from the true masks.
        cases: data to the cases that are compared there.
        notes: what a reader must know.
        reveals: data to the number of cases whose words say that there is nothing to find; absent where there is none.
    """

    setting: Setting
    rows: list[Row]
    data: list[str]
    cells: dict[tuple[RowKey, str], list[Result]]
    leaks: set[str]
    cases: dict[str, tuple[Case, ...]]
    notes: list[str] = field(default_factory=list)
    reveals: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """In words: what was asked, how it was trained."""
        setting = self.setting
        revealing = sum(self.reveals.values())
        leak = "leaks the truth" if self.leaks else "leak-free"
        if revealing:
            # Not drawn from masks, but half an answer: not plainly leak-free.
            said = f"words call {plural(revealing, 'mask')} empty"
            leak = f"{leak}; {said}" if self.leaks else said
        asked = "Random prompt levels" if setting.level == "random" else f"Prompt level {setting.level}"
        parts = [f"{asked} ({leak})"]
        if setting.train_level is not None:
            parts.append(
                f"trained on {'random levels' if setting.train_level == 'random' else f'level {setting.train_level}'}"
            )
            parts.append(percent_or_cases(setting.fraction))
        if setting.protocol is not None:
            parts.append(f"protocol {setting.protocol}")
        if setting.trained_on is not None:
            parts.append(f"trained on {setting.trained_on}, other data")
        if setting.split != "test":
            parts.append("all cases" if setting.split == "all" else f"split {setting.split}")
        if setting.threshold != 0.5:
            parts.append(f"threshold {setting.threshold:g}")
        return ", ".join(parts)


def arrange(
    results: Sequence[Result], *, splits: Sequence[str] = MAIN_SPLITS, common: bool = False
) -> tuple[list[Table], list[Row], list[str]]:
    """Tables of the results, the main one first; the rows of all of them; and notes.

    Args:
        results: distinct ones.
        splits: others are counted in a note.
        common: compare the cases that all results of a column have, in place of leaving out those of other cases.
    """
    notes: list[str] = []
    wanted = [result for result in results if result.split in splits]
    if others := Counter(result.split for result in results if result.split not in splits):
        told = ", ".join(f"{count} of split {split}" for split, count in sorted(others.items()))
        notes.append(f"Not in the tables: results {told} (choose splits with --split).")
    keys = _row_keys(wanted)
    rows = _rows(wanted, keys)
    by_setting: dict[Setting, list[Result]] = defaultdict(list)
    untrained = [result for result in wanted if result.is_zero_shot]
    for result in wanted:
        if not result.is_zero_shot:
            by_setting[_setting(result)].append(result)
    placed: set[str] = set()
    for setting, members in by_setting.items():
        data = {result.data for result in members}
        for result in untrained:
            same = (result.split, result.level, result.threshold, result.nsd_tolerance)
            if result.data in data and same == (
                setting.split, setting.level, setting.threshold, setting.nsd_tolerance
            ):  # fmt: skip
                members.append(result)
                placed.add(result.key)
    for result in untrained:
        if result.key not in placed:
            by_setting[_setting(result)].append(result)
    tables = [_table(setting, members, keys, rows, common) for setting, members in by_setting.items()]
    tables.sort(key=_table_order)
    return tables, rows, notes


def _setting(result: Result) -> Setting:
    names = Setting.__slots__
    return Setting(**{name: getattr(result, name) for name in names})


def _table_order(table: Table) -> tuple[Any, ...]:
    setting = table.setting
    return (
        setting.train_level is None,
        setting.trained_on or "",
        MAIN_SPLITS.index(setting.split) if setting.split in MAIN_SPLITS else len(MAIN_SPLITS),
        bool(table.leaks),
        setting.protocol or "",
        setting.level,
        setting.fraction != ALL_LABELS,
        -fraction_size(setting.fraction or ALL_LABELS),
        setting.train_level or "",
        setting.threshold,
        setting.nsd_tolerance,
    )


# -- rows ----------------------------------------------------------------------------------------------------------------


def _row_keys(results: Sequence[Result]) -> dict[str, RowKey]:
    """Result key to row key: the name of a study's method; else method and settings, and of the recipe what differs
    between runs that would otherwise share a cell."""
    plain: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    found: dict[str, RowKey] = {}
    for result in results:
        if result.name:
            # The base's weights too: another version of a model is another model.
            found[result.key] = ("named", result.model, result.model_hash, result.name)
        else:
            plain[result.model, result.model_hash, result.method, canonical(result.settings)].append(result)
    for group, members in plain.items():
        cells: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
        for result in members:
            cells[_setting(result), result.data].append(result)
        differing = {
            name
            for cell in cells.values()
            for name in {name for result in cell for name in result.full_recipe}
            if len({canonical(result.full_recipe.get(name)) for result in cell if not _says_nothing(result, name)}) > 1
        }
        for result in members:
            chosen = {name: result.full_recipe.get(name) for name in sorted(differing)}
            found[result.key] = ("plain", *group, canonical(chosen))
    return found


def _says_nothing(result: Result, name: str) -> bool:
    return name in result.recipe and name not in result.known_recipe


def _rows(results: Sequence[Result], keys: Mapping[str, RowKey]) -> list[Row]:
    members: dict[RowKey, list[Result]] = defaultdict(list)
    for result in results:
        members[keys[result.key]].append(result)
    labels = {key: _own_label(key, of_key, members) for key, of_key in members.items()}
    labels = {
        key: label + _of_study(members[key][0], [members[one][0] for one in labels if labels[one] == label])
        for key, label in labels.items()
    }
    own = dict(labels)
    # Only where a label is not enough: the model, then its weights, then a number.
    for tell_apart in (lambda one: f"{one.model}: ", lambda one: f"{one.model} ({one.model_hash[:6]}): "):
        counts = Counter(labels.values())
        for key, of_key in members.items():
            label = labels[key]
            if counts[label] > 1:
                labels[key] = f"{tell_apart(of_key[0])}{own[key]}"
    counts, seen = Counter(labels.values()), Counter[str]()
    for key in members:
        if counts[labels[key]] > 1:
            seen[labels[key]] += 1
            labels[key] += f" #{seen[labels[key]]}"
    models = list(dict.fromkeys(result.model for result in results))
    rows = []
    for key, of_key in members.items():
        first = of_key[0]
        known = [result.trainable for result in of_key if result.trainable is not None]
        rows.append(
            Row(
                key,
                labels[key],
                first.name or first.method,
                first.method,
                first.settings,
                first.model,
                (min(known), max(known)) if known else None,
            )
        )
    return sorted(
        rows, key=lambda row: (*order(row.name, row.method, row.settings), models.index(row.model), row.label)
    )


def _of_study(result: Result, alike: Sequence[Result]) -> str:
    """What tells a row from those ``alike`` that its study calls otherwise, or that no study made."""
    if len({one.name for one in alike}) < 2:
        return ""
    return f" ({result.name or 'no study'})"


def _own_label(key: RowKey, of_key: Sequence[Result], members: Mapping[RowKey, Sequence[Result]]) -> str:
    """The label of a row without its model: what tells it from other rows of its method is named."""
    first = of_key[0]
    if key[0] == "named":
        return display_name(first.name)
    siblings = [
        others[0]
        for other, others in members.items()
        if other[0] == "plain" and others[0].method == first.method and others[0].model_hash == first.model_hash
    ]
    everything = [{**one.full_recipe, **one.settings} for one in siblings]
    mine = {**first.full_recipe, **first.settings}
    shown = {
        name
        for values in everything
        for name in values
        if len({canonical(other.get(name)) for other in everything}) > 1
    }
    # Recipes may differ between data sets without telling rows apart: only what is part of the row's key is shown.
    shown = {name for name in shown if name in first.settings or f'"{name}"' in key[-1]}
    suffix = settings_suffix(mine, frozenset(shown))
    return f"{display_name(first.method)} {suffix}".strip()


# -- one table -----------------------------------------------------------------------------------------------------------


def _table(
    setting: Setting, members: Sequence[Result], keys: Mapping[str, RowKey], rows: Sequence[Row], common: bool
) -> Table:
    notes: list[str] = []
    by_data: dict[str, list[Result]] = defaultdict(list)
    for result in members:
        by_data[result.data].append(result)
    kept: list[Result] = []
    cases: dict[str, tuple[Case, ...]] = {}
    for data, found in sorted(by_data.items()):
        chosen, compared = _of_same_cases(data, found, keys, rows, common, notes)
        kept += chosen
        if compared:
            cases[data] = compared
    cells: dict[tuple[RowKey, str], list[Result]] = defaultdict(list)
    for result in kept:
        cells[keys[result.key], result.data].append(result)
    for found in cells.values():
        found.sort(key=lambda result: (result.seed is not None, result.seed or 0))
    present = {key for key, _ in cells}
    revealing = {
        data: max(result.reveal_emptiness for (_, column), found in cells.items() for result in found if column == data)
        for data in cases
    }
    table = Table(
        setting,
        [row for row in rows if row.key in present],
        list(cases),
        dict(cells),
        {result.data for result in kept if result.leaks},
        cases,
        notes,
        {data: count for data, count in revealing.items() if count},
    )
    _tell_seeds(table)
    _tell_words(table)
    return table


def _of_same_cases(
    data: str,
    results: Sequence[Result],
    keys: Mapping[str, RowKey],
    rows: Sequence[Row],
    common: bool,
    notes: list[str],
) -> tuple[list[Result], tuple[Case, ...]]:
    """The results that are of the same cases; the others are told, or with ``common`` cut to the shared cases."""
    labels = {row.key: row.label for row in rows}
    sets = Counter(result.cases for result in results)
    # The set that most results have; of equals the larger.
    main = max(sets, key=lambda cases: (sets[cases], len(cases)))
    if len(sets) == 1:
        return list(results), main
    if common:
        shared = set.intersection(*(set(cases) for cases in sets))
        if not shared:
            notes.append(f"{data}: its results have no case in common; nothing is compared there.")
            return [], ()
        kept = tuple(case for case in main if case in shared)
        most = max(len(cases) for cases in sets)
        notes.append(f"{data}: compared on the {len(kept)} cases that all results have, of up to {most}.")
        return list(results), kept
    odd = [result for result in results if result.cases != main]
    told = "; ".join(
        f"{labels[keys[result.key]]}{'' if result.seed is None else f' seed {result.seed}'} ({_how_other(result.cases, main)})"
        for result in odd[:6]
    )
    more = f"; and {len(odd) - 6} more" if len(odd) > 6 else ""
    notes.append(
        f"{data}: left out, because they are of other cases than the {sets[main]} results shown: {told}{more}. Evaluate them "
        "on the same cases, or compare those that all have with --common."
    )
    return [result for result in results if result.cases == main], main


def _how_other(cases: Iterable[Case], main: Iterable[Case]) -> str:
    mine, theirs = {case.case_id: case for case in cases}, {case.case_id: case for case in main}
    lacking, new = theirs.keys() - mine.keys(), mine.keys() - theirs.keys()
    if lacking or new:
        parts = [f"lacks {len(lacking)}"] if lacking else []
        parts += [f"has {len(new)} others"] if new else []
        return " and ".join(parts)
    changed = next(name for name in sorted(mine) if mine[name] != theirs[name])
    a, b = mine[changed], theirs[changed]
    what = "mask" if a.truth_area != b.truth_area else "pixel spacing" if a.unit != b.unit else "group"
    return f"another {what} of case '{changed}'"


def _tell_seeds(table: Table) -> None:
    trained = {place: found for place, found in table.cells.items() if not found[0].is_zero_shot}
    sets = Counter(tuple(result.seed for result in found) for found in trained.values())
    if len(sets) <= 1:
        return
    usual = max(sets, key=lambda seeds: (sets[seeds], len(seeds)))
    labels = {row.key: row.label for row in table.rows}
    odd = [
        f"{labels[key]} on {data} ({len(found)} instead of {len(usual)})"
        if len(found) != len(usual)
        else f"{labels[key]} on {data} (other seeds)"
        for (key, data), found in sorted(trained.items(), key=lambda item: (item[0][1], item[0][0]))
        if tuple(result.seed for result in found) != usual
    ]
    more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
    table.notes.append(f"Seeds differ: {', '.join(odd[:8])}{more}.")


def _tell_words(table: Table) -> None:
    table.notes += [
        f"{data}: the words of {count} of {len(table.cases[data])} cases say that there is nothing to find."
        for data, count in table.reveals.items()
    ]
    if table.leaks:
        table.notes.insert(
            0,
            f"Level {table.setting.level} leaks on {', '.join(sorted(table.leaks))}: its words may have been drawn from the "
            "true mask, and the scores flatter.",
        )
