"""What a public data set is to us: its facts, and a function from its archive to cases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vlsm_adapter.data.archives import Tree
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError
from vlsm_adapter.registry import Registry


@dataclass
class Reading:
    """One archive, recognised.

    Attributes:
        cases: its cases, in an order that depends on file names alone; pixels are read when a case is written.
        release: which release it is, for the card.
        expected: the number of cases this release has according to its owners; None where they do not say.
        warnings: what is odd; may grow while the cases are made.
        licence, citation: of this release, where they differ from the source's.
    """

    cases: Iterable[RawCase]
    release: str
    expected: int | None
    warnings: list[str] = field(default_factory=list)
    licence: str = ""
    citation: str = ""


T = TypeVar("T")


class Once(Generic[T]):
    """A value that is made when it is first asked for, once however many threads ask; an error is raised anew each time."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        """The value."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


@dataclass(frozen=True)
class Source:
    """A public data set.

    Attributes:
        name: as in ``vlsm data prepare NAME``; that of the published layout where there is one.
        title: as its owners call it.
        about: modality and target, in a few words.
        licence, citation, homepage: as its owners state them.
        cases, images: how many the main release has.
        groups: what a group is (``"patient"``), or an empty text where the release does not tell.
        splits: the owners' own split, or an empty text.
        layout: what the reader looks for, for messages and the table.
        read: from the tree of an archive and the name of a variant to a ``Reading``; raises DataError for other trees.
        variants: name to meaning, the first is the default; empty where there is one way to read the set.
        published: from a case to the name of its mask (with folder, without ending) in the published annotations, and
            the splits in which that name means this case.
        leak_free: levels of the published prompts that are not drawn from the mask, where that is not as usual.
        notes: for the card: what a user must know.
    """

    name: str
    title: str
    about: str
    licence: str
    citation: str
    homepage: str
    cases: int
    images: int
    layout: str
    read: Callable[[Tree, str], Reading]
    groups: str = ""
    splits: str = ""
    variants: Mapping[str, str] = field(default_factory=dict)
    published: Callable[[RawCase], tuple[str, tuple[str, ...]]] = lambda case: (case.case_id, SPLITS)
    leak_free: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


SOURCES: Registry[Source] = Registry("data set")


def add(source: Source) -> Source:
    """File ``source`` under its name."""
    return SOURCES.register(source.name)(source)


def refusal(tree: Tree, title: str, looked_for: str) -> DataError:
    """The error of a tree that is not the archive of ``title``."""
    return DataError(f"{tree.where}: not {title} as its owners ship it: looked for {looked_for}; found {tree.top()}")
