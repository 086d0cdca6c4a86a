"""Image and mask files paired by name, and data that ``load_records`` reads already: manifests, the published layout."""

from __future__ import annotations

import os
from pathlib import Path

from vlsm_adapter.data.digests import digest_of_files
from vlsm_adapter.data.entries import real_folder
from vlsm_adapter.data.importing.base import Plan, record_items, skipped_items
from vlsm_adapter.data.importing.options import Options
from vlsm_adapter.data.layouts import MANIFESTS, Collector, image_files, published_lists
from vlsm_adapter.data.naming import finish
from vlsm_adapter.data.plain import has_flat_pairs, pair_folders, plain_folders
from vlsm_adapter.data.records import read_layout
from vlsm_adapter.errors import DataError
from vlsm_adapter.types import Record, Skipped


def is_pairs(path: Path, options: Options) -> bool:
    """Whether ``path`` holds pairs of image files, or a layout that is read as it is, and no class table is given."""
    return options.classes is None and has_pairs(path, options)


def has_pairs(path: Path, options: Options) -> bool:
    """Whether ``path`` holds pairs of image files, or a layout that is read as it is."""
    if not path.is_dir():
        return False
    if options.masks is not None and options.masks.is_dir():
        return next(image_files(options.images or path), None) is not None
    if any((path / name).is_file() for name in MANIFESTS) or published_lists(path):
        return True
    found = any(next(image_files(images), None) is not None for images, _, _ in plain_folders(path))
    return found or has_flat_pairs(path)


def plan_pairs(path: Path, options: Options, skip_bad: bool) -> Plan:
    """One case for each pair or entry.

    Raises:
        DataError: the layout is not known, or (without ``skip_bad``) an entry is bad.
    """
    records, skipped = pair_records(path, options, options.prompt, skip_bad)
    plan = Plan(skipped_items(skipped) if skip_bad else [], digest_of_records(records, path))
    plan.items += record_items(records, plan, options)
    return plan


def pair_records(
    path: Path, options: Options, prompt: str | None, skip_bad: bool
) -> tuple[list[Record], list[Skipped]]:
    """The records of a layout as it says them, without splits of ours, and the bad entries.

    Raises:
        DataError: as ``load_records``.
    """
    root = real_folder(path)
    collector = Collector(skip_bad)
    if options.masks is not None:
        images, masks = real_folder(options.images or root), real_folder(options.masks)
        if images == masks:
            raise DataError(f"{images}: is the folder of images and of masks: give two, or leave --masks out")
        if prompt is None:
            raise DataError('images and masks do not say what they show: pass --prompt "polyp"')
        pair_folders(
            Path(os.path.commonpath([images, masks])),
            images,
            # Masks below the images' folder are none of the images.
            [file for file in image_files(images) if not file.is_relative_to(masks)],
            masks,
            [file for file in image_files(masks) if not file.is_relative_to(images)],
            None,
            prompt,
            collector,
        )
        _refuse_links_out(collector, images, masks)
    elif options.images is not None:
        raise DataError(f"--images {options.images}: also say where the masks are: --masks DIR")
    else:
        read_layout(root, prompt, collector)
    records, left_out, _ = finish(
        collector.drafts, dataset=root.name, prompt=prompt, skip_bad=skip_bad, outlines=collector.outlines
    )
    return records, [*collector.skipped, *left_out]


def digest_of_records(records: list[Record], path: Path) -> str:
    """A digest of the files and what is said of them."""
    files = [file for record in records for file in (record.image, record.mask) if file is not None]
    said: list[tuple[object, ...]] = [
        (record.case_id, sorted(record.prompts.items()), record.split, record.group, record.spacing, record.mask_value)
        for record in records
    ]
    # Only where it is declared, so that other sets keep their digests.
    said += [(record.case_id, record.leak_free) for record in records if record.leak_free is not None]
    return digest_of_files(files, real_folder(path), also=repr(said))


def _refuse_links_out(collector: Collector, images: Path, masks: Path) -> None:
    """Two folders may have nothing but ``/`` above them, so each is held to its own."""
    for draft in collector.drafts:
        for file, folder in ((draft.image, images), (draft.mask, masks)):
            if file is not None and not file.is_relative_to(folder):
                raise DataError(
                    f"{draft.where}: a link leads to {file}, out of {folder}: copy the file into the folder"
                )
