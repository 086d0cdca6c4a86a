"""Places that prompts name: where the mask has nothing, where its centre does not lie, and sides named far too often."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from vlsm_adapter.data.audit.facts import MaskFacts
from vlsm_adapter.data.audit.findings import Evidence, Finding, percent, plural
from vlsm_adapter.data.audit.vocabulary import Words, place_name
from vlsm_adapter.data.describing.measure import grid_word

# Of words about places at least this part should lie in the ninth of the image that they name.
_GOOD_PLACES = 0.8
# A side is named one-sidedly at this ratio, from this many cases on; five standard deviations from chance.
_ONE_SIDED = 3.0
_ONE_SIDED_LEAST = 30
_ONE_SIDED_SIGMA = 5.0
# ... unless the masks' centres lie in the outer thirds as one-sidedly, within this factor.
_BEYOND_MASKS = 2.0
#: What to do about words that do not fit.
ANEW = "take p0 or p1, or write the prompts anew from the masks (docs/prompts.md)"


def place_findings(
    words: Sequence[Words], measured: Sequence[tuple[Words, MaskFacts]], facts: Mapping[str, MaskFacts | None]
) -> list[Finding]:
    """What is wrong with the places.

    Args:
        words: the prompts of every case.
        measured: those of cases with a mask that is not empty, and its measurements.
        facts: case id to the measurements of its mask, as far as there is one.
    """
    return [*_places(measured), *_one_sided(words, facts), *_places_listed(words)]


def _places(measured: Sequence[tuple[Words, MaskFacts]]) -> list[Finding]:
    stating: list[tuple[Words, MaskFacts, tuple[tuple[str, str], ...]]] = []
    for one, facts in measured:
        places = one.last(lambda said: said.places)
        if isinstance(places, tuple):
            stating.append((one, facts, places))
    if not stating:
        return []
    wrong: list[Evidence] = []
    inexact: list[Evidence] = []
    right: Counter[str] = Counter()
    named: Counter[str] = Counter()
    actual: Counter[str] = Counter()
    for one, facts, places in stating:
        if bad := [place for place in places if not _anything_at(facts, place)]:
            where = " and ".join(place_name(place) for place in dict.fromkeys(bad))
            largest = facts.parts[0].centre
            wrong.append(
                Evidence(
                    (one.case.id,),
                    f"says {where}; no foreground there, the largest part lies at {100 * largest[0]:.0f} % across, "
                    f"{100 * largest[1]:.0f} % down",
                )
            )
        if len(places) == 1 and len(facts.parts) == 1:
            word = place_name(places[0])
            where = grid_word(facts.parts[0].centre[1], facts.parts[0].centre[0]) or ""
            named[word] += 1
            actual[where] += 1
            right[word] += word == where
            if word != where:
                across, down = facts.parts[0].centre
                inexact.append(
                    Evidence(
                        (one.case.id,), f"says {word}, lies at {100 * across:.0f} % across, {100 * down:.0f} % down"
                    )
                )
    total, good = sum(named.values()), sum(right.values())
    # What the words would hit if they were dealt out among the cases at random.
    chance = sum(named[word] * actual[word] for word in named) / total if total else 0.0
    table = ", ".join(f"{word} {right[word]}/{count}" for word, count in named.most_common())
    found: list[Finding] = []
    if wrong:
        found.append(
            Finding(
                "warning",
                "wrong-place",
                f"{plural(len(wrong), 'case')} of {len(stating)} whose prompt names a place where the mask has nothing",
                tuple(wrong),
                ANEW,
            )
        )
    if good < total:
        found.append(
            Finding(
                "warning" if good / total < _GOOD_PLACES else "note",
                "places-inexact",
                f"of {total} single places {good} ({percent(good, total)}) are the ninth of the image in which the mask's centre "
                f"lies, {chance:.0f} would be by chance: {table}",
                tuple(inexact),
                ANEW,
            )
        )
    return found


def _anything_at(facts: MaskFacts, place: tuple[str, str]) -> bool:
    """Whether there is foreground in the 5/12 that each side names; for the centre, in the middle half both ways."""
    size = facts.grid.shape[0]
    side, quarter = size * 5 // 12, size // 4
    if place == ("", ""):
        return bool(facts.grid[quarter : size - quarter, quarter : size - quarter].any())
    rows = {"top": slice(0, side), "bottom": slice(size - side, size), "": slice(0, size)}[place[0]]
    columns = {"left": slice(0, side), "right": slice(size - side, size), "": slice(0, size)}[place[1]]
    return bool(facts.grid[rows, columns].any())


def _one_sided(words: Sequence[Words], facts: Mapping[str, MaskFacts | None]) -> list[Finding]:
    """Left and right (top and bottom) named far more often the one than the other."""
    found: list[Finding] = []
    for axis, names in ((1, ("left", "right")), (0, ("top", "bottom"))):
        counts: Counter[str] = Counter()
        centres: dict[str, list[float]] = defaultdict(list)
        halves: Counter[str] = Counter()
        thirds: Counter[str] = Counter()
        for one in words:
            places = one.last(lambda said: said.places)
            if not isinstance(places, tuple):
                continue
            counts.update({place[axis] for place in places if place[axis]})
            known = facts.get(one.case.id)
            if known is not None and not known.empty:
                at = known.parts[0].centre[1 - axis]
                halves[names[at > 0.5]] += 1
                thirds[names[at > 0.5]] += abs(at - 0.5) > 1 / 6
            box = one.case.box
            if len(places) == 1 and box is not None and box[2] > box[0]:
                low, high = (box[0], box[2]) if axis == 1 else (box[1], box[3])
                centres[places[0][axis] or "neither"].append((low + high) / 2)
        few, many = sorted(names, key=lambda name: counts[name])
        total = counts[few] + counts[many]
        if total < _ONE_SIDED_LEAST or counts[many] < _ONE_SIDED * max(counts[few], 1):
            continue
        if (counts[many] - counts[few]) / np.sqrt(total) < _ONE_SIDED_SIGMA:
            continue
        told = ""
        if halves and (counts[many] + 1) / (counts[few] + 1) <= _BEYOND_MASKS * (thirds[many] + 1) / (thirds[few] + 1):
            continue  # so do the masks
        if halves:
            told = f"; the masks' centres lie {halves[many]} {many} and {halves[few]} {few} of the middle"
        elif len(centres[many]) >= 10 and len(centres["neither"]) >= 10:
            told = (
                f"; the annotated boxes of '{many}' alone have their middle at {np.median(centres[many]):.0f} px (median), those "
                f"of neither side at {np.median(centres['neither']):.0f} px"
            )
        found.append(
            Finding(
                "warning",
                "one-sided-places",
                f"the prompts say {many} in {counts[many]} cases and {few} in {counts[few]}{told}",
                (),
                "compare with the masks: such words come from a wrong limit between the sides",
            )
        )
    return found


def _places_listed(words: Sequence[Words]) -> list[Finding]:
    """Prompts that count one thing and list several places, or list one place again and again."""
    evidence: list[Evidence] = []
    repeated = 0
    for one in words:
        for _, text, said in one.said:
            if said.number and said.places and (len(said.places) > said.number or len(said.places) >= 6):
                evidence.append(Evidence((one.case.id,), f"says {text[:160]!r}"))
                break
        repeated += any(len(said.places) > len(set(said.places)) for _, _, said in one.said)
    found: list[Finding] = []
    if evidence:
        found.append(
            Finding(
                "warning",
                "places-and-number",
                f"{plural(len(evidence), 'case')} whose prompt lists more places than things, or six and more places",
                tuple(evidence),
                "specks of the mask were counted as things: write the prompts anew",
            )
        )
    if repeated:
        found.append(
            Finding(
                "note",
                "place-repeated",
                f"{plural(repeated, 'case')} whose prompt names the same place twice ('left, left')",
                (),
                "say each place once",
            )
        )
    return found
