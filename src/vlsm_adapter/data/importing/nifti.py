"""NIfTI volumes: one case for each slice and class, with the pixel size in mm and the patient or volume as group."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlsm_adapter.data.digests import digest_of_files
from vlsm_adapter.data.entries import parse_json, read_text, real_folder, shown, unsafe_name
from vlsm_adapter.data.importing.base import (
    DROPPED,
    Item,
    Plan,
    bad_item,
    case_name,
    stem_of,
)
from vlsm_adapter.data.importing.classes import ClassTable, LabelClass, table_of
from vlsm_adapter.data.importing.multilabel import check_values, present_values
from vlsm_adapter.data.importing.options import Options
from vlsm_adapter.data.layouts import Draft, natural_key
from vlsm_adapter.data.plain import MASK_ENDING, plain_folders
from vlsm_adapter.data.prepared import RawCase
from vlsm_adapter.data.spellings import composed
from vlsm_adapter.data.volumes import Slicing, Volume, is_volume, to_8_bit
from vlsm_adapter.errors import DataError

_CHANNEL = re.compile(r"_([0-9]{4})$")
_HELD = 2  # the volume being cut and the one before, whose last slices may still be waiting
_ANY = "*any*"


@dataclass(frozen=True)
class _Pair:
    """A volume and its mask, before either was opened."""

    name: str
    image: Path
    mask: Path
    split: str | None = None
    group: str | None = None
    texts: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)


def is_nifti(path: Path, options: Options) -> bool:
    """Whether ``path`` is a NIfTI file, or a folder with some in a place where they are looked for."""
    if path.is_file():
        return is_volume(path)
    return path.is_dir() and next(_walk(options.images or path), None) is not None


def plan_nifti(path: Path, options: Options, skip_bad: bool) -> Plan:
    """A case for each slice and class of each pair of volumes.

    Raises:
        DataError: no pair is found, or the class table is missing or no table of values.
    """
    root = real_folder(path)
    plan = Plan([], "")
    table = options.classes or _table_of_dataset(root)
    pairs: list[_Pair] = []
    for pair in _pairs(root, options, plan):
        if isinstance(pair, Item):
            plan.items.append(pair)
        else:
            pairs.append(pair)
    if not pairs and not plan.items:
        raise DataError(
            f"{path}: holds no NIfTI volume with a mask; looked for imagesTr/ with labelsTr/, for images/ with masks/ or labels/, and "
            "for X.nii.gz with X_seg.nii.gz (_mask, _label, _gt); or pass --images DIR --masks DIR, or a table"
        )
    plan.items += _items(_apart(pairs), plan, options, table)
    plan.digest = digest_of_files([file for pair in pairs for file in (pair.image, pair.mask)], root)
    return plan


def drafts_to_volumes(
    drafts: Iterable[Draft],
    plan: Plan,
    options: Options,
    attributes: Mapping[str, Mapping[str, str]],
) -> list[Item]:
    """Items for the rows of a table that names volumes; ``attributes`` by ``where`` of the draft."""
    pairs: list[_Pair] = []
    for draft in drafts:
        if draft.mask is None or not (is_volume(draft.image) and is_volume(draft.mask)):
            raise DataError(f"{draft.where}: image and mask must both be NIfTI files (.nii, .nii.gz)")
        texts = next((texts for level, texts in draft.prompts.items() if level != "p0"), ())
        name = draft.case_id or composed(stem_of(draft.image_name))
        kept = attributes.get(draft.where, {})
        pairs.append(_Pair(name, draft.image, draft.mask, draft.split, draft.group, texts, kept))
    return list(_items(pairs, plan, options, options.classes))


def _apart(pairs: list[_Pair]) -> list[_Pair]:
    """Volumes of one name in several splits get names of their own and stay one group, so that a leak is seen."""
    count: dict[str, int] = {}
    for pair in pairs:
        count[pair.name] = count.get(pair.name, 0) + 1
    return [
        replace(pair, name=f"{pair.split}/{pair.name}", group=pair.group or pair.name)
        if count[pair.name] > 1 and pair.split
        else pair
        for pair in pairs
    ]


def _items(pairs: list[_Pair], plan: Plan, options: Options, table: ClassTable | None) -> Iterator[Item]:
    if table is not None and options.prompt is not None:
        # One text was asked for: all labels together are it.
        table = None
    if table is not None:
        table.values("--classes")
    elif options.prompt is None and not all(pair.texts for pair in pairs):
        raise DataError(
            'the volumes do not say what their masks show: pass --prompt "liver", or --classes 1=liver,2=tumor'
        )
    store = _Store()
    for pair in pairs:
        yield Item(pair.name, str(pair.image), _VolumeCases(pair, plan, options, table, store))


class _Store:
    """The intensities of the volumes last asked for, with their window; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[Path, int], tuple[npt.NDArray[np.float32], float, float]] = OrderedDict()

    def get(self, volume: Volume, frame: int, options: Options) -> tuple[npt.NDArray[np.float32], float, float]:
        key = (volume.path, frame)
        # One at a time: two threads that wait for one volume must not both read it.
        with self._lock:
            if key not in self._held:
                while len(self._held) >= _HELD:
                    self._held.popitem(last=False)
                voxels = volume.intensities(frame)
                self._held[key] = (voxels, *volume.window(voxels, options.window, options.percentiles))
            self._held.move_to_end(key)
            return self._held[key]


