"""From a folder or a manifest to records.

``load_records`` is the entry point of training and evaluation, ``list_images`` that of prediction.
"""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlsm_adapter.data.checks import check_records
from vlsm_adapter.data.describing.prompt_file import PromptFile
from vlsm_adapter.data.entries import real_folder, shown
from vlsm_adapter.data.layouts import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    MANIFESTS,
    MASK_FOLDERS,
    Collector,
    image_files,
    natural_key,
    published_lists,
    read_manifest,
    read_published,
)
from vlsm_adapter.data.naming import finish
from vlsm_adapter.data.plain import has_flat_pairs, plain_folders, read_plain
from vlsm_adapter.data.splits import complete_splits
from vlsm_adapter.errors import DataError
from vlsm_adapter.files import write_text
from vlsm_adapter.types import Record, Skipped


def load_records(
    path: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    divide: Callable[[Sequence[Record], str], list[Record]] | None = None,
    skip_bad: bool = False,
    checks: bool = True,
    labelled: bool = True,
) -> tuple[list[Record], list[Skipped]]:
    """The cases of a data set, every one with a split.

    Recognised, in this order: a JSONL manifest (the file, or a folder with ``records.jsonl`` or
    ``manifest.jsonl``); the published layout (``images/ masks/ anns/*.json``); a plain folder of images and
    masks paired by stem, which needs ``prompt``. See ``docs/data.md``. In place of a data set, a file of prompts that
    ``vlsm prompts`` wrote for it gives that data set with those prompts.

    Args:
        path: the folder or manifest file.
        prompt: what the masks show. A plain folder needs it; elsewhere it takes the place of the data's own
            prompts in every case.
        split_seed: seed of the splits that the data does not say.
        fractions: parts of train, val and test where the data says no split.
        divide: given the cases and the name of the data, returns those to use, each with a split; in place of
            ``splits.complete_splits`` with ``split_seed`` and ``fractions``. It is given the bad cases too, as far as their
            names are known.
        skip_bad: leave bad cases out and return them in the second list, instead of raising.
        checks: read every header and compare sizes (``checks.check_records``), about 0.1 ms a file.
        labelled: a case without a mask is a bad case.

    Returns:
        The records in the order of the data, and the cases left out. A case listed twice in one split stands
        in the second list whatever ``skip_bad`` says.

    Raises:
        DataError: unknown layout, bad manifest, or (without ``skip_bad``) a bad case; one line each.
        ConfigError: ``fractions`` are not three parts of one.
    """
    root = real_folder(path)
    words = PromptFile.open(root)
    if words is not None:
        if prompt is not None:
            raise DataError(f"{root}: holds the prompts of {words.data}: leave --prompt out, or give the data itself")
        root, prompt = words.data, words.prompt
    if prompt is not None and not prompt.strip():
        raise DataError('the prompt is empty: say what the masks show, e.g. --prompt "polyp"')
    collector = Collector(skip_bad)
    read_layout(root, prompt, collector)
    name = root.parent.name if root.is_file() else root.name
    records, left_out, lost = finish(
        collector.drafts, dataset=name, prompt=prompt, skip_bad=skip_bad, outlines=collector.outlines
    )
    if words is not None:
        named = records
        records, unknown = words.apply(named, skip_bad=skip_bad)
        left_out += unknown
        without = {one.case_id for one in unknown}
        lost += [record for record in named if record.case_id in without]
    # Bad cases are divided with the others and then left out, so that mending one moves no other.
    every = [*records, *_with_splits(lost, records)]
    if divide is None:
        every = complete_splits(every, fractions=fractions, seed=split_seed, where=str(root))
    else:
        every = divide(every, str(root))
    bad_ids = {record.case_id for record in lost}
    records = [record for record in every if record.case_id not in bad_ids]
    good, bad = records, list[Skipped]()
    if checks or labelled:
        good, bad = check_records(records, skip_bad=skip_bad, labelled=labelled, headers=checks)
    skipped = [*collector.skipped, *left_out, *bad]
    if not good:
        first = f": all {len(skipped)} are bad, the first: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{root}: holds no usable case{first}")
    return good, skipped


