"""COCO JSON: one case for each image and category, its objects united.

``{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"id", "image_id", "category_id",
"segmentation"}], "categories": [{"id", "name"}]}``; ``segmentation`` is a list of polygons (``polygons``) or an RLE
(``rle``), crowds included. One file, or a folder of files, each the split that its name or folder says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data import rle
from vlsm_adapter.data.digests import digest_of_files, digest_of_text
from vlsm_adapter.data.entries import Entry, kind_of, parse_json, read_text, real_folder, shown, unsafe_name
from vlsm_adapter.data.images import header_size
from vlsm_adapter.data.importing import polygons
from vlsm_adapter.data.importing.base import (
    DROPPED,
    Item,
    Plan,
    bad_item,
    case_name,
    short_ids,
)
from vlsm_adapter.data.importing.classes import Key, LabelClass
from vlsm_adapter.data.importing.options import Options
from vlsm_adapter.data.layouts import SPLIT_WORDS, on_disk
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.spellings import Spellings, composed
from vlsm_adapter.errors import DataError

_GROUP_FIELDS = ("group", "patient_id", "patient", "subject_id", "video_id", "sequence_id")
_LOOKED_FOR = 20
_LONGEST_NAME = 500

# COCO 2017's own training list has 450 MB.
MAX_COCO_BYTES = 1 << 30


@dataclass(slots=True)
class _Image:
    """An entry of ``images`` with its annotations by class name; ``problem`` is the first thing wrong with it."""

    entry: Entry
    name: str
    file: Path
    split: str | None
    group: str | None
    annotations: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    problem: DataError | None = None


def is_coco(path: Path, options: Options) -> bool:
    """Whether ``path`` is a COCO file or a folder with some."""
    return bool(_files(path))


def plan_coco(path: Path, options: Options, skip_bad: bool) -> Plan:
    """The cases of one or more COCO files.

    Raises:
        DataError: a file is not COCO, its images are not found, a category is defined twice, or no category is chosen.
    """
    files = _files(path)
    if not files:
        raise DataError(f"{path}: no COCO file: a .json with images, annotations and categories is needed")
    texts = [read_text(file, MAX_COCO_BYTES) for file in files]
    images: list[_Image] = []
    loose: list[Item] = []
    classes: dict[str, LabelClass] = {}
    plan = Plan([], "")
    for file, text in zip(files, texts, strict=True):
        split = _split_of(file) if len(files) > 1 else None
        found, bad, used = _read(file, text, split, path, options)
        images += found
        loose += bad
        classes.update({one.name: one for one in used})
    if not images and not loose:
        raise DataError(f"{path}: lists no image: is this the right file?")
    names = [f"{image.split}/{image.name}" if len(files) > 1 else image.name for image in images]
    ids = _ids(images, names)
    ready: list[Item] = []
    for image, image_id in zip(images, ids, strict=True):
        if image.problem is not None:
            loose.append(bad_item(image_id, str(image.file), image.problem))
        else:
            cases = _ImageCases(image, image_id, tuple(classes.values()), plan, options)
            ready.append(Item(image_id, str(image.file), cases))
    plan.items = loose + ready
    plan.digest = digest_of_files([image.file for image in images], real_folder(path), also=digest_of_text(*texts))
    return plan


def _ids(images: list[_Image], names: list[str]) -> list[str]:
    """An id for each image: its stem, with folder and ending where that is not enough, in Unicode's composed form."""
    names = [composed(name) for name in names]
    ids = short_ids(dict.fromkeys(names))
    first: dict[str, _Image] = {}
    for image, name in zip(images, names, strict=True):
        other = first.setdefault(name, image)
        if other is not image and image.problem is None:
            where = f"{image.entry.where}, 'file_name'"
            if image.name != other.name and image.file != other.file:
                image.problem = DataError(
                    f"{where}: {image.name!a} and {other.name!a} are one name but for Unicode's form: rename one of the files"
                )
            else:
                image.problem = DataError(f"{where}: {shown(image.name)} is listed twice: keep one entry")
    return [ids[name] for name in names]


