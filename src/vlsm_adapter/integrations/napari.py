"""Masks as napari label layers: for a viewer at hand, and as a reader plugin of prediction folders.

Neither napari nor npe2 is imported: what napari takes is plain tuples (data, keyword arguments, kind of layer), and the
plugin's manifest is ``napari.yaml`` beside this file.

::

    for layer in label_layers("predictions"):          # a folder that 'vlsm predict' wrote
        viewer.add_layer(napari.layers.Layer.create(*layer))
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlsm_adapter.data.images import read_image
from vlsm_adapter.errors import DataError, one_line
from vlsm_adapter.types import Prediction

TABLE_NAME = "predictions.csv"
Layer = tuple[np.ndarray, dict[str, Any], str]
_COLUMNS = ("image", "prompt", "mask")
_FURTHER = ("picture", "pictures", "label")


def prediction_layers(
    predictions: Sequence[Prediction], *, name: str = "", image: np.ndarray | None = None
) -> list[Layer]:
    """Layers for what ``Predictor.predictions`` gave on one image: a labels layer per prompt, since masks may overlap.

    Args:
        predictions: of one image.
        name: of the image; the layers are called ``NAME: PROMPT``.
        image: uint8 (H, W, 3) or (H, W), to be shown below them.

    Returns:
        ``(data, kwargs, kind)`` tuples; labels are uint8 (H, W), 0 or the number of the prompt from 1.
    """
    layers: list[Layer] = []
    if image is not None:
        layers.append((image, {"name": name or "image", "rgb": image.ndim == 3}, "image"))
    for number, one in enumerate(predictions, start=1):
        metadata = {"prompt": one.prompt, "threshold": one.threshold}
        layers.append(_labels(one.mask, number, f"{name}: {one.prompt}" if name else one.prompt, metadata))
    return layers


def label_layers(folder: str | Path, *, images: bool = True) -> list[Layer]:
    """Layers of a folder that ``vlsm predict`` wrote: for every image the image, if it is still there, and its masks.

    Args:
        folder: the folder, or its ``predictions.csv``.
        images: also the images.

    Raises:
        DataError: not such a folder, or a mask is missing or cannot be read.
    """
    path = Path(folder)
    table = path if path.is_file() else path / TABLE_NAME
    found = [row for row in _rows(table) if Path(row["mask"]).suffix.lower() == ".png"]
    if not found:
        raise DataError(
            f"{table}: names no mask that is a picture; open volumes with a napari plugin of their format (NIfTI, DICOM)"
        )
    by_picture: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in found:
        by_picture[row["image"], row["picture"]].append(row)
    layers: list[Layer] = []
    for (image, picture), rows in by_picture.items():
        first = not layers
        name = Path(image).stem + (f" {picture}" if _is_of_several(rows[0]) else "")
        if images and Path(image).is_file() and not _is_of_several(rows[0]):
            layers.append((read_image(Path(image)), {"name": name, "rgb": True, "visible": first}, "image"))
        for number, row in enumerate(rows, start=1):
            file = _mask_file(table, row["mask"])
            metadata = {"prompt": row["prompt"], "file": str(file)}
            layer = _labels(_read_mask(file, row["label"]), number, f"{name}: {row['prompt']}", metadata)
            layer[1]["visible"] = first
            layers.append(layer)
    return layers


def _is_of_several(row: dict[str, str]) -> bool:
    """Whether the row is of one picture among several in its file or folder."""
    return row["pictures"] not in ("", "1")


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[Layer]] | None:
    """napari's hook: a reader where ``path`` is a folder of predictions (or its table), else None."""
    if isinstance(path, list):
        if len(path) != 1:
            return None
        path = path[0]
    table = Path(path) if Path(path).name == TABLE_NAME else Path(path) / TABLE_NAME
    try:
        with table.open(encoding="utf-8", errors="replace", newline="") as handle:
            columns = next(csv.reader(handle), [])
    except OSError:
        return None
    return _read if set(_COLUMNS) <= set(columns) else None


def _read(path: str | list[str]) -> list[Layer]:
    return label_layers(path[0] if isinstance(path, list) else path)


def _labels(mask: np.ndarray, number: int, name: str, metadata: dict[str, Any]) -> Layer:
    labels = mask.astype(np.uint8) * np.uint8((number - 1) % 255 + 1)
    return labels, {"name": name, "opacity": 0.5, "metadata": metadata}, "labels"


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise DataError(f"{table}: lacks the column '{lacking[0]}'; give a folder that 'vlsm predict' wrote")
            return [{name: row.get(name) or "" for name in (*_COLUMNS, *_FURTHER)} for row in reader]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read ({error}); give a folder that 'vlsm predict' wrote") from error


def _mask_file(table: Path, name: str) -> Path:
    """The file of a mask; the table names files of its own folder, and no others are read."""
    file = table.parent / name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{table}: mask '{name}' lies outside its folder; predict again")
    return file


def _read_mask(file: Path, label: str) -> np.ndarray:
    """Bool (H, W): what has ``label`` in a picture of labels, or is white in a mask."""
    try:
        with Image.open(file) as picture:
            values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)}); predict again") from error
    if values.ndim != 2:
        raise DataError(f"{file}: not a mask, it has colours; predict again")
    return values == int(label) if label.isdigit() else values > 127
