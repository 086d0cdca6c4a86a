"""One small registry: names to things, and an unknown name answered with the nearest one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vlsm_adapter.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """An ordered mapping from a lower-case name to a thing of one kind.

    Args:
        kind: what the things are called in messages, e.g. ``"adapter"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the decorated thing under ``name``; a name is given once."""

        def add(item: T) -> T:
            if name in self._items:
                raise RuntimeError(f"{self.kind} '{name}' is registered twice")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """The thing called ``name``.

        Raises:
            ConfigError: no such name; the message shows the nearest one and lists all.
        """
        try:
            return self._items[name]
        except KeyError:
            raise ConfigError(f"unknown {self.kind} '{name}': {nearest(name, self._items)}") from None

    def names(self) -> list[str]:
        """All names, in order of registration."""
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)