def _files(path: Path) -> list[Path]:
    """The COCO files that ``path`` is or holds, told by what they begin with or are called."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    if not path.is_dir():
        return []
    places = [path, path / "annotations", *(path / name for name in ("train", "valid", "val", "test"))]
    files = [file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))]
    found = [file for file in files if _looks_like_coco(file)]
    # "instances_" are masks; beside them COCO itself ships captions and keypoints of the same images.
    instances = [file for file in found if file.name.startswith("instances_")]
    return instances or found


def _looks_like_coco(file: Path) -> bool:
    if file.name.startswith(".") or not file.is_file():
        return False
    try:
        text = read_text(file, MAX_COCO_BYTES)
    except DataError:
        return False
    return all(f'"{key}"' in text for key in ("images", "annotations", "file_name"))


def _split_of(file: Path) -> str | None:
    words = file.stem.lower().replace("-", "_").replace(".", "_").split("_")
    # instances_train2017
    found = {SPLIT_WORDS[word] for one in words if (word := one.rstrip("0123456789")) in SPLIT_WORDS}
    if not found:
        found = {SPLIT_WORDS[word] for word in [file.parent.name.lower()] if word in SPLIT_WORDS}
    if len(found) != 1:
        raise DataError(
            f"{file}: one of several COCO files, and its name does not say which split it is: call it train.json, val.json "
            "or test.json, or import one file"
        )
    return found.pop()


def _read(
    file: Path, text: str, split: str | None, path: Path, options: Options
) -> tuple[list[_Image], list[Item], list[LabelClass]]:
    """(images, items of annotations that belong to none, classes) of one file."""
    content = parse_json(text, str(file))
    if not isinstance(content, dict):
        raise DataError(f"{file}: {kind_of(content)}, not a COCO object with images, annotations and categories")
    lists: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        value = content.get(key)
        if not isinstance(value, list):
            raise DataError(f"{file}: '{key}' is {kind_of(value)}, not a list: not a COCO file of masks")
        lists[key] = value
    if any(isinstance(one, dict) and "segments_info" in one for one in lists["annotations"][:1]):
        raise DataError(f"{file}: is a panoptic file, whose masks are PNG files: import those with --classes")
    class_of, chosen = _classes(file, lists["categories"], options)
    spellings = Spellings()
    root = _image_root(file, lists["images"], options, spellings)
    images, bad = _images(file, lists["images"], root, split, spellings)
    for number, value in enumerate(lists["annotations"]):
        where = f"{file}: annotation {number}"
        try:
            _attach(Entry.of(value, where, root), images, class_of)
        except DataError as error:
            image = images.get(_id(value.get("image_id"))) if isinstance(value, dict) else None
            if image is None:
                bad.append(bad_item(f"annotation {number}", str(file), error))
            elif image.problem is None:
                image.problem = error
    return list(images.values()), bad, chosen


def _id(value: Any) -> str:
    """Ids as text: some programs write the same id as a number here and as a text there."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def _classes(file: Path, categories: list[Any], options: Options) -> tuple[dict[str, str | None], list[LabelClass]]:
    """(category id to class name, None for one that is left out; the classes used)."""
    names: dict[str, str] = {}
    for number, value in enumerate(categories):
        entry = Entry.of(value, f"{file}: category {number}", file.parent)
        key, name = _id(entry.values.get("id")), entry.text("name")
        if not key or name is None:
            entry.fail("name" if key else "id", "missing; every category needs id and name")
        if key in names:
            entry.fail("id", f"{shown(key)} is already that of {shown(names[key])}: give each category its own")
        names[key] = " ".join(name.split())
        if not names[key].isprintable() or len(names[key]) > _LONGEST_NAME:
            entry.fail("name", f"{shown(name)} cannot name a class: give a text of at most {_LONGEST_NAME} characters")
    if options.prompt is not None:
        united = LabelClass(options.prompt, (options.prompt,), ())
        return dict.fromkeys(names, united.name), [united]
    if options.classes is None:
        # Two ids of one name are one class.
        return dict(names), [LabelClass(name, (name,), ()) for name in dict.fromkeys(names.values())]
    by_key: dict[Key, str] = {key: one.name for one in options.classes.classes for key in one.keys}
    class_of: dict[str, str | None] = {}
    for key, name in names.items():
        keys = (int(key) if key.lstrip("-").isdecimal() else key, name)
        class_of[key] = next((by_key[one] for one in keys if one in by_key), None)
    known = {*names, *names.values()}
    if unknown := [key for key in by_key if str(key) not in known]:
        listed = ", ".join(f"{key}={name}" for key, name in list(names.items())[:8])
        raise DataError(f"{file}: has no category {shown(str(unknown[0]))} (--classes); it has {listed}")
    return class_of, list(options.classes.classes)


def _image_root(file: Path, images: list[Any], options: Options, spellings: Spellings) -> Path:
    """The folder that the images' names are relative to.

    Raises:
        DataError: none of the usual places has one of the first images.
    """
    base = real_folder(options.images or file.parent)
    names = [
        name
        for one in images[:_LOOKED_FOR]
        if isinstance(one, dict) and isinstance(name := one.get("file_name"), str) and not unsafe_name(name)
    ]
    split = _split_word(file)
    up = base.parent
    inner = [base, base / "images", *([base / split] if split else [])]
    outer = [up / "images", *([up / split, up / "images" / split] if split else []), up]
    places = inner if options.images is not None else inner + outer
    for exact in (True, False):  # what is called so, before what is called so in another of Unicode's forms
        for place in places:
            for name in names:
                try:
                    if (place / name if exact else spellings.file(place, name)).is_file():
                        return place.resolve()
                except DataError:
                    return place.resolve()  # two are called so: the entry says it
                except (OSError, ValueError):
                    continue
    if options.images is not None or not names:
        return base  # the entries say what is wrong
    raise DataError(
        f"{file}: none of its first images ({shown(names[0])}, ...) is found in {', '.join(str(place) for place in inner)} or "
        "beside: pass --images DIR"
    )


