"""A cache bounded by bytes that forgets what was used longest ago."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Least recently used goes first; safe to use from several threads.

    Args:
        most_bytes: of all values together; a value larger than this is not kept.
        clock: seconds, ever rising.
        on_drop: told key and value of what is forgotten or replaced, after it is out of the cache.

    Attributes:
        hits, misses: of ``get``, since the start.
    """

    def __init__(
        self,
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        on_drop: Callable[[K, V], None] | None = None,
    ) -> None:
        self.most_bytes = most_bytes
        self.hits = 0
        self.misses = 0
        self._clock = clock
        self._on_drop = on_drop
        self._lock = threading.Lock()
        self._held: OrderedDict[K, tuple[V, int, float]] = OrderedDict()  # value, bytes, when it was last used
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Of what is kept."""
        return self._bytes

    def get(self, key: K, *, count: bool = True) -> V | None:
        """The value, which was used now, or None; without ``count`` it is no hit or miss: a second look."""
        with self._lock:
            found = self._held.get(key)
            if count:
                self.hits += found is not None
                self.misses += found is None
            if found is None:
                return None
            self._held[key] = (found[0], found[1], self._clock())
            self._held.move_to_end(key)
            return found[0]

    def holds(self, key: K) -> bool:
        """Whether there is a value, which is not counted as a use."""
        return key in self._held

    def put(self, key: K, value: V, size: int) -> bool:
        """Keep ``value`` of ``size`` bytes, in place of one under the same key; False where it alone is too large."""
        with self._lock:
            dropped = self._take([key])
            fits = size <= self.most_bytes
            if fits:
                self._held[key] = (value, size, self._clock())
                self._bytes += size
                while self._bytes > self.most_bytes:
                    dropped += self._take([next(iter(self._held))])
        self._tell(dropped)
        return fits

    def drop(self, wanted: Callable[[K], bool]) -> int:
        """Forget all whose key is ``wanted``; how many they were."""
        with self._lock:
            dropped = self._take([key for key in self._held if wanted(key)])
        self._tell(dropped)
        return len(dropped)

    def drop_unused(self, seconds: float) -> int:
        """Forget what nobody asked for in so many seconds; how many they were."""
        with self._lock:
            before = self._clock() - seconds
            dropped = self._take([key for key, (_, _, used) in self._held.items() if used < before])
        self._tell(dropped)
        return len(dropped)

    def _take(self, keys: list[K]) -> list[tuple[K, V]]:
        taken = []
        for key in keys:
            if (found := self._held.pop(key, None)) is not None:
                self._bytes -= found[1]
                taken.append((key, found[0]))
        return taken

    def _tell(self, dropped: list[tuple[K, V]]) -> None:
        if self._on_drop is not None:
            for key, value in dropped:
                self._on_drop(key, value)
