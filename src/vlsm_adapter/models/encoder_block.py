"""A transformer block of CLIP, of our modules or transformers', with less work and memory for what is frozen."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from vlsm_adapter.models.clipseg_parts.network import MLP
from vlsm_adapter.models.fused_mlp import quick_gelu_mlp


def encoder_block(block: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What a block of CLIP computes: x + attention(LN x), then x + MLP(LN x).

    Args:
        block: the layer, ours or transformers' ``CLIPSegEncoderLayer``; its projections may carry adapters.
        x: (B, T, D).
        mask: added to the products, broadcast to (B, heads, T, T); None where all see all.

    Returns:
        (B, T, D).
    """
    parts = cast("Any", block)
    x = x + parts.self_attn(parts.layer_norm1(x), attention_mask=mask)[0]
    inside = parts.layer_norm2(x)
    mlp = parts.mlp
    activation = mlp.activation if isinstance(mlp, MLP) else mlp.config.hidden_act
    if activation == "quick_gelu" and not mlp._forward_hooks:
        return x + quick_gelu_mlp(mlp.fc1, mlp.fc2, inside, mlp.activation_fn)
    return x + mlp(inside)