def _split_word(file: Path) -> str | None:
    stem = file.stem
    return stem.removeprefix("instances_") if stem.startswith("instances_") else None


def _images(
    file: Path, values: list[Any], root: Path, split: str | None, spellings: Spellings
) -> tuple[dict[str, _Image], list[Item]]:
    """Images by id, and the entries that are none."""
    images: dict[str, _Image] = {}
    bad: list[Item] = []
    for number, value in enumerate(values):
        where = f"{file}: image {number}"
        try:
            entry = Entry.of(value, where, root)
            key = _id(entry.values.get("id"))
            if not key:
                entry.fail("id", "missing; every image needs a number or a text")
            if key in images:
                error = DataError(
                    f"{where}, 'id': {shown(key)} is already that of {shown(images[key].name)}: annotations of both are mixed"
                )
                images[key].problem = images[key].problem or error
                raise error
            name = entry.needed_file_name("file_name")
            path = on_disk(entry, spellings, "file_name", root, name)
            images[key] = _Image(entry, name, path, split or entry.split(), _group(entry))
        except DataError as error:
            bad.append(bad_item(f"image {number}", str(file), error))
    return images, bad


def _group(entry: Entry) -> str | None:
    for name in _GROUP_FIELDS:
        if text := _id(entry.values.get(name)).strip():
            return text
    return None


def _attach(entry: Entry, images: Mapping[str, _Image], class_of: Mapping[str, str | None]) -> None:
    """File an annotation under its image and class.

    Raises:
        DataError: its image or category is not defined, or it has no segmentation.
    """
    image = images.get(_id(entry.values.get("image_id")))
    if image is None:
        entry.fail("image_id", f"{shown(entry.values.get('image_id'))} is that of no usable image")
    category = _id(entry.values.get("category_id"))
    if category not in class_of:
        listed = ", ".join(list(class_of)[:8])
        entry.fail(
            "category_id", f"{shown(entry.values.get('category_id'))} is no category of this file; it has {listed}"
        )
    name = class_of[category]
    if name is None:
        return
    segmentation = entry.values.get("segmentation")
    if not isinstance(segmentation, list | dict) or not segmentation:
        entry.fail(
            "segmentation", "missing or empty: a box alone is no mask; annotate the outline or delete the annotation"
        )
    image.annotations.setdefault(name, []).append((f"{entry.where}, 'segmentation'", segmentation))


@dataclass(frozen=True, slots=True)
class _ImageCases:
    image: _Image
    image_id: str
    classes: tuple[LabelClass, ...]
    plan: Plan
    options: Options

    def __call__(self) -> Iterator[RawCase]:
        image = self.image
        if not image.file.is_file():
            image.entry.fail("file_name", f"{image.file}: no such file: check the path, or pass --images DIR")
        group = self.options.group_of(image.name, image.group)
        for one in self.classes:
            case_id = case_name(self.image_id, one.name) if len(self.classes) > 1 else self.image_id
            annotations = image.annotations.get(one.name, [])
            if not annotations and not self.options.keeps_empty(case_id, 0.0):
                self.plan.count(DROPPED)
                continue
            yield RawCase(
                case_id=case_id,
                image=image.file,
                mask=lambda annotations=annotations: self._mask(annotations),  # type: ignore[misc]
                prompts={"p1": one.texts},
                group=group,
                split=image.split,
                spacing=image.entry.spacing() or self.options.spacing,
                attributes={"class": one.name},
                image_id=self.image_id,
                where=str(image.file),
            )

    def _mask(self, annotations: list[tuple[str, Any]]) -> npt.NDArray[np.bool_]:
        """The objects of one class, united: bool (H, W) of the upright image."""
        width, height = header_size(self.image.file)
        self._check_size(width, height)
        mask = np.zeros((height, width), bool)
        for where, segmentation in annotations:
            if isinstance(segmentation, dict):
                mask |= rle.decode(segmentation, height, width, where=where)
            else:
                for ring in segmentation:
                    polygons.add_ring(mask, polygons.read_ring(ring, height, width, where=where))
        return mask

    def _check_size(self, width: int, height: int) -> None:
        # Before any array is made: the size in the list may be anything.
        said = (self.image.entry.values.get("width"), self.image.entry.values.get("height"))
        if said in ((None, None), (width, height)):
            return
        turned = " (annotated before its EXIF orientation was applied?)" if said == (height, width) else ""
        raise DataError(
            f"{self.image.entry.where}: says {shown(said[0])} x {shown(said[1])} pixels but {self.image.file} has {width} x {height}"
            f"{turned}: the annotations do not fit the image"
        )
