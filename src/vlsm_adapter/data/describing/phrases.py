"""Prompts of the levels p0 to p9 from a class and from what was measured.

The levels are those of the published data (of its sets with ten levels); the wording is our own.

=====  ========================================  ====  ==============================================================
level  holds                                     leak  example
=====  ========================================  ====  ==============================================================
p0     nothing                                   no
p1     class name                                no    polyp
p2     + shape                                   yes   round polyp
p3     + colour                                  yes   pink round polyp
p4     + size                                    yes   small pink round polyp
p5     + number                                  yes   one small pink round polyp
p6     + position                                yes   one small pink round polyp in the top left part of the image
p7     class name and general description        no    polyp, a growth that rises from the inner lining of the bowel
p8     p5 and general description                yes   one small pink round polyp, a growth that rises from ...
p9     p6 and general description                yes   one small pink round polyp in the top left part of the image, a ...
=====  ========================================  ====  ==============================================================

A word that was not measured for sure is left out. p1 and p7 are the same whatever the mask holds, an empty one too; p5
and later say "no polyp" of an empty mask. Levels p7 to p9 need a description of the class and have a text for each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vlsm_adapter.data.describing.classes import ClassEntry
from vlsm_adapter.data.describing.measure import NUMBERS, POSITIONS, Words

LEVELS = tuple(f"p{number}" for number in range(10))
#: Levels that tell nothing drawn from the mask.
LEAK_FREE = ("p0", "p1", "p7")
MOST_PLACES = 3
_PLACE = "|".join(sorted(POSITIONS, key=len, reverse=True))
_PLACES = re.compile(rf"\bin the ((?:{_PLACE})(?:(?:, | and )(?:{_PLACE}))*) parts? of the image\b")


def prompts(words: Words, about: ClassEntry) -> dict[str, tuple[str, ...]]:
    """The prompts of every level that ``about`` allows: p0 to p6, and p7 to p9 where it has descriptions."""
    name = about.name
    shaped = join(words.shape, name)
    coloured = join(words.colour, shaped)
    sized = join(words.size, coloured)
    counted = with_number(words, about)
    placed = join(counted, place_clause(words.positions))
    made = {"p0": "", "p1": name, "p2": shaped, "p3": coloured, "p4": sized, "p5": counted, "p6": placed}
    levels: dict[str, tuple[str, ...]] = {level: (text,) for level, text in made.items()}
    if about.descriptions:
        for level, start in (("p7", name), ("p8", counted), ("p9", placed)):
            levels[level] = tuple(f"{start}, {description}" for description in about.descriptions)
    return levels


def with_number(words: Words, about: ClassEntry) -> str:
    """The words of level p5: number, size, colour, shape and name."""
    if words.empty:
        return f"no {about.name}"
    several = words.number is not None and words.number > 1
    number = NUMBERS[words.number] if words.number else None
    return join(number, words.size, words.colour, words.shape, about.plural if several else about.name)


def place_clause(positions: Sequence[str]) -> str | None:
    """``in the top left part of the image``; None for no place, or for more than three."""
    if not positions or len(positions) > MOST_PLACES:
        return None
    if len(positions) == 1:
        return f"in the {positions[0]} part of the image"
    return f"in the {', '.join(positions[:-1])} and {positions[-1]} parts of the image"


def join(*words: str | None) -> str:
    """The words there are, with spaces between."""
    return " ".join(word for word in words if word)


def places_in(text: str) -> tuple[str, ...]:
    """The places that a prompt of ours names, in its order; empty where it names none.

    >>> places_in("two round polyps in the top left and center parts of the image, a growth")
    ('top left', 'center')
    """
    found = _PLACES.search(text)
    return tuple(re.split(r", | and ", found[1])) if found else ()


def as_json(words: Words) -> Mapping[str, object]:
    """What was measured, for a file: number, shape, colour, size, positions; null where nothing is said."""
    return {
        "number": words.number,
        "shape": words.shape,
        "colour": words.colour,
        "size": words.size,
        "positions": list(words.positions),
        "specks": words.specks,
    }
