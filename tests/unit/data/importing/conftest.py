"""Material to import: small images, masks and label maps, and what an import made of them."""

from __future__ import annotations

import unicodedata
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


@pytest.fixture(params=["NFC listed", "NFD listed"])
def forms(request: pytest.FixtureRequest) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """How a list spells a name, and how the disk does: in one of Unicode's forms and the other, and the reverse."""
    one, other = (lambda text: unicodedata.normalize("NFC", text)), (lambda text: unicodedata.normalize("NFD", text))
    return (one, other) if request.param == "NFC listed" else (other, one)


@pytest.fixture
def unicode_matters(tmp_path: Path) -> None:
    """For tests of two files whose names differ in Unicode's form alone."""
    (tmp_path / "tried" / "\u00e9").mkdir(parents=True)
    if (tmp_path / "tried" / "e\u0301").exists():
        pytest.skip("forms of Unicode do not matter on this disc")


@pytest.fixture
def imported() -> Callable[[Path], dict[str, tuple[Record, np.ndarray]]]:
    """``imported(folder)``: case id to its record and mask, as training will read them."""

    def read(folder: Path) -> dict[str, tuple[Record, np.ndarray]]:
        records, skipped = load_records(folder)
        assert not skipped
        return {record.case_id: (record, read_pair(record)[1]) for record in records}

    return read
