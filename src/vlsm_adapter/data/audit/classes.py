"""What the prompts call the thing: one class for all, a diagnosis for all, words that describe nothing in a mask.

All of it is read from words and file names alone, so it holds for annotations without images too.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from vlsm_adapter.data.audit.findings import Evidence, Finding, percent, plural
from vlsm_adapter.data.audit.pixels import Look
from vlsm_adapter.data.audit.reading import Case
from vlsm_adapter.data.audit.vocabulary import COLOURS, NUMBERS, SHAPES, SIZES, contradicting, diagnoses, words_of
from vlsm_adapter.data.describing import measure
from vlsm_adapter.data.prompts import levels

# A word said in fewer cases than this is not part of the wording of the set.
_RARE = 0.03
_PLAIN = frozenset({
    "a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "is", "it", "located", "of", "on", "or",
    "shape", "shaped", "situated", "than", "that", "the", "there", "this", "to", "which", "with", "top",
    "bottom", "left", "right", "center", "centre", "middle", "upper", "lower", "central", "part", "parts", "several", "many", "irregular", "regular",
})  # fmt: skip
_LISTED = re.compile(r"\.\s*([A-Z][^.]*?)\s+(?:is|are) present\b")


def class_findings(cases: Sequence[Case]) -> list[Finding]:
    """What the class names and the vocabulary show."""
    return [*_constant(cases), *_levels(cases), *_by_name(cases), *_listed(cases), *_unknown(cases)]


def class_text(case: Case) -> str:
    """What level p1 calls the thing; without p1 the first level that says something."""
    prompts = case.record.prompts
    texts = prompts.get("p1") or next(
        (found for level, found in sorted(prompts.items()) if level != "p0" and found), ()
    )
    return texts[0] if texts else ""


def contradicting_duplicates(
    found: Sequence[Sequence[Case]], looks: Mapping[str, Look], turned: Collection[str] = ()
) -> list[Finding]:
    """Copies of one picture whose masks or diagnoses exclude each other.

    Args:
        found: sets of cases that show the same picture.
        looks: what their files hold.
        turned: ids of the first case of sets that hold mirrored or turned copies: there the places of masks differ rightly.
    """
    evidence: list[Evidence] = []
    for same in found:
        empty = {case.id for case in same if (facts := looks[case.id].facts) is not None and facts.empty}
        full = {case.id for case in same if (facts := looks[case.id].facts) is not None and not facts.empty}
        said = {case.id: _diagnoses(case) for case in same}
        words = next(
            (
                (one, other)
                for index, one in enumerate(same)
                for other in same[index + 1 :]
                if contradicting(said[one.id], said[other.id])
            ),
            None,
        )
        reasons = []
        if empty and full:
            reasons.append(f"{sorted(empty)[0]} has an empty mask, {sorted(full)[0]} has not")
        if not (empty and full) and same[0].id not in turned and (apart := _apart(same, looks)):
            reasons.append(f"the outlines of {apart[0]} and {apart[1]} do not meet")
        if words is not None:
            reasons.append(" and ".join(f"{case.id} is called {'/'.join(sorted(said[case.id]))}" for case in words))
        if reasons:
            evidence.append(Evidence(tuple(case.id for case in same), "; ".join(reasons)))
    if not evidence:
        return []
    return [
        Finding(
            "error",
            "duplicates-contradict",
            f"{plural(len(evidence), 'picture')} with copies that contradict each other in mask or diagnosis",
            tuple(evidence),
            "one of them is wrong: ask who annotated them, or take all copies out",
        )
    ]


def _apart(same: Sequence[Case], looks: Mapping[str, Look]) -> tuple[str, str] | None:
    """Two cases whose masks, laid on one another, have bounding boxes without a common point."""
    boxes = []
    for case in same:
        look = looks[case.id]
        if look.facts is not None and look.size is not None and not look.facts.empty:
            (left, top, right, bottom), (width, height) = look.facts.box, look.size
            boxes.append((case.id, left / width, top / height, (right + 1) / width, (bottom + 1) / height))
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            if min(one[3], other[3]) <= max(one[1], other[1]) or min(one[4], other[4]) <= max(one[2], other[2]):
                return one[0], other[0]
    return None


def _diagnoses(case: Case) -> set[str]:
    found = set()
    for texts in case.record.prompts.values():
        for text in texts:
            found |= diagnoses(text)
    return found | diagnoses(re.sub(r"[^a-zA-Z]+", " ", case.name))


def _constant(cases: Sequence[Case]) -> list[Finding]:
    names = Counter(class_text(case) for case in cases)
    if len(cases) < 2 or len(names) != 1:
        return []
    (name,) = names
    if named := diagnoses(name):
        return [
            Finding(
                "warning",
                "diagnosis-constant",
                f"all {len(cases)} cases are called {name!r}: a diagnosis ({', '.join(sorted(named))}) that hardly holds for all",
                (),
                "call the class by what the mask outlines (e.g. lesion), or take the diagnoses from the owners' metadata",
            )
        ]
    return [
        Finding(
            "note",
            "class-constant",
            f"all {len(cases)} cases have the class {name!r}: nothing shows here whether a model listens to the word",
            (),
            "evaluate with other prompts beside it (absent object, empty prompt)",
        )
    ]


def _levels(cases: Sequence[Case]) -> list[Finding]:
    sets = Counter(tuple(levels(case.record)) for case in cases)
    if len(sets) < 2:
        return []
    usual = set(sets.most_common(1)[0][0])
    other = [case for case in cases if set(levels(case.record)) != usual]
    return [
        Finding(
            "warning",
            "levels-differ",
            f"{plural(len(other), 'case')} of {len(cases)} without the prompt levels of the others ({', '.join(sorted(usual))})",
            tuple(Evidence((case.id,), f"has {', '.join(levels(case.record))}") for case in other),
            "a level must exist for every case that is scored with it",
        )
    ]


def _by_name(cases: Sequence[Case]) -> list[Finding]:
    """File names that say benign where the prompt says malignant."""
    wrong = []
    for case in cases:
        name = diagnoses(re.sub(r"[^a-zA-Z]+", " ", case.name))
        said: set[str] = set()
        for texts in case.record.prompts.values():
            for text in texts:
                said |= diagnoses(text)
        if name and said and contradicting(name, said):
            wrong.append(Evidence((case.id,), f"{case.name} is called {'/'.join(sorted(said))}"))
    if not wrong:
        return []
    return [
        Finding(
            "error",
            "class-against-name",
            f"{plural(len(wrong), 'case')} whose prompt contradicts its file name",
            tuple(wrong),
            "one of them is wrong",
        )
    ]


def _listed(cases: Sequence[Case]) -> list[Finding]:
    """Prompts that list what is present, and leave out the very thing the mask shows."""
    listing = 0
    wrong: list[Evidence] = []
    names: Counter[str] = Counter()
    for case in cases:
        own = re.split(r"\s+in\s+", class_text(case), maxsplit=1)[0].strip().lower()
        lists = [
            match[1] for texts in case.record.prompts.values() for text in texts if (match := _LISTED.search(text))
        ]
        if not own or not lists:
            continue
        listing += 1
        if not any(own == item.strip().lower() for text in lists for item in re.split(r",|\band\b", text)):
            names[own] += 1
            wrong.append(Evidence((case.id,), f"the mask is of {own}, listed are {lists[0]}"))
    if not wrong:
        return []
    told = ", ".join(f"{name} {count}" for name, count in names.most_common(5))
    return [
        Finding(
            "warning",
            "list-without-own",
            f"{plural(len(wrong), 'case')} of {listing} whose prompt lists what is present without what its mask shows: {told}",
            tuple(wrong),
            "such a prompt asks for something and denies it: add it to the list, or leave the list out",
        )
    ]


def _unknown(cases: Sequence[Case]) -> list[Finding]:
    """Words said in a few cases only that are no shape, colour, size, number or place, such as 'stomach' or 'hot dog'."""
    said: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        found = {
            word
            for level, texts in case.record.prompts.items()
            if level not in ("p0", "p1")
            for text in texts
            for word in words_of(text)
        }
        for word in found - set(words_of(class_text(case))):
            said[word].append(case)
    # The class of one case may stand in the prompt of another, where a prompt lists what else is there.
    classes = {word for case in cases for word in words_of(class_text(case))}
    known = {*NUMBERS, *SIZES, *SHAPES, *COLOURS, *measure.COLOURS, *measure.SHAPES, *_PLAIN, *classes}
    rare = {
        word: found
        for word, found in said.items()
        if len(found) < _RARE * len(cases)
        and not word.isdigit()
        and word.removesuffix("-shaped") not in known
        and "-year-" not in word
        and not any(part in NUMBERS for part in word.split("-"))
        and not diagnoses(word)
    }
    if not rare or len(cases) < 20:
        return []
    concerned = {case.id for found in rare.values() for case in found}
    listed = ", ".join(
        f"{word} {len(found)}" for word, found in sorted(rare.items(), key=lambda item: (-len(item[1]), item[0]))[:16]
    )
    return [
        Finding(
            "note",
            "rare-words",
            f"{plural(len(concerned), 'case')} ({percent(len(concerned), len(cases))}) with a word that hardly any other case has: "
            f"{listed}{', ...' if len(rare) > 16 else ''}",
            tuple(
                Evidence((found[0].id,), f"says {word!r} ({len(found)})")
                for word, found in sorted(rare.items(), key=lambda item: -len(item[1]))
            ),
            "words that no reader would choose come from a captioning model: correct them or leave the level out",
        )
    ]
