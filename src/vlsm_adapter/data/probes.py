"""Probes: what to ask of a case to learn whether a model listens to words at all.

Every probe comes as a pair of prompts that differ in the words at issue and in nothing else, so that a model which
merely stumbles over unusual wording stumbles over both. The first of a pair is true of the object; of the second the
right answer is not the object:

===============  ==========================================  ===================================  =====================
probe            asked rightly                               asked otherwise                      right answer to that
===============  ==========================================  ===================================  =====================
contradictory    one true word: "small polyp"                that word false: "large polyp"       empty
swapped_class    class name in a template                    another class in the same template   empty, or its own mask
absent_object    class name in a template                    an object that is not there          empty
===============  ==========================================  ===================================  =====================

True words are measured on the mask (``describing.measure``), what contradicts them stands in ``OPPOSITES``. A swapped class is
another class of the data set that the image does not have; else one that it has, with a mask of its own that overlaps the
object's by a Dice below ``MOST_OVERLAP`` (else a right answer to it would count as one for the object); else a class of
another kind of picture (``seen_in`` in the file of classes). Absent objects are everyday things. Choices depend on case id
and seed (and those masks) alone. The wording (``TEMPLATES``) keeps the meaning of the class name: those prompts are the
paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlsm_adapter.data.describing.classes import ClassEntry, Classes, plain
from vlsm_adapter.data.describing.measure import Words, describe
from vlsm_adapter.data.describing.phrases import place_clause
from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.prompts import draw
from vlsm_adapter.errors import DataError
from vlsm_adapter.metrics import dice
from vlsm_adapter.types import Record

PAIRS = ("contradictory", "swapped_class", "absent_object")
#: Dice of two true masks of one image from which on their classes are not swapped: an ideal model, asked for the other
#: class, finds at most this share of the object.
MOST_OVERLAP = 0.1
#: Ways to ask for a class that mean the same.
TEMPLATES = (
    "the {} in this image",
    "segment the {}",
    "find the {}",
    "where is the {}",
    "the region that shows the {}",
)
#: What no medical picture shows.
ABSENT = (
    "bicycle",
    "traffic light",
    "teapot",
    "zebra",
    "umbrella",
    "piano",
    "sailing boat",
    "pine tree",
    "wristwatch",
    "brick wall",
)
#: Measured words and what contradicts them, each false wherever the other is said. The relation goes both ways, so that the
#: effect of a word by itself (some models find little with "small" whatever the truth) can be told from listening.
_CONTRARY = (
    *(("small", "medium"), ("medium", "large"), ("small", "large")),
    *(("round", "elongated"), ("round", "irregular"), ("oval", "rectangular"), ("oval", "irregular")),
    ("rectangular", "irregular"),
    *(("dark", "bright"), ("black", "white"), ("black", "yellow"), ("black", "beige"), ("white", "brown")),
    *(("red", "gray"), ("red", "beige"), ("red", "green"), ("red", "blue"), ("pink", "black"), ("pink", "green")),
    *(("orange", "gray"), ("orange", "blue"), ("yellow", "brown"), ("yellow", "purple"), ("brown", "blue")),
    ("purple", "green"),
    *(("left", "right"), ("top", "bottom"), *(("center", side) for side in ("left", "right", "top", "bottom"))),
    *(("top left", "top right"), ("top left", "bottom left"), ("bottom right", "top right")),
    ("bottom right", "bottom left"),
)
OPPOSITES = {
    word: tuple(other for pair in _CONTRARY if word in pair for other in pair if other != word)
    for word in dict.fromkeys(word for pair in _CONTRARY for word in pair)
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts that differ only in the words at issue.

    Attributes:
        probe: one of ``PAIRS``.
        true: is true of the object.
        false: is not.
        kind: of a contradictory pair the word's kind (``"position"``, ``"size"``, ...); of a swapped class
            ``"of_the_data"`` or ``"foreign"``; of an absent object ``"everyday"``.
        other: of a swapped class that the image has: the record whose mask is the right answer to ``false``.
        words: of a contradictory pair the true and the false word.
    """

    probe: str
    true: str
    false: str
    kind: str
    other: Record | None = None
    words: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of one case beside the evaluation's own prompt.

    Attributes:
        name: the class name as it is asked, leak-free.
        paraphrase: the class name in a template.
        pairs: those that can be made: a contradictory one for each kind of word that was measured for sure.
    """

    name: str
    paraphrase: str
    pairs: tuple[Pair, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts, each once; the empty one first."""
        return tuple(
            dict.fromkeys(["", self.paraphrase, *(text for pair in self.pairs for text in (pair.true, pair.false))])
        )