@dataclass(frozen=True)
class _VolumeCases:
    """The cases of one volume. The mask is read now, the image when its first slice is written."""

    pair: _Pair
    plan: Plan
    options: Options
    table: ClassTable | None
    store: _Store

    def __call__(self) -> Iterator[RawCase]:
        image, mask = Volume(self.pair.image), Volume(self.pair.mask)
        image.check_same_grid(mask)
        slicing = image.slicing(self.options.plane or "axial")
        _check_spacing(slicing, image)
        for frame in self._frames(image):
            if mask.frames not in (1, image.frames):
                raise DataError(f"{mask.path}: has {mask.frames} frames but its image {image.path} has {image.frames}")
            labels = mask.labels(frame if mask.frames > 1 else 0)
            yield from self._slices(image, frame, slicing, labels)

    def _frames(self, image: Volume) -> Iterable[int]:
        chosen = self.options.frame
        if chosen == "all":
            return range(image.frames)
        if isinstance(chosen, int):
            if chosen >= image.frames:
                raise DataError(f"{image.path}: has {image.frames} frame(s), no frame {chosen}: count from 0")
            return [chosen]
        if image.frames > 1:
            raise DataError(
                f"{image.path}: is 4D, with {image.frames} frames (times or channels): choose one with --frame 0, or --frame all"
            )
        return [0]

    def _slices(
        self, image: Volume, frame: int, slicing: Slicing, labels: npt.NDArray[np.integer]
    ) -> Iterator[RawCase]:
        pair, options = self.pair, self.options
        plane = options.plane or "axial"
        classes = self._classes(labels)
        foregrounds = {one.name: _foreground(labels, one) for one in classes}
        others = tuple(axis for axis in range(3) if axis != slicing.axis)
        present = {name: np.any(foreground, axis=others).tolist() for name, foreground in foregrounds.items()}
        group = options.group_of(f"{pair.image.parent.name}/{pair.image.name}", pair.group or pair.name)
        frame_part = f"_f{frame:03d}" if image.frames > 1 else ""
        for index in range(slicing.count):
            image_id = case_name(f"{pair.name}_{plane[:3]}{index:04d}{frame_part}")

            # One function for the slice, whichever class is written first.
            def picture(index: int = index) -> npt.NDArray[np.uint8]:
                voxels, low, high = self.store.get(image, frame, options)
                return to_8_bit(slicing.picture(voxels, index), low, high)

            for one in classes:
                case_id = case_name(image_id, one.name) if len(classes) > 1 else image_id
                if not present[one.name][index] and not options.keeps_empty(case_id, 0.0):
                    self.plan.count(DROPPED)
                    continue
                pixels = np.ascontiguousarray(slicing.picture(foregrounds[one.name], index))
                yield RawCase(
                    case_id=case_id,
                    image=picture,
                    mask=lambda pixels=pixels: pixels,  # type: ignore[misc]
                    prompts={"p1": one.texts},
                    group=group,
                    split=pair.split,
                    spacing=slicing.spacing,
                    attributes={
                        **pair.attributes,
                        "class": one.name,
                        "volume": pair.name,
                        "plane": plane,
                        "slice": index,
                        **({"frame": frame} if frame_part else {}),
                    },
                    image_id=image_id,
                    where=f"{pair.image} ({plane} slice {index})",
                )

    def _classes(self, labels: npt.NDArray[np.integer]) -> tuple[LabelClass, ...]:
        found = present_values(labels)
        if self.table is not None:
            check_values(found, self.table, str(self.pair.mask))
            return self.table.classes
        texts = (self.options.prompt,) if self.options.prompt is not None else self.pair.texts
        if self.options.prompt is None and len(values := [value for value in found if value]) > 1:
            listed = ", ".join(map(str, values[:8]))
            raise DataError(
                f"{self.pair.mask}: holds several labels ({listed}): name them with --classes {values[0]}=NAME,{values[1]}=NAME, "
                "or unite them with --prompt"
            )
        return (LabelClass(texts[0], texts, (_ANY,)),)


