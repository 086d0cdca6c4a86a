"""The published split and prompts (MedVLSM's annotation files), joined to the cases of an archive.

A folder holds ``train.json``, ``val.json`` and ``test.json``, or not all of them: lists of ``{"img_name",
"mask_name", "prompts": {"p0": "", "p1": ...}}``. Names of masks, without their ending, tell which case is meant.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vlsm_adapter.data.entries import Entry, parse_json, read_text
from vlsm_adapter.data.layouts import published_lists, split_lists
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.sources.base import Source
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError

Prompts = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Annotations:
    """The lists of one data set.

    Attributes:
        folder: where they lie.
        entries: name of the mask (folders kept, without ending) to its splits with their prompts, in the lists' order.
        missing: splits without a list.
        digest: of the files, so that sets made with other lists are told apart.
        repeated: entries that stand twice in one split and count once.
    """

    folder: Path
    entries: dict[str, dict[str, Prompts]]
    missing: tuple[str, ...]
    digest: str
    repeated: int


def read_annotations(path: str | os.PathLike[str], name: str) -> Annotations:
    """The lists of the data set ``name`` in ``path``, or in its sub-folder of that name, there or in ``anns/`` as published.

    Raises:
        DataError: no list is there, or one is damaged; the message names the entry.
    """
    root = Path(path).expanduser()
    ways = (find(place) for place in (root / name, root) for find in (split_lists, published_lists))
    lists = next((found for found in ways if found), None)
    if lists is None:
        raise DataError(
            f"{root}: holds no annotations of {name}: looked for train.json, val.json or test.json there and in {name}/"
        )
    entries: dict[str, dict[str, Prompts]] = {}
    repeated = 0
    hashed = hashlib.blake2b(digest_size=8)
    folder = next(iter(lists.values())).parent
    for split, file in lists.items():
        text = read_text(file)
        hashed.update(f"{split}\0{text}\0".encode("utf-8", "surrogatepass"))
        values = parse_json(text, str(file))
        if not isinstance(values, list):
            raise DataError(f"{file}: must be a list of entries with img_name, mask_name and prompts")
        for number, value in enumerate(values):
            entry = Entry.of(value, f"{file}: entry {number}", folder)
            mask = entry.file_name("mask_name") or entry.needed_file_name("img_name")
            prompts = entry.prompts()
            if not any(level != "p0" for level in prompts):
                entry.fail("prompts", 'says nothing; needed: at least {"p1": "..."}')
            splits = entries.setdefault(str(PurePosixPath(mask).with_suffix("")), {})
            repeated += split in splits
            splits.setdefault(split, prompts)
    missing = tuple(split for split in SPLITS if split not in lists)
    return Annotations(folder, entries, missing, hashed.hexdigest(), repeated)


def join(
    cases: Iterable[RawCase], source: Source, annotations: Annotations, expected: int | None, warnings: list[str]
) -> Iterator[RawCase]:
    """The cases as the lists have them: with published split and prompts, those not listed left out.

    A case in several lists stands once in each, as published, the later ones (in the order train, val, test) with their
    split in the id. Where the list of train is missing (CAMUS), cases in no list are taken for train, with their own
    prompts.

    Args:
        cases: all cases of the archive.
        source: whose ``published`` names them.
        annotations: the lists.
        expected: the number of cases of the archive, or None; another number is a warning.
        warnings: gets a line for all that does not fit, at the end.
    """
    joined: set[tuple[str, str]] = set()
    count = own = unlisted = several = 0
    for case in cases:
        count += 1
        name, allowed = source.published(case)
        found = [(split, words) for split, words in annotations.entries.get(name, {}).items() if split in allowed]
        several += len(found) > 1
        for number, (split, prompts) in enumerate(found):
            joined.add((name, split))
            case_id = case.case_id if number == 0 else f"{case.case_id}__{split}"
            image_id = case.image_id if case.image_id is not None else case.case_id
            yield replace(
                case, case_id=case_id, image_id=image_id, split=split, prompts=prompts, leak_free=source.leak_free
            )
        if not found and "train" in annotations.missing and "train" in allowed:
            own += 1
            yield replace(case, split="train", leak_free=None if source.leak_free is None else tuple(case.prompts))
        elif not found:
            unlisted += 1
    where = annotations.folder
    if expected is not None and count != expected:
        warnings.append(
            f"{source.name}: {count} cases found, {expected} expected: part of the set, or another release?"
        )
    lost = sum(len(splits) for splits in annotations.entries.values()) - len(joined)
    for number, text in (
        (annotations.repeated, "entries stand twice in one list and count once"),
        (several, "cases stand in several lists, so that scores flatter"),
        (unlisted, "cases stand in no list and are left out"),
        (own, "cases stand in no list and are used for train with their own prompts: train.json is not there"),
        (lost, "entries of the lists have no case in the archive"),
    ):
        if number:
            warnings.append(f"{where}: {number} {text}")
