"""What is refused, which images and prompts are taken, and what the card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.adapters.folder import AdapterInfo
from vlsm_adapter.console import Console
from vlsm_adapter.errors import DataError, ModelError, UserError
from vlsm_adapter.export.agreement import Agreement, require
from vlsm_adapter.export.card import card
from vlsm_adapter.export.samples import sample_images, sample_prompts


def agreement(difference: float = 1e-5, pixels: float = 1.0) -> Agreement:
    return Agreement(2, "given images", ("polyp",), difference, 4.0, pixels, pixels, 0.99)


@pytest.mark.parametrize(
    ("precision", "difference", "pixels", "refused"),
    [
        ("fp32", 0.0039, 0.9995, False),
        ("fp32", 0.0041, 1.0, True),
        ("fp32", float("inf"), 1.0, True),
        ("fp32", float("nan"), 1.0, True),
        ("fp32", 0.0, 0.998, True),
        ("fp16", 0.1, 0.995, False),
        ("fp16", 0.3, 0.995, True),
        ("int8", 3.0, 0.96, False),
        ("int8", 3.0, 0.94, True),
    ],
)
def test_limits(precision: str, difference: float, pixels: float, refused: bool) -> None:
    if not refused:
        require(agreement(difference, pixels), precision)
        return
    with pytest.raises(ModelError, match="nothing was written") as caught:
        require(agreement(difference, pixels), precision)
    assert "\n" not in str(caught.value)


def test_what_mends_int8_depends_on_calibration() -> None:
    for calibrated, advice in ((False, "give --calibrate IMAGES"), (True, "at least 95.0%.*use --precision fp16")):
        with pytest.raises(ModelError, match=advice):
            require(agreement(pixels=0.5), "int8", calibrated=calibrated)


def test_prompts_are_of_several_lengths() -> None:
    assert sample_prompts(["a", "b", "a"], ("polyp",)) == ["a", "b"]
    found = sample_prompts(None, ("skin lesion", "polyp", "x", "y"))
    assert found[:3] == ["skin lesion", "polyp", "x"]
    assert len({len(text.split()) for text in found}) >= 3
    for wrong in ([""], ["a", "  "], [3]):
        with pytest.raises(UserError):
            sample_prompts(wrong, ())  # type: ignore[arg-type]


def test_images_given_are_spread(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    images, source = sample_images(str(tmp_path), None, Console(quiet=True), most=5)
    assert [int(image[0, 0, 0]) for image in images] == [0, 4, 8, 12, 16]
    assert source == "5 given images"
    (tmp_path / "0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"0\.png"):
        sample_images(str(tmp_path), None, Console(quiet=True))


def test_generated_images_where_there_are_no_others(tmp_path: Path) -> None:
    images, source = sample_images(None, tmp_path, Console(quiet=True))
    assert source == "generated images"
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)


def test_the_card_names_what_it_must() -> None:
    manifest = {
        "adapter": {"method": "dense", "sha256": "ab" * 32},
        "base": {"id": "tiny", "family": "clipseg", "sha256": "cd" * 32},
        "agreement": agreement().to_dict(),
        "preprocessing": {"size": [192, 160], "resample": "bilinear"},
        "format_of_graphs": "onnx",
        "precision": "int8",
        "quantisation": "static",
        "graphs": {"image": "image_encoder.onnx", "prompt": "prompt_decoder.onnx"},
        "threshold": 0.4,
        "caution": "reads no text",
    }
    text = card(manifest, AdapterInfo(prompts=("skin lesion",), licence="cc-by-4.0"), has_adapter_card=True)
    for part in (
        "dense",
        "ab" * 32,
        "cd" * 32,
        "192 x 160",
        "int8 (static)",
        "0.4",
        "skin lesion",
        "cc-by-4.0",
        "ADAPTER.md",
    ):
        assert part in text
    assert "Apache-2.0" in text
    assert "not a medical device" in text
    assert "reads no text" in text
    plain = card({**manifest, "adapter": None, "caution": None}, AdapterInfo(), has_adapter_card=False)
    assert "ADAPTER.md" not in plain
    assert "not stated" in plain
