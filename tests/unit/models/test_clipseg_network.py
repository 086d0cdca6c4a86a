"""Our modules of CLIPSeg beside transformers': the same names, sizes, defaults and, but for rounding, numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import load_model
from vlsm_adapter.models.clipseg import CLIPSeg
from vlsm_adapter.models.clipseg_parts.config import CLIPSegConfig, TextConfig, VisionConfig
from vlsm_adapter.models.clipseg_parts.loading import load_network

START, END = 48, 49
PROMPTS = torch.tensor([[START, 5, 7, END, END, END], [START, 9, 3, 4, 11, END]])
REAL = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
SPECIAL = {"vocab_size": 50, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END}


Both = Callable[..., tuple[CLIPSeg, CLIPSeg]]


@pytest.fixture
def both(stock_clipseg: Callable[..., Any]) -> Both:
    """Our modules and the stock ones with the same weights, from one folder that transformers has written."""

    def build(folder: Path, **changes: Any) -> tuple[CLIPSeg, CLIPSeg]:
        text = {**SPECIAL, **changes.get("text_config", {})}
        stock = stock_clipseg(**{**changes, "text_config": text})
        stock.save_pretrained(folder)
        ours = load_model(folder)
        assert isinstance(ours, CLIPSeg)
        assert type(ours.clipseg).__module__.startswith("vlsm_adapter")
        return ours, CLIPSeg(stock)

    return build


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_complex_transposed_convolution": True, "vision_config": {"patch_size": 16}},
        {"conditional_layer": 2},
        {"extract_layers": [3]},
        {"text_config": {"num_hidden_layers": 1, "hidden_act": "gelu"}},
        {"vision_config": {"hidden_act": "gelu"}},
        {"text_config": {"eos_token_id": 2, "pad_token_id": 1}},
        {"decoder_num_attention_heads": 1, "decoder_intermediate_size": 7},
    ],
    ids=lambda changes: ", ".join(changes) or "as it is",
)
@pytest.mark.parametrize("size", [(32, 32), (48, 16)], ids=["size trained on", "interpolated places"])
def test_logits_and_gradients_are_the_stock_models(
    both: Both, changes: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    ours, stock = both(tmp_path, **changes)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (ours, stock):
        given = pixels.clone().requires_grad_()
        logits = model(given, PROMPTS, REAL)
        logits.square().sum().backward()
        gradients.append((logits.detach(), given.grad))
    assert gradients[0][0].std() > 0.01
    # The decoder's wide map and the gradient of its attention are summed in another order.
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-4 * float(gradients[1][1].abs().max())
    )


def test_names_shapes_and_sites_are_the_stock_models(both: Both, tmp_path: Path) -> None:
    ours, stock = both(tmp_path)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in stock.state_dict().items()
    }
    assert ours.sites() == stock.sites()
    assert ours.base_hash == stock.base_hash


def test_defaults_are_those_of_transformers() -> None:
    """Files in Hugging Face format leave out what is the default."""
    from transformers import CLIPSegConfig as Stock

    stock, own = Stock(), CLIPSegConfig()
    for ours, theirs in (
        (own, stock),
        (own.text_config, stock.text_config),
        (own.vision_config, stock.vision_config),
    ):
        for one in dataclasses.fields(ours):
            if one.name not in ("given", "text_config", "vision_config"):
                value = getattr(theirs, one.name)
                assert getattr(ours, one.name) == (tuple(value) if isinstance(value, list) else value), one.name


def test_what_we_save_transformers_loads(both: Both, tmp_path: Path) -> None:
    from transformers import CLIPSegForImageSegmentation

    ours, _ = both(tmp_path / "one")
    ours.clipseg.save_pretrained(tmp_path / "two")
    stock = CLIPSeg(CLIPSegForImageSegmentation.from_pretrained(tmp_path / "two"))
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(pixels, PROMPTS, REAL), stock(pixels, PROMPTS, REAL))
    assert load_model(tmp_path / "two").base_hash == ours.base_hash


def test_old_files_say_their_differences_once_more() -> None:
    config = CLIPSegConfig.from_dict(
        {"text_config": {"hidden_size": 64}, "text_config_dict": {"hidden_size": 32}, "vision_config_dict": None}
    )
    assert config.text_config == TextConfig(hidden_size=32)
    assert config.vision_config == VisionConfig()


def test_weights_in_several_files_and_what_old_files_hold_beside_them(both: Both, tmp_path: Path) -> None:
    ours, _ = both(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["clip.text_model.embeddings.position_ids"] = torch.arange(12)[None]  # of older transformers
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "model.safetensors").unlink()
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_model(tmp_path)(pixels, PROMPTS, REAL), ours(pixels, PROMPTS, REAL))
    # Parts of other weights that were left there are not read where an index says what belongs together.
    index = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    base_hash = load_model(tmp_path).base_hash
    save_file({name: tensors[name] * 3 for name in names}, tmp_path / "model-00003-of-00003.safetensors")
    assert torch.equal(load_model(tmp_path)(pixels, PROMPTS, REAL), ours(pixels, PROMPTS, REAL))
    assert load_model(tmp_path).base_hash == base_hash


def test_modules_made_anew_are_saved_with_their_sizes(tmp_path: Path) -> None:
    from transformers import CLIPSegForImageSegmentation

    from vlsm_adapter.doctor.speeds import vision_blocks

    vision_blocks(1).clipseg.to(torch.bfloat16).save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert CLIPSegForImageSegmentation.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert load_model(tmp_path).sites()


def test_prompts_that_are_too_long_are_refused(both: Both, tmp_path: Path) -> None:
    ours, _ = both(tmp_path)
    with pytest.raises(ModelError, match=r"prompts of 13 tokens.*reads 12"):
        ours.encode_text(torch.full((1, 13), END))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_come_in_the_type_asked_for(both: Both, dtype: torch.dtype, tmp_path: Path) -> None:
    ours, _ = both(tmp_path)
    network = load_network(tmp_path, "x", dtype)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert torch.equal(network.decoder.film_mul.weight, ours.clipseg.decoder.film_mul.weight.to(dtype))


def test_what_trains_leaves_the_file_as_it_is(both: Both, tmp_path: Path) -> None:
    """Weights are mapped from the file: changing them must not write to it."""
    ours, _ = both(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("reduce_dim",), 0, "reduce_dim 0"),
        (("reduce_dim",), 7, "do not divide the width 7"),
        (("extract_layers",), [], "extract_layers []"),
        (("extract_layers",), [9], "from 0 to 4"),
        (("vision_config", "hidden_act"), "gellu", "did you mean 'gelu'"),
        (("vision_config", "patch_size"), -1, "patch_size -1"),
        (("use_complex_transposed_convolution",), "false", "true or false"),
        (("extract_layers",), [True, 2], "extract_layers [True, 2]"),
        (("conditional_layer",), 3, "conditional_layer 3: a block of the decoder, from 0 to 2"),
        (("text_config", "layer_norm_eps"), "small", "layer_norm_eps 'small'"),
    ],
)
def test_sizes_that_no_model_can_have(
    both: Both, place: tuple[str, ...], value: object, says: str, tmp_path: Path
) -> None:
    both(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    inner = values
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


PATCHES = "'clip.vision_model.embeddings.patch_embedding.weight' has the shape [24, 3, 8, 8]"


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("text_config.num_hidden_layers", 10**6, "holds 4 such blocks ('clip.text_model.encoder.layers.*')"),
        ("text_config.num_hidden_layers", 5, "holds 4 such blocks ('clip.text_model.encoder.layers.*')"),
        ("vision_config.num_hidden_layers", 10**6, "holds 5 such blocks ('clip.vision_model.encoder.layers.*')"),
        ("text_config.hidden_size", 10**9, "50, 16]: 16 is allowed"),
        ("text_config.hidden_size", 18, "50, 16]: 16 is allowed"),
        ("text_config.vocab_size", 10**30, "50, 16]: 50 is allowed"),
        ("text_config.intermediate_size", 10**9, "32, 16]: 32 is allowed"),
        ("text_config.max_position_embeddings", 10**9, ", 16]"),
        ("vision_config.hidden_size", 3 * 10**9, f"{PATCHES}: 24 is allowed"),
        ("vision_config.num_channels", 10**9, f"{PATCHES}: 3 is allowed"),
        ("vision_config.patch_size", 10**9, f"{PATCHES}: 8 is allowed"),
        ("vision_config.image_size", 10**7, "17, 24]: 32 is allowed"),
        ("vision_config.intermediate_size", 10**9, "48, 24]: 48 is allowed"),
        ("projection_dim", 10**9, "16, 16]: 16 is allowed"),
        ("reduce_dim", 10**9, "8, 16]: 8 is allowed"),
        ("decoder_intermediate_size", 10**9, "16, 8]: 16 is allowed"),
        ("extract_layers", [0, 1] * 1000, "the number of extract_layers 2000 contradicts"),
    ],
)
def test_sizes_that_contradict_the_weights_are_refused_before_building(
    both: Both, place: str, value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    part, _, name = place.rpartition(".")
    (values[part] if part else values)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr("vlsm_adapter.models.clipseg_parts.loading.CLIPSegNetwork", None)  # a million blocks take hours
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert f"contradicts {tmp_path / 'model.safetensors'}, wh" in message
    assert says in message
    assert place in message
    assert "\n" not in message


def test_fewer_blocks_than_there_are_weights_for_and_parts_of_patches(both: Both, tmp_path: Path) -> None:
    both(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["vision_config"] |= {"num_hidden_layers": 4, "image_size": 39}  # the last block is not read
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = load_model(tmp_path)
    assert isinstance(model, CLIPSeg)
    assert len(model.clipseg.clip.vision_model.encoder.layers) == 4
