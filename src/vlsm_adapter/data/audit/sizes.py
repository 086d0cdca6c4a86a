"""Empty masks, the distribution of foreground sizes, and whether the splits are drawn from the same."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from vlsm_adapter.data.audit.findings import Evidence, Finding, percent, plural
from vlsm_adapter.data.audit.pixels import Look
from vlsm_adapter.data.audit.reading import Case
from vlsm_adapter.data.splits import SPLITS

# Masks that cover more than this of the image, or touch all four borders, are rarely meant so.
_NEARLY_ALL = 0.95
# Fewer foreground pixels than this at the 352 x 352 input of CLIPSeg are one pixel of its 22 x 22 grid of patches, halved.
_TINY_SHARE = 0.5 / 22**2
# Two splits differ where the largest distance of their cumulative distributions (Kolmogorov-Smirnov) is this large ...
_SHIFT = 0.15
# ... and chance gives it this seldom.
_SHIFT_P = 0.001
_HOLES = 0.01
# So many masks with a speck at the same pixel have it from the program that wrote them.
_SAME_SPECK = 5
# An annotated box fits where each side is within this many pixels, or this part of the image, of the mask's.
_BOX_PIXELS, _BOX_SHARE = 3, 0.01


def size_findings(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """What the areas of the masks show."""
    return [
        *_splits(cases),
        *_empty(cases, looks),
        *_extreme(cases, looks),
        *_ragged(cases, looks),
        *_boxes(cases, looks),
        *_shift(cases, looks),
    ]


def shares_by_split(cases: Sequence[Case], looks: Mapping[str, Look]) -> dict[str, np.ndarray]:
    """Split to the foreground of its non-empty masks, each as part of its image."""
    found: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        facts = looks[case.id].facts if case.id in looks else None
        if facts is not None and not facts.empty:
            found[case.split].append(facts.share)
    return {split: np.array(found[split]) for split in sorted(found, key=split_order)}


def split_order(split: str) -> tuple[int, str]:
    """Sorts train, val, test before anything else."""
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def two_sample_distance(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two samples and its asymptotic two-sided p-value.

    The p-value is Kolmogorov's series with Stephens' correction for finite samples (M. A. Stephens, 1970), good to the
    second figure from about ten values a sample on.
    """
    both = np.concatenate([one, other])
    cumulative = [np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (one, other)]
    distance = float(np.abs(cumulative[0] - cumulative[1]).max())
    effective = math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    at = (effective + 0.12 + 0.11 / effective) * distance
    if at < 0.3:  # the series converges slowly there, and the sum is one to six figures
        return distance, 1.0
    terms = [2 * (-1) ** (k - 1) * math.exp(-2 * k * k * at * at) for k in range(1, 101)]
    return distance, min(1.0, max(0.0, sum(terms)))


def _splits(cases: Sequence[Case]) -> list[Finding]:
    counts = Counter(case.split for case in cases)
    if "no split" in counts and len(counts) > 1:
        some = [Evidence((case.id,)) for case in cases if case.record.split is None]
        return [
            Finding(
                "error",
                "split-for-some",
                f"{plural(len(some), 'case')} of {len(cases)} have no split, the others do",
                tuple(some),
                "give one to all or to none",
            )
        ]
    missing = [split for split in SPLITS if not counts[split]] if "no split" not in counts else []
    small = [f"{split} {counts[split]}" for split in ("val", "test") if 0 < counts[split] < 20]
    found = []
    if missing:
        found.append(
            Finding(
                "note",
                "split-missing",
                f"no case in {' and '.join(missing)}",
                (),
                "a missing val is drawn from train by seed; training needs train, evaluation test",
            )
        )
    if small:
        found.append(
            Finding(
                "note",
                "split-small",
                f"few cases: {', '.join(small)}; a mean over them is uncertain by several points of Dice",
                (),
                "report confidence intervals, or use k folds",
            )
        )
    return found


