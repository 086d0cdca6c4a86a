"""A transformer block of CLIP, with less work and memory for what is frozen.

Two thirds of a block's arithmetic is its two wide linear maps with QuickGELU between them. Written as modules, QuickGELU
takes three new tensors of four times the width, and training keeps two. Where both maps are frozen they are computed
together: one new tensor, one kept, the same values bit for bit, and one pass in the backward direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from vlsm_adapter.models.clipseg_parts.network import MLP
from vlsm_adapter.models.low_precision import Int8Linear

_FACTOR = 1.702  # of QuickGELU, OpenAI's approximation of GELU


class _FrozenMLP(torch.autograd.Function):
    """second(QuickGELU(first(x))) of frozen linear maps: a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, first: nn.Module, second: nn.Module) -> torch.Tensor:
        inner = _product(first, x)
        ctx.save_for_backward(inner)
        ctx.maps = first, second
        return _product(second, _quick_gelu(inner))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inner,) = ctx.saved_tensors
        first, second = ctx.maps
        gradient = _transposed(second, gradients[0])
        # x sigmoid(a x) is silu(a x) / a; the factor and its inverse cancel in the derivative.
        torch.ops.aten.silu_backward.grad_input(gradient, inner * _FACTOR, grad_input=gradient)
        return _transposed(first, gradient, in_place=True), None, None


def _product(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer.product(x) if isinstance(layer, Int8Linear) else cast("torch.Tensor", layer(x))


def _transposed(layer: nn.Module, gradient: torch.Tensor, *, in_place: bool = False) -> torch.Tensor:
    """The gradient with respect to the input of a frozen map; ``gradient`` may be overwritten if ``in_place``."""
    if isinstance(layer, Int8Linear):
        return layer.transposed(gradient, in_place=in_place)
    return gradient @ cast("torch.Tensor", layer.weight)


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(1.702 x), in one new tensor."""
    return (x * _FACTOR).sigmoid_().mul_(x)


def quick_gelu_mlp(
    first: nn.Module, second: nn.Module, x: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """second(QuickGELU(first(x))).

    Frozen maps, in float32 or in 8 bits to train through, are computed together, as long as what adapters add comes behind
    them; anything else runs module by module. Both give the same values bit for bit, so an adapter that changes nothing changes nothing.

    Args:
        first, second: linear maps (D to M, M to D), or layers that adapters have put in their place.
        x: (..., D).
        activation: QuickGELU, for the way module by module.

    Returns:
        (..., D).
    """
    outer, change = _parted(second)
    if _is_frozen_linear(first, x) and _is_frozen_linear(outer, x):
        if torch.is_grad_enabled() and x.requires_grad:
            output = _FrozenMLP.apply(x.reshape(-1, x.shape[-1]), first, outer).view(*x.shape[:-1], -1)
        else:
            output = _product(outer, _quick_gelu(_product(first, x)))
        return output if change is None else change(output)
    inner = first(x)
    return cast("torch.Tensor", second(activation(inner) if torch.is_grad_enabled() else _quick_gelu(inner)))


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


def _parted(layer: nn.Module) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
    """A layer as the plain module that computes and what changes its output afterwards.

    An adapter's layer says how (``parted``); one that cannot be parted is given back whole.
    """
    parted = getattr(layer, "parted", None)
    return parted() if callable(parted) else (layer, None)


def _is_frozen_linear(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer is a linear map as it stands, frozen, and would be computed in float32 or 8 bits."""
    if layer._forward_hooks or layer._forward_pre_hooks or torch.is_autocast_enabled(x.device.type):
        return False
    if type(layer) is Int8Linear:
        return layer.trains and x.dtype == torch.float32
    return (
        type(layer) is nn.Linear  # a subclass or wrapper may do something else
        and layer.bias is not None
        and not layer.weight.requires_grad
        and not layer.bias.requires_grad
        and layer.weight.dtype == x.dtype == torch.float32
    )
