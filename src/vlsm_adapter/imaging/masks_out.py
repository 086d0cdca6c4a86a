"""Answers in kind: what is planned for a stack, and writing it.

Picture by picture the probability maps become masks, are cleaned (:mod:`.postprocess`), measured (:mod:`.measures`) and kept
compressed; a volume is cleaned and measured as a whole, once its last slice is there. Only then anything is written, every
file and every folder under its final name at once. So an error on the way, of reading or of a full disk, leaves nothing
half-written, and memory stays small whatever the length of a video.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.errors import ConfigError, DataError, nearest
from vlsm_adapter.imaging import contours, measures, rasters
from vlsm_adapter.imaging.base import FORMS, AnswerOptions, OutputNames, PictureAnswer, Stack
from vlsm_adapter.imaging.dicom_seg import Provenance, check_source, write_segmentation
from vlsm_adapter.imaging.kept import SCALE, Maps, Masks
from vlsm_adapter.imaging.nifti_out import write_nifti
from vlsm_adapter.imaging.postprocess import Cleaning, Competition
from vlsm_adapter.output_names import image_names

_IN_KIND = {"picture": "png", "pages": "tiff", "frames": "png", "nifti": "nifti", "dicom": "seg"}
_ENDINGS = {"png": ".png", "tiff": ".tif", "nifti": ".nii.gz", "seg": ".dcm"}
_MOST_LABELS = 65535


def form_of(stack: Stack, options: AnswerOptions) -> str:
    """``"png"``, ``"tiff"``, ``"nifti"`` or ``"seg"``: the form in which ``stack`` is answered.

    Raises:
        ConfigError: no such form.
        DataError: DICOM SEG of what is not DICOM.
    """
    if options.form not in FORMS:
        raise ConfigError(f"form '{options.form}': {nearest(str(options.form), FORMS)}")
    form = _IN_KIND[stack.kind] if options.form == "auto" else str(options.form)
    if form == "seg" and stack.kind != "dicom":
        raise DataError(f"{stack.paths[0]}: DICOM SEG needs a DICOM source to refer to: choose png, tiff or nifti")
    return form


def planned_files(stack: Stack, names: OutputNames, options: AnswerOptions) -> list[str]:
    """Every file that :func:`write_answers` would write, relative to its folder.

    Raises:
        ConfigError, DataError: the stack cannot be answered in this form, or cleaned as asked.
    """
    form = form_of(stack, options)
    _cleaning(stack, options)
    if form == "seg":
        check_source(stack)
    ending = _ENDINGS[form]
    single = form == "seg" or options.compete
    whole = _whole(names, form, options)
    bases = [whole] if single else list(names.prompts)
    found = [file for base in bases for file in _spread(stack, base, ending)]
    if options.compete and form != "seg":
        found.append(f"{names.stack}_labels.json")
    if options.probabilities:
        bases = [names.stack] if form == "seg" else list(names.prompts)
        found += [file for base in bases for file in _spread(stack, f"{base}_probability", ending)]
    if options.overlays:
        found += [file for base in names.prompts for file in _spread(stack, f"{base}_overlay", ".png")]
    if options.contours:
        found.append(f"{names.stack}_contours.geojson")
    return found


def write_answers(
    stack: Stack,
    out: Path,
    names: OutputNames,
    prompts: Sequence[str],
    answers: Iterator[PictureAnswer],
    options: AnswerOptions,
    provenance: Provenance | None = None,
) -> list[dict[str, Any]]:
    """Write the answers for one stack; what stands under the names of :func:`planned_files` is replaced.

    Args:
        stack: what was asked.
        out: folder; made where missing.
        names: of the files.
        prompts: P different texts.
        answers: a picture after the other, each at most once. Whatever it raises passes through, and nothing is written.
        options: form, threshold, cleaning and what else is written.
        provenance: of the masks, for DICOM SEG.

    Returns:
        Rows of ``predictions.csv`` (:data:`vlsm_adapter.imaging.measures.COLUMNS`): one per prompt of a picture or volume,
        one per picture and prompt of other stacks.

    Raises:
        ConfigError: options that cannot be used, or more prompts than labels.
        DataError: the stack cannot be answered in this form, or cleaned as asked.
        UserError: a file cannot be written.
    """
    form = form_of(stack, options)
    if len(names.prompts) != len(prompts) or len(prompts) > _MOST_LABELS:
        raise ConfigError(
            f"{len(prompts)} prompts with {len(names.prompts)} names: give one for each, at most {_MOST_LABELS}"
        )
    if form == "seg":
        check_source(stack)
    collected = _Collected(stack, prompts, options)
    try:
        for answer in answers:
            collected.add(answer)
        collected.finish()
        _write(collected, out, names, form, provenance)
    finally:
        collected.close()
    mask_of = _mask_names(collected, names, form)
    return [
        measures.row(
            stack,
            found,
            prompt=prompts[number],
            mask=mask_of(number, index),
            threshold=options.threshold,
            mean_probability=mean,
            index=index,
            label=number + 1 if options.compete or form == "seg" else None,
        )
        for (index, number), (found, mean) in sorted(
            collected.measured.items(), key=lambda item: (item[0][0] or 0, item[0][1])
        )
    ]


class _Collected:
    """The masks of one stack as they come in.

    Attributes:
        masks: one of labels where prompts compete, else one per prompt.
        maps: probability maps, where something needs them later; else None.
        measured: (index, or None for the volume; number of the prompt) to measures and mean probability inside.
        indices: of the pictures that came.
    """

    def __init__(self, stack: Stack, prompts: Sequence[str], options: AnswerOptions) -> None:
        self.stack, self.prompts, self.options = stack, list(prompts), options
        self.volume = measures.is_volume(stack)
        self.cleaning = _cleaning(stack, options)
        layers = 1 if options.compete else len(prompts)
        self.masks = [Masks(stack.count, stack.size) for _ in range(layers)]
        # The mean probability inside a volume's mask is known only when the mask is.
        keeps = options.probabilities or (self.volume and bool(self.cleaning))
        self.maps = Maps(len(prompts), stack.count, stack.size) if keeps else None
        self.measured: dict[tuple[int | None, int], tuple[measures.Measures, float | None]] = {}
        self.indices: set[int] = set()
        self.picture: npt.NDArray[np.uint8] | None = None  # of a stack of one, for its overlay
        self._sums = np.zeros((len(prompts), 2))

    def add(self, answer: PictureAnswer) -> None:
        """Take in one picture."""
        index, options = answer.index, self.options
        if not 0 <= index < self.stack.count or index in self.indices:
            raise ConfigError(f"picture {index} of {self.stack.count}: each is answered once, from 0")
        self.indices.add(index)
        if self.stack.count == 1:
            self.picture = answer.picture
        contest = Competition.of(answer.maps, options.threshold) if options.compete else None
        if contest is not None:
            labels = contest.labels
            if not self.volume:
                labels = self.cleaning.labels(labels, len(self.prompts))
            self.masks[0][index] = labels
        for number in range(len(self.prompts)):
            probability = answer.maps[number]
            if contest is not None:
                probability = contest.share(probability)
                mask = labels == number + 1
            else:
                mask = probability > options.threshold
                if not self.volume:
                    mask = self.cleaning(mask)
                self.masks[number][index] = mask
            if self.maps is not None:
                self.maps.put(number, index, probability)
            if not self.volume:
                self.measured[index, number] = (measures.Measures.of(mask), _mean(probability, mask))
            elif not self.cleaning:
                inside = probability[mask]
                self._sums[number] += inside.sum(dtype=np.float64), inside.size

    def finish(self) -> None:
        """Clean and measure a volume, when its last picture is there.

        Raises:
            DataError: pictures are missing; of frames any may be.
        """
        stack = self.stack
        if stack.kind != "frames" and len(self.indices) != stack.count:
            raise DataError(f"{stack.paths[0]}: {len(self.indices)} of its {stack.count} pictures were answered")
        if not self.volume:
            return
        if self.options.compete:
            labels = self.masks[0].volume(np.uint16)
            if self.cleaning:
                labels = self.cleaning.labels(labels, len(self.prompts))
                self.masks[0].set_volume(labels)
        for number in range(len(self.prompts)):
            if self.options.compete:
                mask = labels == number + 1
            else:
                mask = self.masks[number].volume()
                if self.cleaning:
                    mask = self.cleaning(mask)
                    self.masks[number].set_volume(mask)
            self.measured[None, number] = (measures.Measures.of(mask), self._mean_inside(number, mask))

    def mask(self, number: int, index: int) -> npt.NDArray[np.bool_]:
        """bool (H, W)."""
        if self.options.compete:
            return np.asarray(self.masks[0][index] == number + 1)
        return self.masks[number][index]

    def close(self) -> None:
        if self.maps is not None:
            self.maps.close()

    def _mean_inside(self, number: int, mask: npt.NDArray[np.bool_]) -> float | None:
        if self.cleaning and self.maps is not None:
            self._sums[number] = 0
            for index in sorted(self.indices):
                inside = self.maps.levels(number, index)[mask[index]]
                self._sums[number] += inside.sum(dtype=np.int64) / SCALE, inside.size
        total, count = self._sums[number]
        return float(total / count) if count else None


# -- writing -------------------------------------------------------------------------------------------------------------


def _write(collected: _Collected, out: Path, names: OutputNames, form: str, provenance: Provenance | None) -> None:
    stack, options, prompts = collected.stack, collected.options, collected.prompts
    labels = dict(enumerate(prompts, start=1))
    # Side files first: who finds the masks finds everything.
    if options.contours:
        _write_contours(collected, out / f"{names.stack}_contours.geojson")
    if options.overlays:
        _write_overlays(collected, out, names)
    if form == "seg":
        if collected.maps is not None and options.probabilities:
            target = out / f"{names.stack}_probability.dcm"
            write_segmentation(target, stack, prompts, collected.maps.get, provenance)
        write_segmentation(out / f"{names.stack}.dcm", stack, prompts, collected.mask, provenance)
        return
    if collected.maps is not None and options.probabilities:
        for number, base in enumerate(names.prompts):
            if form == "nifti":
                of_prompt = functools.partial(collected.maps.get, number)
                write_nifti(out / f"{base}_probability.nii.gz", stack, of_prompt, np.float32)
            else:
                levels = functools.partial(collected.maps.levels, number)
                _write_rasters(collected, out, f"{base}_probability", form, levels)
    if options.compete:
        whole = _whole(names, form, options)
        kind = np.uint8 if len(prompts) <= 255 else np.uint16
        files.write_json(
            out / f"{names.stack}_labels.json",
            {"background": 0, "labels": {str(value): prompt for value, prompt in labels.items()}},
        )
        if form == "nifti":
            write_nifti(out / f"{whole}.nii.gz", stack, collected.masks[0].__getitem__, kind, labels=labels)
        else:
            _write_rasters(
                collected, out, whole, form, lambda index: collected.masks[0][index].astype(kind), labels=True
            )
        return
    for number, base in enumerate(names.prompts):
        kept_masks = collected.masks[number]
        if form == "nifti":
            write_nifti(out / f"{base}.nii.gz", stack, kept_masks.__getitem__, np.uint8)
        else:
            _write_rasters(collected, out, base, form, _white(kept_masks))


def _white(masks: Masks) -> rasters.Pictures:
    return lambda index: masks[index].astype(np.uint8) * 255


def _write_rasters(
    collected: _Collected, out: Path, base: str, form: str, picture: rasters.Pictures, *, labels: bool = False
) -> None:
    stack = collected.stack
    if form == "tiff":
        rasters.write_tiff(out / f"{base}.tif", stack.count, picture)
    elif stack.count == 1:
        rasters.write_png(out / f"{base}.png", rasters.image(picture(0), labels=labels))
    else:
        pages = (
            (name, rasters.image(picture(index), labels=labels)) for index, name in _pages(stack, collected.indices)
        )
        rasters.write_folder(out / base, pages)


def _write_overlays(collected: _Collected, out: Path, names: OutputNames) -> None:
    from vlsm_adapter.overlays import prediction_overlay

    def overlay(number: int, index: int) -> Image.Image:
        picture = stack.picture(index) if collected.picture is None else collected.picture
        # Of slices, the name of the whole: its first file is only where it begins.
        if stack.count == 1 or stack.kind == "frames":
            name = stack.paths[index].stem
        else:
            name = f"{PurePath(stack.name).name} {index}"
        return prediction_overlay(picture, collected.mask(number, index), title=f"{name}: {collected.prompts[number]}")

    stack = collected.stack
    for number, base in enumerate(names.prompts):
        if stack.count == 1:
            rasters.write_png(out / f"{base}_overlay.png", overlay(number, 0))
        else:
            pages = ((name, overlay(number, index)) for index, name in _pages(stack, collected.indices))
            rasters.write_folder(out / f"{base}_overlay", pages)


def _write_contours(collected: _Collected, path: Path) -> None:
    found = [
        feature
        for index in sorted(collected.indices)
        for number, prompt in enumerate(collected.prompts)
        for feature in contours.features(
            collected.mask(number, index), prompt=prompt, picture=index, spacing=collected.stack.spacing
        )
    ]
    contours.write(path, collected.stack, found)


# -- names ---------------------------------------------------------------------------------------------------------------


def _whole(names: OutputNames, form: str, options: AnswerOptions) -> str:
    """Base name of the file about all prompts."""
    return f"{names.stack}_labels" if options.compete and form != "seg" else names.stack


def _spread(stack: Stack, base: str, ending: str) -> list[str]:
    if ending != ".png" or stack.count == 1:
        return [base + ending]
    return [f"{base}/{name}" for _, name in _pages(stack, range(stack.count))]


def _pages(stack: Stack, indices: Iterable[int]) -> list[tuple[int, str]]:
    """Index and file name of each picture in a folder of PNG files: the frame's own name, else its number."""
    own = image_names(stack.paths) if stack.kind == "frames" else None
    width = max(4, len(str(stack.count - 1)))
    return [(index, f"{own[index] if own else str(index).zfill(width)}.png") for index in sorted(indices)]


def _mask_names(collected: _Collected, names: OutputNames, form: str) -> Any:
    stack, options = collected.stack, collected.options
    ending = _ENDINGS[form]
    pages = dict(_pages(stack, collected.indices))

    def mask_of(number: int, index: int | None) -> str:
        single = form == "seg" or options.compete
        base = _whole(names, form, options) if single else names.prompts[number]
        if form != "png" or stack.count == 1:
            return base + ending
        return base + "/" if index is None else f"{base}/{pages[index]}"

    return mask_of


def _cleaning(stack: Stack, options: AnswerOptions) -> Cleaning:
    return Cleaning.of(options, stack.spacing, volume=measures.is_volume(stack), where=str(stack.paths[0]))


def _mean(probability: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float | None:
    inside = probability[mask]
    return float(inside.mean(dtype=np.float64)) if inside.size else None