def _with_splits(lost: Sequence[Record], records: Sequence[Record]) -> list[Record]:
    """``lost`` with a split where ``records`` have one, without where they have none; none where there are no others."""
    if not any(record.split for record in records):
        return [replace(record, split=None) for record in lost] if records else []
    split_of: dict[str | None, str | None] = {record.group: record.split for record in records if record.group}
    # In test an illegible split moves nothing: only train gives cases to other splits.
    return [record if record.split else replace(record, split=split_of.get(record.group) or "test") for record in lost]


def read_layout(root: Path, prompt: str | None, collector: Collector) -> None:
    """Recognise the layout of ``root`` and fill ``collector`` with its drafts."""
    if root.is_file():
        if root.suffix.lower() != ".jsonl":
            raise DataError(
                f"{root}: a manifest is a .jsonl file (one JSON object a line); or give a folder; "
                "'vlsm data import' brings tables (.csv), COCO and NIfTI"
            )
        return read_manifest(root, collector)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: check the path")
    for name in MANIFESTS:
        if (root / name).is_file():
            return read_manifest(root / name, collector)
    if (root / "records.jsonl.partial").is_file():
        raise DataError(f"{root}: its preparation was stopped: give the command that makes it once more, it goes on")
    if (root / "anns").is_dir() or published_lists(root):
        return read_published(root, collector)
    if plain_folders(root) or has_flat_pairs(root):
        if prompt is None:
            raise DataError(
                f'{root}: a plain folder of images and masks does not say what they show: pass --prompt "polyp"'
            )
        return read_plain(root, prompt.strip(), collector)
    raise DataError(
        f"{root}: no known layout; looked for {' or '.join(MANIFESTS)}, for anns/train.json (val, test) with images/ and "
        f"masks/, for a folder {'/'.join(IMAGE_FOLDERS)} beside one of {'/'.join(MASK_FOLDERS[:4])}, and for X.png with X_mask.png; "
        "'vlsm data import' brings tables, COCO and NIfTI"
    )


def list_images(path_or_glob: str | os.PathLike[str]) -> list[Path]:
    """The image files that a file, a folder (with its sub-folders) or a glob pattern names, in natural order.

    Raises:
        DataError: nothing there, or no file with the ending of an image; the message lists the endings.
    """
    text = os.fspath(path_or_glob)
    if "\0" in text:
        raise DataError(f"{shown(text)}: holds a NUL character: check the path")
    path = Path(text).expanduser()
    endings = ", ".join(sorted(IMAGE_SUFFIXES))
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = list(image_files(path))
            if not found:
                raise DataError(f"{path}: holds no image; files with these endings are read: {endings}")
            return found
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
    except OSError as error:
        raise DataError(f"{shown(text, 200)}: cannot be read ({error.strerror or error}): check the path") from None
    if not matches:
        pattern = any(char in text for char in "*?[")
        raise DataError(f"{text}: {'matches no file' if pattern else 'no such file or folder'}: check the path")
    found = sorted((one for one in matches if one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
    if not found:
        raise DataError(f"{text}: matches no image; files with these endings are read: {endings}")
    return found


def write_manifest(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Write ``records`` as a JSONL manifest that ``load_records`` reads back equal, atomically.

    File names are written relative to the manifest, so the folder can be moved as a whole.

    Raises:
        DataError: a file lies outside the manifest's folder, or a case id stands twice.
        UserError: the file cannot be written.
    """
    target = Path(path)
    root = real_folder(target.parent)
    lines: list[str] = []
    records = list(records)
    twice = [case_id for case_id, count in Counter(record.case_id for record in records).items() if count > 1]
    if twice:
        raise DataError(f"{target}: the case id {shown(twice[0])} stands twice: give each case its own")
    for record in records:
        row: dict[str, Any] = {"case_id": record.case_id, "image": _relative(record.image, root, target)}
        if record.mask is not None:
            row["mask"] = _relative(record.mask, root, target)
        row["prompts"] = {
            level: list(texts) if len(texts) != 1 else texts[0] for level, texts in record.prompts.items()
        }
        optional = {
            "split": record.split,
            "group": record.group,
            "spacing": record.spacing,
            "mask_value": record.mask_value,
            "leak_free": record.leak_free,
        }
        row.update({key: value for key, value in optional.items() if value is not None})
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(target, "".join(lines))


def _relative(file: Path, root: Path, manifest: Path) -> str:
    resolved = real_folder(file)
    if not resolved.is_relative_to(root):
        raise DataError(f"{file}: lies outside {root}: write {manifest.name} into the data's own folder")
    return resolved.relative_to(root).as_posix()
