"""The hooks of PEFT that adapters/peft_host.py stands on, and PEFT's own methods on the same seam.

If PEFT changes any of them, this file says which.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import peft
import pytest
import torch
from packaging.version import Version
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from vlsm_adapter.adapters import DenseAdapterConfig, tuner
from vlsm_adapter.adapters.attach import active, attach, attached, detach, without_adapter
from vlsm_adapter.adapters.peft_host import SiteTuner
from vlsm_adapter.adapters.site_layer import SiteLayer
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models.base import PromptSegmenter

Build = Callable[..., PromptSegmenter]
READ = r"clipseg\.clip\.(text_model\.encoder\.layers\.\d+|vision_model\.encoder\.layers\.[0-3])\.self_attn\.(q_proj|v_proj)"


def arguments() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[48, 5, 7, 49], [48, 9, 49, 49]])
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "input_ids": ids,
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }


def lora(model: PromptSegmenter, name: str = "lora", target: str | list[str] = READ) -> None:
    config = peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False)
    peft.inject_adapter_in_model(config, model, adapter_name=name)


def test_version_is_the_one_pinned() -> None:
    assert Version("0.21") <= Version(peft.__version__) < Version("0.22")


def test_our_kind_stands_in_the_mappings() -> None:
    assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[tuner.KIND] is tuner.SiteConfig
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[tuner.KIND] is SiteTuner
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[tuner.KIND] == "adapter_"
    assert tuner.KIND not in [kind.value for kind in peft.PeftType]
    assert issubclass(SiteLayer, BaseTunerLayer)


@pytest.mark.parametrize(
    "name",
    [
        "_remove_adapter_name_from_key",
        "inject_adapter",
    ],
)
def test_tuner_hooks_are_there(name: str) -> None:
    assert callable(getattr(BaseTuner, name))


def test_our_layer_has_what_pefts_layers_have() -> None:
    """Whatever PEFT may call on a layer of any method, but for what LoRA, quantisation and moving devices need."""
    others = {
        "frozen_peft_weight_names", "quantization_backend", "get_base_weight", "set_base_weight", "_get_embed_scale",
        "merge", "unmerge", "_freeze_non_trainable_peft_weights", "_get_base_layer_device_and_dtype",
        "_move_adapter_to_device_of_base_layer", "_cast_input_dtype", "supports_lora_conversion", "_abc_impl",
    }  # fmt: skip
    layer = SiteLayer(torch.nn.Linear(1, 1))
    missing = {name for name in vars(BaseTunerLayer) if not name.startswith("__") and not hasattr(layer, name)}
    assert missing <= others


@pytest.mark.parametrize(
    "name",
    [
        "set_adapter",
        "delete_adapter",
        "get_base_layer",
        "_all_available_adapter_names",
        "active_adapters",
        "disable_adapters",
    ],
)
def test_layer_hooks_are_there(name: str) -> None:
    assert hasattr(BaseTunerLayer, name)


def test_layer_state_is_where_we_set_it(new_model: Build) -> None:
    model = new_model()
    attach(model, DenseAdapterConfig(3), "mine")
    layer = next(tuner.layers(model))
    layer._disable_adapters = True
    assert layer.disable_adapters
    layer._active_adapter = ["other"]
    assert layer.active_adapters == ["other"]


def test_weights_round_trip_through_pefts_own_functions(new_model: Build) -> None:
    model = new_model()
    attach(model, DenseAdapterConfig(3, variant="published"), "one")
    attach(model, DenseAdapterConfig(3, variant="published"), "two")
    weights = peft.get_peft_model_state_dict(model, adapter_name="one")
    assert (
        weights.keys()
        == tuner.expected_shapes(DenseAdapterConfig(3, variant="published").placements(model), model).keys()
    )
    result = peft.set_peft_model_state_dict(model, {k: v.clone() for k, v in weights.items()}, adapter_name="two")
    assert not result.unexpected_keys
    again = peft.get_peft_model_state_dict(model, adapter_name="two")
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_lora_on_the_staged_forward_gets_gradients(new_model: Build) -> None:
    """Through the stock forward, which runs both encoders without gradients, none of them would."""
    model = new_model()
    lora(model)
    weights = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    assert len(weights) == 2 * 2 * (4 + 4)  # A and B of q and v, in each block of both encoders that is read
    assert all(parameter.requires_grad for parameter in weights.values())
    assert not any(p.requires_grad for name, p in model.named_parameters() if name not in weights)
    model(**arguments()).square().mean().backward()
    for name, parameter in weights.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for parameter in weights.values():
        parameter.grad = None
    stock = model.clipseg(**arguments()).logits  # type: ignore[operator, union-attr]
    assert not stock.requires_grad


def test_lora_by_module_names_reaches_every_attention(new_model: Build) -> None:
    model = new_model()
    lora(model, target=["q_proj", "v_proj"])
    model(**arguments()).square().mean().backward()
    idle = {name for name, p in model.named_parameters() if "lora_" in name and p.grad is None}
    assert idle  # the vision block that nothing reads
    assert all("vision_model.encoder.layers.4." in name for name in idle)


@torch.no_grad()
def test_lora_and_ours_take_turns(new_model: Build) -> None:
    model = new_model()
    base = model(**arguments())
    lora(model)
    with_lora = model(**arguments())
    assert not torch.equal(with_lora, base)
    attach(model, DenseAdapterConfig(3), "dense")
    assert attached(model) == ["lora", "dense"]
    assert torch.equal(model(**arguments()), base)  # ours is in use, and starts as the base
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)
    with without_adapter(model):
        assert torch.equal(model(**arguments()), base)
    tuner.activate(model, "lora")
    assert torch.equal(model(**arguments()), with_lora)
    with without_adapter(model):
        assert torch.equal(model(**arguments()), base)
    detach(model, "lora")
    assert active(model) == "dense"
    assert torch.equal(model(**arguments()), base)
    detach(model, "dense")
    assert not list(tuner.layers(model))


def test_site_that_lora_holds_is_refused_and_nothing_changes(new_model: Build) -> None:
    model = new_model()
    lora(model, target=["out_proj"])
    before = [(name, type(module)) for name, module in model.named_modules()]
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(AdapterError, match="already carries a Linear adapter"):
        attach(model, DenseAdapterConfig(3), "dense")
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trains
    assert attached(model) == ["lora"]
    assert active(model) == "lora"


def test_peft_that_comes_later_finds_our_adapters() -> None:
    """A script that attaches, and imports PEFT afterwards: in a process of its own, for here PEFT is loaded."""
    script = """
import sys
from vlsm_adapter import attach, load_model
from vlsm_adapter.adapters import DenseAdapterConfig
model = load_model("tiny")
attach(model, DenseAdapterConfig(3, parts="v"), "one")
attach(model, DenseAdapterConfig(3, parts="v"), "two")
assert "peft" not in sys.modules
import peft
import peft.functional
peft.functional.set_adapter(model, "one")
from vlsm_adapter.adapters import tuner
assert all(layer.active_adapters == ["one"] for layer in tuner.layers(model))
weights = peft.get_peft_model_state_dict(model, adapter_name="one")
assert len(weights) == 4 * 2 * 10, len(weights)
config = peft.LoraConfig(r=2, target_modules=["q_proj"])
peft.inject_adapter_in_model(config, model, adapter_name="lora")
from vlsm_adapter.adapters.attach import attached, use_adapter
assert attached(model) == ["one", "two", "lora"]
use_adapter(model, "one")
layers = list(tuner.layers(model))
assert len(layers) > 20 and all(layer.active_adapters == ["one"] for layer in layers)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
