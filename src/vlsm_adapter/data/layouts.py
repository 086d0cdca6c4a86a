"""The folder layouts that are read, each as one function from a folder to drafts of cases.

* a manifest: one JSON object a line (JSONL), file names relative to the manifest;
* the published layout of VLSM-Adapter and MedVLSM: ``images/``, ``masks/``, ``anns/{train,val,test}.json``;
* a plain folder of images and masks, see ``plain.py``.

A draft is an entry whose names have been checked; ``records.py`` gives it an id and makes the ``Record``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vlsm_adapter.data.entries import Entry, parse_json, read_text, shown, unsafe_name
from vlsm_adapter.data.spellings import Spellings, folders_like, only
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Skipped

T = TypeVar("T")

#: What names a split, in folders and file names.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
#: Endings of the files that folders are searched for; ``images.FORMATS`` decodes them all.
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm", ".pgm", ".tga"}
)
MANIFESTS = ("records.jsonl", "manifest.jsonl")
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "segmentations", "annotations")
# Where CAMUS-like sets keep the files of a split: the published validation cases come from the training folder.
_SUBFOLDERS = {"train": ("train",), "val": ("val", "train"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Draft:
    """A case before it has its id. ``image_name`` and ``mask_name`` are relative and make the id."""

    where: str
    image: Path
    image_name: str
    mask: Path | None = None
    mask_name: str | None = None
    split: str | None = None
    case_id: str | None = None
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group: str | None = None
    spacing: tuple[float, float] | None = None
    mask_value: int | None = None
    leak_free: tuple[str, ...] | None = None


class Collector:
    """Drafts so far, and the bad entries: raised at once, or set aside when ``skip_bad``.

    Attributes:
        skip_bad: set bad entries aside.
        drafts: the usable entries.
        skipped: the bad ones, with reasons.
        outlines: what is legible of the bad ones. They are never used, but keep their ids and their places where cases are
            named and divided, so that mending one moves no other.
    """

    def __init__(self, skip_bad: bool) -> None:
        self.skip_bad = skip_bad
        self.drafts: list[Draft] = []
        self.skipped: list[Skipped] = []
        self.outlines: list[Draft] = []

    def add(self, name: str, path: str, make: Callable[[], Draft], outline: Callable[[], Draft] | None = None) -> None:
        """Append what ``make`` returns; a DataError is raised, or listed under ``name`` when ``skip_bad``.

        Args:
            name: of the entry, for ``skipped``.
            path: of the file that is bad, for ``skipped``.
            make: the draft; raises DataError.
            outline: what is legible of a bad entry; raises DataError where that does not say which case it is.
        """
        try:
            self.drafts.append(make())
        except DataError as error:
            if not self.skip_bad:
                raise
            self.skipped.append(Skipped(name, path, str(error)))
            if outline is not None:
                with contextlib.suppress(DataError):
                    self.outlines.append(outline())


def _sound(read: Callable[[], T]) -> T | None:
    """What ``read`` returns; None where it finds a defect."""
    try:
        return read()
    except DataError:
        return None


def read_manifest(path: Path, collector: Collector) -> None:
    """JSONL: a JSON object a line; empty lines are passed over.

    Keys: ``image`` (required), ``mask``, ``prompts`` or ``text``, ``case_id``, ``split``, ``group``, ``spacing``,
    ``mask_value``, ``leak_free``; others are ignored. File names are relative to the manifest's folder.
    """
    root, spellings = path.parent.resolve(), Spellings()
    # Not splitlines(): it also breaks at characters that may stand inside a JSON text.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            collector.add(
                f"line {number}",
                str(path),
                lambda n=number, text=line: _manifest_draft(path, root, spellings, n, text),  # type: ignore[misc]
                lambda n=number, text=line: _manifest_outline(path, root, spellings, n, text),  # type: ignore[misc]
            )


def _manifest_draft(path: Path, root: Path, spellings: Spellings, number: int, line: str) -> Draft:
    where = f"{path}: line {number}"
    entry = Entry.of(parse_json(line, where), where, root)
    image = entry.needed_file_name("image")
    mask = entry.file_name("mask")
    return Draft(
        where=where,
        image=on_disk(entry, spellings, "image", root, image),
        image_name=_without_first(image, IMAGE_FOLDERS),
        mask=on_disk(entry, spellings, "mask", root, mask) if mask else None,
        mask_name=_without_first(mask, MASK_FOLDERS) if mask else None,
        split=entry.split(),
        case_id=entry.case_id(),
        prompts=entry.prompts(),
        group=entry.group(),
        spacing=entry.spacing(),
        mask_value=entry.mask_value(),
        leak_free=entry.leak_free(),
    )


def _manifest_outline(path: Path, root: Path, spellings: Spellings, number: int, line: str) -> Draft:
    where = f"{path}: line {number}"
    entry = Entry.of(parse_json(line, where), where, root)
    case_id, image = _sound(entry.case_id), _sound(lambda: entry.file_name("image"))
    mask = _sound(lambda: entry.file_name("mask"))
    name = image or case_id
    if name is None:
        raise DataError(f"{where}: names no case")
    return Draft(
        where=where,
        image=_sound(lambda: on_disk(entry, spellings, "image", root, name)) or root / name,
        image_name=_without_first(name, IMAGE_FOLDERS),
        mask=_sound(lambda: on_disk(entry, spellings, "mask", root, mask)) if mask else None,
        mask_name=_without_first(mask, MASK_FOLDERS) if mask else None,
        split=_sound(entry.split),
        case_id=case_id,
        group=_sound(entry.group),
        mask_value=_sound(entry.mask_value),
    )


def read_published(root: Path, collector: Collector) -> None:
    """``anns/{train,val,test}.json``, each a list of ``{"img_name", "mask_name", "prompts": {"p0": "", "p1": ...}}``.

    Not every split need be there. ``img_name`` is looked for in ``images/`` and, as CAMUS has it, in
    ``images/train`` (train and val) or ``images/test``; ``mask_name`` likewise in ``masks/``. Folders may be in capitals.
    """
    found, spellings = published_lists(root), Spellings()
    if not found:
        raise DataError(f"{root / 'anns'}: holds none of train.json, val.json, test.json: at least one is needed")
    for split, file in found.items():
        entries = parse_json(read_text(file), str(file))
        if not isinstance(entries, list):
            raise DataError(f"{file}: must be a list of entries with img_name, mask_name and prompts")
        for number, value in enumerate(entries):
            name = value.get("img_name") if isinstance(value, dict) else None
            name = name if isinstance(name, str) and not unsafe_name(name) else f"{split} entry {number}"
            collector.add(
                name,
                str(file),
                lambda f=file, s=split, n=number, v=value: _published_draft(root, spellings, f, s, n, v),  # type: ignore[misc]
                lambda f=file, s=split, n=number, v=value: _published_outline(root, spellings, f, s, n, v),  # type: ignore[misc]
            )


def _published_draft(root: Path, spellings: Spellings, file: Path, split: str, number: int, value: object) -> Draft:
    where = f"{file}: entry {number}"
    entry = Entry.of(value, where, root)
    image = entry.needed_file_name("img_name")
    mask = entry.file_name("mask_name")
    image_path, image_name = _find(entry, spellings, "img_name", "images", image, split)
    mask_path, mask_name = _find(entry, spellings, "mask_name", "masks", mask, split) if mask else (None, None)
    return Draft(
        where=where,
        image=image_path,
        image_name=image_name,
        mask=mask_path,
        mask_name=mask_name,
        split=split,
        prompts=entry.prompts(),
        group=entry.group(),
        spacing=entry.spacing(),
        mask_value=entry.mask_value(),
    )


def _published_outline(root: Path, spellings: Spellings, file: Path, split: str, number: int, value: object) -> Draft:
    where = f"{file}: entry {number}"
    entry = Entry.of(value, where, root)
    name = entry.needed_file_name("img_name")
    image, image_name = _sound(lambda: _find(entry, spellings, "img_name", "images", name, split)) or (
        root / "images" / name,
        name,
    )
    mask = _sound(lambda: entry.file_name("mask_name"))
    found = _sound(lambda: _find(entry, spellings, "mask_name", "masks", mask, split)) if mask else None
    return Draft(
        where=where,
        image=image,
        image_name=image_name,
        mask=found[0] if found else None,
        mask_name=found[1] if found else None,
        split=split,
        group=_sound(entry.group),
        mask_value=_sound(entry.mask_value),
    )


def published_lists(root: Path) -> dict[str, Path]:
    """Split to ``anns/SPLIT.json``, of those that are there; the folder may be in capitals, and one without lists hides none.

    Raises:
        DataError: two such folders hold lists, neither called ``anns``.
    """

    if exact := split_lists(root / "anns"):
        return exact
    found = [folder for folder in folders_like(root, ["anns"]).get("anns", []) if split_lists(folder)]
    return split_lists(only(found)) if found else {}


def split_lists(folder: Path) -> dict[str, Path]:
    """Split to ``SPLIT.json``, of those that are in ``folder``."""
    return {split: file for split in SPLITS if _is_file(file := folder / f"{split}.json")}


def on_disk(entry: Entry, spellings: Spellings, key: str, base: Path, name: str) -> Path:
    """The file called ``name`` in ``base``, in whichever of Unicode's forms, absolute; what is wrong is told of field ``key``."""
    try:
        path = spellings.file(base, name)
    except DataError as error:
        entry.fail(key, str(error))
    return entry.inside(key, path)


