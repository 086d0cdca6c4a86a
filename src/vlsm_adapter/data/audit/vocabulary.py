"""Reading numbers, sizes, shapes and places out of a prompt, in the wording of published data and in plain English.

Only what is said for sure is read: a number at the beginning, sizes and shapes before a clause with "which", places after
"in", "at" or "on" that are followed by what they are of. "Left ventricle", "two-chamber view" and "medium image quality" say
nothing about where, how many and how large.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vlsm_adapter.data.audit.reading import Case

NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine":
    9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "no": 0, "single": 1,
}  # fmt: skip
SIZES = {
    "tiny": "small", "small": "small", "little": "small", "minute": "small", "medium": "medium", "medium-sized": "medium",
    "moderate": "medium", "large": "large", "big": "large", "huge": "large",
}  # fmt: skip
SHAPES = {
    "round": "round", "circle": "round", "circular": "round", "rounded": "round", "oval": "oval", "ovoid": "oval",
    "elliptical": "oval", "ellipse": "oval", "square": "square", "rectangle": "rectangle", "rectangles": "rectangle",
    "rectangular": "rectangle", "triangle": "triangle", "triangular": "triangle", "elongated": "elongated",
}  # fmt: skip
COLOURS = frozenset({
    "black", "blue", "brown", "gold", "gray", "green", "grey", "orange", "peach", "pale", "pink", "purple",
    "red", "silver", "tan", "white", "yellow", "bright", "dark", "light",
})  # fmt: skip
#: Words that name a disease; one of them for every case of a set is a diagnosis, not a class.
DIAGNOSES = frozenset({
    "melanoma", "carcinoma", "cancer", "cancerous", "malignant", "benign", "adenoma", "normal", "nevus",
    "sarcoma", "lymphoma", "metastasis",
})  # fmt: skip
_OPPOSITE = ({"malignant", "benign", "normal"},)
_SIDES = {
    "top": ("top", ""), "upper": ("top", ""), "bottom": ("bottom", ""), "lower": ("bottom", ""), "left": ("", "left"),
    "right": ("", "right"), "center": ("", ""), "centre": ("", ""), "middle": ("", ""), "central": ("", ""),
}  # fmt: skip
_PLACE = "(?:top|upper|bottom|lower|center|centre|middle|central|left|right)"
_PLACES = re.compile(
    rf"\b(?:in|at|on|to)\s+(?:the\s+)?((?:{_PLACE})(?:[ -]{_PLACE})*(?:(?:,\s*(?:and\s+)?|\s+and\s+)(?:the\s+)?{_PLACE}(?:[ -]{_PLACE})*)*)"
    r"(?=\s+(?:of|in|side|part|corner|half|region|area|third|quadrant)\b|\s*[.,;]?\s*$)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_CLAUSE = re.compile(r"\s(?:which|that|located|situated|at the|in the|in a)\s", re.IGNORECASE)
_ABSENT = re.compile(r"^\s*(?:no|without|absence of|absent)\b|\bthere (?:is|are) no\b", re.IGNORECASE)
_NOT_A_SIZE = re.compile(
    r"\b(?:small|medium|large)\s+(?:image\s+)?(?:quality|bowel|intestine|airways?|vessels?)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Said:
    """What a prompt says.

    Attributes:
        absent: that there is nothing to find.
        number: how many, or None.
        size: ``"small"``, ``"medium"``, ``"large"``, or ``""`` where none or several are named.
        shape: ``"round"``, ``"oval"``, ``"square"``, ``"rectangle"``, ``"triangle"``,
            ``"elongated"``, or ``""``.
        places: (vertical, horizontal) of each place: ``("top", "left")``, ``("", "right")``, ``("", "")`` for the centre.
    """

    absent: bool = False
    number: int | None = None
    size: str = ""
    shape: str = ""
    places: tuple[tuple[str, str], ...] = ()

    @property
    def anything(self) -> bool:
        """Whether it says more than what the thing is called."""
        return bool(self.number or self.size or self.shape or self.places)


def read_words(text: str) -> Said:
    """What ``text`` says about number, size, shape and place."""
    if _ABSENT.search(text):
        return Said(absent=True, number=0)
    head = _NOT_A_SIZE.sub(" ", _CLAUSE.split(text, maxsplit=1)[0].lower())
    words = words_of(head)
    number = NUMBERS.get(words[0]) if words else None
    # "of shape square" and "of oval shape" stand behind "in the"-clauses as well.
    behind = re.search(r"\bof (?:shape (?:an? )?([a-z]+)|([a-z]+) shape)\b", text.lower())
    shape_words = [*words, *(group for group in (behind.groups() if behind else ()) if group)]
    return Said(
        number=number,
        size=_only(SIZES[word] for word in words if word in SIZES),
        shape=_only(SHAPES[bare] for word in shape_words if (bare := word.removesuffix("-shaped")) in SHAPES),
        places=_places(text),
    )


def words_of(text: str) -> list[str]:
    """The words of ``text``, lower case, hyphens kept."""
    return _WORD.findall(text.lower())


def place_name(place: tuple[str, str]) -> str:
    """``("top", "left")`` as ``"top left"``."""
    return " ".join(filter(None, place)) or "center"


def diagnoses(text: str) -> set[str]:
    """The words for a disease, or for none, in ``text``."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if word in DIAGNOSES}


def contradicting(one: set[str], other: set[str]) -> bool:
    """Whether two sets of diagnoses exclude each other: benign, malignant and normal do."""
    return any((one & group) and (other & group) and not (one & other & group) for group in _OPPOSITE)


def _only(values: Iterable[str]) -> str:
    found = set(values)
    return found.pop() if len(found) == 1 else ""


def _places(text: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for match in _PLACES.finditer(text):
        for part in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", match[1].lower()):
            sides = [_SIDES[word] for word in re.split(r"[ -]", part.removeprefix("the ")) if word in _SIDES]
            vertical = next((side for side, _ in sides if side), "")
            horizontal = next((side for _, side in sides if side), "")
            found.append((vertical, horizontal))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Words:
    """What all prompts of a case say together, level by level."""

    case: Case
    said: tuple[tuple[str, str, Said], ...]

    def values(self, of: Callable[[Said], object]) -> dict[str, object]:
        """Level to what ``of`` gives for its texts, where that is not empty; texts of one level that differ are dropped."""
        found: dict[str, set[object]] = defaultdict(set)
        for level, _, said in self.said:
            if value := of(said):
                found[level].add(value)
        return {level: values.pop() for level, values in found.items() if len(values) == 1}

    def last(self, of: Callable[[Said], object]) -> object | None:
        """What the richest level says."""
        return next(reversed(list(self.values(of).values())), None)

    @property
    def absent(self) -> str:
        """The first text that says that there is nothing to find, or an empty text."""
        return next((text for _, text, said in self.said if said.absent), "")

    @property
    def claims(self) -> str:
        """The longest text that tells number, size, shape or place of something, or an empty text."""
        return max((text for _, text, said in self.said if said.anything), key=len, default="")


def read_all(cases: Sequence[Case]) -> list[Words]:
    """The prompts of every case, read."""
    known: dict[str, Said] = {}

    def read(text: str) -> Said:
        if text not in known:
            known[text] = read_words(text)
        return known[text]

    return [
        Words(
            case,
            tuple(
                (level, text, read(text))
                for level, texts in sorted(case.record.prompts.items())
                if level != "p0"
                for text in texts
            ),
        )
        for case in cases
    ]
