"""Material to import: small images, masks and label maps, and what an import made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.images import read_pair
from vlsm_adapter.data.records import load_records
from vlsm_adapter.types import Record


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write ``pixels`` as an image file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def picture(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    """uint8 (H, W, 3) that is different for every seed."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture
def imported() -> Callable[[Path], dict[str, tuple[Record, np.ndarray]]]:
    """``imported(folder)``: case id to its record and mask, as training will read them."""

    def read(folder: Path) -> dict[str, tuple[Record, np.ndarray]]:
        records, skipped = load_records(folder)
        assert not skipped
        return {record.case_id: (record, read_pair(record)[1]) for record in records}

    return read
