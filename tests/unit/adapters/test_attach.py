"""Attaching, switching, detaching; names; what is put back when something fails."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from vlsm_adapter.adapters import DenseAdapterConfig, ShallowAdapterConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import active, attach, attached, detach, use_adapter, without_adapter
from vlsm_adapter.adapters.site_layer import SiteLayer
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models.base import PromptSegmenter

DENSE, SHALLOW = DenseAdapterConfig(3, condition_dim=4), ShallowAdapterConfig(3, condition_dim=4)


def shake(model: PromptSegmenter, name: str, seed: int = 0) -> None:
    """Give the adapter weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: torch.randn(tensor.shape, generator=generator) for key, tensor in tuner.state_dict(model, name).items()
    }
    tuner.load_state_dict(model, name, weights, "shake")


def state_of(model: PromptSegmenter) -> tuple:
    """All that a failed operation must leave alone."""
    return (
        {name: (id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()},
        [type(module) for module in model.modules()],
        [list(layer.active_adapters) for layer in tuner.layers(model)],
        attached(model),
        dict(model.adapter_configs),
        model.training,
    )


@torch.no_grad()
def test_several_adapters_take_turns(model: PromptSegmenter, inputs: dict) -> None:
    base = model(**inputs)
    attach(model, DENSE, "dense")
    shake(model, "dense")
    one = model(**inputs)
    attach(model, SHALLOW, "shallow")
    assert torch.equal(model(**inputs), base)  # a residual adapter starts as the base, the other is out of use
    shake(model, "shallow")
    other = model(**inputs)
    assert attached(model) == ["dense", "shallow"]
    assert not torch.equal(one, base)
    assert not torch.equal(other, base)
    for name, expected in (("dense", one), ("shallow", other), ("dense", one)):
        use_adapter(model, name)
        assert active(model) == name
        assert torch.equal(model(**inputs), expected)
        with without_adapter(model):
            assert torch.equal(model(**inputs), base)
    detach(model, "dense")
    assert torch.equal(model(**inputs), other)
    detach(model, "shallow")
    assert torch.equal(model(**inputs), base)
    assert not any(tuner.layers(model))


def test_only_the_adapter_in_use_trains(model: PromptSegmenter) -> None:
    attach(model, DENSE, "one")
    report = attach(model, DENSE, "two")
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trains
    assert all(".two." in name for name in trains)
    use_adapter(model, "one")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    use_adapter(model, "one", trainable=True)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == report.trainable


def test_report_counts_base_and_this_adapter_alone(model: PromptSegmenter) -> None:
    base = sum(parameter.numel() for parameter in model.parameters())
    first = attach(model, DENSE, "one")
    again = attach(model, DENSE, "two")
    assert first.total == again.total == base + first.trainable
    assert again.trainable == first.trainable
    assert first.share == first.trainable / first.total
    assert str(first).startswith(f"dense: {first.trainable:,} of {first.total:,} parameters train")
    assert "8 x" not in str(first)
    assert first.sites == {
        "image.attn_out": 4,
        "image.mlp_out": 4,
        "text.attn_out": 4,
        "text.mlp_out": 4,
        "condition": 1,
    }


def test_detaching_an_adapter_that_is_not_in_use_changes_nothing_else(model: PromptSegmenter) -> None:
    for name in ("a", "b", "c"):
        attach(model, DENSE, name)
    use_adapter(model, "a")
    detach(model, "c")
    assert active(model) == "a"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    detach(model, "a")
    assert active(model) == "b"
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_detaching_all_gives_back_the_modules(model: PromptSegmenter) -> None:
    before = [type(module) for module in model.modules()]
    attach(model, DENSE, "one")
    attach(model, SHALLOW, "two")
    detach(model, "one")
    detach(model, "two")
    assert [type(module) for module in model.modules()] == before
    assert attached(model) == []
    assert model.adapter_configs == {}
    attach(model, DENSE, "one")
    assert active(model) == "one"


@pytest.mark.parametrize("name", ["", "a.b", "-a", "ä", "a b", "a" * 65, "a\n", "../a"])
def test_malformed_names(model: PromptSegmenter, name: str) -> None:
    with pytest.raises(AdapterError, match="letters, digits"):
        attach(model, DENSE, name)


@pytest.mark.parametrize("name", ["0", "layers", "weight", "keys", "training", "adapter_up", "base_layer", "condition"])
def test_names_that_would_mix_up_weights(model: PromptSegmenter, name: str) -> None:
    attach(model, DENSE, "mine")
    before = state_of(model)
    with pytest.raises(AdapterError, match=f"'{name}' is the name of a part of the model"):
        attach(model, DENSE, name)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["fold0", "a", "Default", "up", "down", "adapter", "lora", "a-b_c", "9fold"])
def test_names_that_are_fine(model: PromptSegmenter, name: str) -> None:
    attach(model, DENSE, "mine")
    attach(model, DENSE, name)
    shake(model, "mine", 1)
    shake(model, name, 2)
    mine, other = tuner.state_dict(model, "mine"), tuner.state_dict(model, name)
    assert mine.keys() == other.keys() == tuner.expected_shapes(DENSE.placements(model), model).keys()
    assert not any(torch.equal(mine[key], other[key]) for key in mine)


