"""Strata by foreground size, so that splits, folds and subsets are alike in what there is to find.

A case's size is the share of its image that is foreground. A group's size is the mean over its cases. Groups with
foreground are put into bins at the quantiles of their sizes; those with none are a stratum of their own, and so are
those whose masks cannot be read. Everything here depends on names, sizes and the seed alone, never on an order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from vlsm_adapter.data.splits import place, unit_of
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

BINS = 5
UNKNOWN, EMPTY = -2, -1


def foreground_shares(
    records: Sequence[Record], progress: Callable[[int], None] | None = None
) -> dict[str, float | None]:
    """Case id to the share of its mask that is foreground, 0 to 1; None where there is no mask that can be read.

    Every mask is decoded, a few milliseconds each. What is wrong with a mask is not told here: whoever uses the case
    decodes it again, and tells.

    Args:
        records: the cases.
        progress: called with the number of cases done.
    """
    shares: dict[str, float | None] = {}
    for number, record in enumerate(records, start=1):
        share: float | None = None
        if record.mask is not None:
            with suppress(OSError):
                status = record.mask.stat()
                share = _share(record.mask, record.mask_value, status.st_size, status.st_mtime_ns, status.st_ino)
        shares[record.case_id] = share
        if progress is not None:
            progress(number)
    return shares


@lru_cache(maxsize=1 << 17)
def _share(mask: Path, value: int | None, *_of_file: int) -> float | None:
    """Of one file as it is now: a study asks for the same masks once for every seed that has a subset of its own."""
    from vlsm_adapter.data.images import read_mask

    try:
        return float(read_mask(mask, value).mean())
    except DataError:
        return None


def strata_of(records: Sequence[Record], shares: Mapping[str, float | None], bins: int = BINS) -> dict[str, int]:
    """The stratum of every unit (``splits.unit_of``: a group, or a case without one).

    Args:
        records: the cases.
        shares: case id to foreground share, or None where unknown.
        bins: of the sizes above zero, at their quantiles.

    Returns:
        Unit to ``UNKNOWN`` (no case of known size), ``EMPTY`` (all empty), or its bin, 0 the smallest.
    """
    # Sorted, because the last bit of a mean depends on the order of its sum.
    known: defaultdict[str, list[float]] = defaultdict(list)
    for record in records:
        share = shares.get(record.case_id)
        known[unit_of(record)] += [] if share is None else [share]
    means = {unit: sum(sorted(values)) / len(values) if values else None for unit, values in known.items()}
    return bin_by_quantile(means, bins)


def bin_by_quantile(sizes: Mapping[str, float | None], bins: int = BINS) -> dict[str, int]:
    """Name to ``UNKNOWN`` (None), ``EMPTY`` (0) or the bin of its size; equal sizes share a bin."""
    ranked = sorted(size for size in sizes.values() if size)
    return {
        name: UNKNOWN if size is None else EMPTY if size == 0 else bisect_left(ranked, size) * bins // len(ranked)
        for name, size in sizes.items()
    }


def stratified_order(sizes: Mapping[str, int], strata: Mapping[str, int], seed: int) -> list[str]:
    """Units in an order of which every stretch holds the strata in nearly the proportion of the whole.

    Within its stratum a unit stands where the hash of the seed and its name puts it (``splits.place``). The strata are then
    laid over one another: a unit's key is the middle of its run of cases as a fraction of its stratum; equal keys go by
    the hash. So among the first n of N units a stratum of m units has m n / N, give or take one.

    Args:
        sizes: unit to its number of cases.
        strata: unit to its stratum.
        seed: another seed, another order.
    """
    members: defaultdict[int, list[str]] = defaultdict(list)
    for unit in sizes:
        members[strata[unit]].append(unit)
    keys: dict[str, tuple[float, float, str]] = {}
    for units in members.values():
        total = sum(sizes[unit] for unit in units)
        done = 0
        for at, unit in sorted((place(unit, seed), unit) for unit in units):
            keys[unit] = ((done + sizes[unit] / 2) / total, at, unit)
            done += sizes[unit]
    return sorted(keys, key=keys.__getitem__)