def _foreground(labels: npt.NDArray[np.integer], one: LabelClass) -> npt.NDArray[np.bool_]:
    if one.keys == (_ANY,):
        return labels != 0
    if len(one.keys) == 1:
        return labels == one.keys[0]
    return np.isin(labels, [key for key in one.keys if isinstance(key, int)])


def _check_spacing(slicing: Slicing, image: Volume) -> None:
    ratio = max(slicing.spacing) / min(slicing.spacing)
    if ratio > 1000:
        raise DataError(
            f"{image.path}: its pixels have {slicing.spacing[0]:.3g} x {slicing.spacing[1]:.3g} mm: repair the header"
        )


def _table_of_dataset(root: Path) -> ClassTable | None:
    """The labels of ``dataset.json``, as nnU-Net (name to value or values) and the Decathlon (value to name) write it."""
    file = root / "dataset.json"
    if not file.is_file():
        return None
    content = parse_json(read_text(file), str(file))
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        return None
    # nnU-Net calls voxels that nobody annotated "ignore".
    pairs: list[tuple[Any, Any]] = [("-" if key == "ignore" else key, value) for key, value in labels.items()]
    regions = [value for _, value in pairs if isinstance(value, list)]
    if regions and len({value for region in regions for value in region if isinstance(value, int)}) < sum(
        map(len, regions)
    ):
        raise DataError(
            f"{file}: its regions share labels ({shown(list(labels))}): pass --classes for one of them at a time, e.g. "
            '--classes "1=whole tumor,2=whole tumor"'
        )
    return table_of(pairs, str(file))


def _pairs(root: Path, options: Options, plan: Plan) -> Iterator[_Pair | Item]:
    """Volumes with their masks, in natural order, and bad items of volumes without."""
    if root.is_file():
        if options.masks is None or not options.masks.is_file():
            raise DataError(f"{root}: one volume needs its mask: pass --masks FILE")
        yield _Pair(composed(stem_of(root.name)), root, real_folder(options.masks))
        return
    if options.masks is not None:
        images, masks = real_folder(options.images or root), real_folder(options.masks)
        yield from _pair_folders(images, masks, None, options, plan)
        return
    if options.images is not None:
        raise DataError(f"--images {options.images}: also say where the masks are: --masks DIR")
    tested = (root / "imagesTs").is_dir() and next(_walk(root / "labelsTs"), None) is not None
    if (root / "imagesTr").is_dir():
        yield from _pair_folders(root / "imagesTr", root / "labelsTr", "train" if tested else None, options, plan)
        if tested:
            yield from _pair_folders(root / "imagesTs", root / "labelsTs", "test", options, plan)
        return
    folders = plain_folders(root)
    for images, masks, split in folders:
        yield from _pair_folders(images, masks, split, options, plan)
    if not folders:
        yield from _pair_flat(root, plan)


