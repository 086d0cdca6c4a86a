"""From cases to a prepared data set on disk."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlsm_adapter.data.entries import shown
from vlsm_adapter.data.prepared.card import About, Summary, card, facts
from vlsm_adapter.data.prepared.cases import RawCase
from vlsm_adapter.data.prepared.files import Stored, Writer
from vlsm_adapter.data.prepared.journal import PARTIAL, Journal, alone_in
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError
from vlsm_adapter.files import write_json, write_text
from vlsm_adapter.types import Skipped

log = logging.getLogger("vlsm_adapter.data")

_RECORDS, _FACTS, _CARD = "records.jsonl", "dataset.json", "README.md"


def write_prepared(
    cases: Iterable[RawCase],
    out: str | os.PathLike[str],
    *,
    about: About,
    expected: int | None = None,
    progress: Callable[[int], None] | None = None,
    jobs: int = 1,
    skip_bad: bool = False,
    warnings: Sequence[str] = (),
) -> Summary:
    """Write ``cases`` as a prepared data set; go on where an earlier call with the same ``about`` was stopped.

    A set that is complete is left as it is. Images are decoded once, so that a truncated file is found now. Memory is
    that of a few cases per job; 10,000 cases take as long as copying their images and writing their masks.

    Args:
        cases: made one by one, in an order that is the same at every call.
        out: a folder that is new, empty, or an unfinished or complete set of the same ``about``.
        about: name, origin, licence, ...; ``about.name`` and ``about.origin`` decide whether a folder is the same set.
        expected: how many cases its owners say there are; another number is a warning.
        progress: called with the number of cases done.
        jobs: threads that decode and encode.
        skip_bad: leave out cases that cannot be used, listed in the summary and the card, instead of stopping.
        warnings: lines for the card and the summary; a list may grow while the cases are made.

    Raises:
        DataError: a foreign folder; a bad case (without ``skip_bad``); no case at all; an id given twice.
        UserError: the folder cannot be written or the disk is full, and the same call goes on from there; or another
            process is writing into it.
    """
    root = Path(out).expanduser()
    if (done := _complete(root, about)) is not None:
        return done
    with alone_in(root):
        # Another process may have finished it since.
        if (done := _complete(root, about)) is not None:
            return done
        return _write(cases, root, about, expected, progress, jobs, skip_bad, warnings)


def _write(
    cases: Iterable[RawCase],
    root: Path,
    about: About,
    expected: int | None,
    progress: Callable[[int], None] | None,
    jobs: int,
    skip_bad: bool,
    warnings: Sequence[str],
) -> Summary:
    journal = Journal(root, about)
    skipped: list[Skipped] = []
    rows: list[dict[str, Any]] = []
    foregrounds: list[int] = []
    resumed = 0
    with journal, ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        writer = Writer(root, pool, journal.finished)
        try:
            for case, result in _in_order(cases, writer, ahead=4 * max(1, jobs)):
                try:
                    stored = result.result()
                except DataError as error:
                    if not skip_bad:
                        raise DataError(f"{error} (--skip-bad leaves such cases out and lists them)") from error
                    skipped.append(Skipped(case.case_id, case.shown, str(error)))
                else:
                    row = _row(case, stored)
                    if rows and ("split" in row) != ("split" in rows[0]):
                        lacking = rows[0] if "split" in row else row
                        raise DataError(
                            f"{root}: case {lacking['case_id']} has no split, others have one: give a split to all or to none"
                        )
                    resumed += journal.add(case.case_id, stored)
                    rows.append(row)
                    foregrounds.append(stored.foreground)
                if progress is not None:
                    progress(len(rows) + len(skipped))
        except KeyboardInterrupt:
            log.warning("%s: %d cases are done; the same command goes on from here", root, len(rows))
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if not rows and not journal.finished:
                journal.discard()
    if not rows:
        first = f": all {len(skipped)} are bad, the first: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{root}: no case was found{first}")
    said = list(warnings)
    total = len(rows) + len(skipped)
    if expected is not None and total != expected:
        said.append(f"{about.name}: {total} cases found, {expected} expected: part of the set, or another release?")
    splits_of: dict[str, set[str]] = {}
    for row in rows:
        if "group" in row and "split" in row:
            splits_of.setdefault(row["group"], set()).add(row["split"])
    if divided := [group for group, parts in splits_of.items() if len(parts) > 1]:
        said.append(
            f"{about.name}: {len(divided)} group(s) stand in more than one split, so that scores flatter; the first is {divided[0]}"
        )
    said += _one_group(about.name, rows)
    splits = Counter(row.get("split") or "unassigned" for row in rows)
    summary = Summary(
        out=str(root),
        name=about.name,
        cases=len(rows),
        images=len({row["image"] for row in rows}),
        splits={name: splits[name] for name in (*SPLITS, "unassigned") if splits[name]},
        classes=dict(Counter(_class_of(row) for row in rows)),
        groups=len({row["group"] for row in rows if "group" in row}),
        empty_masks=sum(area == 0 for area in foregrounds),
        expected=expected,
        skipped=tuple(skipped),
        warnings=tuple(said),
        resumed=resumed,
    )
    _remove_unused(root, rows)
    # One flush of everything instead of one a file: until the manifest stands, nothing is promised.
    if hasattr(os, "sync"):
        os.sync()
    write_text(root / _CARD, card(about, summary))
    write_json(root / _FACTS, facts(about, summary))
    write_text(root / _RECORDS, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
    (root / PARTIAL).unlink(missing_ok=True)
    return summary


def _one_group(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where one group, such as too wide a pattern finds in file names, holds all images."""
    images, groups = {row["image"] for row in rows}, {row.get("group") for row in rows}
    if len(images) < 3 or len(groups) > 1 or None in groups or any("split" in row for row in rows):
        return []
    return [f"{name}: all {len(images)} images are one group, {shown(groups.pop())}: no split can divide them"]


