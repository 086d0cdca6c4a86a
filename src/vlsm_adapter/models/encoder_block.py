"""A transformer block of CLIP on transformers' modules, with less work and memory for what is frozen.

Two thirds of a block's arithmetic is its two wide linear maps with QuickGELU between them. Written as modules, QuickGELU
takes three new tensors of four times the width, and training keeps two. Where both maps are frozen they are computed
together: one new tensor, one kept, the same values bit for bit, and one pass in the backward direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

_FACTOR = 1.702  # of QuickGELU, OpenAI's approximation of GELU


class _FrozenMLP(torch.autograd.Function):
    """second(QuickGELU(first(x))) of frozen linear maps: a gradient for x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        first_weight: torch.Tensor,
        first_bias: torch.Tensor,
        second_weight: torch.Tensor,
        second_bias: torch.Tensor,
    ) -> torch.Tensor:
        inner = F.linear(x, first_weight, first_bias)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(inner, first_weight, second_weight)
        return F.linear(_quick_gelu(inner), second_weight, second_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inner, first_weight, second_weight = ctx.saved_tensors
        gradient = gradients[0] @ second_weight
        # x sigmoid(a x) is silu(a x) / a; the factor and its inverse cancel in the derivative.
        torch.ops.aten.silu_backward.grad_input(gradient, inner * _FACTOR, grad_input=gradient)
        return gradient @ first_weight, None, None, None, None


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(1.702 x), in one new tensor."""
    return (x * _FACTOR).sigmoid_().mul_(x)


def quick_gelu_mlp(
    first: nn.Module, second: nn.Module, x: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """second(QuickGELU(first(x))).

    Frozen float32 maps are computed together, as long as what adapters add comes behind them; anything else runs module
    by module. Both give the same values bit for bit, so an adapter that changes nothing changes nothing.

    Args:
        first, second: linear maps (D to M, M to D), or layers that adapters have put in their place.
        x: (..., D).
        activation: QuickGELU, for the way module by module.

    Returns:
        (..., D).
    """
    outer, change = _parted(second)
    if _is_frozen_linear(first, x) and _is_frozen_linear(outer, x):
        tensors = (first.weight, first.bias, outer.weight, outer.bias)
        output = _FrozenMLP.apply(x.reshape(-1, x.shape[-1]), *tensors)
        output = output.view(*x.shape[:-1], -1)
        return output if change is None else change(output)
    inner = first(x)
    return cast("torch.Tensor", second(activation(inner) if torch.is_grad_enabled() else _quick_gelu(inner)))


def encoder_block(block: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What transformers' ``CLIPSegEncoderLayer`` computes.

    Args:
        block: the layer; its projections may carry adapters.
        x: (B, T, D).
        mask: added to the products, broadcast to (B, heads, T, T); None where all see all.

    Returns:
        (B, T, D).
    """
    parts = cast("Any", block)
    x = x + parts.self_attn(parts.layer_norm1(x), attention_mask=mask)[0]
    inside = parts.layer_norm2(x)
    if parts.mlp.config.hidden_act == "quick_gelu" and not parts.mlp._forward_hooks:
        return x + quick_gelu_mlp(parts.mlp.fc1, parts.mlp.fc2, inside, parts.mlp.activation_fn)
    return x + parts.mlp(inside)


def _parted(layer: nn.Module) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
    """A layer as the plain module that computes and what changes its output afterwards.

    An adapter's layer says how (``parted``); one that cannot be parted is given back whole.
    """
    parted = getattr(layer, "parted", None)
    return parted() if callable(parted) else (layer, None)


def _is_frozen_linear(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer is a linear map as it stands, frozen, in float32, and would be computed so."""
    return (
        type(layer) is nn.Linear  # a subclass or wrapper may do something else
        and layer.bias is not None
        and not layer.weight.requires_grad
        and not layer.bias.requires_grad
        and layer.weight.dtype == x.dtype == torch.float32
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not torch.is_autocast_enabled(x.device.type)
    )
