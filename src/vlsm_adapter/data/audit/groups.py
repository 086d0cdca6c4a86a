"""Cases of one patient or one video on both sides of a split.

Groups that the data declares are checked exactly. Where it declares none, file names are read: ``patient0012_4CH.png``,
``video_3_frame_120.png``, ``274.png`` beside ``275.png``. What comes of names is a guess and said to be one; it is
weighed by evidence: pictures (or, without them, bounding boxes) of neighbouring numbers that resemble each other far more
than pictures drawn at random are frames of one recording.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlsm_adapter.data.audit.findings import Evidence, Finding, percent, plural
from vlsm_adapter.data.audit.pixels import Look
from vlsm_adapter.data.audit.reading import Box, Case
from vlsm_adapter.data.audit.sizes import split_order
from vlsm_adapter.data.splits import unit_of

T = TypeVar("T")

# A word that means a person, a visit or a recording, with a number: the group it names.
_GROUP = re.compile(
    r"(?:^|[^a-z])((?:patient|pat|subject|subj|sub|person|pt|study|exam|video|vid|sequence|seq|clip|slide|volume|vol|scan)"
    r"[ _-]?[0-9]+[a-z]?)(?![0-9])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]+")
# Numbers this far apart count as neighbours.
_NEAR = 1
# Neighbours are frames of a recording where their likeness lies this far above that of random pairs, in units of the
# difference between "the same" (1) and random.
_MIN_GAIN = 0.12
_MIN_PAIRS = 10
_RANDOM_PAIRS = 2000
_GROUP_FILE = (
    "write the sets of case ids into a group file, vlsm data split DIR --groups FILE --out splits, and train with "
    'data.split_file; or give the cases their "group"'
)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much neighbouring numbers resemble each other, and random pairs: means, and of how many pairs."""

    neighbours: float
    random: float
    pairs: int
    what: str

    @property
    def telling(self) -> bool:
        """Whether neighbours are more alike than chance would make them."""
        gain = (self.neighbours - self.random) / max(1 - self.random, 1e-6)
        return self.pairs >= _MIN_PAIRS and gain >= _MIN_GAIN

    def __str__(self) -> str:
        return (
            f"{self.what} of neighbours agree by {self.neighbours:.2f}, of random pairs by {self.random:.2f} "
            f"({self.pairs} pairs)"
        )


