"""A CRIS through the command line: trained, evaluated and asked as any other model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlsm_adapter.models import load_model
from vlsm_adapter.models.cris import CRIS, CRISConfig
from vlsm_adapter.models.saving import save_model

SIZES = CRISConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=(1, 1, 1, 1),
    vision_width=4,
    context_length=12,
    transformer_width=16,
    transformer_heads=2,
    transformer_layers=2,
    word_len=12,
    fpn_out=(8, 16, 12),
    num_layers=2,
    num_head=2,
    dim_ffn=24,
    img_size=64,
)


@pytest.fixture(scope="module")
def cris_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_model(base_folder).tokenizer
    assert tokenizer is not None
    torch.manual_seed(0)
    config = dataclasses.replace(SIZES, vocab_size=len(tokenizer), sot=None, eot=None)
    return save_model(CRIS(config, tokenizer=tokenizer), tmp_path_factory.mktemp("models") / "cris")


@pytest.mark.parametrize("adapter", [("dense", "adapter.settings.parts=lc"), ("full",)], ids=lambda adapter: adapter[0])
def test_train_evaluate_predict(
    adapter: tuple[str, ...], vlsm: Callable, phantoms: Path, cris_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    method, *settings = adapter
    answer = vlsm(
        "train", "--data", phantoms, "--model", cris_folder, "--adapter", method, "-o", run, "--epochs", 1,
        "--batch-size", 5, "--set", "log.tensorboard=false", *(part for each in settings for part in ("--set", each)),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    answer = vlsm("evaluate", run, "-o", tmp_path / "scores")
    assert answer.code == 0, answer.err
    image = next((phantoms / "images").rglob("*.*"))
    answer = vlsm("predict", run / "adapter", image, "--prompt", "polyp", "-o", tmp_path / "masks")
    assert answer.code == 0, answer.err
    manifest = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert manifest["base"]["family"] == "cris"
    assert manifest["preprocessing"]["size"] == [64, 64]


def test_a_method_without_a_place_is_refused_with_what_there_is(
    vlsm: Callable, phantoms: Path, cris_folder: Path, tmp_path: Path
) -> None:
    answer = vlsm("train", "--data", phantoms, "--model", cris_folder, "--adapter", "dense", "-o", tmp_path / "run")
    assert answer.code == 2
    assert "has no site 'image.attn_out', 'image.mlp_out': it offers condition" in answer.error
    assert answer.error.endswith("; give it parts='lc'")
    assert not (tmp_path / "run").exists()
