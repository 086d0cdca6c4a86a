"""LoRA, rsLoRA, DoRA and (IA)3: their formulas, counts, exact targets, gradients, files; and PEFT's own numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch

from vlsm_adapter import files
from vlsm_adapter.adapters import ADAPTERS, AdapterConfig, DenseAdapterConfig, FullConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import active, attach, attached, detach, training_mode, use_adapter, without_adapter
from vlsm_adapter.adapters.folder import load_adapter, save_adapter
from vlsm_adapter.adapters.lora import TARGETS
from vlsm_adapter.errors import AdapterError, ConfigError
from vlsm_adapter.inference import inferring
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.optimization import check_gradients, make_optimizer

Build = Callable[..., PromptSegmenter]
LOW_RANK = ("lora", "rslora", "dora")
METHODS = (*LOW_RANK, "ia3")
Q = "clipseg.clip.vision_model.encoder.layers.1.self_attn.q_proj"
# Widths and inner widths of the small model; four blocks of each encoder are read.
IMAGE, TEXT = (24, 48), (16, 32)


def shake(model: PromptSegmenter, name: str = "default", seed: int = 0) -> dict[str, torch.Tensor]:
    """Give the adapter weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: 0.3 * torch.randn(old.shape, generator=generator) for key, old in tuner.state_dict(model, name).items()
    }
    tuner.load_state_dict(model, name, weights, "shake")
    return weights


def config_of(method: str, **settings: object) -> AdapterConfig:
    return adapter_config(method, **({"rank": 3, **settings} if method in LOW_RANK else settings))


@torch.no_grad()
@pytest.mark.parametrize("method", LOW_RANK)
def test_layer_computes_the_formula(model: PromptSegmenter, method: str) -> None:
    base = copy.deepcopy(model.get_submodule(Q))
    attach(model, config_of(method, alpha=5.0))
    weights = shake(model)
    a, b = (weights[f"{Q}.adapter_part.lora_{half}.weight"] for half in "AB")
    assert (a.shape, b.shape) == ((3, 24), (24, 3))
    changed = base.weight + 5.0 / (math.sqrt(3) if method == "rslora" else 3) * b @ a
    if method == "dora":
        length = weights[f"{Q}.adapter_part.lora_magnitude_vector.weight"]
        changed = length[:, None] * changed / changed.norm(dim=1, keepdim=True)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.get_submodule(Q)(x), x @ changed.T + base.bias)


@torch.no_grad()
def test_scales_stand_on_keys_values_and_inner_values(model: PromptSegmenter) -> None:
    block = "clipseg.clip.text_model.encoder.layers.2"
    names = {"self_attn.k_proj": 16, "self_attn.v_proj": 16, "mlp.fc2": 32}
    base = {name: copy.deepcopy(model.get_submodule(f"{block}.{name}")) for name in names}
    attach(model, config_of("ia3"))
    weights = shake(model)
    for name, width in names.items():
        scale = weights[f"{block}.{name}.adapter_part.ia3_l.weight"]
        assert scale.shape == (width,)
        x = torch.randn(3, base[name].in_features)
        expected = base[name](x * scale) if name == "mlp.fc2" else base[name](x) * scale
        torch.testing.assert_close(model.get_submodule(f"{block}.{name}")(x), expected)
    assert not hasattr(model.get_submodule(f"{block}.self_attn.q_proj"), "base_layer")


def linears(target: str) -> list[tuple[int, int]]:
    """(in, out) of the linear layers of one block of each encoder, by the settings' names."""
    sides = {"mlp_in": lambda d, inner: (d, inner), "mlp_out": lambda d, inner: (inner, d)}
    return [sides.get(name, lambda d, _: (d, d))(*widths) for widths in (IMAGE, TEXT) for name in TARGETS[target]]


@pytest.mark.parametrize("target", TARGETS)
def test_counts(new_model: Build, target: str) -> None:
    expected = 4 * sum(3 * (inside + out) for inside, out in linears(target))
    for method in ("lora", "rslora"):
        assert attach(new_model(), config_of(method, targets=target)).trainable == expected
    lengths = 4 * sum(out for _, out in linears(target))
    assert attach(new_model(), config_of("dora", targets=target)).trainable == expected + lengths
    # With the projection (16 to 16, of the small model) that gives the embedding.
    report = attach(new_model(), config_of("lora", targets=target, parts="vlc"))
    assert (report.trainable, report.sites["text.projection"]) == (expected + 3 * 32, 1)
    assert attach(new_model(), config_of("ia3")).trainable == 4 * (24 + 24 + 48 + 16 + 16 + 32)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_tensor_and_every_tensor_moves(model: PromptSegmenter, inputs: dict, method: str) -> None:
    from vlsm_adapter.config import TrainConfig

    attach(model, config_of(method, **({"targets": "all", "parts": "vlc"} if method in LOW_RANK else {})))
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(model, TrainConfig(lr=1e-2))
    for _ in range(2):  # the first gradient of A is zero, for B is
        optimizer.zero_grad()
        model(**inputs).square().mean().backward()
        check_gradients(model)
        optimizer.step()
    now = dict(model.named_parameters())
    assert not [name for name, weight in before.items() if torch.equal(now[name], weight)]