def test_name_in_use(model: PromptSegmenter) -> None:
    attach(model, DENSE)
    with pytest.raises(AdapterError, match="'default' is attached already"):
        attach(model, SHALLOW)
    assert model.adapter_configs["default"] is DENSE


def test_absent_name_shows_the_nearest(model: PromptSegmenter) -> None:
    with pytest.raises(AdapterError, match="carries no adapter: attach one first"):
        active(model)
    attach(model, DENSE, "polyps")
    for operation in (use_adapter, detach):
        with pytest.raises(AdapterError, match="no adapter 'polyp' is attached: did you mean 'polyps'"):
            operation(model, "polyp")


def test_failure_half_way_is_undone(model: PromptSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    attach(model, SHALLOW, "first")
    model.train()
    before = state_of(model)
    real, calls = SiteLayer.add, iter(range(5))

    def fail_late(self: SiteLayer, *args: object) -> None:
        if next(calls, None) is None:
            raise MemoryError
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SiteLayer, "add", fail_late)
    with pytest.raises(MemoryError):
        attach(model, DENSE, "second")
    assert state_of(model) == before
    monkeypatch.undo()
    attach(model, DENSE, "second")


@pytest.mark.parametrize("first", [False, True], ids=["the first", "beside another"])
def test_an_adapter_attached_inside_the_context_is_used_behind_it(
    model: PromptSegmenter, inputs: dict, first: bool
) -> None:
    base = model(**inputs)
    if first:
        attach(model, DENSE)
        shake(model, "default")
    with without_adapter(model):
        with without_adapter(model):
            attach(model, ShallowAdapterConfig(bottleneck_dim=4), "late")
            shake(model, "late")
            assert torch.equal(model(**inputs), base)
        assert torch.equal(model(**inputs), base)
    assert active(model) == "late"
    assert not torch.equal(model(**inputs), base)
    with without_adapter(model):
        detach(model, "late")
        assert torch.equal(model(**inputs), base)
    assert torch.equal(model(**inputs), base) is not first


def test_base_comes_back_after_an_error_in_the_context(model: PromptSegmenter, inputs: dict) -> None:
    attach(model, DENSE)
    shake(model, "default")
    expected = model(**inputs)
    with pytest.raises(RuntimeError, match="inside"), without_adapter(model), without_adapter(model):
        raise RuntimeError("inside")
    assert torch.equal(model(**inputs), expected)
    assert all(p.requires_grad == (".adapter_" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize("config", [DENSE, SHALLOW], ids=["dense", "shallow"])
def test_adapters_follow_the_models_device(
    new_model: Callable[..., PromptSegmenter], config: DenseAdapterConfig
) -> None:
    model = new_model()
    assert model.base_hash
    model.to("meta")
    attach(model, config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("config", [DENSE, SHALLOW], ids=["dense", "shallow"])
def test_half_precision_base_takes_adapters_in_float32(
    new_model: Callable[..., PromptSegmenter], config: DenseAdapterConfig
) -> None:
    model = new_model().to(torch.bfloat16)
    images, ids = torch.randn(1, 3, 32, 32), torch.tensor([[48, 1, 49]])
    with torch.no_grad():
        base = model(images, ids)
    attach(model, config)
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    assert {tensor.dtype for tensor in weights} == {torch.float32}
    logits = model(images, ids)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, base)
    logits.float().square().mean().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in weights)


@pytest.mark.parametrize(
    "changes", [{}, {"use_complex_transposed_convolution": True, "vision_config": {"patch_size": 16}}]
)
@pytest.mark.parametrize("method", ["decoder_only", "full"])
def test_copies_compute_on_a_half_precision_base(
    new_model: Callable[..., PromptSegmenter], method: str, changes: dict
) -> None:
    model = new_model(**changes).to(torch.bfloat16)
    images, ids = torch.randn(1, 3, 32, 32), torch.tensor([[48, 1, 49]])
    with torch.no_grad():
        base = model(images, ids).float()
    attach(model, adapter_config(method))
    weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
    assert {tensor.dtype for tensor in weights} == {torch.float32}
    logits = model(images, ids)
    assert logits.dtype == torch.bfloat16
    # Each copy computes in float32 where the base rounds.
    assert (logits.float() - base).abs().max() <= 0.05 * base.abs().max()
    logits.float().square().mean().backward()
    used = [tensor.grad for tensor in weights if tensor.grad is not None]
    assert used
    assert all(grad.isfinite().all() for grad in used)


def test_deep_copies_are_independent(model: PromptSegmenter, inputs: dict) -> None:
    attach(model, DENSE)
    shake(model, "default")
    with torch.no_grad():
        expected = model(**inputs)
        other = copy.deepcopy(model)
        assert torch.equal(other(**inputs), expected)
        shake(other, "default", 1)
        assert torch.equal(model(**inputs), expected)
