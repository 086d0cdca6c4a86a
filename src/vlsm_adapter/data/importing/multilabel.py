"""Mask files that hold several labels: a class table says which value is which class, and each class makes a case.

A class that an image does not have makes a case with an empty mask, left out unless ``--empty`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.images import read_labels
from vlsm_adapter.data.importing.base import (
    DROPPED,
    Item,
    Plan,
    case_name,
    group_name,
    need_mask,
    skipped_items,
)
from vlsm_adapter.data.importing.classes import ClassTable
from vlsm_adapter.data.importing.folders import digest_of_records, has_pairs, pair_records
from vlsm_adapter.data.importing.options import Options
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record

_MOST_LISTED = 8


def is_multilabel(path: Path, options: Options) -> bool:
    """Whether ``path`` holds pairs of image files and a class table is given."""
    return options.classes is not None and has_pairs(path, options)


def plan_multilabel(path: Path, options: Options, skip_bad: bool) -> Plan:
    """A case for each class of each pair.

    Raises:
        DataError: no class table, an unknown layout, or (without ``skip_bad``) a bad entry.
    """
    table = need_table(options)
    # The layout asks for a text, which the classes then give.
    records, skipped = pair_records(path, options, "label map", skip_bad)
    plan = Plan(skipped_items(skipped) if skip_bad else [], digest_of_records(records, path))
    plan.items += label_items(records, plan, options, table)
    return plan


def need_table(options: Options) -> ClassTable:
    """The class table.

    Raises:
        DataError: none was given, or it names categories instead of values.
    """
    if options.classes is None:
        raise DataError("masks of several labels need a class table: pass --classes 1=liver,2=tumor or a file")
    options.classes.values("--classes")
    return options.classes


def label_items(
    records: Iterable[Record],
    plan: Plan,
    options: Options,
    table: ClassTable,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Item]:
    """An item for each record whose mask is a label file; ``attributes`` by case id of the record."""
    records = list(records)
    twice = len({record.image for record in records}) < len(records)
    for record in records:
        kept = (attributes or {}).get(record.case_id, {})
        yield Item(record.case_id, str(record.image), _LabelCases(record, plan, options, table, kept, twice))


@dataclass(frozen=True, slots=True)
class _LabelCases:
    record: Record
    plan: Plan
    options: Options
    table: ClassTable
    attributes: Mapping[str, str]
    shares_images: bool

    def __call__(self) -> Iterator[RawCase]:
        record = self.record
        mask_file = need_mask(record)
        labels = read_labels(mask_file)
        for case_id, texts, mask in class_masks(labels, self.table, record.case_id, str(mask_file)):
            if not mask.any() and not self.options.keeps_empty(case_id, 0.0):
                self.plan.count(DROPPED)
                continue
            yield RawCase(
                case_id=case_id,
                image=record.image,
                mask=lambda pixels=mask: pixels,  # type: ignore[misc]
                prompts={"p1": texts},
                group=self.options.group_of(group_name(record), record.group),
                split=record.split,
                spacing=record.spacing or self.options.spacing,
                attributes={**self.attributes, "class": texts[0]},
                image_id=None if self.shares_images else record.case_id,
                where=str(record.image),
            )


def class_masks(
    labels: npt.NDArray[np.integer], table: ClassTable, name: str, where: str
) -> Iterator[tuple[str, tuple[str, ...], npt.NDArray[np.bool_]]]:
    """(case id, texts, bool mask) of every class of the table, in its order.

    Args:
        labels: whole numbers of any shape; 0 is background.
        table: the classes.
        name: of the image, the first part of the ids; the class follows where the table has several.
        where: the file, for messages.

    Raises:
        DataError: a value that the table does not name.
    """
    check_values(present_values(labels), table, where)
    values = table.values(where)
    for one in table.classes:
        case_id = case_name(name, one.name) if len(table.classes) > 1 else case_name(name)
        yield case_id, one.texts, np.isin(labels, values[one.name])


def present_values(labels: npt.NDArray[np.integer]) -> list[int]:
    """The different values, ascending; counted where they are bytes, which is far faster than sorting."""
    if labels.dtype == np.uint8:
        return [int(value) for value in np.flatnonzero(np.bincount(labels.ravel(), minlength=256))]
    return [int(value) for value in np.unique(labels)]


def check_values(found: Iterable[int], table: ClassTable, where: str) -> None:
    """Refuse values that are in no class, nor 0, nor background by the table.

    Raises:
        DataError: such a value; it lists the first ones and the fix.
    """
    if table.ignores_rest:
        return
    known = {0, *table.ignored, *(key for one in table.classes for key in one.keys)}
    unknown = [value for value in found if value not in known]
    if unknown:
        listed = ", ".join(f"{value}{f' (#{value:06x})' if value > 255 else ''}" for value in unknown[:_MOST_LISTED])
        more = f" and {len(unknown) - _MOST_LISTED} more" if len(unknown) > _MOST_LISTED else ""
        raise DataError(
            f"{where}: holds the value(s) {listed}{more}, which the class table does not name: add them, "
            f"e.g. {unknown[0]}=NAME, or {unknown[0]}=- (background), or *=- for all others"
        )