def _pair_folders(images: Path, masks: Path, split: str | None, options: Options, plan: Plan) -> Iterator[_Pair | Item]:
    by_stem: dict[str, list[Path]] = {}
    for mask in _walk(masks):
        stem = _name_below(mask, masks)
        for name in {stem, MASK_ENDING.sub("", stem)}:
            by_stem.setdefault(name, []).append(mask)
    files = [file for file in _walk(images) if not (masks != images and file.is_relative_to(masks))]
    channels: dict[str, dict[int, Path]] = {}
    for stem, file in _by_name(files, images).items():
        found = _CHANNEL.search(stem)
        # A number is a channel only where it is not part of the mask's name as well.
        if found and stem not in by_stem:
            channels.setdefault(stem[: found.start()], {})[int(found[1])] = file
        else:
            channels.setdefault(stem, {})[0] = file
    taken = {mask for name in channels for mask in by_stem.get(name, [])}
    if masks != images and (alone := len({mask for found in by_stem.values() for mask in found} - taken)):
        plan.count("mask(s) without a volume of their name are left out", alone)
    for name, by_number in channels.items():
        try:
            image = _channel(shown(name), by_number, options)
            image_file = _inside(image, images)
            candidates = by_stem.get(name, [])
            if len(candidates) != 1:
                what = (
                    "has no mask"
                    if not candidates
                    else f"has several masks ({', '.join(one.name for one in candidates[:3])})"
                )
                raise DataError(f"{image}: {what} in {masks}: give it one of the same name, or move it away")
            yield _Pair(name, image_file, _inside(candidates[0], masks), split)
        except DataError as error:
            yield bad_item(name, str(images), error)


def _channel(name: str, by_number: Mapping[int, Path], options: Options) -> Path:
    if options.channel is not None:
        if options.channel not in by_number:
            raise DataError(
                f"{name}: has the channels {', '.join(map(str, sorted(by_number)))}, no channel {options.channel}"
            )
        return by_number[options.channel]
    if len(by_number) > 1:
        raise DataError(
            f"{name}: has the channels {', '.join(map(str, sorted(by_number)))}: choose one with --channel 0"
        )
    return next(iter(by_number.values()))


def _pair_flat(root: Path, plan: Plan) -> Iterator[_Pair | Item]:
    """``X.nii.gz`` beside ``X_seg.nii.gz``, in ``root`` or in folders below it, as of one patient each."""
    by_stem = _by_name(_walk(root), root)
    alone = 0
    for stem, file in by_stem.items():
        if MASK_ENDING.search(stem):
            continue
        masks = [by_stem[name] for name in _mask_names(stem) if name in by_stem]
        if not masks:
            alone += 1
            continue
        try:
            image = _inside(file, root)
            if len(masks) > 1:
                raise DataError(f"{file}: has several masks ({', '.join(one.name for one in masks[:3])}): keep one")
            yield _Pair(stem, image, _inside(masks[0], root))
        except DataError as error:
            yield bad_item(stem, str(file), error)
    if alone:
        plan.count("volume(s) without a mask beside them are left out", alone)


def _mask_names(stem: str) -> list[str]:
    endings = ("mask", "masks", "segmentation", "seg", "label", "labels", "gt")
    return [f"{stem}{sign}{ending}" for sign in "_-" for ending in endings]


def _walk(folder: Path) -> Iterator[Path]:
    """The NIfTI files below ``folder`` in natural order; hidden files (archives of macOS) and linked folders are left out."""
    found: list[Path] = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base, name) for name in files if is_volume(Path(name))]
    yield from sorted(found, key=natural_key)


def _by_name(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """The files by their name below ``folder``.

    Raises:
        DataError: two have one name (``a.nii`` and ``a.nii.gz``, or one in each of Unicode's forms).
    """
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(_name_below(file, folder), file)
        if other != file:
            raise DataError(f"{folder}: {other.name!a} and {file.name!a} have one name: keep or rename one")
    return found


def _name_below(file: Path, folder: Path) -> str:
    return composed(stem_of(file.relative_to(folder).as_posix()))


def _inside(file: Path, folder: Path) -> Path:
    if problem := unsafe_name(file.relative_to(folder).as_posix()):
        raise DataError(f"{folder}: the file name {shown(file.name)} {problem}")
    resolved = real_folder(file)
    if not resolved.is_relative_to(real_folder(folder)):
        raise DataError(f"{file}: is a link that leads out of {folder}: copy the file into the data folder")
    return resolved