def _find(entry: Entry, spellings: Spellings, key: str, folder: str, name: str, split: str) -> tuple[Path, str]:
    """The file called ``name`` (absolute) and its name below ``folder``; the plain place if it is nowhere."""
    base = spellings.folder(entry.root, folder)
    for exact in (True, False):  # what is called so, before what is called so in another of Unicode's forms
        for sub in ("", *_SUBFOLDERS[split]):
            place = spellings.folder(base, sub) if sub else base
            path = entry.inside(key, place / name) if exact else on_disk(entry, spellings, key, place, name)
            if _is_file(path):
                return path, f"{sub}/{name}" if sub else name
    for place in (base, *(spellings.folder(base, sub) for sub in _SUBFOLDERS[split])):
        if other := spellings.beside(place):
            # A folder is read that is called exactly so, were it empty: the file may lie in the other one.
            entry.fail(
                key, f"{shown(name)} is not in {place}/, and beside it lies {other.name}/: join or rename one of them"
            )
    return entry.inside(key, base / name), name


def image_files(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """The image files below ``folder`` by suffix, in natural order; hidden files and linked folders are passed over."""
    found: list[Path] = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")] if deep else []
        found += [
            Path(base, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    yield from sorted(found, key=natural_key)


def natural_key(path: Path | str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts ``img2`` before ``img10``; ties by the plain text, so that the order is total."""
    text = str(path)
    # Only ASCII digits: int() of other scripts' digits works, of superscripts it does not.
    parts = re.split(r"([0-9]+)", text)
    return [
        (1, int(part[:300]), "") if part[:1].isascii() and part[:1].isdigit() else (0, 0, part.lower())
        for part in parts
    ], text


def _without_first(name: str, folders: Iterable[str]) -> str:
    first, _, rest = name.partition("/")
    return rest if rest and first.lower() in folders else name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