def group_findings(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """Groups divided between splits, or to be divided by training: declared, guessed from names, and neighbouring numbers."""
    splits = {case.record.split for case in cases}
    if splits == {None}:
        return [*_named_undivided(cases), *_neighbours_undivided(cases, looks)]
    if len(splits) < 2:
        return []
    found = _declared(cases)
    found += _named(cases)
    found += _neighbours(cases, looks)
    return found


def guess_group(name: str) -> str | None:
    """The patient or recording that a file name seems to tell (``"patient0012"``), lower case, or None."""
    match = _GROUP.search(name.rpartition(".")[0] or name)
    return re.sub(r"[ _-]", "", match[1].lower()) if match else None


def frame_number(name: str) -> tuple[str, int] | None:
    """What stays of a file name without its last number, and that number; None for names that are no such series.

    Names with several numbers (``p3_frame_0012.png``) form a series for each value of the others. A number of more than
    nine digits, or one within a hexadecimal or random name, is no frame number.
    """
    stem = name.rpartition(".")[0] or name
    matches = list(_NUMBER.finditer(stem))
    if not matches or sum(char.isdigit() for char in stem) > 16:
        return None
    last = matches[-1]
    before, after = stem[: last.start()], stem[last.end() :]
    # Letters and digits mixed without a break, several times, are a random name and not a series.
    if len(last[0]) > 9 or len(re.findall(r"[a-zA-Z][0-9]|[0-9][a-zA-Z]", stem)) > 3:
        return None
    return f"{before}#{after}", int(last[0])


def _declared(cases: Sequence[Case]) -> list[Finding]:
    # "image:..." is made by the loaders for several masks of one image; it is shared by design and never divided by name.
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.record.group is not None and not case.record.group.startswith("image:"):
            groups[case.record.group].append(case)
    divided = {name: found for name, found in groups.items() if len({case.split for case in found}) > 1}
    if not divided:
        return []
    concerned = sum(len(found) for found in divided.values())
    return [
        Finding(
            "error",
            "group-across-splits",
            f"{plural(len(divided), 'group')} of {len(groups)} stand in several splits ({concerned} cases)",
            tuple(Evidence(_one_of_each_split(found), f"group {name}") for name, found in divided.items()),
            "split by group; leave the splits out and vlsm draws them so",
        )
    ]


def _guessed(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Guessed group to its cases; cases of declared groups are passed over."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.record.group is not None and not case.record.group.startswith("image:"):
            continue
        # CAMUS numbers the patients of both of its parts from 1: the split's sub-folder is part of who it is.
        folder = case.name.rpartition("/")[0]
        if (guess := guess_group(case.name.rpartition("/")[2])) is not None:
            groups[f"{folder}/{guess}".lstrip("/")].append(case)
    return groups


def _named_undivided(cases: Sequence[Case]) -> list[Finding]:
    """Guessed groups of several cases in data without splits, whose cases training divides one by one."""
    groups = _guessed(cases)
    several = {name: found for name, found in groups.items() if len({unit_of(case.record) for case in found}) > 1}
    if not several:
        return []
    return [
        Finding(
            "warning",
            "guessed-group-without-split",
            f"{plural(len(several), 'group')} of several cases ({sum(map(len, several.values()))} in all), guessed from file "
            "names, and no split is named: training then divides case by case, so that a group comes to stand in train and "
            "in test",
            tuple(
                Evidence(tuple(case.id for case in found), f"guessed group {name}") for name, found in several.items()
            ),
            f"if the guess is right, {_GROUP_FILE}",
        )
    ]


def _named(cases: Sequence[Case]) -> list[Finding]:
    groups = _guessed(cases)
    divided = {name: found for name, found in groups.items() if len({case.split for case in found}) > 1}
    # Other files of equal names in two splits are reported as such; their names tell nothing of patients.
    divided = {
        name: found
        for name, found in divided.items()
        if len({case.name for case in found}) > len({case.name for case in found} & _names_in_two_splits(cases))
    }
    if not divided:
        return []
    concerned = sum(len(found) for found in divided.values())
    pairs = sum(len({case.split for case in found} & {"train", "test"}) == 2 for found in divided.values())
    return [
        Finding(
            "warning",
            "guessed-group-across-splits",
            f"{plural(len(divided), 'group')} of {len(groups)}, guessed from file names, stand in several splits "
            f"({concerned} cases; {pairs} in train and test)",
            tuple(Evidence(_one_of_each_split(found), f"guessed group {name}") for name, found in divided.items()),
            'if the guess is right, give the cases their "group" and split anew',
        )
    ]


def _names_in_two_splits(cases: Sequence[Case]) -> set[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits[case.name].add(case.split)
    return {name for name, found in splits.items() if len(found) > 1}


def _one_of_each_split(found: Sequence[Case]) -> tuple[str, ...]:
    return tuple({case.split: case.id for case in reversed(found)}.values())


def _series(cases: Sequence[Case]) -> dict[str, dict[int, Case]]:
    """What names share without their last number, to that number, to the case."""
    twice = _names_in_two_splits(cases)
    series: dict[str, dict[int, Case]] = defaultdict(dict)
    for case in cases:
        number = frame_number(case.name)
        if number is not None and case.name not in twice and guess_group(case.name) is None:
            series[number[0]].setdefault(number[1], case)
    return series


def _near_pairs(series: Mapping[str, Mapping[int, Case]]) -> list[tuple[Case, Case]]:
    return [
        (case, frames[number + step])
        for frames in series.values()
        for number, case in frames.items()
        for step in range(1, _NEAR + 1)
        if number + step in frames
    ]


def _neighbours_undivided(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    """Series that are recordings, in data without splits, whose cases training divides one by one."""
    near = _near_pairs(_series(cases))
    apart = [pair for pair in near if unit_of(pair[0].record) != unit_of(pair[1].record)]
    likeness = _likeness(near, cases, looks) if apart else None
    if likeness is None or not likeness.telling:
        return []
    return [
        Finding(
            "warning",
            "neighbours-without-split",
            f"{likeness}: so neighbouring numbers belong together (one "
            "recording, or one series), and no split is named: training then divides case by case, so that neighbours come "
            "to stand in train and in test",
            tuple(Evidence((case.id, other.id), f"{case.name}, {other.name}") for case, other in apart),
            f"ask the owners which numbers belong together; {_GROUP_FILE}",
        )
    ]


def _neighbours(cases: Sequence[Case], looks: Mapping[str, Look]) -> list[Finding]:
    series = _series(cases)
    near = _near_pairs(series)
    divided = [pair for pair in near if _side(pair[0]) != _side(pair[1])]
    if not divided:
        return []
    numbered = Counter(_side(case) for frames in series.values() for case in frames.values())
    # (where the neighbour is, where the case is scored) to the pairs: val is scored against train, test against both.
    between: dict[tuple[str, str], list[tuple[Case, Case]]] = defaultdict(list)
    for pair in divided:
        learnt, scored = sorted(map(_side, pair), key=split_order)
        between[learnt, scored].append(pair)
    order = sorted(between, key=lambda splits: (splits != ("train", "test"), *map(split_order, splits)))
    counts = {
        splits: len({case.id for pair in between[splits] for case in pair if _side(case) == splits[1]})
        for splits in order
    }
    likeness = _likeness(near, cases, looks)
    told = f"; {likeness}" if likeness else "; no picture and no box says whether neighbours are alike"
    telling = likeness.telling if likeness else False
    guess = (
        "so neighbouring numbers belong together (one recording, or one series)"
        if telling
        else "a guess from file names alone"
        if not likeness
        else ("so neighbouring numbers hardly belong together")
    )
    half = any(2 * count >= numbered[scored] for (_, scored), count in counts.items())
    severity = "warning" if telling or (likeness is None and half) else "note"
    evidence = [
        Evidence((case.id, other.id), f"{case.name} ({case.split}), {other.name} ({other.split})")
        for splits in order
        for case, other in between[splits]
    ]
    told_counts = [
        f"{count} of {numbered[scored]} numbered {scored} cases ({percent(count, numbered[scored])}) have a case of the "
        f"next number in {learnt}"
        for (learnt, scored), count in counts.items()
    ]
    return [
        Finding(
            severity,
            "neighbours-across-splits",
            f"{', '.join(told_counts)}{told}: {guess}",
            tuple(evidence),
            "split by recording; ask the owners which numbers belong together"
            if telling
            else "nothing, unless the numbers are frames of a recording",
        )
    ]


def _side(case: Case) -> str:
    """The split; a case without one may be trained on."""
    return "train" if case.split == "no split" else case.split


def _likeness(near: Sequence[tuple[Case, Case]], cases: Sequence[Case], looks: Mapping[str, Look]) -> Likeness | None:
    """Pictures are compared where they are there, else boxes; None where neither is."""
    boxes = {case.id: case.box for case in cases if case.box is not None and case.box[2] > case.box[0]}
    return _compared(near, _pictures(cases, looks), _correlation, "pictures") or _compared(
        near, boxes, _overlap, "boxes"
    )


def _compared(
    near: Sequence[tuple[Case, Case]], known: Mapping[str, T], alike: Callable[[T, T], float], what: str
) -> Likeness | None:
    ids = list(known)
    pairs = [(known[a.id], known[b.id]) for a, b in near if a.id in known and b.id in known]
    if len(ids) < _MIN_PAIRS or not pairs:
        return None
    chance = [(known[ids[i]], known[ids[j]]) for i, j in _random_pairs(len(ids))]
    neighbours, random = (float(np.mean([alike(*pair) for pair in some])) for some in (pairs, chance))
    return Likeness(neighbours, random, len(pairs), what)


def _pictures(cases: Sequence[Case], looks: Mapping[str, Look]) -> dict[str, np.ndarray]:
    """Grey copies without what all pictures share, of length one."""
    small = {case.id: look.small for case in cases if (look := looks.get(case.id)) and look.small is not None}
    if not small:
        return {}
    values = np.stack(list(small.values())).astype(np.float32).reshape(len(small), -1)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    values -= values.mean(axis=0)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return dict(zip(small, values, strict=True))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other)


def _overlap(one: Box, other: Box) -> float:
    """IoU of two boxes (left, top, right, bottom)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(0.0, width) * max(0.0, height)
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - inside
    return inside / union if union > 0 else 0.0


def _random_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of different indices below ``count``, the same for ever."""
    seed = int.from_bytes(hashlib.blake2b(str(count).encode(), digest_size=8).digest(), "big")
    random = np.random.default_rng(seed)
    first = random.integers(0, count, _RANDOM_PAIRS)
    second = (first + random.integers(1, count, _RANDOM_PAIRS)) % count
    return list(zip(first.tolist(), second.tolist(), strict=True))
