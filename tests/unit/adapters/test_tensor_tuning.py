"""BitFit, LayerNorm tuning and AdaptFormer: which tensors train, the formulas, counts, starts, and what is stored."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vlsm_adapter.adapters import AdapterConfig, AdaptFormerConfig, BitFitConfig, LayerNormConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import attach, detach, use_adapter, without_adapter
from vlsm_adapter.adapters.copies import TensorCopy, twin
from vlsm_adapter.adapters.folder import load_adapter, read_weights, save_adapter
from vlsm_adapter.errors import ConfigError
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.optimization import check_gradients

Build = Callable[..., PromptSegmenter]
CONFIGS = [
    BitFitConfig(),
    BitFitConfig(decoder=True),
    LayerNormConfig(),
    LayerNormConfig("v", decoder=True),
    AdaptFormerConfig(5),
]
each_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.method}{'-decoder' * getattr(c, 'decoder', False)}"
)


def shake(model: PromptSegmenter, name: str = "default", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: old + 0.3 * torch.randn(old.shape, generator=generator)
        for key, old in tuner.state_dict(model, name).items()
    }
    tuner.load_state_dict(model, name, weights, "shake")


def tuned(model: PromptSegmenter, stages: tuple[str, ...], norms: bool) -> dict[str, torch.Tensor]:
    """The tensors that train, by their names in the model, found without the method."""
    found = {}
    for site in model.sites():
        if site.name in stages and site.read:
            module = model.get_submodule(site.module)
            for name, tensor in module.named_parameters(recurse=False):
                if isinstance(module, nn.LayerNorm) if norms else name == "bias":
                    found[f"{site.module}.{name}"] = tensor
    return found


@pytest.mark.parametrize(("parts", "stages"), [("v", ("image",)), ("l", ("text",)), ("vl", ("image", "text"))])
@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_what_trains(new_model: Build, parts: str, stages: tuple[str, ...], decoder: bool, norms: bool) -> None:
    model = new_model()
    expected = tuned(model, (*stages, "decoder") if decoder else stages, norms)
    total = sum(parameter.numel() for parameter in model.parameters())
    report = attach(model, (LayerNormConfig if norms else BitFitConfig)(parts, decoder=decoder))
    names = {key.replace(".adapter_copy.", "."): tensor for key, tensor in tuner.state_dict(model, "default").items()}
    assert names.keys() == expected.keys()
    assert all(torch.equal(names[name], tensor) for name, tensor in expected.items())
    assert report.trainable == sum(tensor.numel() for tensor in expected.values())
    assert report.total == total  # a copy stands in place of what it copies


def test_counts_by_formula(new_model: Build) -> None:
    # A block: biases of q, k, v, o (4 D), of the MLP (inner + D) and of two norms (2 D); four blocks of each are read.
    biases = [4 * (7 * width + inner) for width, inner in ((24, 48), (16, 32))]
    # One norm before the image's first block, one behind the text's last.
    assert attach(new_model(), BitFitConfig()).trainable == sum(biases) + 24 + 16
    assert attach(new_model(), LayerNormConfig()).trainable == 2 * (4 * 2 * 24 + 24) + 2 * (4 * 2 * 16 + 16)
    report = attach(new_model(), AdaptFormerConfig(5))
    assert report.trainable == sum(4 * (2 * width * 5 + 5 + width) for width in (24, 16))
    assert report.sites == {"image.mlp_in": 4, "image.mlp_out": 4, "text.mlp_in": 4, "text.mlp_out": 4}


@each_config
def test_every_tensor_learns_and_the_base_stays(model: PromptSegmenter, inputs: dict, config: AdapterConfig) -> None:
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        base = model(**inputs)
    attach(model, config)
    with torch.no_grad():
        assert torch.equal(model(**inputs), base)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs).square().mean().backward()
        check_gradients(model)
        optimizer.step()
    now = dict(model.named_parameters())
    assert not [name for name, weight in before.items() if torch.equal(now[name], weight)]
    with torch.no_grad(), without_adapter(model):
        assert torch.equal(model(**inputs), base)
    detach(model, "default")
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
@each_config
def test_round_trip_stores_the_tuned_tensors_alone(
    model: PromptSegmenter, inputs: dict, tmp_path: Path, config: AdapterConfig
) -> None:
    fresh = copy.deepcopy(model)
    attach(model, config)
    shake(model)
    expected = model(**inputs)
    save_adapter(model, tmp_path / "a")
    stored = sum(tensor.numel() for tensor in read_weights(tmp_path / "a" / "adapter_model.safetensors").values())
    assert stored == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    attach(fresh, config, "mine")
    load_adapter(tmp_path / "a", model=fresh, name="theirs")
    assert torch.equal(fresh(**inputs), expected)
    use_adapter(fresh, "mine")
    assert not torch.equal(fresh(**inputs), expected)
    use_adapter(fresh, "theirs")
    assert torch.equal(copy.deepcopy(fresh)(**inputs), expected)


@torch.no_grad()
def test_tuned_biases_are_what_a_model_with_these_biases_computes(model: PromptSegmenter, inputs: dict) -> None:
    changed = copy.deepcopy(model)
    attach(model, BitFitConfig(decoder=True))
    shake(model)
    for key, tensor in tuner.state_dict(model, "default").items():
        changed.get_parameter(key.replace(".adapter_copy.", ".")).copy_(tensor)
    assert torch.equal(model(**inputs), changed(**inputs))


@each_config
def test_half_precision_base_takes_float32_weights(new_model: Build, config: AdapterConfig) -> None:
    model = new_model().to(torch.bfloat16)
    images, ids = torch.randn(1, 3, 32, 32).bfloat16(), torch.tensor([[48, 1, 49]])
    with torch.no_grad():
        base = model(images, ids)
    attach(model, config)
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    assert {tensor.dtype for tensor in weights} == {torch.float32}
    logits = model(images, ids)
    assert torch.equal(logits, base)
    logits.float().square().mean().backward()
    assert all(tensor.grad is not None for tensor in weights)


def test_twin_shares_all_but_the_given_tensors() -> None:
    module = nn.Linear(3, 2)
    other = twin(module, {"bias": torch.ones(2)})
    x = torch.randn(4, 3)
    assert torch.equal(other(x), x @ module.weight.T + 1) or torch.allclose(other(x), x @ module.weight.T + 1)
    assert other.weight is module.weight
    assert type(other) is nn.Linear
    assert not torch.equal(module.bias, torch.ones(2))
    copied = TensorCopy(module, ("bias",))
    assert list(copied.state_dict()) == ["bias"]
    assert copied.bias.data_ptr() != module.bias.data_ptr()


@torch.no_grad()
def test_branch_stands_beside_the_mlp(model: PromptSegmenter) -> None:
    block = model.get_submodule("clipseg.clip.vision_model.encoder.layers.2")
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    plain = block.mlp(x)
    attach(model, AdaptFormerConfig(5, scale=0.3))
    assert torch.equal(block.mlp(x), plain)
    shake(model)
    part = block.mlp.fc2.adapter_part["default"]
    torch.testing.assert_close(block.mlp(x), plain + 0.3 * part.up(part.down(x).relu()))
    keeper = block.mlp.fc1.adapter_part["default"]
    assert not keeper._kept
    assert not list(keeper.parameters())


@torch.no_grad()
def test_threads_do_not_mix_up_their_inputs(model: PromptSegmenter) -> None:
    attach(model, AdaptFormerConfig(5))
    shake(model)
    mlp = model.get_submodule("clipseg.clip.vision_model.encoder.layers.0.mlp")
    batches = [torch.randn(40, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    expected = [mlp(batch) for batch in batches]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            wrong.extend(number for _ in range(50) if not torch.equal(mlp(batches[number]), expected[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("bitfit", "parts", "vlc"), ("bitfit", "decoder", "yes"), ("layernorm", "decoder", 1), ("layernorm", "parts", None),
        ("adaptformer", "parts", "vlc"), ("adaptformer", "scale", 0), ("adaptformer", "bottleneck_dim", 0),
    ],
)  # fmt: skip
def test_values_out_of_range(method: str, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}=") as caught:
        adapter_config(method, **{name: value})
    assert "\n" not in str(caught.value)
