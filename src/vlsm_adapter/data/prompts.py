"""Choosing the words for a case, reproducibly, and knowing which words give the answer away.

Published data has levels of prompts, p0 to p9: p0 is empty, p1 names the class, later levels add shape, colour,
size, number and position, all drawn from the ground-truth mask, also for test cases; with such words a model is told part
of the answer. A choice depends on nothing but the case's id, the level, a seed and the epoch (BLAKE2b), so neither the
order of cases nor the number of workers changes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence

from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

RANDOM = "random"
EMPTY = "p0"
_NUMBERED = re.compile(r"^p([0-9]+)$")
_PUBLISHED = re.compile(r"^p[1-9]$")
_NEGATION = re.compile(r"\b(no|not|none|without|absent|absence|negative|normal|healthy)\b", re.IGNORECASE)


def levels(record: Record) -> list[str]:
    """The levels a case has, p0 (always there, the empty prompt) first, then by number, then by name."""
    return sorted({EMPTY, *(level for level, texts in record.prompts.items() if texts)}, key=_order)


def common_levels(records: Iterable[Record]) -> list[str]:
    """The levels that every case has."""
    sets = [set(levels(record)) for record in records]
    return sorted(set.intersection(*sets), key=_order) if sets else []


def choose_prompt(record: Record, level: str, *, seed: int = 0, epoch: int | None = None) -> str:
    """The text to ask of a case.

    Args:
        record: the case.
        level: ``"p1"`` ... a level of the case; ``"p0"`` the empty prompt; ``"random"`` a random level of p1 to p9, as
            the published protocol draws for every sample.
        seed: another seed, another choice.
        epoch: None for one choice for ever (validation, test); a number draws anew each epoch.

    Returns:
        The text; of a level with several texts one of them.

    Raises:
        DataError: the case has no such level; the message lists those it has.
    """
    if level == EMPTY:
        return ""
    chosen = level
    if level == RANDOM:
        numbered = [name for name in levels(record) if _PUBLISHED.match(name)]
        if not numbered:
            raise DataError(
                f"case {record.case_id}: has no level p1 to p9 to draw from; it has: {', '.join(levels(record))}"
            )
        chosen = numbered[draw(len(numbered), record.case_id, "level", seed, epoch)]
    texts = record.prompts.get(chosen, ())
    if not texts:
        raise DataError(
            f"case {record.case_id}: has no prompt level '{level}'; it has: {', '.join(levels(record))} (or 'random')"
        )
    return texts[draw(len(texts), record.case_id, chosen, seed, epoch)]


def leaks(level: str, available: Collection[str] | None = None) -> bool:
    """Whether the words of a level may have been drawn from the ground-truth mask.

    Of data that declares nothing; see ``leaks_in``. Leak-free are p0 (empty), p1 (class name) and p7 where the data has p8 or p9: there p7 is the class and a general
    description of it. In sets whose levels end at p7 (CAMUS) p7 adds the shape of the mask. Every other level,
    ``random`` and names of a user's own count as leaking. That p1 can still say that there is nothing to find is
    counted by ``reveals_emptiness``.

    Args:
        level: the level.
        available: all levels of the data; None takes the published ten.
    """
    if level in (EMPTY, "p1"):
        return False
    return not (level == "p7" and (available is None or "p8" in available or "p9" in available))


def leaks_in(level: str, records: Iterable[Record]) -> bool:
    """Whether the words of a level may have been drawn from the masks of these cases.

    Where every case declares its leak-free levels (a file of ``vlsm prompts``, a manifest's ``leak_free``) the
    declaration counts, and p0 is free of leaks in any case; else the rule of ``leaks`` over the levels there are.
    """
    records = list(records)
    if level == EMPTY:
        return False
    if records and all(record.leak_free is not None for record in records):
        return any(level not in (record.leak_free or ()) for record in records)
    return leaks(level, {name for record in records for name in levels(record)})


def reveals_emptiness(records: Sequence[Record], level: str) -> list[str]:
    """Ids of the cases whose prompt says that there is nothing to find (``"No tumor in the breast ..."``).

    In the published BUSI prompts these are exactly the cases with an empty mask: a model that reads them needs no image.
    A case is counted when a text of the level (of any level for ``random``) holds a word of negation.
    """
    found: list[str] = []
    for record in records:
        chosen = [name for name in record.prompts if level in (RANDOM, name)]
        if any(_NEGATION.search(text) for name in chosen for text in record.prompts[name]):
            found.append(record.case_id)
    return found


def draw(count: int, *key: str | int | None) -> int:
    """A number below ``count`` that depends on ``key`` alone."""
    if count == 1:
        return 0
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def _order(level: str) -> tuple[int, int, str]:
    match = _NUMBERED.match(level)
    return (0, int(match[1]), level) if match else (1, 0, level)
