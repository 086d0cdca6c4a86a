"""Plain values that somebody else wrote, as YAML: is what its aliases stand for of a size that can be looked at?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlsm_adapter.errors import ConfigError

MOST_VALUES = 1_000_000


def check_size(values: Any, where: object) -> None:
    """Refuse values whose aliases stand for far more than was written: every message about them would print it all.

    Args:
        values: of ``yaml.load``, in which an alias is the object itself.
        where: the file, for the message.

    Raises:
        ConfigError: written out they are more than ``MOST_VALUES``, or an alias lies inside of what it stands for.
    """
    if _count(values, {}) > MOST_VALUES:
        raise ConfigError(
            f"{where}: its aliases (*name) stand for more than {MOST_VALUES:,} values, or for themselves; write them out"
        )


def _count(value: Any, known: dict[int, int]) -> int:
    if not isinstance(value, list | tuple | Mapping):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES + 1  # met again before it is counted, it holds itself
        inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = min(MOST_VALUES + 1, 1 + sum(_count(one, known) for one in inner))
    return known[id(value)]
