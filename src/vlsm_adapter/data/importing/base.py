"""What an importer is: a function from a path and options to a plan, item by item.

An item is one image, one row or one volume. It makes its cases when its turn comes; what it raises makes one bad
case, so that ``--skip-bad`` means the same for every format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vlsm_adapter.data.entries import id_part
from vlsm_adapter.data.images import read_mask
from vlsm_adapter.data.importing.options import Options
from vlsm_adapter.data.layouts import IMAGE_SUFFIXES
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record, Skipped

_MAX_ID_BYTES = 150  # the writer puts more behind it, and file systems stop at 255


@dataclass(frozen=True, slots=True)
class Item:
    """One image, row or volume of the material.

    Attributes:
        name: what a list of bad cases calls it.
        where: its file.
        cases: makes its cases; raises DataError where it cannot be used.
        problem: why it cannot be used, where that is known already.
    """

    name: str
    where: str
    cases: Callable[[], Iterable[RawCase]]
    problem: DataError | None = None


@dataclass(slots=True)
class Plan:
    """All items of the material, before any image was decoded.

    Attributes:
        items: bad ones first, so that a command stops before it writes.
        digest: of the material; other material is another set.
        notes: lines for the card.
        counts: things worth a warning, counted while the cases are made: what to number.
    """

    items: list[Item]
    digest: str
    notes: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        """So many more of ``what``."""
        self.counts[what] = self.counts.get(what, 0) + number

    def cases(self, progress: Callable[[int], None] | None = None) -> Iterator[RawCase]:
        """The cases of all items; ``progress`` is called with the number of items done."""
        ids: set[str] = set()
        for number, item in enumerate(self.items, start=1):
            try:
                for case in item.cases():
                    ids.add(case.case_id)
                    yield case
            except DataError as error:
                yield _bad_case(item, error, ids)
            if progress is not None:
                progress(number)


def _bad_case(item: Item, error: DataError, ids: set[str]) -> RawCase:
    """A case that raises ``error`` when it is written."""

    def fail() -> Any:
        raise error

    case_id = case_name(item.name)
    while case_id in ids:
        case_id += "_bad"
    ids.add(case_id)
    return RawCase(case_id, fail, fail, {"p1": ("unusable",)}, where=item.where)


def bad_item(name: str, where: str, error: DataError) -> Item:
    """An item that is known to be bad."""

    def fail() -> Iterable[RawCase]:
        raise error

    return Item(name, where, fail, error)


def skipped_items(skipped: Iterable[Skipped]) -> list[Item]:
    """Bad items of the cases that a reader of layouts set aside."""
    return [bad_item(case.case_id, case.path, DataError(case.reason)) for case in skipped]


def record_items(
    records: Iterable[Record],
    plan: Plan,
    options: Options,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Item]:
    """An item for each record of a binary mask; ``attributes`` by case id."""
    for record in records:
        kept = (attributes or {}).get(record.case_id, {})
        yield Item(record.case_id, str(record.image), _RecordCase(record, plan, options, kept))


@dataclass(frozen=True, slots=True)
class _RecordCase:
    record: Record
    plan: Plan
    options: Options
    attributes: Mapping[str, str]

    def __call__(self) -> Iterator[RawCase]:
        record, options = self.record, self.options
        mask_file = need_mask(record)
        mask = lambda: read_mask(mask_file, record.mask_value)  # noqa: E731
        if options.empty is not None and options.empty < 1:
            # Whether it is empty must be known now, and nothing is decoded twice.
            pixels = mask()
            if not pixels.any() and not options.keeps_empty(record.case_id, 1.0):
                self.plan.count(DROPPED)
                return
            mask = lambda: pixels  # noqa: E731
        yield RawCase(
            case_id=record.case_id,
            image=record.image,
            mask=mask,
            prompts=record.prompts,
            # What was declared is true of the data's own words, not of the text given in their place.
            leak_free=record.leak_free if options.prompt is None else None,
            group=options.group_of(group_name(record), record.group),
            split=record.split,
            spacing=record.spacing or options.spacing,
            attributes=dict(self.attributes),
            where=str(record.image),
        )


DROPPED = "case(s) with an empty mask are left out (--empty keep keeps them)"


def group_name(record: Record) -> str:
    """The name that ``--group-by`` is looked for in: the image's file with its last folder, then the case id."""
    return f"{record.image.parent.name}/{record.image.name}"


def need_mask(record: Record) -> Path:
    """The mask file of a record.

    Raises:
        DataError: it has none, or the image or the mask is not there.
    """
    if record.mask is None:
        raise DataError(f"{record.image}: has no mask: name one, or leave the image out")
    for file in (record.image, record.mask):
        if not file.is_file():
            raise DataError(f"{file}: no such file: check the path, or pass --images and --masks")
    return record.mask


def case_name(*parts: str) -> str:
    """A case id of parts; too long a one is cut and told apart by its hash."""
    name = "__".join(id_part(part.replace(" ", "_")) for part in parts if part)
    if len(name.encode()) > _MAX_ID_BYTES:
        digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
        name = f"{name.encode()[: _MAX_ID_BYTES - 14].decode(errors='ignore')}_{digest}"
    return name


def short_ids(names: Iterable[str]) -> dict[str, str]:
    """Ids of file names: the stem, or the whole name where two stems are equal (also but for case).

    Args:
        names: relative to one folder, all different.
    """
    names = list(names)
    stems = {name: case_name(stem_of(name)) for name in names}
    taken: dict[str, int] = {}
    for stem in stems.values():
        taken[stem.casefold()] = taken.get(stem.casefold(), 0) + 1
    return {name: stem if taken[stem.casefold()] == 1 else case_name(name) for name, stem in stems.items()}


def stem_of(name: str) -> str:
    """``name`` without the ending of an image or a NIfTI file."""
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    ending = PurePosixPath(name).suffix
    return name[: -len(ending)] if ending.lower() in IMAGE_SUFFIXES else name
