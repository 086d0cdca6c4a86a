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


def can_be_cut(block: nn.Module) -> bool:
    """Whether :func:`before_output` gives what the block itself would compute: its attention is ours, nobody listens to it,
    and it drops nothing at random."""
    attention = cast("Any", block).self_attn
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    listened = any(getattr(attention, name) for name in hooks)
    return type(attention) is Attention and not listened and not (attention.training and attention.dropout)


def before_output(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What goes into the output projection of the attention of a block that can be cut, (B, T, D), where all see all."""
    parts = cast("Any", block)
    attended: torch.Tensor = parts.self_attn.attended(parts.layer_norm1(x))
    return attended
