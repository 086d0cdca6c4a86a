"""The plain folder: ``images/`` and ``masks/`` (or their usual other names) paired by stem, or ``X.png`` beside ``X_mask.png``."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

from vlsm_adapter.data.entries import Entry, shown, unsafe_name
from vlsm_adapter.data.layouts import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SPLIT_WORDS,
    Collector,
    Draft,
    image_files,
    natural_key,
)
from vlsm_adapter.data.spellings import composed, folders_like, only
from vlsm_adapter.errors import DataError

log = logging.getLogger("vlsm_adapter.data")

MASK_ENDING = re.compile(r"[_-](mask|masks|segmentation|seg|label|labels|gt)$", re.IGNORECASE)
# BUSI's second and third masks of an image: "benign (100)_mask_1.png".
_FURTHER_MASK = re.compile(r"^(.+[_-](?:mask|masks|segmentation|seg|label|labels|gt))[_-][0-9]+$", re.IGNORECASE)


def plain_folders(root: Path) -> list[tuple[Path, Path, str | None]]:
    """(image folder, mask folder, split) below ``root`` and below ``root/{train,val,test}``, in capitals or not.

    Raises:
        DataError: two folders of one name but for capitals.
    """
    pairs: list[tuple[Path, Path, str | None]] = []
    parts = folders_like(root, SPLIT_WORDS)
    for base, split in [
        (root, None),
        *((only(parts[name]), split) for name, split in SPLIT_WORDS.items() if name in parts),
    ]:
        found = folders_like(base, (*IMAGE_FOLDERS, *MASK_FOLDERS))
        images = next((found[name] for name in IMAGE_FOLDERS if name in found), None)
        masks = next((found[name] for name in MASK_FOLDERS if name in found), None)
        if images and masks:
            pairs.append((only(images), only(masks), split))
    return pairs


def read_plain(root: Path, prompt: str, collector: Collector) -> None:
    """Images and masks paired by stem; ``root`` has what ``plain_folders`` or ``has_flat_pairs`` finds.

    The mask of ``x/name.jpg`` is ``x/name.*`` or ``x/name_mask.*`` (``_segmentation``, ``_seg``, ``_label``, ``_gt``).
    A first sub-folder called train, val or test is the split.
    """
    for images, masks, split in plain_folders(root):
        pair_folders(root, images, list(image_files(images)), masks, list(image_files(masks)), split, prompt, collector)
    if not plain_folders(root):
        files = list(image_files(root, deep=False))
        stems = {composed(path.stem) for path in files}
        # a_seg_1.png is a further mask of a.png, but an image where it has a mask itself.
        own = {MASK_ENDING.sub("", stem) for stem in stems if MASK_ENDING.search(stem)}
        masks_here = [
            path
            for path in files
            if MASK_ENDING.search(path.stem)
            or ((stem := composed(path.stem)) not in own and _image_of_further(stem) in stems)
        ]
        images_here = sorted(set(files) - set(masks_here), key=natural_key)
        pair_folders(root, root, images_here, root, masks_here, None, prompt, collector)


def _image_of_further(stem: str) -> str | None:
    """The stem of the image that ``stem`` is a further mask of, by its name: ``x`` of ``x_mask_1``; else None."""
    match = _FURTHER_MASK.match(stem)
    return MASK_ENDING.sub("", match[1]) if match else None


def has_flat_pairs(root: Path) -> bool:
    """Whether ``root`` itself holds ``X.png`` beside ``X_mask.png``."""
    files = list(image_files(root, deep=False))
    stems = {composed(path.stem) for path in files}
    return any(MASK_ENDING.sub("", composed(path.stem)) in stems for path in files if MASK_ENDING.search(path.stem))


def pair_folders(
    root: Path,
    image_root: Path,
    images: list[Path],
    mask_root: Path,
    masks: list[Path],
    split: str | None,
    prompt: str,
    collector: Collector,
) -> None:
    """Add a draft for each of ``images`` (below ``image_root``) with its mask; see ``read_plain``. None leaves ``root``."""

    def key(path: Path, base: Path) -> str:
        return composed(path.relative_to(base).with_suffix("").as_posix())

    stems = {key(image, image_root) for image in images}
    by_stem: dict[str, list[Path]] = {}
    further: dict[str, list[Path]] = {}
    for mask in masks:
        stem = key(mask, mask_root)
        if stem not in stems and (of := _image_of_further(stem)) in stems and of is not None:
            further.setdefault(of, []).append(mask)
            continue
        for name in {stem, MASK_ENDING.sub("", stem)}:
            by_stem.setdefault(name, []).append(mask)
    used: set[Path] = set()

    def draft(image: Path) -> Draft:
        name = image.relative_to(image_root).as_posix()
        candidates = by_stem.get(key(image, image_root), [])
        parts = further.get(key(image, image_root), [])
        used.update(candidates, parts)
        if parts and len(candidates) + len(parts) > 1:
            raise DataError(
                f"{image}: has the masks {', '.join(path.name for path in [*candidates, *parts][:3])}, each a part of what it "
                f"shows: join them into one file; 'vlsm data prepare busi --raw {shlex.quote(str(root))} --out DIR' does so "
                "for BUSI"
            )
        if not candidates:
            raise DataError(
                f"{image}: has no mask in {mask_root} (looked for the same stem, or stem_mask, stem_segmentation, stem_seg, "
                "stem_label, stem_gt): add it or move the image away; --skip-bad leaves such images out, 'vlsm data check' lists all that is bad"
            )
        if len(candidates) > 1:
            raise DataError(
                f"{image}: has several masks, {', '.join(sorted(path.name for path in candidates)[:3])}: keep one"
            )
        if problem := unsafe_name(name):
            raise DataError(f"{image_root}: the file name {shown(name)} {problem}")
        entry = Entry({}, str(image), root)
        first = name.split("/")[0].lower() if "/" in name else ""
        return Draft(
            where=str(image),
            image=entry.inside("image", image),
            image_name=name if split is None else f"{split}/{name}",
            mask=entry.inside("mask", candidates[0]),
            mask_name=candidates[0].relative_to(mask_root).as_posix(),
            split=split or SPLIT_WORDS.get(first),
            prompts={"p0": ("",), "p1": (prompt,)},
        )

    def outline(name: str) -> Draft:
        first = name.split("/")[0].lower() if "/" in name else ""
        return Draft(
            where=str(image_root / name),
            image=image_root / name,
            image_name=name if split is None else f"{split}/{name}",
            split=split or SPLIT_WORDS.get(first),
        )

    for image in images:
        name = image.relative_to(image_root).as_posix()
        collector.add(image.stem, str(image), lambda path=image: draft(path), lambda name=name: outline(name))  # type: ignore[misc]
    lowered = {composed(image.stem).lower() for image in images}
    for mask in masks:
        stem = composed(mask.stem).lower()
        if mask not in used and not {stem, MASK_ENDING.sub("", stem)} & lowered:
            # The image may be added, of whatever format: the id is that of its stem.
            name = f"{MASK_ENDING.sub('', key(mask, mask_root))}.png"
            collector.add(
                mask.stem,
                str(mask),
                lambda path=mask: _without_image(path, image_root),  # type: ignore[misc]
                lambda name=name: outline(name),  # type: ignore[misc]
            )
    if alone := [mask for mask in masks if mask not in used]:
        log.warning("%s: %d mask(s) belong to no usable image, the first is %s", mask_root, len(alone), alone[0].name)


def _without_image(mask: Path, image_root: Path) -> Draft:
    raise DataError(f"{mask}: has no image of its name in {image_root}: add the image or move the mask away")
