"""The same training on other loaders, precisions and devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in load_file(run / "state.safetensors").items() if key.startswith("weights/")}


def _train(vlsm: Callable, data: Path, model: Path, out: Path, *settings: str) -> dict[str, torch.Tensor]:
    assigned = [part for setting in (*settings, "log.tensorboard=false") for part in ("--set", setting)]
    answer = vlsm(
        "train", "--data", data, "--model", model, "-o", out, "--epochs", 2, "--batch-size", 4, "--level", "random",
        *assigned,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return _weights(out)


def test_loader_processes_change_nothing(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    alone = _train(vlsm, phantoms, base_folder, tmp_path / "alone", "train.workers=0")
    helped = _train(vlsm, phantoms, base_folder, tmp_path / "helped", "train.workers=2")
    uncached = _train(vlsm, phantoms, base_folder, tmp_path / "uncached", "data.cache_mb=0")
    assert all(torch.equal(alone[key], helped[key]) for key in alone)
    assert all(torch.equal(alone[key], uncached[key]) for key in alone)


def test_bf16_trains_close_to_fp32(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    full = _train(vlsm, phantoms, base_folder, tmp_path / "full", "train.precision=32-true")
    half = _train(vlsm, phantoms, base_folder, tmp_path / "half", "train.precision=bf16-mixed")
    assert all(value.dtype == torch.float32 for value in half.values())
    moved = sum((half[key] - full[key]).norm() for key in full)
    assert moved < 0.5 * sum(value.norm() for value in full.values())
    assert "precision bf16-mixed" in (tmp_path / "half" / "log.txt").read_text()
    assert "precision" not in (tmp_path / "full" / "log.txt").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu(vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, precision: str) -> None:
    weights = _train(vlsm, phantoms, base_folder, tmp_path / "run", f"train.precision={precision}")
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
@pytest.mark.parametrize(
    "adapter", [("adapter.method=shallow",), ("adapter.method=dense", "adapter.settings.last_blocks=2")]
)
def test_features_kept_on_a_gpu_change_only_rounding(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, adapter: tuple[str, ...]
) -> None:
    kept = _train(vlsm, phantoms, base_folder, tmp_path / "kept", "train.precision=32-true", *adapter)
    anew = _train(
        vlsm, phantoms, base_folder, tmp_path / "anew", "train.precision=32-true", "train.feature_cache=off", *adapter
    )
    for key, value in kept.items():
        torch.testing.assert_close(value, anew[key], atol=1e-3, rtol=1e-2)
