"""A transformer block of CLIP, of our modules or transformers', with less work and memory for what is frozen."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from vlsm_adapter.models.clipseg_parts.network import MLP, Attention
from vlsm_adapter.models.fused_mlp import quick_gelu_mlp


def encoder_block(
    block: nn.Module, x: torch.Tensor, mask: torch.Tensor | None, *, attended: torch.Tensor | None = None
) -> torch.Tensor:
    """What a block of CLIP computes: x + attention(LN x), then x + MLP(LN x).

    Args:
        block: the layer, ours or transformers' ``CLIPSegEncoderLayer``; its projections may carry adapters.
        x: (B, T, D).
        mask: added to the products, broadcast to (B, heads, T, T); None where all see all.
        attended: what :func:`before_output` gave for ``x``, not to compute it again.

    Returns:
        (B, T, D).
    """
    parts = cast("Any", block)
    if attended is None:
        x = x + parts.self_attn(parts.layer_norm1(x), attention_mask=mask)[0]
    else:
        x = x + parts.self_attn.out_proj(attended)
    inside = parts.layer_norm2(x)
    mlp = parts.mlp
    activation = mlp.activation if isinstance(mlp, MLP) else mlp.config.hidden_act
    if activation == "quick_gelu" and not mlp._forward_hooks:
        return x + quick_gelu_mlp(mlp.fc1, mlp.fc2, inside, mlp.activation_fn)
    return x + mlp(inside)


def before_output(block: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """What goes into the output projection of a block's attention, (B, T, D), where all see all.

    None where the attention is not of our modules, someone listens to it, or it drops weights at random.
    """
    parts = cast("Any", block)
    attention = parts.self_attn
    if type(attention) is not Attention or attention._forward_hooks or (attention.training and attention.dropout):
        return None
    return attention.attended(parts.layer_norm1(x))