def _in_order(
    cases: Iterable[RawCase], writer: Writer, ahead: int
) -> Iterator[tuple[RawCase, Future[Stored] | _Failed]]:
    """Every case with its result, in their order, a few being worked on ahead of the one that is yielded."""
    waiting: deque[tuple[RawCase, Future[Stored] | _Failed]] = deque()
    for case in cases:
        try:
            waiting.append((case, writer.submit(case)))
        except DataError as error:
            waiting.append((case, _Failed(error)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


class _Failed:
    """A result that is an error before any work began."""

    def __init__(self, error: DataError) -> None:
        self._error = error

    def result(self) -> Stored:
        raise self._error


def _row(case: RawCase, stored: Stored) -> dict[str, Any]:
    """The manifest line of a case (``docs/data.md``), with its attributes."""
    prompts = {"p0": ("",), **{level: texts for level, texts in case.prompts.items() if level != "p0" and texts}}
    row: dict[str, Any] = {
        "case_id": case.case_id,
        "image": stored.image,
        "mask": stored.mask,
        "prompts": {level: texts[0] if len(texts) == 1 else list(texts) for level, texts in prompts.items()},
    }
    optional = {
        "leak_free": list(case.leak_free) if case.leak_free is not None else None,
        "split": case.split,
        "group": case.group,
        "spacing": list(case.spacing) if case.spacing is not None else None,
        # NaN has no place in JSON and says as much as an absent key.
        "attributes": {k: v for k, v in case.attributes.items() if not (isinstance(v, float) and not math.isfinite(v))},
    }
    # An empty ``leak_free`` says something: that every level leaks.
    row.update({key: value for key, value in optional.items() if value or (key == "leak_free" and value is not None)})
    return row


def _class_of(row: Mapping[str, Any]) -> str:
    name = row.get("attributes", {}).get("class")
    if name is not None:
        return str(name)
    texts = next(texts for level, texts in row["prompts"].items() if level != "p0")
    return texts if isinstance(texts, str) else str(texts[0])


def _remove_unused(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Delete what bad cases left: an image whose every mask was refused."""
    used = {row[key] for row in rows for key in ("image", "mask")}
    for folder in ("images", "masks"):
        for entry in os.scandir(root / folder):
            if f"{folder}/{entry.name}" not in used:
                Path(entry.path).unlink()


def _complete(root: Path, about: About) -> Summary | None:
    """The summary of a set that is there already; None where it has still to be written."""
    if not (root / _RECORDS).is_file() or not (root / _FACTS).is_file():
        return None
    try:
        found = json.loads((root / _FACTS).read_text(encoding="utf-8"))
        same = {key: found[key] for key in about.identity()} == json.loads(json.dumps(about.identity()))
        summary = Summary.of(found, str(root)) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        summary = None
    if summary is None:
        raise DataError(
            f"{root}: holds another data set (see {_FACTS}), made of other material or options, or the material or the reader has changed since: "
            "choose a new folder or delete it"
        )
    (root / PARTIAL).unlink(missing_ok=True)
    if left_out := len(summary.skipped):
        again = f"{left_out} cases were left out as bad by an earlier call: to read them again, delete {root}"
        summary = replace(summary, warnings=(*summary.warnings, again))
    return summary
