"""Two linear maps with a function between them, with less work and memory than module by module.

They are two thirds of the arithmetic of CLIP's blocks and nine tenths of that of CLIPSeg's decoder, whose wide map is 32
times as wide as its states: there, oneDNN's product and ReLU in place take two thirds of the time of the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.models.low_precision import Int8Linear
from vlsm_adapter.models.transforms import is_transformed

_FACTOR = 1.702  # of QuickGELU, OpenAI's approximation of GELU
# oneDNN's product with bias, faster than the usual one (MKL's) where few features become many. Not part of torch's public
# interface. It can apply ReLU as it writes, but makes zeros of NaN then: a run that has diverged would not show it.
_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


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

    As modules, QuickGELU takes three new tensors of four times the width, and training keeps two. Frozen maps, in float32 or
    in 8 bits to train through, are computed together with one new tensor, one kept, and one pass in the backward direction,
    as long as what adapters add comes behind them; anything else runs module by module. Both give the same values bit for
    bit, so an adapter that changes nothing changes nothing.

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


class _ReluMLP(torch.autograd.Function):
    """W2 relu(W1 x + b1) + b2 with gradients for whatever asks for one; the wide tensor is written once and kept."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
    ) -> torch.Tensor:
        wide = _relu_of_product(x, w1, b1)
        ctx.save_for_backward(x, w1, w2, wide)
        return F.linear(wide, w2, b2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, w1, w2, wide = ctx.saved_tensors
        for_x, for_w1, for_b1, for_w2, for_b2 = ctx.needs_input_grad
        d_w2 = gradient.t() @ wide if for_w2 else None
        d_b2 = gradient.sum(0) if for_b2 else None
        if not (for_x or for_w1 or for_b1):
            return None, None, None, d_w2, d_b2
        d_wide = gradient @ w2
        if torch.is_grad_enabled():  # to be differentiated once more
            d_wide = torch.ops.aten.threshold_backward(d_wide, wide, 0)
        else:
            torch.ops.aten.threshold_backward.grad_input(d_wide, wide, 0, grad_input=d_wide)
        d_w1 = d_wide.t() @ x if for_w1 else None
        d_b1 = d_wide.sum(0) if for_b1 else None
        return (d_wide @ w1 if for_x else None), d_w1, d_b1, d_w2, d_b2


def relu_mlp(first: nn.Module, second: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """second(relu(first(x))), frozen or not: what module by module gives, but for the order of some sums.

    Args:
        first, second: linear maps (D to M, M to D), or layers that adapters have put in their place.
        x: (..., D).

    Returns:
        (..., D).
    """
    # A layer that an adapter has wrapped says what computes in its place.
    one, other = (cast("Any", getattr(layer, "in_use", layer)) for layer in (first, second))
    plain = _is_plain_linear(one, x) and _is_plain_linear(other, x) and not (_hooked(first) or _hooked(second))
    if not plain or is_transformed():
        return cast("torch.Tensor", second(F.relu(first(x))))
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        output = cast("torch.Tensor", _ReluMLP.apply(rows, one.weight, one.bias, other.weight, other.bias))
    else:
        output = F.linear(_relu_of_product(rows, one.weight, one.bias), other.weight, other.bias)
    return output.view(*x.shape[:-1], -1)


def _relu_of_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(x W^T + b) of (N, D), in one new tensor."""
    if _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32:
        return cast("torch.Tensor", _ONEDNN(x, weight, bias, "none", [], "")).relu_()
    return F.linear(x, weight, bias).relu_()


def _parted(layer: nn.Module) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
    """A layer as the plain module that computes and what changes its output afterwards.

    An adapter's layer says how (``parted``); one that cannot be parted is given back whole.
    """
    parted = getattr(layer, "parted", None)
    return parted() if callable(parted) else (layer, None)


def _hooked(layer: nn.Module) -> bool:
    """Whether something wants to know when a layer is called, or its gradients pass."""
    own = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(own) or torch.nn.modules.module._has_any_global_hook()


def _is_autocast(x: torch.Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _is_plain_linear(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer is a linear map as it stands and would be computed in float32."""
    return (
        type(layer) is nn.Linear  # a subclass or wrapper may do something else
        and not (_hooked(layer) or _is_autocast(x))
        and layer.bias is not None
        and layer.weight.dtype == x.dtype == torch.float32
    )


def _is_frozen_linear(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer is a linear map as it stands, frozen, and would be computed in float32 or 8 bits."""
    if type(layer) is Int8Linear:
        plain = not (_hooked(layer) or _is_autocast(x))
        return plain and layer.trains and x.dtype == torch.float32
    return _is_plain_linear(layer, x) and not any(tensor.requires_grad for tensor in layer.parameters(recurse=False))
