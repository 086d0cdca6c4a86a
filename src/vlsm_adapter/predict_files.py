"""Masks for many image files: named, written whole or not at all, nothing overwritten unasked, no file lost silently."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlsm_adapter import files
from vlsm_adapter.console import Console
from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import DataError, UserError
from vlsm_adapter.output_names import output_names
from vlsm_adapter.overlays import prediction_overlay
from vlsm_adapter.types import Prediction, Skipped

if TYPE_CHECKING:
    from vlsm_adapter.predict import Predictor

TABLE_NAME = "predictions.csv"
FAILURES_NAME = "failures.csv"
COLUMNS = (
    "image",
    "prompt",
    "mask",
    "width",
    "height",
    "area_px",
    "area_fraction",
    "mean_probability_in_mask",
    "threshold",
)


@dataclass(frozen=True)
class PredictReport:
    """What :func:`predict_files` did.

    Attributes:
        out_dir: the folder written to.
        images: images that were predicted.
        masks: mask files, in the order of images and prompts.
        table: ``predictions.csv``.
        skipped: images left out under ``skip_bad``, with reasons; also in ``failures.csv``.
    """

    out_dir: Path
    images: int
    masks: list[Path]
    table: Path
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{_count(len(self.masks), 'mask')} of {_count(self.images, 'image')} in {self.out_dir}"
        text += f"; areas in {self.table}"
        if self.skipped:
            text += f"; {_count(len(self.skipped), 'image')} left out, listed in {self.out_dir / FAILURES_NAME}"
        return text


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    prompts: Sequence[str],
    out_dir: str | os.PathLike[str],
    *,
    probabilities: bool = False,
    overlays: bool = False,
    overwrite: bool = False,
    skip_bad: bool = False,
    threshold: float | None = None,
    console: Console | None = None,
) -> PredictReport:
    """Ask every prompt of every image and write the answers as files.

    ``OUT/NAME.png`` for a single prompt, ``OUT/NAME__PROMPT.png`` for several: 8-bit grey, 0 or 255, at the size of the
    upright image. NAME is the image's stem; where several inputs share it, their path below their common folder. A table
    ``predictions.csv`` has a row per mask. Naming in full: docs/predict.md.

    Args:
        predictor: with the model, and the default threshold.
        images: files (``data.records.list_images`` finds them); one listed twice is predicted once.
        prompts: texts; one given twice is asked once.
        out_dir: the folder; made where missing.
        probabilities: also ``*_probability.png``, 16-bit grey, probability times 65535.
        overlays: also ``*_overlay.png``, the mask drawn on the image.
        overwrite: replace files of earlier predictions.
        skip_bad: go on after an unreadable image and list it in ``failures.csv``, instead of stopping.
        threshold: by default the predictor's own.
        console: shows progress; silent by default.

    Raises:
        UserError: no images, no prompts, a file exists already (before anything is computed), an output would replace
            an input, or a file cannot be written. What was written before stays and stands in ``predictions.csv``.
        DataError: an image cannot be read, without ``skip_bad``.
    """
    from vlsm_adapter.predict import check_prompts

    out = Path(out_dir)
    texts = list(dict.fromkeys(check_prompts(prompts)))
    sources = _different_files(images)
    bases = output_names(sources, texts)
    endings = [".png", *(["_probability.png"] if probabilities else []), *(["_overlay.png"] if overlays else [])]
    planned = [out / f"{base}{ending}" for row in bases for base in row for ending in endings]
    _check_outputs(out, planned, sources, overwrite)

    batch = _Batch(predictor, out, texts, probabilities, overlays, threshold)
    skipped: list[Skipped] = []
    done = False
    try:
        with (console or Console(quiet=True)).bar("predicting", len(sources)) as advance:
            for number, (source, names) in enumerate(zip(sources, bases, strict=True), start=1):
                try:
                    pixels = read_image(source)
                except DataError as error:
                    if not skip_bad:
                        raise
                    skipped.append(Skipped(source.stem, str(source), str(error)))
                else:
                    batch.write(source, pixels, names)
                advance(number)
        done = True
    finally:
        # Also after an error or Ctrl-C: the masks that are there are listed.
        if done or batch.rows:
            _write_table(out / TABLE_NAME, COLUMNS, batch.rows)
        if skipped:
            failures = [{"image": case.path, "reason": case.reason} for case in skipped]
            _write_table(out / FAILURES_NAME, ("image", "reason"), failures)
        elif overwrite:
            (out / FAILURES_NAME).unlink(missing_ok=True)  # of an earlier prediction
    return PredictReport(out, len(sources) - len(skipped), batch.masks, out / TABLE_NAME, skipped)


@dataclass
class _Batch:
    """Writes the answers for one image after the other, and remembers what it wrote."""

    predictor: Predictor
    out: Path
    texts: list[str]
    probabilities: bool
    overlays: bool
    threshold: float | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)

    def write(self, source: Path, pixels: np.ndarray, names: Sequence[str]) -> None:
        self.predictor.set_image(pixels)
        for name, prediction in zip(names, self.predictor.each(self.texts, threshold=self.threshold), strict=True):
            if self.probabilities:
                levels = np.rint(prediction.probability * 65535).astype(np.uint16)
                _write_png(self.out / f"{name}_probability.png", Image.fromarray(levels))
            if self.overlays:
                title = f"{source.stem}: {prediction.prompt}"
                picture = prediction_overlay(pixels, prediction.mask, title=title)
                _write_png(self.out / f"{name}_overlay.png", picture)
            mask = self.out / f"{name}.png"
            _write_png(mask, Image.fromarray(prediction.mask.astype(np.uint8) * 255))
            self.masks.append(mask)
            self.rows.append(_row(source, prediction, mask))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _different_files(images: Sequence[Path]) -> list[Path]:
    if isinstance(images, (str, Path)):
        raise UserError("images is one path: give a list of files, as list_images returns")
    found: dict[str, Path] = {}
    for image in images:
        found.setdefault(os.path.realpath(image), Path(image))
    if not found:
        raise UserError("no image to predict: give an image file, a folder, or a pattern such as 'images/*.png'")
    return list(found.values())


def _check_outputs(out: Path, planned: Sequence[Path], sources: Sequence[Path], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the masks")
    inputs = {os.path.realpath(source) for source in sources}
    for target in planned:
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target}: the mask would replace an input image; choose another output folder")
    if overwrite:
        return
    standing = [target for target in (*planned, out / TABLE_NAME, out / FAILURES_NAME) if target.exists()]
    if standing:
        more = f" (and {len(standing) - 1} more)" if len(standing) > 1 else ""
        raise UserError(f"{standing[0]}: exists already{more}; choose another output folder, or pass --overwrite")


def _row(source: Path, prediction: Prediction, mask: Path) -> dict[str, Any]:
    height, width = prediction.mask.shape
    area = int(np.count_nonzero(prediction.mask))
    inside = prediction.probability[prediction.mask]
    return {
        "image": str(source),
        "prompt": prediction.prompt,
        "mask": mask.name,
        "width": width,
        "height": height,
        "area_px": area,
        "area_fraction": f"{area / (width * height):.6g}",
        # Of an empty mask there is none.
        "mean_probability_in_mask": f"{inside.mean(dtype=np.float64):.6g}" if area else "",
        "threshold": f"{prediction.threshold:g}",
    }


def _write_png(path: Path, picture: Image.Image) -> None:
    with files.atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    # The name of a file need not be text; bytes that are none are written as escapes.
    files.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
