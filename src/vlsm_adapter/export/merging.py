"""Folding into the base's weights what an adapter only adds to them, so that it costs nothing where the model is put to use.

A trained copy takes the place of what it copies. LoRA, rsLoRA, DoRA and (IA)3 turn a linear layer into another affine map,
whose matrix and bias are read off it. Bottlenecks, branches and learned tokens are no affine maps: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vlsm_adapter.adapters.peft_layers import PeftPart
from vlsm_adapter.adapters.site_layer import SiteLayer
from vlsm_adapter.models.base import PromptSegmenter


def merge(model: PromptSegmenter) -> tuple[int, int]:
    """Fold the adapter in use into the weights, site by site, in place; the model answers as before, but for rounding.

    It carries the adapter no longer where that was folded: save it before.

    Returns:
        How many sites were folded, and how many carry the adapter as before.
    """
    folded = carried = 0
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, SiteLayer):
            continue
        plain = _plain(layer)
        if plain is None:
            carried += 1
            continue
        folded += 1
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)
    return folded, carried


def _plain(layer: SiteLayer) -> nn.Module | None:
    """The module of the base's kind that computes what ``layer`` does, or None where there is none."""
    if layer.in_use is not layer:
        return layer.in_use
    parts, base = layer.parts_in_use(), layer.base_layer
    if len(parts) != 1 or not isinstance(parts[0], PeftPart) or not isinstance(base, nn.Linear):
        return None
    return _linear_of(layer, base)


@torch.no_grad()
def _linear_of(function: Callable[[torch.Tensor], torch.Tensor], like: nn.Linear) -> nn.Linear:
    """The linear layer that computes the affine ``function``: its bias is f(0), row i of its matrix f(e_i) - f(0)."""
    device, dtype = like.weight.device, like.weight.dtype
    bias = function(torch.zeros(1, like.in_features, device=device, dtype=dtype))
    rows = function(torch.eye(like.in_features, device=device, dtype=dtype)) - bias
    linear = nn.Linear(
        like.in_features, like.out_features, bias=like.bias is not None, device=device, dtype=dtype
    ).requires_grad_(False)
    linear.weight.copy_(rows.T)
    if like.bias is not None:
        linear.bias.copy_(bias[0])
    return linear.eval()
