"""Folding: the model answers as before, and nothing of a foldable adapter is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vlsm_adapter.adapters import ADAPTERS, adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.adapters.site_layer import SiteLayer
from vlsm_adapter.export.merging import merge
from vlsm_adapter.models.base import PromptSegmenter

SETTINGS = {"coop": {"tokens": 3}, "vpt": {"tokens": 2}, "maple": {"depth": 2}}
FOLDED = {"lora", "rslora", "dora", "ia3", "bitfit", "layernorm", "full", "decoder_only"}
METHODS = [name for name in ADAPTERS if ADAPTERS.get(name).trains]


@pytest.mark.parametrize("method", METHODS)
def test_merged_model_answers_as_before(model: PromptSegmenter, inputs: dict[str, torch.Tensor], method: str) -> None:
    torch.manual_seed(0)
    attach(model, adapter_config(method, **SETTINGS.get(method, {})))
    with torch.no_grad():
        base = model(**inputs)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.freeze()
        before = model(**inputs)
        folded, carried = merge(model)
        after = model(**inputs)
    assert not torch.equal(base, before)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    left = sum(isinstance(module, SiteLayer) for module in model.modules())
    assert left == carried
    assert (carried == 0 and folded > 0) == (method in FOLDED)


def test_low_rank_layers_become_plain_ones(new_model: Callable[..., PromptSegmenter]) -> None:
    model = new_model()
    attach(model, adapter_config("dora", targets="all", parts="vlc"))
    names = {name for name, _ in new_model().named_parameters()}
    merge(model)
    assert {name for name, _ in model.named_parameters()} == names
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "q_proj" in name)


def test_a_model_without_adapter_stays(model: PromptSegmenter) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert merge(model) == (0, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