def test_scales_are_not_decayed(model: PromptSegmenter) -> None:
    from vlsm_adapter.config import TrainConfig

    attach(model, config_of("ia3"))
    assert [group["weight_decay"] for group in make_optimizer(model, TrainConfig()).param_groups] == [0.0]


@torch.no_grad()
@pytest.mark.parametrize("method", LOW_RANK)
def test_the_same_numbers_as_pefts_own_tuner(new_model: Build, method: str) -> None:
    """PEFT wraps by the end of names, all blocks; ours, the modules that are read: with equal weights, equal logits."""
    arguments = {"pixel_values": torch.randn(2, 3, 32, 32), "input_ids": torch.tensor([[48, 1, 49], [48, 3, 49]])}
    ours, theirs = new_model(), new_model()
    attach(ours, config_of(method, alpha=4.0))
    weights = shake(ours)
    config = peft.LoraConfig(
        r=3, lora_alpha=4, target_modules=["q_proj", "v_proj"], use_rslora=method == "rslora", use_dora=method == "dora"
    )
    peft.inject_adapter_in_model(config, theirs, adapter_name="default")
    named = {
        key.replace(".adapter_part", "").replace("magnitude_vector.weight", "magnitude_vector"): value
        for key, value in weights.items()
    }
    result = peft.set_peft_model_state_dict(theirs, named, adapter_name="default")
    assert not result.unexpected_keys
    assert torch.equal(ours(**arguments), theirs(**arguments))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_round_trip_beside_others_and_under_another_name(
    model: PromptSegmenter, inputs: dict, tmp_path: Path, method: str
) -> None:
    other = copy.deepcopy(model)
    base = model(**inputs)
    attach(model, config_of(method))
    shake(model)
    expected = model(**inputs)
    assert not torch.equal(expected, base)
    save_adapter(model, tmp_path / "a")
    attach(other, FullConfig(), "full")  # a copy of every module that the method stands on
    attach(other, DenseAdapterConfig(3), "dense")
    attach(other, config_of(method), "mine")
    load_adapter(tmp_path / "a", model=other, name="theirs")
    assert torch.equal(other(**inputs), expected)
    use_adapter(other, "mine")
    assert torch.equal(other(**inputs), base)
    use_adapter(other, "full")
    torch.testing.assert_close(other(**inputs), base)
    use_adapter(other, "theirs")
    with without_adapter(other):
        assert torch.equal(other(**inputs), base)
    detach(other, "full")
    assert torch.equal(copy.deepcopy(other)(**inputs), expected)
    for name in ("theirs", "dense", "mine"):
        detach(other, name)
    assert not list(tuner.layers(other))
    assert torch.equal(other(**inputs), base)


def test_dropout_only_drops_in_training(model: PromptSegmenter, inputs: dict) -> None:
    for method in LOW_RANK:
        attach(model, config_of(method, dropout=0.5, targets="all"), method)
        shake(model, method)
        with torch.no_grad():
            expected = model(**inputs)
            assert torch.equal(model(**inputs), expected)
            with training_mode(model):
                assert not torch.equal(model(**inputs), model(**inputs))
            assert torch.equal(model(**inputs), expected)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_base_keeps_its_start_and_float32_weights(new_model: Build, method: str) -> None:
    model = new_model().to(torch.bfloat16)
    images, ids = torch.randn(1, 3, 32, 32), torch.tensor([[48, 1, 49]])
    with torch.no_grad():
        base = model(images.bfloat16(), ids)
    attach(model, config_of(method))
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    assert {tensor.dtype for tensor in weights} == {torch.float32}
    logits = model(images.bfloat16(), ids)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, base)
    logits.float().square().mean().backward()
    assert all(tensor.grad is not None for tensor in weights)


