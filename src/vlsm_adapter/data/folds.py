"""Cross-validation: k folds of whole groups, alike in number of cases and in foreground size."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlsm_adapter.data.splits import check_fractions, cut, place, unit_of
from vlsm_adapter.data.strata import strata_of, stratified_order
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.types import Record

_FOLD = re.compile(r"^\s*([0-9]{1,4})\s*/\s*([0-9]{1,4})\s*$")


def parse_fold(text: str) -> tuple[int, int]:
    """``"2/5"`` to (2, 5): the second of five folds; they are counted from 1.

    Raises:
        ConfigError: not of this form, fewer than two folds, or a fold beyond the last.
    """
    match = _FOLD.match(text)
    number, folds = (int(match[1]), int(match[2])) if match else (0, 0)
    if folds < 2 or not 1 <= number <= folds:
        raise ConfigError(f"fold '{text}': write which of how many, from 1/2 on, e.g. 1/5 to 5/5 for five folds")
    return number, folds


def assign_folds(
    records: Sequence[Record],
    folds: int,
    seed: int = 0,
    *,
    shares: Mapping[str, float | None] | None = None,
) -> list[int]:
    """The fold of each case, 0 to ``folds - 1``; groups whole, every case in one.

    Stratum by stratum, the largest group first (equal ones by the hash of seed and name), each goes to the fold that has
    the fewest cases of the stratum, of these to the one with the fewest cases in all. Where all groups are of one size,
    folds differ by at most one group, in each stratum and in all.

    Args:
        records: cases; their own ``split`` does not matter, nor does their order.
        folds: number of folds, at least 2.
        seed: another seed, another division.
        shares: case id to foreground share (``strata.foreground_shares``); None does not stratify.

    Raises:
        ConfigError: fewer than two folds, or more than there are groups.
    """
    sizes = Counter(unit_of(record) for record in records)
    if folds < 2:
        raise ConfigError(f"{folds} folds: give at least 2")
    if folds > len(sizes):
        raise ConfigError(
            f"{folds} folds: there are {len(records)} cases in {len(sizes)} groups, and a fold needs one at least; "
            f"give at most {len(sizes)} folds"
        )
    strata = dict.fromkeys(sizes, 0) if shares is None else strata_of(records, shares)
    members: defaultdict[int, list[str]] = defaultdict(list)
    for unit in sizes:
        members[strata[unit]].append(unit)
    held = [0] * folds
    fold_of: dict[str, int] = {}
    # The fullest stratum first: the small ones then even out what is left of it.
    for stratum in sorted(members, key=lambda name: (-sum(sizes[unit] for unit in members[name]), name)):
        of_stratum = [0] * folds
        for unit in sorted(members[stratum], key=lambda unit: (-sizes[unit], place(unit, seed), unit)):
            fold = min(range(folds), key=lambda number: (of_stratum[number], held[number], number))
            fold_of[unit] = fold
            of_stratum[fold] += sizes[unit]
            held[fold] += sizes[unit]
    return [fold_of[unit_of(record)] for record in records]


def fold_splits(
    records: Sequence[Record],
    number: int,
    folds: int,
    *,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    shares: Mapping[str, float | None] | None = None,
) -> list[Record]:
    """``records`` in their order with the splits of one fold: it is the test part, the others are train and val.

    Over all folds every case is tested once. The validation part is drawn from the other folds, whole groups, as large a part of
    them as ``fractions`` gives val beside train.

    Args:
        records, folds, seed, shares: as in ``assign_folds``.
        number: which fold, 1 to ``folds``.
        fractions: parts of train, val and test; of these the first two matter.

    Raises:
        ConfigError: as ``assign_folds``, or ``fractions`` are not three parts of one.
    """
    parts = check_fractions(fractions)
    fold_of = assign_folds(records, folds, seed, shares=shares)
    if not 1 <= number <= folds:
        raise ConfigError(f"fold {number} of {folds}: folds are counted from 1 to {folds}")
    rest = [record for record, fold in zip(records, fold_of, strict=True) if fold != number - 1]
    sizes = Counter(unit_of(record) for record in rest)
    share = parts[1] / (parts[0] + parts[1]) if parts[0] + parts[1] else 0.0
    strata = dict.fromkeys(sizes, 0) if shares is None else strata_of(rest, shares)
    chosen = cut(stratified_order(sizes, strata, seed), sizes, (1 - share, share))
    names = ("train", "val")
    return [
        replace(record, split="test" if fold == number - 1 else names[chosen[unit_of(record)]])
        for record, fold in zip(records, fold_of, strict=True)
    ]
