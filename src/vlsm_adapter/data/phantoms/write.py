"""A set of phantoms on disk, in the published layout: ``images/ masks/ anns/{train,val,test}.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlsm_adapter.data.phantoms.generate import MODALITIES, check_arguments, make_phantom, modality_of
from vlsm_adapter.data.splits import SPLITS
from vlsm_adapter.errors import ConfigError, DataError
from vlsm_adapter.files import atomic_path, write_json

GENERATOR_VERSION = 2  # raised whenever the same arguments give other pictures or words
_NOTE = "dataset.json"


def write_phantoms(
    out_dir: str | os.PathLike[str],
    *,
    cases_per_modality: int = 60,
    seed: int = 0,
    modalities: Sequence[str] = MODALITIES,
    splits: tuple[float, float, float] = (0.6, 0.2, 0.2),
    sizes: Sequence[tuple[int, int]] = ((256, 256), (256, 288), (288, 256)),
    empty_fraction: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a phantom data set and return its folder.

    Called again with the same arguments it finds the set complete and writes nothing; an interrupted set is
    finished. ``dataset.json`` records the arguments. Greyscale modalities are written as 8-bit grey PNG, masks as
    8-bit grey PNG of 0 and 255.

    Args:
        out_dir: folder to write; new, empty, or holding this very set.
        cases_per_modality: cases of each modality.
        seed: whole number >= 0.
        modalities: which of ``MODALITIES``.
        splits: fractions of train, val and test, summing to 1; each one above 0 gets at least one case per modality.
        sizes: (height, width) in pixels, taken in turn by the cases of a modality.
        empty_fraction: probability that a case has no lesion.
        progress: called with (cases done, cases in all) after each case.

    Raises:
        ConfigError: an argument is out of its range.
        DataError: the folder holds something else.
        UserError: the folder cannot be written; no file is left half-written.
    """
    root = Path(out_dir)
    arguments: dict[str, Any] = {
        "cases_per_modality": cases_per_modality,
        "seed": seed,
        "modalities": list(modalities),
        "splits": list(splits),
        "sizes": [list(size) for size in sizes],
        "empty_fraction": empty_fraction,
    }
    for name in modalities:
        modality_of(name)
    if not modalities or len(set(modalities)) != len(modalities):
        raise ConfigError(
            f"modalities {list(modalities)}: give at least one, each once; allowed: {', '.join(MODALITIES)}"
        )
    if not sizes:
        raise ConfigError("sizes is empty: give at least one (height, width)")
    for size in sizes:
        check_arguments(seed=seed, size=size, empty_fraction=empty_fraction)
    counts = _split_counts(cases_per_modality, splits)
    note = {
        "kind": "phantoms",
        "generator_version": GENERATOR_VERSION,
        "arguments": arguments,
        "cases": {split: count * len(modalities) for split, count in zip(SPLITS, counts, strict=True)},
    }
    if _is_complete(root, note):
        return root

    write_json(root / _NOTE, {**note, "complete": False})
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    total, done = cases_per_modality * len(modalities), 0
    bounds = np.cumsum(counts)
    for name in modalities:
        grey = modality_of(name).greyscale
        for index in range(cases_per_modality):
            height, width = sizes[index % len(sizes)]
            case = make_phantom(name, seed, index, size=(height, width), empty_fraction=empty_fraction)
            file_name = f"{case.case_id}.png"
            _write_png(root / "images" / file_name, case.image[..., 0] if grey else case.image)
            _write_png(root / "masks" / file_name, case.mask.astype(np.uint8) * np.uint8(255))
            texts = {level: words[0] if len(words) == 1 else list(words) for level, words in case.prompts.items()}
            split = SPLITS[int(np.searchsorted(bounds, index, side="right"))]
            entries[split].append({"img_name": file_name, "mask_name": file_name, "prompts": texts})
            done += 1
            if progress is not None:
                progress(done, total)
    for split, rows in entries.items():
        if rows:
            write_json(root / "anns" / f"{split}.json", rows)
    write_json(root / _NOTE, {**note, "complete": True})
    return root


def _split_counts(cases: int, splits: Sequence[float]) -> tuple[int, int, int]:
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise ConfigError(f"splits {tuple(splits)}: give three fractions (train, val, test) >= 0 that sum to 1")
    wanted = sum(fraction > 0 for fraction in splits)
    if cases < wanted:
        raise ConfigError(f"{cases} cases of each modality: at least {wanted}, one for each split of {tuple(splits)}")
    counts = [max(round(cases * fraction), 1) if fraction > 0 else 0 for fraction in splits]
    counts[int(np.argmax(counts))] += cases - sum(counts)  # rounding falls on the largest split
    return counts[0], counts[1], counts[2]


def _is_complete(root: Path, note: dict[str, Any]) -> bool:
    """Whether ``root`` already holds this very set; False where it is new, empty or was interrupted.

    Raises:
        DataError: ``root`` holds another set or other files.
    """
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{root}: is a file, phantoms need a folder: choose another one")
    path = root / _NOTE
    if not path.exists():
        if any(not name.name.startswith(".") for name in root.iterdir()):
            raise DataError(f"{root}: holds other files and phantoms would mix with them: choose a new or empty folder")
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}): delete the folder or choose another one") from None
    # Through JSON, so that tuples and lists compare alike.
    if not isinstance(found, dict) or {k: v for k, v in found.items() if k != "complete"} != json.loads(
        json.dumps(note)
    ):
        raise DataError(f"{root}: holds phantoms of other arguments (see {_NOTE}): delete it or choose another folder")
    return bool(found.get("complete")) and _files_present(root, note)


def _files_present(root: Path, note: dict[str, Any]) -> bool:
    arguments = note["arguments"]
    expected = {
        f"phantom_{name}_{index:05d}.png"
        for name in arguments["modalities"]
        for index in range(arguments["cases_per_modality"])
    }
    for folder in ("images", "masks"):
        place = root / folder
        if not place.is_dir() or not expected <= {entry.name for entry in os.scandir(place) if entry.stat().st_size}:
            return False
    return all((root / "anns" / f"{split}.json").is_file() for split, count in note["cases"].items() if count)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
