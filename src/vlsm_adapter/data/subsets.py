"""Few-shot subsets of the training cases, each inside the larger ones of the same seed.

For one seed the training cases stand in one order, and a subset is its beginning: 1 % lies inside 5 %, and k cases inside
k + 1. First comes one case of every group, then a second of each, and so on, so that few cases are of as many patients
as can be; within such a round, strata of foreground size take turns in proportion (``strata.stratified_order``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

from vlsm_adapter.data.splits import place, unit_of
from vlsm_adapter.data.strata import bin_by_quantile, stratified_order
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.types import Record

_PERCENT = re.compile(r"^\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%\s*$")
_COUNT = re.compile(r"^\s*([0-9]{1,9})\s*$")


def parse_subset(value: str | int) -> tuple[Decimal | None, int | None]:
    """``"5%"`` to (5, None), ``20`` or ``"20"`` to (None, 20): percent or number of cases.

    Raises:
        ConfigError: neither, or not above 0, or above 100 %.
    """
    text = str(value)
    if (match := _PERCENT.match(text)) and 0 < Decimal(match[1]) <= 100:
        return Decimal(match[1]), None
    if not isinstance(value, bool) and (match := _COUNT.match(text)) and int(match[1]) > 0:
        return None, int(match[1])
    raise ConfigError(f"subset '{value}': write a part of the training cases such as 5%, or how many, such as 20")


def subset_name(value: str | int) -> str:
    """The subset in words: ``"5 % of train"`` or ``"20 cases of train"``."""
    percent, count = parse_subset(value)
    if percent is None:
        return f"{count} case{'' if count == 1 else 's'} of train"
    text = f"{percent:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} % of train"


def subset_size(value: str | int, total: int) -> int:
    """How many of ``total`` cases a subset has: percent are rounded half up, and give one case at least.

    Raises:
        ConfigError: as ``parse_subset``, or more cases than there are.
    """
    percent, count = parse_subset(value)
    if percent is not None:
        return min(total, max(1, int((percent * total / 100).quantize(Decimal(1), ROUND_HALF_UP))))
    assert count is not None
    if count > total:
        raise ConfigError(
            f"subset '{value}': there are {total} training cases; give at most {total}, or a part such as 10%"
        )
    return count


def few_shot(
    records: Sequence[Record],
    subset: str | int,
    *,
    seed: int = 0,
    shares: Mapping[str, float | None] | None = None,
) -> list[Record]:
    """``records`` in their order, of the training cases only a subset; other splits are kept whole.

    Args:
        records: cases with splits.
        subset: ``"5%"`` or a number of cases, see ``subset_size``.
        seed: another seed, another subset.
        shares: case id to foreground share of the training cases; None does not stratify.

    Raises:
        ConfigError: as ``subset_size``.
    """
    train = [record for record in records if record.split == "train"]
    size = subset_size(subset, len(train))
    kept = set(training_order(train, seed=seed, shares=shares)[:size])
    return [record for record in records if record.split != "train" or record.case_id in kept]


def training_order(
    records: Sequence[Record], *, seed: int = 0, shares: Mapping[str, float | None] | None = None
) -> list[str]:
    """Case ids in the order of which every beginning is a subset.

    Args:
        records: the training cases.
        seed, shares: as in ``few_shot``.
    """
    ids = [record.case_id for record in records]
    strata = dict.fromkeys(ids, 0) if shares is None else bin_by_quantile({name: shares.get(name) for name in ids})
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        groups[unit_of(record)].append(record.case_id)
    rounds: defaultdict[int, list[str]] = defaultdict(list)
    for names in groups.values():
        for turn, name in enumerate(sorted(names, key=lambda name: (place(name, seed), name))):
            rounds[turn].append(name)
    return [name for turn in sorted(rounds) for name in stratified_order(dict.fromkeys(rounds[turn], 1), strata, seed)]
