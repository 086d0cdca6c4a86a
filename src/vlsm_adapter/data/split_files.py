"""Split files: which case is trained on, which validates and which tests, as JSON lists of case ids.

A split file names cases and never touches them: it holds no path, so it can be published beside results, and used
wherever the data lies (``data.split_file``). Cases of the data that it does not name take no part.

::

    {"format": "vlsm-split", "format_version": 1, "data": "kvasir_polyp", "about": {"fold": "1/5", "seed": 0, ...},
     "train": ["case_1", ...], "val": [...], "test": [...]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import kind_of, parse_json, read_text, shown
from vlsm_adapter.data.folds import fold_splits
from vlsm_adapter.data.group_files import GroupFile
from vlsm_adapter.data.splits import SPLITS, assign_splits, complete_splits
from vlsm_adapter.data.strata import foreground_shares
from vlsm_adapter.data.subsets import few_shot, parse_subset
from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.files import write_text
from vlsm_adapter.types import Record

FORMAT = "vlsm-split"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SplitFile:
    """A split file, read and checked.

    Attributes:
        path: the file, for messages.
        split_of: case id to split.
        about: how it was made, as written.
    """

    path: Path
    split_of: Mapping[str, str]
    about: Mapping[str, Any]

    def apply(self, records: Sequence[Record], where: str) -> list[Record]:
        """The cases that the file names, in the order of ``records``, each with its split.

        Raises:
            DataError: a case that the file names is not in the data.
        """
        lacking = self.split_of.keys() - {record.case_id for record in records}
        if lacking:
            raise DataError(
                f"{self.path}: names {len(lacking)} of {len(self.split_of)} cases that {where} does not have, the first is "
                f"{shown(min(lacking))}: use it with the data it was made for, or make a new one (vlsm data split)"
            )
        return [
            replace(record, split=self.split_of[record.case_id])
            for record in records
            if record.case_id in self.split_of
        ]


def read_split_file(path: str | os.PathLike[str]) -> SplitFile:
    """Read a split file.

    Raises:
        DataError: missing, damaged, of another format, or a case stands in two splits.
    """
    file = Path(path).expanduser()
    values = parse_json(read_text(file), str(file))
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{file}: not a split file; give one that 'vlsm data split' wrote")
    if values.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{file}: format_version {shown(values.get('format_version'))} is not known to this version, which reads "
            f"{FORMAT_VERSION}: update vlsm-adapter, or make the file anew"
        )
    split_of: dict[str, str] = {}
    for split in SPLITS:
        names = values.get(split, [])
        if not isinstance(names, list):
            raise DataError(f"{file}: '{split}' is {kind_of(names)}, not a list of case ids")
        for name in names:
            if not isinstance(name, str):
                raise DataError(f"{file}: '{split}' holds {kind_of(name)}, not a case id")
            if name in split_of:
                raise DataError(
                    f"{file}: case {shown(name)} stands in {split_of[name]} and in {split}: a case has one place"
                )
            split_of[name] = split
    if not split_of:
        raise DataError(f"{file}: names no case in {', '.join(SPLITS)}")
    about = values.get("about")
    return SplitFile(file, split_of, about if isinstance(about, dict) else {})


def write_split_file(path: str | os.PathLike[str], records: Sequence[Record], about: Mapping[str, Any]) -> None:
    """Write the splits of ``records`` as a split file, atomically; cases stand sorted by id.

    Raises:
        DataError: a case without a split, or a case id that stands twice.
        UserError: the file cannot be written, or holds another split.
    """
    target = Path(path)
    text = _text(target, records, about)
    _refuse_another(target, text)
    write_text(target, text)


def _refuse_another(target: Path, text: str) -> None:
    if target.is_file() and target.read_bytes() != text.encode():
        raise DataError(f"{target}: holds another split; choose another --out, or remove it first")


def _text(target: Path, records: Sequence[Record], about: Mapping[str, Any]) -> str:
    """What a split file at ``target`` holds."""
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    for record in records:
        if record.split not in lists:
            raise DataError(f"{target}: case {shown(record.case_id)} has no split")
        lists[record.split].append(record.case_id)
    if sum(map(len, lists.values())) != len({record.case_id for record in records}):
        raise DataError(f"{target}: a case id stands twice")
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "data": records[0].dataset if records else "",
        "about": dict(about),
        **{split: sorted(names) for split, names in lists.items()},
    }
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Written:
    """One split file that was written, and what is in it.

    Attributes:
        path: the file.
        counts: split to number of cases.
        foreground: split to the mean share of the image that is foreground, None where no mask was read.
    """

    path: Path
    counts: Mapping[str, int]
    foreground: Mapping[str, float | None]

    def __str__(self) -> str:
        parts = []
        for split, count in self.counts.items():
            share = self.foreground[split]
            parts.append(f"{count} {split}" + ("" if share is None else f" (mean foreground {share:.1%})"))
        return ", ".join(parts)


def write_splits(
    records: Sequence[Record],
    out: str | os.PathLike[str],
    *,
    fractions: Sequence[float] | None = None,
    folds: int | None = None,
    subsets: Sequence[str | int] = (),
    stratify: bool = True,
    seed: int = 0,
    groups: GroupFile | None = None,
    left_out: Collection[str] = (),
    where: str = "the data",
    progress: Callable[[int], None] | None = None,
) -> list[Written]:
    """Divide a data set and write one split file per division into ``out``; the data is only read.

    ``split.json`` holds the division into train, val and test, or ``fold-1-of-5.json`` ... those of cross-validation.
    Every subset is written for each of them, ``split_train-5pct.json`` or ``split_train-20-cases.json``, with val and
    test as they are.

    Args:
        records: the cases, with the data's own splits. Where none has one, they are divided 0.7, 0.1, 0.2 as by ``fractions``;
            where only val is missing, it is taken from train (``splits.complete_splits``).
        out: the folder to write to.
        fractions: parts of train, val and test, in place of the data's own splits; with ``folds``, of the first two the
            proportion.
        folds: number of folds, in place of the data's own splits.
        subsets: few-shot subsets of train, ``"5%"`` or a number of cases; each lies inside the larger ones.
        stratify: by foreground size; every mask is read.
        seed: another seed, another division.
        groups: further groups to keep whole, joined with those of the data.
        left_out: ids of bad cases: they take part in dividing, so that none moves another, and are not written.
        where: the data, for messages.
        progress: called with the number of masks read.

    Raises:
        ConfigError: ``fractions``, ``folds`` or a subset are out of range; ``groups`` are divided by the data's own splits.
        DataError: a file there holds another split; ``groups`` name a case that is not there; only some cases have a split.
    """
    for subset in subsets:
        parse_subset(subset)
    if groups is not None:
        records = groups.apply(records, where, left_out=left_out)
    shares = foreground_shares(records, progress) if stratify else None
    about: dict[str, Any] = {"stratify": "size" if stratify else "none", "seed": seed}
    if groups is not None:
        about["groups"] = f"{groups.path.name} ({len(groups.groups)} group{'' if len(groups.groups) == 1 else 's'})"
    if folds is None and fractions is None and all(record.split is None for record in records):
        fractions = (0.7, 0.1, 0.2)
    divisions: dict[str, tuple[list[Record], dict[str, Any]]] = {}
    if folds is not None:
        parts = (0.7, 0.1, 0.2) if fractions is None else fractions
        for number in range(1, max(folds, 1) + 1):
            made = fold_splits(records, number, folds, fractions=parts, seed=seed, shares=shares)
            divisions[f"fold-{number}-of-{folds}"] = (made, {**about, "fold": f"{number}/{folds}"})
    elif fractions is not None:
        made = assign_splits(records, fractions, seed, shares=shares)
        divisions["split"] = (made, {**about, "fractions": list(fractions)})
    else:
        divisions["split"] = _own(records, groups, about, subsets=bool(subsets), where=where)
    if not divisions["split" if folds is None else f"fold-1-of-{folds}"][0]:
        raise ConfigError("there is no case to divide")
    # All are made before the first is written, so that a subset too large leaves nothing behind.
    files: dict[str, tuple[list[Record], dict[str, Any]]] = {}
    for name, (made, how) in divisions.items():
        files[name] = (made, how)
        for subset in subsets:
            percent, count = parse_subset(subset)
            part = f"{count}-cases" if percent is None else f"{str(percent).replace('.', '_')}pct"
            files[f"{name}_train-{part}"] = (
                few_shot(made, subset, seed=seed, shares=shares),
                {**how, "subset": str(subset)},
            )
    bad = set(left_out)
    ready = [
        (Path(out) / f"{name}.json", [record for record in made if record.case_id not in bad], how)
        for name, (made, how) in files.items()
    ]
    # Likewise before the first: folds of two divisions side by side would test some cases twice and others never.
    for path, usable, how in ready:
        _refuse_another(path, _text(path, usable, how))
    for path, usable, how in ready:
        write_split_file(path, usable, how)
    return [_summary(path, usable, shares) for path, usable, _ in ready]


def _own(
    records: Sequence[Record], groups: GroupFile | None, about: Mapping[str, Any], *, subsets: bool, where: str
) -> tuple[list[Record], dict[str, Any]]:
    """The data's own splits, a missing val taken from train, and how they came about."""
    made = complete_splits(records, seed=about["seed"], where=where)
    if groups is not None:
        splits_of: dict[str, set[str | None]] = {}
        for record in made:
            if record.group is not None:
                splits_of.setdefault(record.group, set()).add(record.split)
        if divided := sum(len(splits) > 1 for splits in splits_of.values()):
            raise ConfigError(
                f"{groups.path}: the splits of {where} divide {divided} of its groups: give --fractions or --folds to divide anew"
            )
    how: dict[str, Any] = {"splits": "the data's own"}
    if [record.split for record in made] != [record.split for record in records]:
        how |= {"val": "taken from train, not stratified", "seed": about["seed"]}
    if groups is not None:
        how["groups"] = about["groups"]
    return made, {**how, **about} if subsets else how


def _summary(path: Path, records: Sequence[Record], shares: Mapping[str, float | None] | None) -> Written:
    counts = {split: sum(record.split == split for record in records) for split in SPLITS}
    foreground: dict[str, float | None] = {}
    for split in SPLITS:
        known = [
            share
            for record in records
            if record.split == split and shares is not None and (share := shares.get(record.case_id)) is not None
        ]
        foreground[split] = sum(known) / len(known) if known else None
    return Written(path, counts, foreground)
