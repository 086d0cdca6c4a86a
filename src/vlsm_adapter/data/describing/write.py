"""Describing a whole data set: every mask measured, the prompts of every level written beside the data."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlsm_adapter.data.describing.classes import ClassEntry, Classes
from vlsm_adapter.data.describing.measure import Words, describe
from vlsm_adapter.data.describing.phrases import LEAK_FREE, LEVELS, as_json, prompts
from vlsm_adapter.data.describing.prompt_file import PromptFile, head_line
from vlsm_adapter.data.entries import real_folder, shown
from vlsm_adapter.data.images import read_pair
from vlsm_adapter.errors import ConfigError, DataError, nearest
from vlsm_adapter.files import atomic_path
from vlsm_adapter.types import Record, Skipped

GENERATOR_VERSION = 1  # raised whenever the same image and mask give other words


@dataclass(frozen=True, slots=True)
class Described:
    """One case and the prompts made for it.

    Attributes:
        record: the case.
        about: its class.
        words: what was measured.
        prompts: level to texts.
    """

    record: Record
    about: ClassEntry
    words: Words
    prompts: dict[str, tuple[str, ...]]


@dataclass
class Tally:
    """What was said of a data set, and what was not.

    Attributes:
        cases: described.
        empty: of them with an empty mask.
        said: ``"shape"``, ... to how often each word was said; None counts the cases where nothing was.
        classes: class name to its cases.
        undescribed: classes without a general description, which have no levels p7 to p9.
        skipped: cases left out.
    """

    cases: int = 0
    empty: int = 0
    said: dict[str, Counter[str | None]] = field(
        default_factory=lambda: {name: Counter() for name in ("shape", "colour", "size", "number", "position")}
    )
    classes: Counter[str] = field(default_factory=Counter)
    undescribed: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, case: Described) -> None:
        """Count one case."""
        words = case.words
        self.cases += 1
        self.classes[case.about.name] += 1
        if not case.about.descriptions and case.about.name not in self.undescribed:
            self.undescribed.append(case.about.name)
        if words.empty:
            self.empty += 1
            return
        self.said["shape"][words.shape] += 1
        self.said["colour"][words.colour] += 1
        self.said["size"][words.size] += 1
        self.said["number"][None if words.number is None else str(words.number)] += 1
        self.said["position"][", ".join(words.positions) or None] += 1

    def lines(self) -> Iterator[str]:
        """A line for each kind of word: how often what was said."""
        for name, counts in self.said.items():
            ranked = [f"{word} {count}" for word, count in counts.most_common() if word is not None]
            more = f", {len(ranked) - 9} others" if len(ranked) > 9 else ""
            yield f"{name}: {', '.join(ranked[:9]) or '-'}{more}; not said {counts[None]}"


def describe_cases(
    records: Iterable[Record], classes: Classes, *, on_bad: Callable[[Record, str], None] | None = None
) -> Iterator[Described]:
    """Measure case after case and make its prompts.

    Args:
        records: labelled cases; the class of each is what its p1 names.
        classes: names and descriptions.
        on_bad: called for a case whose files are unusable, which is then left out; None raises.

    Raises:
        DataError: a file is unusable, or a case has no p1 that names its class.
    """
    for record in records:
        try:
            named = record.prompts.get("p1")
            if not named:
                raise DataError(f"case {record.case_id}: has no p1 that names its class: give one, or pass --prompt")
            image, mask = read_pair(record)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(record, str(error))
            continue
        about = classes.of(named[0])
        words = describe(mask, image)
        yield Described(record, about, words, prompts(words, about))


def check_levels(levels: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen levels in order, each once, p0 left out since it is always there; all for None.

    Raises:
        ConfigError: no such level.
    """
    if levels is None:
        return LEVELS[1:]
    names = [part.strip() for given in levels for part in given.split(",") if part.strip()]
    for name in names:
        if name not in LEVELS:
            raise ConfigError(f"level '{name}' is unknown: {nearest(name, LEVELS)}")
    if not set(names) - {"p0"}:
        raise ConfigError("no level is chosen: give --levels p1,p6 or leave the option out for all of them")
    return tuple(level for level in LEVELS[1:] if level in names)


