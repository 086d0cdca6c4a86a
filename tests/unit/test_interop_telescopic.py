"""Published Telescopic weights: size, parts and boundary term are read off the keys; anything else is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlsm_adapter.adapters import TelescopicConfig, tuner
from vlsm_adapter.adapters.attach import active, attach
from vlsm_adapter.errors import AdapterError, ConfigError
from vlsm_adapter.interop import from_published
from vlsm_adapter.models.base import PromptSegmenter


def published(size: int = 64, parts: str = "vlc", boundary: bool = True) -> dict[str, torch.Tensor]:
    """Random weights under the published names, for the small CLIPSeg (0, 1, 3 are read: three image blocks adapted)."""
    sizes: dict[str, tuple[int, int]] = {}
    for block in range(3):
        asked = max(8, int(size * ((block + 1) / 3) * 0.5))
        sizes |= {f"v_{half}_adapters.{block}": (24, max(8, min(asked, 6))) for half in ("attn", "out")}
        if "l" in parts:
            sizes |= {f"l_{half}_adapters.{block}": (16, max(8, min(size // 4, 4))) for half in ("attn", "out")}
    if "c" in parts:
        sizes["cond_adapter"] = (16, 8)
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (width, inner) in sizes.items():
        shapes |= {f"{name}.down_project.weight": (inner, width), f"{name}.up_project.weight": (width, inner)}
        shapes |= {f"{name}.norm.weight": (inner,), f"{name}.norm.bias": (inner,), f"{name}.scale": ()}
    if boundary:
        shapes |= {"boundary_enhancer.0.weight": (4, 1, 3, 3), "boundary_enhancer.3.weight": (1, 4, 1, 1)}
        shapes |= {f"boundary_enhancer.1.{name}": (4,) for name in ("weight", "bias", "running_mean", "running_var")}
    weights = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    if boundary:
        weights["boundary_enhancer.1.num_batches_tracked"] = torch.tensor(70)
    return weights


def read(base: object, weights: object, **settings: object) -> PromptSegmenter:
    return from_published(base, weights, model="telescopic", **settings)  # type: ignore[arg-type]


def without(weights: dict, part: str) -> dict:
    return {key: tensor for key, tensor in weights.items() if part not in key}


@pytest.mark.parametrize(("parts", "boundary"), [("vlc", True), ("vlc", False), ("vl", True), ("v", False)])
@torch.no_grad()
def test_configuration_is_read_off_the_keys(base_folder: Path, inputs: dict, parts: str, boundary: bool) -> None:
    weights = published(parts=parts, boundary=boundary)
    model = read(base_folder, weights, name="theirs")
    expected = TelescopicConfig(64, parts=parts, variant="published", boundary=None if boundary else False)
    assert model.adapter_configs == {"theirs": expected}
    assert active(model) == "theirs"
    assert not any(module.training for module in model.modules())
    assert model(**inputs).isfinite().all()
    own = tuner.state_dict(model, "theirs")
    assert len(own) == len(weights)
    block = "clipseg.clip.text_model.encoder.layers"
    if "l" in parts:  # four text blocks, the last three are adapted
        assert torch.equal(
            own[f"{block}.1.mlp.fc2.adapter_part.up_project.weight"], weights["l_out_adapters.0.up_project.weight"]
        )
    if boundary:
        assert torch.equal(own["logits.adapter_part.layers.1.running_var"], weights["boundary_enhancer.1.running_var"])


def test_size_is_found_where_the_widths_tell_it(new_model: Callable) -> None:
    from vlsm_adapter.interop.telescopic import _read_config

    changes = {"vision_config": {"hidden_size": 512, "num_attention_heads": 4}}
    for size in (64, 100, 31):
        model = new_model(**changes)
        attach(model, TelescopicConfig(size, parts="v", variant="published"))
        found = {
            (f"v_{half}_adapters", block): {
                "down_project.weight": tuner.state_dict(model, "default")[
                    f"clipseg.clip.vision_model.encoder.layers.{block}.{module}.adapter_part.down_project.weight"
                ]
            }
            for half, module in (("attn", "self_attn.out_proj"), ("out", "mlp.fc2"))
            for block in range(3)
        }
        config = _read_config(model, found, with_boundary=True, source="x")
        assert [width for _, width in config.schedule(model)] == [
            width for _, width in TelescopicConfig(size, parts="v", variant="published").schedule(model)
        ]
        assert size - 2 < config.bottleneck_dim <= size  # where several sizes give these widths, the smallest


@torch.no_grad()
def test_same_model_from_every_container(
    base_folder: Path, model: PromptSegmenter, inputs: dict, tmp_path: Path
) -> None:
    expected = read(base_folder, published())(**inputs)
    assert not torch.equal(expected, model(**inputs))
    state = {f"net.{key}": tensor for key, tensor in {**model.state_dict(), **published()}.items()}
    listed = {key: tensor.reshape(1) if key.endswith("scale") else tensor for key, tensor in published().items()}
    save_file(published(), tmp_path / "w.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.ckpt")
    for source in (tmp_path / "w.safetensors", str(tmp_path / "w.ckpt"), state, listed):
        assert torch.equal(read(base_folder, source)(**inputs), expected)


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ({}, "holds no Telescopic keys"),
        ({**published(), "net.head.weight": torch.zeros(1)}, "keys of no Telescopic adapter: ['net.head.weight']"),
        ({**published(), "v_attn_adapters.0.fc1.weight": torch.zeros(1)}, "keys of no Telescopic adapter"),
        ({**published(), 5: torch.zeros(1)}, "5 is no tensor by name"),
        ({**published(), "cond_adapter.scale": 0.1}, "is no tensor by name"),
        (without(published(), "l_"), "are of no published variant"),
        (without(published(), "v_"), "are of no published variant"),
        (without(published(), "v_attn_adapters.2"), "v_attn_adapters.2 stands in only one of the checkpoint and"),
        ({**published(), "v_attn_adapters.3.scale": torch.tensor(1.0)}, "v_attn_adapters.3 stands in only one"),
        (without(published(), "l_out_adapters.1.down"), "l_out_adapters.1 lacks down_project.weight"),
        ({**published(), "v_out_adapters.0.down_project.weight": torch.zeros(3)}, "lacks down_project.weight"),
        ({**published(), "v_out_adapters.0.down_project.weight": torch.zeros(5, 24)}, "are of no size on this base"),
        ({**published(), "v_out_adapters.0.down_project.weight": torch.zeros(8, 23)}, "has shape (8, 23)"),
        ({**published(), "cond_adapter.scale": torch.zeros(2)}, "has shape (2,)"),
        (without(published(), "boundary_enhancer.3"), "missing ['logits.adapter_part.layers.3.weight']"),
        ({**published(), "boundary_enhancer.1.running_var": -torch.ones(4)}, "a negative variance"),
        ({**published(), "cond_adapter.norm.bias": torch.full((8,), torch.nan)}, "not finite"),
        ({**published(), "net.clipseg.decoder.film_mul.bias": torch.zeros(8)}, "its base differs"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(base_folder: Path, weights: dict, part: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read(base_folder, weights)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_takes_no_sizes_and_is_named_in_the_message() -> None:
    with pytest.raises(ConfigError, match="model='telescopic' takes the base's folder"):
        read({}, published())
    with pytest.raises(ConfigError, match="did you mean 'telescopic'"):
        from_published("tiny", {}, model="telescope")