@torch.no_grad()
@pytest.mark.parametrize("method", LOW_RANK)
def test_dropout_is_as_the_model_was_put_after_a_prediction(model: PromptSegmenter, inputs: dict, method: str) -> None:
    attach(model, config_of(method, dropout=0.5))
    shake(model)
    model.train()
    with inferring(model):
        assert torch.equal(model(**inputs), model(**inputs))
    layer = model.get_submodule(Q)
    x = torch.ones(4, 24)

    def drawn() -> torch.Tensor:
        torch.manual_seed(1)
        return layer(x)

    after = drawn()
    model.eval().train()  # whatever the way, train() says what training is
    assert torch.equal(after, drawn())
    model.eval()
    assert not torch.equal(after, drawn())


def test_training_mode_leaves_every_mode_as_it_was(model: PromptSegmenter) -> None:
    attach(model, config_of("dora", dropout=0.5))
    for mode in (True, False):
        model.train(mode)
        with training_mode(model):
            assert model.get_submodule(f"{Q}.adapter_part.default").training
        assert {module.training for module in model.modules()} == {mode}


@pytest.mark.parametrize("later", [False, True], ids=["in the base", "only later"])
def test_a_row_of_zeros_is_none_of_nan(model: PromptSegmenter, later: bool) -> None:
    with torch.no_grad():
        base = model.get_submodule(Q)
        base.weight[2] = 0
    attach(model, config_of("dora"))
    if later:  # a length where there is no direction
        with torch.no_grad():
            model.get_parameter(f"{Q}.adapter_part.default.lora_magnitude_vector.weight").fill_(2.0)
    x = torch.randn(5, 24)
    layer = model.get_submodule(Q)
    layer(x).square().sum().backward()
    assert torch.equal(layer(x)[:, 2], base.bias[2].expand(5))
    gradients = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS)
def test_weights_follow_the_models_device(model: PromptSegmenter, method: str) -> None:
    assert model.base_hash
    attach(model, config_of(method), "one")
    model.to("meta")
    attach(model, config_of(method), "two")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("method", LOW_RANK)
def test_configuration_that_lies_about_its_rank_costs_no_memory(
    model: PromptSegmenter, tmp_path: Path, method: str
) -> None:
    fresh = copy.deepcopy(model)
    attach(model, config_of(method, targets="all"))
    save_adapter(model, tmp_path / "a")
    manifest = tmp_path / "a" / "adapter_config.json"
    text = manifest.read_text()
    assert '"rank": 3' in text
    files.write_text(manifest, text.replace('"rank": 3', '"rank": 65536'))
    with pytest.raises(AdapterError, match=r"has shape \(3, \d+\), the adapter needs \(65536, \d+\)"):
        load_adapter(tmp_path / "a", model=fresh)
    assert attached(fresh) == []
    files.write_text(manifest, text.replace('"targets": "all"', '"targets": "qkv"'))
    with pytest.raises(AdapterError, match="weights do not fit the adapter; missing"):
        load_adapter(tmp_path / "a", model=fresh)


def test_failure_half_way_is_undone(model: PromptSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsm_adapter.adapters import peft_layers

    attach(model, DenseAdapterConfig(3), "dense")
    before = [(name, type(module)) for name, module in model.named_modules()]
    made: list[int] = []

    class Failing(peft_layers.LoraLinear):
        def __init__(self, *arguments: object, **settings: object) -> None:
            made.append(1)
            if len(made) == 5:
                raise MemoryError("no room")
            super().__init__(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(peft_layers, "LoraLinear", Failing)
    with pytest.raises(MemoryError):
        attach(model, config_of("lora"), "lora")
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert (attached(model), active(model)) == (["dense"], "dense")


def test_site_without_a_linear_layer_is_refused(model: PromptSegmenter) -> None:
    model.clipseg.clip.text_projection = torch.nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(AdapterError, match=r"site 'text.projection' of model .* is a Identity; .* needs linear layers"):
        attach(model, config_of("lora", parts="lc"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0), ("rank", 2.0), ("rank", 10**9), ("alpha", 0), ("alpha", -1), ("alpha", "16"), ("alpha", float("inf")),
        ("targets", "q"), ("targets", ["q_proj"]), ("parts", "c"), ("dropout", 1.0), ("dropout", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", LOW_RANK)
def test_values_out_of_range(method: str, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}=") as caught:
        adapter_config(method, **{name: value})
    assert "\n" not in str(caught.value)


def test_registered_with_a_line_that_says_what_they_are() -> None:
    for method in METHODS:
        kind = ADAPTERS.get(method)
        assert (kind.__doc__ or "").partition("\n")[0].endswith(".")
        assert "arXiv" in (kind.__doc__ or "")
    with pytest.raises(ConfigError, match="parts='vlc'"):
        adapter_config("ia3", parts="vlc")
