"""Small data folders with one defect each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.audit.facts import measure_mask
from vlsm_adapter.data.audit.pixels import Look
from vlsm_adapter.data.audit.reading import Case
from vlsm_adapter.types import Record


def textured(seed: int, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """A picture uint8 (H, W, 3) with structure at all scales, another for every seed."""
    random = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0]), np.float32)
    for side in (3, 6, 12, 24):
        coarse = Image.fromarray(random.uniform(0, 255, (side, side)).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return np.repeat(total.astype(np.uint8)[..., None], 3, axis=2)


def disc(size: tuple[int, int] = (96, 80), centre: tuple[float, float] = (0.5, 0.5), radius: float = 0.2) -> np.ndarray:
    """A mask bool (H, W) with a disc; ``centre`` (across, down) and ``radius`` as parts of the width and the height."""
    x, y = np.meshgrid((np.arange(size[0]) + 0.5) / size[0], (np.arange(size[1]) + 0.5) / size[1])
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    return textured


@pytest.fixture
def round_mask() -> Callable[..., np.ndarray]:
    return disc


@pytest.fixture
def new_case() -> Callable[..., Case]:
    """``new_case("a.png", split="test", p1="polyp", box=(0, 0, 3, 4))``: a case whose files need not be there."""

    def make(
        name: str,
        split: str | None = "train",
        box: tuple[float, float, float, float] | None = None,
        group: str | None = None,
        case_id: str | None = None,
        **prompts: str,
    ) -> Case:
        levels: Mapping[str, tuple[str, ...]] = {
            "p0": ("",),
            **{level: (text,) for level, text in (prompts or {"p1": "polyp"}).items()},
        }
        record = Record(
            case_id or name.rpartition(".")[0], Path("/no") / name, Path("/no/masks") / name, levels, split, group
        )
        return Case(record, name, name, box)

    return make


@pytest.fixture
def seen() -> Callable[..., Look]:
    """``seen(mask)``: what looking at a case with that mask gives."""

    def make(mask: np.ndarray, **changes: Any) -> Look:
        look = Look(
            size=(mask.shape[1], mask.shape[0]), image_hash=b"i", mask_hash=mask.tobytes(), facts=measure_mask(mask)
        )
        look.mask_kind = "0/255"
        for name, value in changes.items():
            setattr(look, name, value)
        return look

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """``folder({"train": [("a", image, mask, prompts), ...]})``: the published layout, as PNG unless the name says other."""

    def write(
        splits: Mapping[str, list[tuple[str, np.ndarray, np.ndarray, Mapping[str, Any]]]], name: str = "data"
    ) -> Path:
        root = tmp_path / name
        for sub in ("images", "masks", "anns"):
            (root / sub).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            entries = []
            for stem, image, mask, prompts in rows:
                file = stem if "." in stem else f"{stem}.png"
                Image.fromarray(image).save(root / "images" / file)
                pixels = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
                Image.fromarray(pixels).save(root / "masks" / file)
                entries.append({"img_name": file, "mask_name": file, "prompts": {"p0": "", **prompts}})
            (root / "anns" / f"{split}.json").write_text(json.dumps(entries))
        return root

    return write
