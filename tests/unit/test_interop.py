"""Weights of the published code: from a dict, from safetensors, from a whole checkpoint; and from nothing harmful."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vlsm_adapter.adapters import DenseAdapterConfig, ShallowAdapterConfig
from vlsm_adapter.adapters.attach import active
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.interop import from_published, read_published
from vlsm_adapter.models.base import PromptSegmenter

VARIANTS = [f"{kind}_{parts}" for kind in ("dense", "shallow") for parts in ("v", "vl", "vlc")]


def published(variant: str, narrow: int = 5, condition: int = 7) -> dict[str, torch.Tensor]:
    """Random weights under the published key names, for the small CLIPSeg of the tests (layers 0, 1, 3 are read)."""
    kind, parts = variant.split("_")
    sizes: dict[str, tuple[int, int]] = {}
    if kind == "dense":
        sizes |= {f"v_{half}_adapters.{i}": (24, narrow) for half in ("attn", "out") for i in range(3)}
        if "l" in parts:
            sizes |= {f"l_{half}_adapters.{i}": (16, narrow) for half in ("attn", "out") for i in range(3)}
    else:
        sizes |= {f"vision_extract_adapters.{j}": (24, narrow) for j in range(3)}
        if "l" in parts:
            sizes |= {f"text_extract_adapters.{j}": (16, narrow) for j in range(3)}
    if "c" in parts:
        sizes["cond_adapter"] = (16, condition)
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for name, (width, inner) in sizes.items():
        for layer, shape in (("fc1", (inner, width)), ("fc2", (width, inner))):
            weights[f"{name}.{layer}.weight"] = torch.randn(shape, generator=generator)
            weights[f"{name}.{layer}.bias"] = torch.randn(shape[:1], generator=generator)
    return weights


def whole_checkpoint(model: PromptSegmenter, variant: str) -> dict:
    """What Lightning writes: the base twice, the adapters, counters, hyper-parameters."""
    state = {f"net.{key}": tensor for key, tensor in model.state_dict().items()}
    state |= {key.replace("net.clipseg.clip.", "net.clip."): tensor for key, tensor in state.items()}
    state["net.clipseg.clip.text_model.embeddings.position_ids"] = torch.arange(12)[None]  # of older transformers
    state |= {f"net.{key}": tensor for key, tensor in published(variant).items()}
    return {
        "epoch": 7,
        "global_step": 70,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}],
        "hyper_parameters": {"lr": 1e-3, "name": variant, "widths": [64, 256]},
    }


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_method_parts_and_widths_are_read_off_the_keys(base_folder: Path, inputs: dict, variant: str) -> None:
    model = from_published(base_folder, published(variant), name="theirs")
    kind, parts = variant.split("_")
    expected = {"dense": DenseAdapterConfig, "shallow": ShallowAdapterConfig}[kind]
    condition = 7 if "c" in parts else 256
    config = expected(bottleneck_dim=5, parts=parts, variant="published", condition_dim=condition)
    assert model.adapter_configs == {"theirs": config}
    assert active(model) == "theirs"
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model(**inputs).isfinite().all()


@torch.no_grad()
def test_same_model_from_every_container(
    base_folder: Path, model: PromptSegmenter, inputs: dict, tmp_path: Path
) -> None:
    variant = "dense_vlc"
    expected = from_published(base_folder, published(variant))(**inputs)
    assert not torch.equal(expected, model(**inputs))
    save_file(published(variant), tmp_path / "w.safetensors")
    torch.save(whole_checkpoint(model, variant), tmp_path / "epoch=7.ckpt")
    torch.save(published(variant), tmp_path / "w.pth")
    for source in ("w.safetensors", "epoch=7.ckpt", "w.pth"):
        assert torch.equal(from_published(str(base_folder), str(tmp_path / source))(**inputs), expected), source
    checkpoint = whole_checkpoint(model, variant)["state_dict"]
    assert torch.equal(from_published(base_folder, checkpoint)(**inputs), expected)


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_object_in_a_checkpoint_is_refused_and_not_run(
    base_folder: Path, model: PromptSegmenter, tmp_path: Path, zipped: bool
) -> None:
    witness = tmp_path / "was-run"
    content = {**whole_checkpoint(model, "dense_v"), "callbacks": Malicious(witness)}
    torch.save(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(AdapterError, match="holds objects beside tensors, whose loading could run code") as caught:
        from_published(base_folder, tmp_path / "bad.ckpt")
    assert "\n" not in str(caught.value)
    assert not witness.exists()


def test_plain_pickle_is_refused_and_not_run(base_folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "was-run"
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": Malicious(witness)}))
    with pytest.raises(AdapterError, match=r"bad\.ckpt"):
        from_published(base_folder, tmp_path / "bad.ckpt")
    assert not witness.exists()


def message_of(base: Path, weights: object) -> str:
    with pytest.raises(AdapterError) as caught:
        from_published(base, weights)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_other_base_is_refused(base_folder: Path, model: PromptSegmenter) -> None:
    state = whole_checkpoint(model, "dense_v")["state_dict"]
    key = "net.clipseg.decoder.film_mul.weight"
    state[key] = state[key] + 1e-3
    message = message_of(base_folder, state)
    assert "its base differs" in message
    assert "clipseg.decoder.film_mul.weight" in message


def without(weights: dict, *parts: str) -> dict:
    return {key: tensor for key, tensor in weights.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ({}, "no published adapter keys"),
        ({"net.clip.visual.x": torch.zeros(1)}, "no published adapter keys"),
        ({**published("dense_v"), "net.head.weight": torch.zeros(1)}, "keys of no published variant: ['net.head.weight']"),
        (published("dense_v") | published("shallow_v"), "both dense and shallow"),
        (without(published("dense_vlc"), "v_", "l_"), "or of neither"),
        (without(published("dense_vlc"), "l_"), "no published variant"),
        (without(published("dense_v"), "v_attn_adapters.0.fc1"), "lacks v_attn_adapters.0.fc1.weight"),
        (without(published("dense_v"), "v_out_adapters.1.fc2.bias"), "missing"),
        (without(published("dense_vl"), "v_"), "lacks v_attn_adapters.0.fc1.weight"),
        (published("dense_v") | {"v_attn_adapters.3.fc1.bias": torch.zeros(5)}, "unknown"),
        (published("dense_v") | {"v_attn_adapters.77.fc1.bias": torch.zeros(5)}, "v_attn_adapters.77 has no place"),
        (published("dense_v") | {"v_out_adapters.1.fc1.bias": torch.zeros(6)}, "has shape (6,)"),
        (published("dense_v") | {"v_attn_adapters.00.fc1.bias": torch.zeros(5)}, "v_attn_adapters.00"),
        (published("dense_v") | {"v_attn_adapters.0.fc1.bias": 3}, "is no tensor"),
        ({"epoch": 3, "state_dict": published("dense_v")}, "'epoch' is no tensor by name"),
        ({5: torch.zeros(1)}, "5 is no tensor by name"),
        ({key: nn.Parameter(value * torch.nan) for key, value in published("dense_v").items()}, "not finite"),
        (published("dense_v") | {"v_attn_adapters.0.fc1.weight": torch.tensor(1.0)}, "v_attn_adapters.0.fc1.weight"),
        (published("dense_v") | {"v_attn_adapters.0.fc1.weight": torch.zeros(0, 24)}, "bottleneck_dim=0"),
        (published("dense_v") | {"net.clipseg.decoder.other.weight": torch.zeros(1)}, "its base differs"),
    ],
)  # fmt: skip
def test_keys_that_fit_no_variant(base_folder: Path, weights: dict, part: str) -> None:
    assert part in message_of(base_folder, weights)


def test_text_width_that_differs_from_the_condition(base_folder: Path) -> None:
    weights = published("shallow_vl")
    weights["text_extract_adapters.1.fc2.bias"] = torch.zeros(11)
    assert "shape (11,)" in message_of(base_folder, weights)


def test_missing_file(base_folder: Path, tmp_path: Path) -> None:
    for name in ("none.ckpt", "none.safetensors"):
        assert name in message_of(base_folder, tmp_path / name)
    assert str(tmp_path) in message_of(base_folder, tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -10])
def test_truncated_checkpoint(base_folder: Path, model: PromptSegmenter, tmp_path: Path, keep: int) -> None:
    file = tmp_path / "w.ckpt"
    torch.save(whole_checkpoint(model, "dense_v"), file)
    file.write_bytes(file.read_bytes()[:keep])
    assert "damaged or not a checkpoint" in message_of(base_folder, file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_any_damage_is_a_one_line_error_or_harmless(tmp_path: Path, at: int, noise: bytes) -> None:
    file = tmp_path / "w.pth"
    torch.save({"cond_adapter.fc1.bias": torch.zeros(2)}, file, _use_new_zipfile_serialization=bool(at % 2))
    content = bytearray(file.read_bytes())
    at %= len(content)
    content[at : at + len(noise)] = noise
    file.write_bytes(content)
    try:
        read_published(file)
    except AdapterError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": 1}}, tmp_path / "w.ckpt")
    with pytest.raises(AdapterError, match="holds no state_dict of tensors"):
        read_published(tmp_path / "w.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "w.ckpt")
    with pytest.raises(AdapterError, match="holds no state_dict of tensors"):
        read_published(tmp_path / "w.ckpt")
