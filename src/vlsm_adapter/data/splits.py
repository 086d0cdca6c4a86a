"""Dividing cases into train, val and test by a seed, whole groups at a time.

Every group (a patient, a video; a case without a group is its own) has a place in [0, 1) given by a hash of the
seed and its name. Groups in the order of their places are cut at the fractions. So the split depends neither on
the order of the cases nor on the machine; and when cases are added or removed, only cases near a cut move.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.types import Record

log = logging.getLogger("vlsm_adapter.data")

SPLITS = ("train", "val", "test")


def assign_splits(
    records: Sequence[Record],
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    *,
    shares: Mapping[str, float | None] | None = None,
) -> list[Record]:
    """``records`` in their order, each with a split.

    The proportions are met to within half the size of the groups at the cuts; every split with a fraction above
    zero gets a group as long as there are enough (train first, then val, then test).

    Args:
        records: cases; their own ``split`` is overwritten.
        fractions: parts of train, val and test; none negative, together 1.
        seed: another seed, another split.
        shares: case id to foreground share (``strata.foreground_shares``): the splits are then alike in foreground size
            (``strata.stratified_order``). None divides by the hash alone.

    Raises:
        ConfigError: ``fractions`` are not three parts of one.
    """
    parts = check_fractions(fractions)
    sizes = Counter(unit_of(record) for record in records)
    if shares is None:
        split_of = _cut(sizes, parts, seed)
    else:
        from vlsm_adapter.data.strata import strata_of, stratified_order

        split_of = cut(stratified_order(sizes, strata_of(records, shares), seed), sizes, parts)
    return [replace(record, split=SPLITS[split_of[unit_of(record)]]) for record in records]


def complete_splits(
    records: Sequence[Record], *, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0, where: str = "the data"
) -> list[Record]:
    """Give a split to data that says none, and take a validation part out of train where only that is missing.

    With no split at all: ``assign_splits``. With train but no val: whole groups of train become val, as large a
    part of train as ``fractions`` gives val beside train; the hash of the seed picks them, and a line is logged.

    Raises:
        DataError: some cases have a split and others none.
        ConfigError: ``fractions`` are not three parts of one.
    """
    parts = check_fractions(fractions)
    splits = {record.split for record in records}
    if splits <= {None}:
        return assign_splits(records, parts, seed)
    if None in splits:
        first = next(record for record in records if record.split is None)
        count = sum(record.split is None for record in records)
        raise DataError(
            f"{where}: {count} of {len(records)} cases have no split, the first is {first.case_id}: give one to all or to none"
        )
    warn_of_divided_groups(records, where)
    if "val" in splits or "train" not in splits or parts[1] == 0:
        return list(records)
    units = Counter(unit_of(record) for record in records if record.split == "train")
    if len(units) < 2:
        return list(records)
    share = parts[1] / (parts[0] + parts[1])
    chosen = _cut(units, (1 - share, share, 0.0), seed)
    made = [
        replace(record, split="val") if record.split == "train" and chosen[unit_of(record)] == 1 else record
        for record in records
    ]
    count = sum(record.split == "val" for record in made)
    log.warning(
        "%s: has no val split; %d of %d train cases (split seed %d) are used for it",
        where,
        count,
        sum(units.values()),
        seed,
    )
    return made


def warn_of_divided_groups(records: Sequence[Record], where: str) -> None:
    """Log how many groups the splits of ``records`` divide; nothing where they divide none."""
    splits_of: dict[str, set[str | None]] = {}
    for record in records:
        if record.group is not None:
            splits_of.setdefault(record.group, set()).add(record.split)
    divided = [group for group, splits in splits_of.items() if len(splits) > 1]
    if divided:
        log.warning(
            "%s: %d group(s) stand in more than one split, so that scores flatter; the first is %s",
            where,
            len(divided),
            divided[0],
        )


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """``fractions`` as three floats.

    Raises:
        ConfigError: not three numbers, one negative, or together not 1.
    """
    values = tuple(float(part) for part in fractions)
    if len(values) != 3 or not all(math.isfinite(part) and part >= 0 for part in values) or abs(sum(values) - 1) > 1e-6:
        raise ConfigError(
            f"split fractions {list(fractions)}: give the parts of train, val and test, together 1, e.g. 0.7 0.1 0.2"
        )
    return values[0], values[1], values[2]


def unit_of(record: Record) -> str:
    """The name of what must stay together: the group, or the case itself."""
    return f"group:{record.group}" if record.group is not None else f"case:{record.case_id}"


def place(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but ``name`` and ``seed`` (BLAKE2b)."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _cut(sizes: Counter[str], parts: tuple[float, float, float], seed: int) -> dict[str, int]:
    """Unit to 0, 1 or 2: units by place, each in the part that holds the middle of its run of cases."""
    return cut(sorted(sizes, key=lambda unit: (place(unit, seed), unit)), sizes, parts)


def cut(order: Sequence[str], sizes: Mapping[str, int], parts: Sequence[float]) -> dict[str, int]:
    """Cut a line of units at the fractions.

    Args:
        order: the units as they stand in line.
        sizes: unit to its number of cases.
        parts: fractions, together 1; none negative.

    Returns:
        Unit to the number of the part that holds the middle of its run of cases. Every part above zero gets a unit
        as long as there are enough.
    """
    total = sum(sizes[unit] for unit in order)
    # Parts of size zero are left out here, so that rounding cannot put a unit into one of them.
    wanted = [index for index in range(len(parts)) if parts[index] > 0]
    ends = [sum(parts[: index + 1]) * total for index in wanted]
    of: dict[str, int] = {}
    done = 0
    for unit in order:
        middle = done + sizes[unit] / 2
        of[unit] = next((index for index, end in zip(wanted, ends, strict=True) if middle < end), wanted[-1])
        done += sizes[unit]
    for index in wanted:
        if index not in of.values():
            held = Counter(of.values())
            givers = [number for number, unit in enumerate(order) if held[of[unit]] > 1]
            if givers:
                # Whole groups are kept, so the smallest group of the fullest part moves: it changes the proportions least.
                fullest = max({of[order[number]] for number in givers}, key=lambda part: (held[part], -part))
                smallest = min(
                    (number for number in givers if of[order[number]] == fullest),
                    key=lambda number: (sizes[order[number]], -number),
                )
                of[order[smallest]] = index
    return of
