"""Prompts that contradict the mask they describe, or each other.

A word is called wrong only where no reading makes it right: "left" where the left 5/12 hold no foreground at all, "round"
for what is twice as long as wide. The limits lie well outside those within which ``describing.measure`` says a word, so that
prompts written by ``vlsm`` pass. How well the words fit is told beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlsm_adapter.data.audit.facts import MaskFacts
from vlsm_adapter.data.audit.findings import Evidence, Finding, plural
from vlsm_adapter.data.audit.pixels import Look
from vlsm_adapter.data.audit.places import ANEW, place_findings
from vlsm_adapter.data.audit.reading import Case
from vlsm_adapter.data.audit.sizes import split_order
from vlsm_adapter.data.audit.vocabulary import Said, Words, place_name, read_all
from vlsm_adapter.data.describing.measure import LARGE_FROM, SMALL_BELOW

# A thing named round or square may be this much longer than wide before the word is wrong; what is elongated must be longer.
_ROUND_RATIO = 2.0
_ELONGATED_RATIO = 1.5
# What covers its ellipse of equal second moments with this IoU has no corners (a square reaches 0.83, a triangle 0.73).
_NO_CORNERS = 0.93
_NOT_OVAL = 0.6
# "medium" is read as anything between a quarter of the limit of small and five times that of large.
_MEDIUM = (SMALL_BELOW / 4, 5 * LARGE_FROM)


def word_findings(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """What the prompts get wrong about the masks; without masks, what shows in words and boxes alone."""
    words = read_all(cases)
    facts = {case.id: looks[case.id].facts for case in cases if case.id in looks}
    measured = [(one, found) for one in words if (found := facts.get(one.case.id)) is not None and not found.empty]
    return [
        *_absent(words, facts),
        *place_findings(words, measured, facts),
        *_numbers(measured),
        *_sizes(measured),
        *_shapes(measured),
        *_levels_disagree(words),
    ]


def _absent(words: Sequence[Words], facts: Mapping[str, MaskFacts | None]) -> list[Finding]:
    """Prompts that say that there is nothing, and what the mask or the annotated box says."""
    found: list[Finding] = []
    saying = [one for one in words if one.absent]

    def full(one: Words) -> bool | None:
        if (known := facts.get(one.case.id)) is not None:
            return not known.empty
        box = one.case.box
        return None if box is None or one.case.id in facts else box[2] > box[0] and box[3] > box[1]

    if wrong := [one for one in saying if full(one)]:
        what = "mask" if all(facts.get(one.case.id) is not None for one in wrong) else "annotated box"
        found.append(
            Finding(
                "error",
                "absent-but-there",
                f"{plural(len(wrong), 'case')} whose prompt says that there is nothing, but whose {what} is not empty",
                tuple(Evidence((one.case.id,), f"says {one.absent!r}") for one in wrong),
                "correct the prompt, or empty the mask",
            )
        )
    claiming = [one for one in words if full(one) is False and one.claims]
    if claiming:
        found.append(
            Finding(
                "warning",
                "there-but-empty",
                f"{plural(len(claiming), 'case')} with an empty mask whose prompt describes something",
                tuple(Evidence((one.case.id,), f"says {one.claims!r}") for one in claiming),
                "correct the prompt, or restore the mask",
            )
        )
    if saying:
        empty = {one.case.id for one in words if full(one) is False}
        named = {one.case.id for one in saying}
        by_split = Counter(one.case.split for one in saying)
        told = ", ".join(f"{split} {by_split[split]}" for split in sorted(by_split, key=split_order))
        levels = sorted({level for one in saying for level, _, said in one.said if said.absent})
        exactly = (
            f", exactly the {len(empty)} empty ones"
            if empty and empty == named
            else (f"; {len(empty)} are empty" if empty else "")
        )
        found.append(
            Finding(
                "warning",
                "reveals-emptiness",
                f"{plural(len(saying), 'case')} whose prompt tells that there is nothing to find (from {levels[0]} on; {told})"
                + exactly,
                tuple(Evidence((one.case.id,), f"says {one.absent!r}") for one in saying),
                "a model that reads the prompt needs no image there: report such cases apart, or ask for the class alone",
            )
        )
    return found


def _numbers(measured: Sequence[tuple[Words, MaskFacts]]) -> list[Finding]:
    stating = [
        (one, facts, number) for one, facts in measured if isinstance(number := one.last(lambda said: said.number), int)
    ]
    wrong = [(one, facts, number) for one, facts, number in stating if number and not _may_be(facts, number)]
    if not wrong:
        return []
    more = sum(number > len(facts.parts) for _, facts, number in wrong)
    return [
        Finding(
            "warning",
            "wrong-number",
            f"{plural(len(wrong), 'case')} of {len(stating)} whose prompt counts otherwise than the mask: {more} say more than "
            f"there is, {len(wrong) - more} fewer",
            tuple(
                Evidence((one.case.id,), f"says {number}, the mask has {plural(len(facts.parts), 'part')}")
                for one, facts, number in sorted(wrong, key=lambda item: -abs(item[2] - len(item[1].parts)))
            ),
            ANEW,
        )
    ]


def _may_be(facts: MaskFacts, number: int) -> bool:
    """Whether ``number`` is right for some reading of which small components count."""
    largest = facts.parts[0].share
    surely = sum(part.share >= 0.1 * largest for part in facts.parts)
    return surely <= number <= len(facts.parts)


def _sizes(measured: Sequence[tuple[Words, MaskFacts]]) -> list[Finding]:
    stating = [(one, facts, str(size)) for one, facts in measured if (size := one.last(lambda said: said.size))]
    wrong = []
    for one, facts, size in stating:
        parts = [part.share for part in facts.parts]
        if (
            (size == "small" and min(parts) > LARGE_FROM)
            or (size == "large" and facts.share < SMALL_BELOW)
            or (size == "medium" and not _MEDIUM[0] <= facts.share <= _MEDIUM[1])
        ):
            wrong.append((one, facts, size))
    found: list[Finding] = []
    if wrong:
        found.append(
            Finding(
                "warning",
                "wrong-size",
                f"{plural(len(wrong), 'case')} of {len(stating)} whose prompt calls small what covers over {LARGE_FROM:.0%} of "
                f"the image, large what covers under {100 * SMALL_BELOW:g} %, or medium what is neither",
                tuple(
                    Evidence((one.case.id,), f"says {size}, covers {100 * facts.share:.1f} %")
                    for one, facts, size in wrong
                ),
                ANEW,
            )
        )
    return [*found, *_size_order(stating)]


def _size_order(stating: Sequence[tuple[Words, MaskFacts, str]]) -> list[Finding]:
    """Whether one pair of limits explains the size words: small below, large above."""
    order = {"small": 0, "medium": 1, "large": 2}
    shares = np.array([facts.share for _, facts, _ in stating])
    ranks = np.array([order[size] for _, _, size in stating])
    if len(shares) < 20 or len(set(ranks)) < 2:
        return []
    limits, misfits = [], np.zeros(len(shares), bool)
    for cut in (1, 2):
        above = ranks >= cut
        if above.all() or not above.any():
            continue
        # The limit with the fewest cases on its wrong side: cumulative counts over the sorted shares.
        by_share = np.argsort(shares, kind="stable")
        wrong = np.concatenate([[0], np.cumsum(above[by_share])]) + np.concatenate(
            [np.cumsum(~above[by_share][::-1])[::-1], [0]]
        )
        at = int(wrong.argmin())
        limit = float(shares[by_share[min(at, len(shares) - 1)]])
        limits.append(f"{'medium' if cut == 1 else 'large'} from {100 * limit:.1f} %")
        misfits |= (shares >= limit) != above
    if not misfits.any():
        return []
    count = int(np.count_nonzero(misfits))
    return [
        Finding(
            "note" if count <= 0.05 * len(shares) else "warning",
            "size-words-uneven",
            f"the size words fit areas best as {' and '.join(limits)} of the image, with {count} of {len(shares)} cases on the "
            "wrong side",
            tuple(
                Evidence((one.case.id,), f"says {size}, covers {100 * facts.share:.1f} %")
                for (one, facts, size), misfit in zip(stating, misfits, strict=True)
                if misfit
            ),
            "equal words should mean equal areas",
        )
    ]


def _shapes(measured: Sequence[tuple[Words, MaskFacts]]) -> list[Finding]:
    stating = [(one, facts, str(shape)) for one, facts in measured if (shape := one.last(lambda said: said.shape))]
    wrong: list[Evidence] = []
    kinds: Counter[str] = Counter()
    total = Counter(shape for _, _, shape in stating)
    for one, facts, shape in stating:
        reasons = [_not_shape(part.axis_ratio, part.ellipse_iou, shape) for part in facts.parts]
        if all(reasons):  # of several parts one may be meant
            kinds[shape] += 1
            wrong.append(Evidence((one.case.id,), f"says {shape}, {reasons[0]}"))
    if not wrong:
        return []
    table = ", ".join(f"{shape} {kinds[shape]}/{total[shape]}" for shape, _ in total.most_common() if kinds[shape])
    return [
        Finding(
            "warning" if len(wrong) > 0.02 * len(stating) else "note",
            "wrong-shape",
            f"{plural(len(wrong), 'case')} of {len(stating)} whose prompt names a shape that the mask has not: {table}",
            tuple(wrong),
            ANEW,
        )
    ]


def _not_shape(axis_ratio: float, ellipse_iou: float, shape: str) -> str:
    """Why a part of these measures is surely no ``shape``, or an empty text."""
    if shape in ("round", "square") and axis_ratio >= _ROUND_RATIO:
        return f"is {axis_ratio:.1f} times as long as wide"
    if shape == "elongated" and axis_ratio < _ELONGATED_RATIO:
        return f"is only {axis_ratio:.1f} times as long as wide"
    if shape in ("square", "rectangle", "triangle") and ellipse_iou >= _NO_CORNERS:
        return f"is an ellipse (IoU {ellipse_iou:.2f})"
    if shape == "oval" and ellipse_iou < _NOT_OVAL:
        return f"is far from an ellipse (IoU {ellipse_iou:.2f})"
    return ""


def _levels_disagree(words: Sequence[Words]) -> list[Finding]:
    """Levels of one case that contradict each other."""
    attributes: dict[str, Callable[[Said], object]] = {
        "number": lambda said: said.number,
        "size": lambda said: said.size,
        "shape": lambda said: said.shape,
        "place": lambda said: said.places,
    }
    evidence: list[Evidence] = []
    kinds: Counter[str] = Counter()
    for one in words:
        for name, of in attributes.items():
            values = one.values(of)
            if len(set(values.values())) > 1:
                kinds[name] += 1
                told = ", ".join(f"{level} {_shown(value)}" for level, value in values.items())
                evidence.append(Evidence((one.case.id,), f"{name}: {told}"))
        if one.absent and one.claims:
            kinds["presence"] += 1
            evidence.append(Evidence((one.case.id,), f"says {one.absent!r} and {one.claims!r}"))
    if not evidence:
        return []
    table = ", ".join(f"{name} {count}" for name, count in kinds.most_common())
    return [
        Finding(
            "warning",
            "levels-disagree",
            f"{plural(len({one.cases[0] for one in evidence}), 'case')} whose prompt levels contradict each other ({table})",
            tuple(evidence),
            "a score by level compares different truths there: write the prompts anew",
        )
    ]


def _shown(value: object) -> str:
    return ", ".join(place_name(place) for place in value) if isinstance(value, tuple) else str(value)