def check_out(out: str | os.PathLike[str], data: str | os.PathLike[str]) -> Path:
    """``out`` as a place where a file of prompts may be written.

    Raises:
        DataError: not a ``.jsonl`` name, the manifest of the data, or a file that is no file of prompts.
    """
    path = Path(out)
    if path.suffix.lower() != ".jsonl":
        raise DataError(f"{path}: a file of prompts ends in .jsonl: choose another --out, such as prompts.jsonl")
    if path.name in ("records.jsonl", "manifest.jsonl"):
        raise DataError(f"{path}: that name is a data set's own manifest: choose another --out, such as prompts.jsonl")
    if path.is_dir():
        raise DataError(f"{path}: is a folder: give --out a file name, such as {path / 'prompts.jsonl'}")
    if real_folder(path) == real_folder(data):
        raise DataError(f"{path}: is the data set itself, which is never changed: choose another --out")
    if path.exists() and not _is_ours(path):
        raise DataError(f"{path}: is there and no file of prompts: choose another --out, or remove it")
    return path


def write_prompts(
    records: Sequence[Record],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    classes: Classes,
    levels: Sequence[str] | None = None,
    prompt: str | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """Describe every case and write the file of prompts; nothing of the data set is touched.

    Args:
        records: the cases of ``data``.
        out: a ``.jsonl`` file anywhere; an earlier file of prompts is replaced.
        data: the data set, as ``load_records`` takes it.
        classes: names and descriptions.
        levels: which to write, by default all.
        prompt: the class name that ``data`` was loaded with.
        skip_bad: leave unusable cases out, instead of raising.
        progress: called with the number of cases done.

    Returns:
        What was said, and what was not.

    Raises:
        DataError: ``out`` may not be written, a case is unusable, or a chosen level has no text for a class.
        ConfigError: an unknown level.
        UserError: the file cannot be written; an earlier one is intact.
    """
    chosen = check_levels(levels)
    path = check_out(out, data)
    # Prompts made from a file of prompts belong to the data set that it names.
    source = PromptFile.open(real_folder(data))
    if source is not None:
        data, prompt = source.data, source.prompt
    tally = Tally()

    def leave_out(record: Record, reason: str) -> None:
        tally.skipped.append(Skipped(record.case_id, str(record.image), reason))

    digest = hashlib.sha256()
    digest.update(repr(sorted(classes.entries.items())).encode())
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as handle:
        head = head_line(
            path,
            Path(data),
            prompt=prompt,
            leaks={level: level not in LEAK_FREE for level in ("p0", *chosen)},
            generator_version=GENERATOR_VERSION,
            classes_sha256=digest.hexdigest(),
        )
        handle.write(json.dumps(head, ensure_ascii=False) + "\n")
        for case in describe_cases(records, classes, on_bad=leave_out if skip_bad else None):
            made = {level: list(case.prompts[level]) for level in chosen if level in case.prompts}
            if not made:
                raise DataError(
                    f"case {case.record.case_id}: class {shown(case.about.name)} has no description, so that none of "
                    f"{', '.join(chosen)} can be made: add it to a file for --classes, or choose p1 .. p6"
                )
            row = {"case_id": case.record.case_id, "prompts": made, "measured": as_json(case.words)}
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            tally.add(case)
            if progress is not None:
                progress(tally.cases + len(tally.skipped))
        if not tally.cases:
            raise DataError(f"{data}: no usable case: {tally.skipped[0].reason if tally.skipped else 'it is empty'}")
    return tally


def _is_ours(path: Path) -> bool:
    try:
        return PromptFile.open(path) is not None
    except DataError:
        return True  # a damaged one of ours, or one whose data moved: to be replaced
