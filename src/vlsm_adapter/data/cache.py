"""Keeping what was decoded and resized, so that an epoch does not decode every file again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

Arrays = tuple[np.ndarray, "np.ndarray | None"]


class MemoryCache:
    """Pairs of arrays by key, in memory, bounded in bytes; what was used longest ago goes first.

    Each loader worker process has its own. A pair larger than the bound is not kept.

    Args:
        max_bytes: bound on the sum of the arrays' sizes; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._items: OrderedDict[object, Arrays] = OrderedDict()

    def get(self, key: object) -> Arrays | None:
        """The pair kept under ``key``, or None."""
        item = self._items.get(key)
        if item is not None:
            self._items.move_to_end(key)
        return item

    def put(self, key: object, first: np.ndarray, second: np.ndarray | None) -> None:
        """Keep a pair under ``key``; the arrays are made read-only, for every reader gets the same ones."""
        size = first.nbytes + (second.nbytes if second is not None else 0)
        if size > self.max_bytes:
            return
        old = self._items.pop(key, None)
        if old is not None:
            self.used_bytes -= _size(old)
        for array in (first, second):
            if array is not None:
                array.flags.writeable = False
        self._items[key] = (first, second)
        self.used_bytes += size
        while self.used_bytes > self.max_bytes:
            _, dropped = self._items.popitem(last=False)
            self.used_bytes -= _size(dropped)

    def drop(self, key: object) -> None:
        """Keep ``key`` no longer."""
        item = self._items.pop(key, None)
        if item is not None:
            self.used_bytes -= _size(item)

    def resize(self, max_bytes: int) -> None:
        """Set another bound, dropping what no longer fits."""
        self.max_bytes = max_bytes
        while self.used_bytes > self.max_bytes:
            _, dropped = self._items.popitem(last=False)
            self.used_bytes -= _size(dropped)

    def __len__(self) -> int:
        return len(self._items)


def _size(item: Arrays) -> int:
    return item[0].nbytes + (item[1].nbytes if item[1] is not None else 0)
