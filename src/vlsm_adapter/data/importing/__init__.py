"""Importing a user's own data: foreign files of several formats to a prepared data set (``data.prepared``).

One file for each format; each turns a path and ``Options`` into a plan of items, and ``import_data`` writes their
cases. See ``docs/import-data.md``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlsm_adapter.data.entries import id_part, real_folder, shown
from vlsm_adapter.data.importing.base import Plan
from vlsm_adapter.data.importing.coco import is_coco, plan_coco
from vlsm_adapter.data.importing.folders import is_pairs, plan_pairs
from vlsm_adapter.data.importing.multilabel import is_multilabel, plan_multilabel
from vlsm_adapter.data.importing.nifti import is_nifti, plan_nifti
from vlsm_adapter.data.importing.options import Options, command_line
from vlsm_adapter.data.importing.tables import is_table, plan_table
from vlsm_adapter.data.prepared import About, RawCase, Summary, write_prepared
from vlsm_adapter.errors import ConfigError, DataError, UserError
from vlsm_adapter.registry import Registry

__all__ = ["FORMATS", "Format", "Options", "detect_format", "import_data"]


@dataclass(frozen=True)
class Format:
    """One way in which people keep images and masks.

    Attributes:
        summary: one line.
        recognises: whether a path looks like it; opens no image.
        plan: (path, options, skip_bad) to the plan.
        takes: the options that mean something to it.
    """

    summary: str
    recognises: Callable[[Path, Options], bool]
    plan: Callable[[Path, Options, bool], Plan]
    takes: frozenset[str]


_ALL = {"prompt", "empty", "group_by"}
_PLACES = {"images", "masks"}
_SLICES = {"plane", "window", "percentiles", "frame"}

FORMATS: Registry[Format] = Registry("format")
for _name, _format in {
    "coco": Format(
        "COCO JSON: polygons and RLE, one case an image and category",
        is_coco,
        plan_coco,
        frozenset(_ALL | {"classes", "images", "spacing"}),
    ),
    "table": Format(
        "CSV, TSV or JSONL, one case a row",
        is_table,
        plan_table,
        frozenset(_ALL | _PLACES | _SLICES | {"classes", "columns", "keep", "spacing"}),
    ),
    "nifti": Format(
        "NIfTI volumes with masks, one case a slice and class",
        is_nifti,
        plan_nifti,
        frozenset(_ALL | _PLACES | _SLICES | {"classes", "channel"}),
    ),
    "multilabel": Format(
        "images with masks of several labels, one case an image and class",
        is_multilabel,
        plan_multilabel,
        frozenset(_ALL | _PLACES | {"classes", "spacing"}),
    ),
    "folders": Format(
        "images with masks of the same name, or a manifest",
        is_pairs,
        plan_pairs,
        frozenset(_ALL | _PLACES | {"spacing"}),
    ),
}.items():
    FORMATS.register(_name)(_format)


def _table_in(path: Path) -> str:
    """What to do with the table that ``path`` is, or the tables it holds."""
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return ": save the sheet as CSV (UTF-8)"
    tables = (
        sorted(one.name for one in path.iterdir() if one.suffix.lower() in (".csv", ".tsv")) if path.is_dir() else []
    )
    return f": give the table itself, {shown(str(path / tables[0]), 300)}" if tables else ""


def detect_format(path: Path, options: Options) -> str:
    """The name of the one format that ``path`` looks like.

    Raises:
        DataError: none does, or several do.
    """
    if not path.exists():
        raise DataError(f"{shown(str(path), 300)}: no such file or folder: check the path")
    found = [name for name in FORMATS if FORMATS.get(name).recognises(path, options)]
    if not found:
        listed = "; ".join(f"{name}: {FORMATS.get(name).summary}" for name in FORMATS)
        raise DataError(f"{path}: no known format{_table_in(path)}; known are {listed} (docs/import-data.md)")
    if len(found) > 1:
        raise DataError(f"{path}: may be {' or '.join(found)}: choose with --format {found[0]}")
    return found[0]


def import_data(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: Mapping[str, str | None] | None = None,
    format: str | None = None,
    name: str | None = None,
    title: str = "",
    licence: str = "",
    citation: str = "",
    skip_bad: bool = False,
    jobs: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Summary:
    """Write the cases at ``path`` as a prepared data set; the same call goes on where an earlier one was stopped.

    Args:
        path: a file or folder of one of ``FORMATS``.
        out: folder to write; new, empty, or begun by this very call.
        options: of the import, as texts (``Options``): ``{"prompt": "polyp", "empty": "0.1"}``.
        format: one of ``FORMATS``; by default told by the files.
        name: of the set; by default that of ``path``.
        title, licence, citation: for the card of the set.
        skip_bad: leave bad cases out, listed, instead of stopping at the first.
        jobs: threads; by default one a processor, at most 8.
        progress: called with (items done, items in all, cases so far); an item is an image, a row or a volume.

    Returns:
        What was written.

    Raises:
        ConfigError: an unknown format or option, or one that the format has no use for.
        DataError: the material cannot be used; one line that names the file and the fix.
        UserError: ``out`` cannot be written; the same call goes on from there.
    """
    texts = dict(options or {})
    chosen = Options.parse(texts)
    root = real_folder(path)
    kind = format if format is not None else detect_format(root, chosen)
    importer = FORMATS.get(kind)
    if not root.exists():
        raise DataError(f"{shown(str(path), 300)}: no such file or folder: check the path")
    if useless := [key for key, value in texts.items() if value is not None and key not in importer.takes]:
        raise ConfigError(
            f"--{useless[0].replace('_', '-')} says nothing about the format '{kind}': leave it out or choose another --format"
        )
    target = real_folder(out)
    for folder in (root, chosen.images, chosen.masks):
        # What is written must not be found as material by the call that goes on.
        if folder is not None and folder.is_dir() and target.is_relative_to(real_folder(folder)):
            raise UserError(f"{out}: lies in the data that is imported: choose a folder outside of {folder}")
    plan = importer.plan(root, chosen, skip_bad)
    problems = [item.problem for item in plan.items if item.problem is not None]
    if problems and not skip_bad:
        raise DataError(f"{problems[0]} ({len(problems)} of {len(plan.items)} are bad; --skip-bad leaves them out)")
    about = About(
        name=name or id_part(root.stem if root.is_file() else root.name),
        title=title,
        licence=licence,
        citation=citation,
        origin={"format": kind, "material": root.name, "digest": plan.digest, "options": chosen.given()},
        command=command_line(root.name, texts, out=target.name, skip_bad=skip_bad),
        notes=plan.notes,
    )
    warnings: list[str] = []
    return write_prepared(
        _counted(plan, warnings, progress),
        target,
        about=about,
        jobs=jobs if jobs is not None else min(8, os.cpu_count() or 1),
        skip_bad=skip_bad,
        warnings=warnings,
    )


def _counted(plan: Plan, warnings: list[str], progress: Callable[[int, int, int], None] | None) -> Iterator[RawCase]:
    """The cases of ``plan``; at their end what was counted stands in ``warnings``."""
    total, made = len(plan.items), 0

    def advance(items: int) -> None:
        if progress is not None:
            progress(items, total, made)

    for case in plan.cases(advance):
        made += 1
        yield case
    warnings += [f"{count} {what}" for what, count in plan.counts.items()]