def _empty(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    with_mask = [case for case in cases if looks[case.id].facts is not None]
    empty = [case for case in with_mask if looks[case.id].facts.empty]  # type: ignore[union-attr]
    if not empty:
        return []
    total = Counter(case.split for case in with_mask)
    by_split = Counter(case.split for case in empty)
    told = ", ".join(f"{split} {by_split[split]} of {total[split]}" for split in sorted(total, key=split_order))
    return [
        Finding(
            "note",
            "empty-masks",
            f"{plural(len(empty), 'empty mask')} ({percent(len(empty), len(with_mask))}): {told}",
            tuple(Evidence((case.id,), f"empty, {case.split}") for case in empty),
            "Dice on them is 0 or 1 by definition: evaluation counts and reports them apart; check that they are meant",
        )
    ]


def _extreme(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    measured = [(case, facts) for case in cases if (facts := looks[case.id].facts) is not None and not facts.empty]
    found: list[Finding] = []
    full = [(case, facts) for case, facts in measured if facts.share > _NEARLY_ALL]
    if full:
        full.sort(key=lambda pair: -pair[1].share)
        found.append(
            Finding(
                "warning",
                "mask-nearly-full",
                f"{plural(len(full), 'mask')} over more than {_NEARLY_ALL:.0%} of the image",
                tuple(Evidence((case.id,), f"{100 * facts.share:.1f} % of the image") for case, facts in full),
                "look at them: inverted masks and lost ones look so",
            )
        )
    tiny = [(case, facts) for case, facts in measured if facts.share < _TINY_SHARE]
    if tiny:
        tiny.sort(key=lambda pair: pair[1].share)
        found.append(
            Finding(
                "note",
                "mask-tiny",
                f"{plural(len(tiny), 'mask')} smaller than half a patch of 16 x 16 pixels at 352 x 352 ({100 * _TINY_SHARE:.2f} % of "
                "the image)",
                tuple(
                    Evidence((case.id,), f"{plural(facts.pixels, 'pixel')}, {100 * facts.share:.3f} %")
                    for case, facts in tiny
                ),
                "look at them: specks of an editor, or lesions that the network can hardly see at its input size",
            )
        )
    return found


def _ragged(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    measured = [(case, facts) for case in cases if (facts := looks[case.id].facts) is not None and not facts.empty]
    found: list[Finding] = []
    specked = sorted(((c, f) for c, f in measured if f.specks), key=lambda pair: -pair[1].specks)
    if specked:
        places = Counter(facts.speck_at for _, facts in specked)
        place, often = places.most_common(1)[0]
        same = often >= _SAME_SPECK and place is not None
        told = (
            f"; in {often} of them the first is at the same pixel, column {place[0]}, row {place[1]}"
            if place and same
            else ""
        )
        found.append(
            Finding(
                "warning" if same else "note",
                "mask-specks",
                f"{plural(len(specked), 'mask')} with specks beside the lesion (components too small to count){told}",
                tuple(
                    Evidence((case.id,), f"{plural(facts.specks, 'speck')}, the first at column {at[0]}, row {at[1]}")
                    for case, facts in specked
                    if (at := facts.speck_at) is not None
                ),
                "distances (HD, HD95) and bounding boxes see each speck: remove them, or say that they are meant",
            )
        )
    holed = sorted(((c, f) for c, f in measured if f.holes >= _HOLES), key=lambda pair: -pair[1].holes)
    if holed:
        found.append(
            Finding(
                "note",
                "mask-holes",
                f"{plural(len(holed), 'mask')} with holes of {_HOLES:.0%} of the foreground or more",
                tuple(Evidence((case.id,), f"{100 * facts.holes:.1f} % of the foreground") for case, facts in holed),
                "look whether the holes are meant",
            )
        )
    return found


def _boxes(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """Annotated boxes that are not those of the mask; either end of the box may be inclusive."""
    known = [
        (case, case.box, look.facts, look.size)
        for case in cases
        if case.box is not None and (look := looks[case.id]).facts is not None and look.size and not look.facts.empty
    ]
    wrong: list[tuple[float, Evidence]] = []
    for case, box, facts, size in known:
        limits = [max(_BOX_PIXELS, _BOX_SHARE * size[axis % 2]) for axis in range(4)]
        off = [abs(given - real) for given, real in zip(box, facts.box, strict=True)]
        if any(distance > limit for distance, limit in zip(off, limits, strict=True)):
            told = ", ".join(f"{value:g}" for value in box)
            wrong.append(
                (-max(off), Evidence((case.id,), f"box {told}, the mask's is {', '.join(map(str, facts.box))}"))
            )
    if not wrong:
        return []
    wrong.sort(key=lambda pair: pair[0])
    return [
        Finding(
            "warning",
            "box-against-mask",
            f"{plural(len(wrong), 'case')} of {len(known)} whose annotated box is not that of the mask",
            tuple(evidence for _, evidence in wrong),
            "do not prompt or crop by these boxes; they tell of an older mask, or of specks",
        )
    ]


def _shift(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    shares = shares_by_split(cases, looks)
    found: list[Finding] = []
    train = shares.get("train")
    for split in ("val", "test"):
        other = shares.get(split)
        if train is None or other is None or min(len(train), len(other)) < 10:
            continue
        distance, p = two_sample_distance(train, other)
        if distance >= _SHIFT and p < _SHIFT_P:
            found.append(
                Finding(
                    "warning",
                    "split-shift",
                    f"foreground sizes of {split} differ from those of train: median {100 * float(np.median(other)):.1f} % against "
                    f"{100 * float(np.median(train)):.1f} % of the image (Kolmogorov-Smirnov distance {distance:.2f}, p {p:.1g})",
                    (),
                    "scores mix a change of size with what was learnt: split stratified by foreground size",
                )
            )
    return found
