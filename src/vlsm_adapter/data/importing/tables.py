"""Tables of cases: CSV, TSV, or JSONL of any keys, with a mapping from our columns to the table's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlsm_adapter.data.digests import digest_of_files
from vlsm_adapter.data.entries import Entry, parse_json, read_text, real_folder, shown
from vlsm_adapter.data.importing.base import Item, Plan, record_items, skipped_items
from vlsm_adapter.data.importing.multilabel import label_items, need_table
from vlsm_adapter.data.importing.options import Options, spacing_of
from vlsm_adapter.data.layouts import IMAGE_FOLDERS, MASK_FOLDERS, Collector, Draft, on_disk
from vlsm_adapter.data.naming import finish
from vlsm_adapter.data.spellings import Spellings
from vlsm_adapter.errors import DataError, nearest

# Our columns, and the names that are taken for them without --columns, in lower case.
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        "image",
        "image_path",
        "image_file",
        "image_name",
        "img",
        "img_path",
        "img_name",
        "file_name",
        "filename",
    ),
    "mask": ("mask", "mask_path", "mask_file", "mask_name", "segmentation", "segmentation_path", "label_path"),
    "text": ("text", "prompt", "caption", "class", "class_name"),
    "case_id": ("case_id",),
    "split": ("split", "subset"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "video", "video_id"),
    "spacing": ("spacing", "pixel_spacing"),
    "mask_value": ("mask_value",),
    **{f"p{level}": (f"p{level}",) for level in range(1, 10)},
}
_SUFFIXES = (".csv", ".tsv", ".jsonl")
_MAX_COLUMNS = 1000
_VOLUMES = (".nii", ".nii.gz")


def is_table(path: Path, options: Options) -> bool:
    """Whether ``path`` is a table, or a folder whose only table is a CSV or TSV file with a column for the image."""
    return _table_of(path) is not None


def plan_table(path: Path, options: Options, skip_bad: bool) -> Plan:
    """A case for each row (for each class of a row where ``--classes`` says that masks hold several labels).

    Raises:
        DataError: no table, unknown or ambiguous columns, or (without ``skip_bad``) a bad row.
    """
    file = _table_of(path)
    if file is None:
        raise DataError(f"{path}: needs a table of cases (.csv, .tsv or .jsonl); several in one folder: name the one")
    text = read_text(file)
    image_root = real_folder(options.images or file.parent)
    mask_root = real_folder(options.masks or file.parent)
    collector, spellings = Collector(skip_bad), Spellings()
    attributes: dict[str, dict[str, str]] = {}  # by ``where`` of the row: several may share an image and a mask
    for number, row in _rows(file, text, options):
        where = f"{file}: line {number}"

        def make(row: Mapping[str, Any] | DataError = row, where: str = where) -> Draft:
            if isinstance(row, DataError):
                raise row
            draft = _draft(row, where, image_root, mask_root, spellings, named=options.prompt or options.classes)
            attributes[where] = _kept(row, options, where)
            return draft

        collector.add(f"line {number}", str(file), make)
    plan = Plan(skipped_items(collector.skipped) if skip_bad else [], "")
    volumes = sum(draft.image.name.lower().endswith(_VOLUMES) for draft in collector.drafts)
    if volumes:
        if volumes < len(collector.drafts):
            raise DataError(f"{file}: lists volumes (NIfTI) and images: make a table of each")
        from vlsm_adapter.data.importing.nifti import drafts_to_volumes

        plan.items += drafts_to_volumes(collector.drafts, plan, options, attributes)
    else:
        plan.items += _image_items(collector, plan, options, attributes, file.parent.name, skip_bad)
    files = [one for draft in collector.drafts for one in (draft.image, draft.mask) if one is not None]
    plan.digest = digest_of_files(files, image_root, also=text)
    return plan


def _image_items(
    collector: Collector,
    plan: Plan,
    options: Options,
    attributes: Mapping[str, Mapping[str, str]],
    dataset: str,
    skip_bad: bool,
) -> list[Item]:
    prompt = options.prompt if options.classes is None else "label map"
    origins: dict[str, Draft] = {}
    records, left_out, _ = finish(collector.drafts, dataset=dataset, prompt=prompt, skip_bad=skip_bad, origins=origins)
    attributes = {case_id: attributes[draft.where] for case_id, draft in origins.items()}
    items = skipped_items(left_out) if skip_bad else []
    if options.classes is not None:
        return items + list(label_items(records, plan, options, need_table(options), attributes))
    return items + list(record_items(records, plan, options, attributes))


def _table_of(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in _SUFFIXES else None
    if not path.is_dir():
        return None
    found = [file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES[:2] and not file.name.startswith(".")]
    if len(found) != 1 or not found[0].is_file():
        return None
    with found[0].open(encoding="utf-8-sig", errors="replace") as stream:
        header = {
            name.strip().strip('"').lower()
            for name in stream.readline(65536).replace(";", ",").replace("\t", ",").split(",")
        }
    return found[0] if header & set(COLUMNS["image"]) else None


def _rows(file: Path, text: str, options: Options) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    """(line number, row by our columns with the kept ones) of every row; a DataError for a row that is none."""
    if file.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    value = parse_json(line, f"{file}: line {number}")
                    entry = Entry.of(value, f"{file}: line {number}", file.parent)
                    yield number, _mapped(entry.values, _mapping(list(entry.values), options, entry.where), options)
                except DataError as error:
                    yield number, error
        return
    yield from _csv_rows(file, text, options)


def _csv_rows(file: Path, text: str, options: Options) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    first = text.split("\n", 1)[0]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header) or len(header) > _MAX_COLUMNS:
            raise DataError(f"{file}: the first line must name the columns, e.g. image,mask,text")
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise DataError(f"{file}: the column {shown(twice[0])} stands twice: rename one")
        mapping = _mapping(header, options, str(file))
        missing = [name for name in options.keep if name not in header]
        if missing:
            raise DataError(f"{file}: has no column {shown(missing[0])} to keep: {nearest(missing[0], header)}")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            number = reader.line_num
            if len(cells) != len(header):
                yield number, DataError(f"{file}: line {number} has {len(cells)} cells, the first line {len(header)}")
            else:
                # An empty cell says nothing.
                values = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if name and cell.strip()}
                yield number, _mapped(values, mapping, options)
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.line_num}: not a table ({error}): save it as CSV in UTF-8") from None


def _mapping(names: list[str], options: Options, where: str) -> dict[str, str]:
    """Our column to the table's, by ``--columns`` and else by the usual names.

    Raises:
        DataError: a column is not there, or two usual names for the same thing.
    """
    mapping: dict[str, str] = {}
    for ours, usual in COLUMNS.items():
        if (theirs := options.columns.get(ours)) is not None:
            if theirs not in names:
                raise DataError(
                    f"{where}: has no column {shown(theirs)} (--columns {ours}=...): {nearest(theirs, names)}"
                )
            mapping[ours] = theirs
            continue
        free = [name for name in names if name.lower() in usual and name not in options.columns.values()]
        exact = [name for name in free if name == ours]
        if len(free) > 1 and not exact:
            raise DataError(
                f"{where}: {shown(free[0])} and {shown(free[1])} may both be the {ours}: say --columns {ours}={free[0]}"
            )
        if free:
            mapping[ours] = (exact or free)[0]
    if "image" not in mapping:
        raise DataError(
            f"{where}: no column is known to be the image (it has {', '.join(shown(name) for name in names[:8])}): "
            "say --columns image=NAME,mask=NAME"
        )
    return mapping


def _mapped(values: Mapping[str, Any], mapping: Mapping[str, str], options: Options) -> dict[str, Any]:
    row = {ours: values[theirs] for ours, theirs in mapping.items() if values.get(theirs) is not None}
    if isinstance(values.get("prompts"), dict):
        row["prompts"] = values["prompts"]
    if isinstance(values.get("leak_free"), list):  # a manifest given as a table
        row["leak_free"] = values["leak_free"]
    row["keep"] = {name: values[name] for name in options.keep if values.get(name) is not None}
    return row


def _draft(
    row: Mapping[str, Any], where: str, image_root: Path, mask_root: Path, spellings: Spellings, *, named: object
) -> Draft:
    values = dict(row)
    for column, root in (("image", image_root), ("mask", mask_root)):
        name = values.get(column)
        # Tables often hold absolute names; those inside of the folder are as good as relative ones.
        if isinstance(name, str) and name.startswith("/") and ".." not in name.split("/") and "\0" not in name:
            for base in {root, root.absolute()}:
                if name.startswith(f"{base}/"):
                    values[column] = name[len(str(base)) + 1 :]
    if isinstance(values.get("mask_value"), str):
        values["mask_value"] = _whole(values["mask_value"], where)
    entry = Entry(values, where, image_root)
    if isinstance(values.get("spacing"), str):
        values["spacing"] = list(spacing_of(values["spacing"], entry))
    levels = {level: values[level] for level in COLUMNS if level[0] == "p" and level[1:].isdigit() and level in values}
    if levels:
        values["prompts"] = {**levels, **values.get("prompts", {})}
    image = entry.needed_file_name("image")
    mask = entry.file_name("mask")
    if mask is None:
        entry.fail("mask", "missing; every row needs its mask file")
    mask_entry = Entry(values, where, mask_root)
    return Draft(
        where=where,
        image=on_disk(entry, spellings, "image", image_root, image),
        image_name=_shorter(image, IMAGE_FOLDERS),
        mask=on_disk(mask_entry, spellings, "mask", mask_root, mask),
        mask_name=_shorter(mask, MASK_FOLDERS),
        split=entry.split(),
        case_id=entry.case_id(),
        # Texts that are replaced anyway need not be readable.
        prompts={} if named else entry.prompts(),
        group=_group(entry),
        spacing=entry.spacing(),
        mask_value=entry.mask_value(),
        leak_free=None if named else entry.leak_free(),
    )


def _group(entry: Entry) -> str | None:
    value = entry.values.get("group")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else entry.group()


def _whole(text: str, where: str) -> int:
    try:
        return int(text, 0)  # also 0xff0000
    except ValueError:
        raise DataError(f"{where}, 'mask_value': {shown(text)} is no whole number") from None


def _kept(row: Mapping[str, Any], options: Options, where: str) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name in options.keep:
        value = row["keep"].get(name)
        if value is not None:
            if isinstance(value, list | dict) or len(str(value)) > 1000:
                raise DataError(f"{where}, {shown(name)}: too much to be kept with a case: leave it out of --keep")
            kept[name] = str(value)
    return kept


def _shorter(name: str, folders: tuple[str, ...]) -> str:
    first, _, rest = name.partition("/")
    return rest if rest and first.lower() in folders else name
