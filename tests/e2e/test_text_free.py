"""A text-free reference through the command line: it learns, is scored and predicts, and hears no word."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlsm_adapter.data.phantoms import write_phantoms


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training cases of something easy to see."""
    folder = tmp_path_factory.mktemp("lesions") / "data"
    write_phantoms(folder, cases_per_modality=20, seed=1, modalities=("dermoscopy",), splits=(0.6, 0.2, 0.2))
    return folder


def test_a_text_free_network_is_trained_evaluated_and_used(vlsm: Callable, lesions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    answer = vlsm(
        "train", "--data", lesions, "--model", "unet", "--adapter", "full", "-o", run, "--epochs", 8,
        "--batch-size", 2, "--lr", 1e-3, "--image-size", 48, "--set", "log.tensorboard=false",
        "--set", "train.schedule=constant", "--set", "train.precision=32-true",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    dice = [float(row["val_dice"]) for row in csv.DictReader((run / "metrics.csv").open())]
    assert max(dice) > max(0.5, dice[0] + 0.1), dice

    answer = vlsm("evaluate", run, "--probes")
    assert answer.code == 0, answer.err
    assert "no zero-shot scores" in answer.err
    folder = run / "evaluation" / "test-p1"
    summary = json.loads((folder / "summary.json").read_text())
    assert "zero_shot" not in summary
    assert summary["base"]["family"] == "text_free"
    assert summary["trained_adapter"]["trainable_parameters"] == summary["base"]["parameters"]
    probes = list(csv.DictReader((folder / "probes.csv").open()))
    assert {float(row["agreement_with_own"]) for row in probes} == {1.0}  # whatever was asked

    image = next(iter(sorted((lesions / "images").iterdir())))
    answer = vlsm(
        "predict", run, image, "--prompt", "skin lesion", "--prompt", "no skin lesion", "-o", tmp_path / "masks"
    )
    assert answer.code == 0, answer.err
    masks = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "masks").rglob("*.png"))]
    assert len(masks) == 2
    assert np.array_equal(*masks)


def test_a_method_that_cannot_train_it_says_so_before_anything_is_written(
    vlsm: Callable, phantoms: Path, tmp_path: Path
) -> None:
    answer = vlsm("train", "--data", phantoms, "--model", "unet", "--adapter", "decoder_only", "-o", tmp_path / "run")
    assert answer.code == 2
    assert "model 'unet' starts from random weights" in answer.error
    assert not (tmp_path / "run").exists()


def test_models_lists_them(vlsm: Callable) -> None:
    answer = vlsm("models")
    assert "unet  text-free reference" in answer.out
    assert "needs the extra monai" in answer.out
