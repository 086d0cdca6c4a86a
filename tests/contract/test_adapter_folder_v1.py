"""Format version 1 of the adapter folder, held by a folder written once: never write ``adapter_folder_v1`` anew.

What docs/adapter-folder.md says is checked with its own means (json, numpy, hashlib), as a foreign reader would.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays

from vlsm_adapter.adapters import DenseAdapterConfig, ShallowAdapterConfig, tuner
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.adapters.folder import load_adapter, read_manifest, read_weights, save_adapter
from vlsm_adapter.models.base import PromptSegmenter

FOLDER = Path(__file__).parent / "adapter_folder_v1"


def test_old_folder_is_read() -> None:
    manifest = read_manifest(FOLDER)
    assert manifest.config == DenseAdapterConfig(
        bottleneck_dim=2, parts="vlc", variant="residual", condition_dim=3, activation="gelu", scale=1.0
    )
    assert (manifest.base_id, manifest.base_family) == ("small-clipseg", "clipseg")
    assert len(manifest.base_hash) == 64
    assert manifest.preprocessing == {
        "size": [32, 32], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resample": "bilinear"
    }  # fmt: skip
    info = manifest.info
    assert (info.threshold, info.prompt_level, info.prompts) == (0.45, "p1", ("polyp",))
    assert (info.data, info.split, info.seed, info.licence) == ("phantoms", {"train": 8, "val": 2}, 41, "CC-BY-4.0")
    assert info.scores["validation Dice"] == 0.8125
    assert math.isnan(info.scores["HD95"])


@torch.no_grad()
def test_old_weights_still_fit_and_land_where_they_belong(new_model: Callable[..., PromptSegmenter]) -> None:
    model = new_model()
    config, weights = read_manifest(FOLDER).config, read_weights(FOLDER / "adapter_model.safetensors")
    attach(model, config)
    tuner.load_state_dict(model, "default", weights, "v1")
    state = model.state_dict()
    for number, (key, tensor) in enumerate(sorted(weights.items())):
        expected = (torch.arange(tensor.numel()) / 64 - 0.5) * (number % 5 + 1)
        assert torch.equal(tensor.flatten(), expected)
        module, half, kind = key.rsplit(".", 2)
        assert torch.equal(state[f"{module}.{half}.default.{kind}"], tensor)


@torch.no_grad()
def test_old_folder_predicts(new_model: Callable[..., PromptSegmenter]) -> None:
    model = new_model()
    manifest = read_manifest(FOLDER)
    model._base_hash = manifest.base_hash  # random numbers may differ between versions of torch, the format may not
    model.preprocessing = model.preprocessing.from_dict(manifest.preprocessing)
    load_adapter(FOLDER, model=model)
    assert model(torch.zeros(1, 3, 32, 32), torch.tensor([[48, 5, 49]])).isfinite().all()


def test_what_is_written_today_has_the_same_form(model: PromptSegmenter, tmp_path: Path) -> None:
    attach(model, read_manifest(FOLDER).config)
    save_adapter(model, tmp_path / "new", info=read_manifest(FOLDER).info)

    def form(value: object) -> object:
        return {key: form(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)

    old, new = (json.loads((folder / "adapter_config.json").read_text()) for folder in (FOLDER, tmp_path / "new"))
    assert form(old) == form(new)
    assert (new["format"], new["format_version"]) == ("vlsm-adapter", 1)
    arrays = [load_arrays(folder / "adapter_model.safetensors") for folder in (FOLDER, tmp_path / "new")]
    assert {key: array.shape for key, array in arrays[0].items()} == {k: a.shape for k, a in arrays[1].items()}


def test_hash_as_documented(model: PromptSegmenter, base_folder: Path) -> None:
    digest = hashlib.sha256()
    arrays = load_arrays(base_folder / "model.safetensors")
    for name in sorted(arrays):
        shape = "(" + ", ".join(map(str, arrays[name].shape)) + ("," if arrays[name].ndim == 1 else "") + ")"
        digest.update(f"{name}|torch.{arrays[name].dtype}|{shape}|".encode())
        digest.update(arrays[name].tobytes())
    assert model.base_hash == digest.hexdigest()


@pytest.mark.parametrize("variant", ["published", "residual"])
@torch.no_grad()
def test_computation_as_documented(model: PromptSegmenter, tmp_path: Path, variant: str) -> None:
    """The condition under a shallow adapter, rebuilt in numpy from the file and the base's text states."""
    config = ShallowAdapterConfig(3, parts="vlc", condition_dim=4, variant=variant, activation="silu", scale=0.5)
    states: list[np.ndarray] = []
    tokens = model.tokenize(["small polyp"])
    for skip in model.text_skip:  # type: ignore[union-attr]
        skip.register_forward_pre_hook(lambda _, given: states.append(given[1].numpy()))  # type: ignore[union-attr]
    condition = model.encode_text(*tokens).condition.numpy()
    attach(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    save_adapter(model, tmp_path / "a")
    w = load_arrays(tmp_path / "a" / "adapter_model.safetensors")

    def change(module: str, x: np.ndarray) -> np.ndarray:
        inner = x @ w[f"{module}.adapter_down.weight"].T + w[f"{module}.adapter_down.bias"]
        inner = np.maximum(inner, 0) if variant == "published" else inner / (1 + np.exp(-inner))
        out = inner @ w[f"{module}.adapter_up.weight"].T + w[f"{module}.adapter_up.bias"]
        return np.maximum(out, 0) if variant == "published" else 0.5 * out

    condition = condition + change("condition", condition)
    for number, state in enumerate(states[:3]):
        condition = condition + change(f"text_skip.{number}", state) + (state if variant == "published" else 0)
    np.testing.assert_allclose(model.encode_text(*tokens).condition.numpy(), condition, atol=1e-4)