class Planner:
    """Makes the plans of the cases of a data set.

    Args:
        records: all cases of the data, also of other splits: they say which classes there are and which image has which.
        classes: names and descriptions.
        seed: another seed, other choices.

    Raises:
        DataError: at ``plan``, a case has no p1 that names its class.
    """

    def __init__(self, records: Iterable[Record], classes: Classes, *, seed: int = 0) -> None:
        self._classes = classes
        self._seed = seed
        self._of_image: dict[object, dict[str, Record]] = {}
        names: dict[str, ClassEntry] = {}
        for record in records:
            if record.prompts.get("p1"):
                about = self.about(record)
                names.setdefault(about.name, about)
                self._of_image.setdefault(record.image, {}).setdefault(about.name, record)
        self._names = names

    def plan(self, record: Record, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Plan:
        """The plan of one case: ``image`` uint8 (H, W, 3), ``mask`` bool (H, W)."""
        about = self.about(record)
        template = TEMPLATES[self._draw(len(TEMPLATES), record, "template")]
        true = template.format(about.name)
        pairs: list[Pair] = []
        if mask.any():
            pairs += self._contradictions(record, about, describe(mask, image))
            name, other, kind = self._swapped(record, about, mask)
            if name is not None:
                pairs.append(Pair("swapped_class", true, template.format(name), kind, other))
            absent = [thing for thing in ABSENT if not _alike(thing, about.name)]
            thing = absent[self._draw(len(absent), record, "absent")]
            pairs.append(Pair("absent_object", true, template.format(thing), "everyday"))
        return Plan(about.name, true, tuple(pairs))

    def _contradictions(self, record: Record, about: ClassEntry, words: Words) -> Iterator[Pair]:
        """A pair for every kind of word that was measured for sure."""
        said = {"shape": words.shape, "colour": words.colour, "size": words.size}
        said["position"] = words.positions[0] if len(words.positions) == 1 else None
        for kind, true in said.items():
            if true is not None:
                others = OPPOSITES[true]
                false = others[self._draw(len(others), record, kind)]
                asked = (
                    f"{about.name} {place_clause([word])}" if kind == "position" else f"{word} {about.name}"
                    for word in (true, false)
                )
                yield Pair("contradictory", next(asked), next(asked), kind, words=(true, false))

    def _swapped(
        self, record: Record, about: ClassEntry, mask: NDArray[np.bool_]
    ) -> tuple[str | None, Record | None, str]:
        """Another class: its name, the record of its mask in this image if it has one, and its kind."""
        here = self._of_image.get(record.image, {})
        others = [name for name in sorted(self._names) if name != about.name]
        if missing := [name for name in others if name not in here]:
            return missing[self._draw(len(missing), record, "class")], None, "of_the_data"
        if others:
            first = self._draw(len(others), record, "class")
            for name in (*others[first:], *others[:first]):
                if _apart(here[name], mask):
                    return name, here[name], "of_the_data"
        # Of a class that the file does not know, nobody can say what else its pictures do not show.
        foreign = sorted(
            entry.name
            for entry in self._classes.entries.values()
            if about.seen_in and entry.seen_in and entry.seen_in != about.seen_in and not _alike(entry.name, about.name)
        )
        return (foreign[self._draw(len(foreign), record, "class")] if foreign else None), None, "foreign"

    def about(self, record: Record) -> ClassEntry:
        """The class of a case.

        Raises:
            DataError: it has no p1 that names one.
        """
        named = record.prompts.get("p1")
        if not named:
            raise DataError(f"case {record.case_id}: has no p1 that names its class, which the probes need: give one")
        return self._classes.of(named[0])

    def _draw(self, count: int, record: Record, purpose: str) -> int:
        return draw(count, record.case_id, f"probe-{purpose}", self._seed)


def _apart(other: Record, mask: NDArray[np.bool_]) -> bool:
    """Whether ``other`` has a usable mask of the same size as ``mask`` (H, W) that next to does not overlap it."""
    if other.mask is None:
        return False
    try:
        theirs = read_mask(other.mask, other.mask_value)
    except DataError:
        return False  # that case's own trouble, told where it is scored
    return theirs.shape == mask.shape and dice(theirs, mask) < MOST_OVERLAP


def _alike(one: str, other: str) -> bool:
    """Whether two names share a word, so that one may be said of the other (tumor and breast tumor)."""
    return bool(_content(one) & _content(other))


def _content(name: str) -> set[str]:
    words: Sequence[str] = re.findall(r"[a-z]+", plain(name))
    return {word.rstrip("s") for word in words if len(word) > 2 and word not in ("the", "and", "with")}
