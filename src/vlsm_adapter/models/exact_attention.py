"""Attention whose gradient is right for large products, too.

Fused kernels keep of the softmax only the logarithm of each row's sum, and find the weights in the backward pass as
``exp(product - logarithm)``. In CLIPSeg's decoder FiLM multiplies states by a prompt's embedding, and products reach millions and
more: the logarithm's last bit is then a half or more, products are rounded otherwise than before, and weights are wrong by
factors. On a CPU the gradient of a training step of ``tiny`` was wrong by a tenth of its norm to more than all of it, on a GPU
by twenty orders of magnitude, while the loss was right (docs/how-it-works.md, benchmarks/attention_gradient.py).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vlsm_adapter.models.transforms import is_transformed

# Bytes of weights that are made at a time on a CPU: they stay in its cache.
_AT_ONCE = 4 << 20


class _Attended(torch.autograd.Function):
    """Fused forward; backward by weights made anew, which sum to one."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        (gradient,) = gradients
        count, heads, rows, _ = query.shape
        step = count
        if query.device.type == "cpu":
            step = max(1, _AT_ONCE // (4 * heads * rows * key.shape[-2]))
        with torch.autocast(query.device.type, enabled=False):
            parts = [
                _gradients(*(tensor[start : start + step] for tensor in (query, key, value, gradient)), scale=ctx.scale)
                for start in range(0, max(1, count), max(1, step))
            ]
        return *(parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))), None


def _gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, *, scale: float | None
) -> tuple[torch.Tensor, ...]:
    """Of query, key and value, all (B, heads, T, d); computed in float32 at least."""
    dtypes = query.dtype, key.dtype, value.dtype
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key, value, gradient = (tensor.to(wide) for tensor in (query, key, value, gradient))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = ((query * scale) @ key.transpose(-2, -1)).softmax(-1)
    for_value = weights.transpose(-2, -1) @ gradient
    # (inner - sum(inner weights)) weights, in one pass.
    inner = torch.ops.aten._softmax_backward_data(gradient @ value.transpose(-2, -1), weights, -1, wide)
    for_query = (inner @ key) * scale
    for_key = inner.transpose(-2, -1) @ (query * scale)
    return tuple(tensor.to(dtype) for tensor, dtype in zip((for_query, for_key, for_value), dtypes, strict=True))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(scale query key^T) value, bit for bit what torch's fused attention gives; see the module's docstring.

    Args:
        query, key, value: (B, heads, T, d).
        scale: by default 1 / sqrt(d).

    Returns:
        (B, heads, T, d).
    """
    if not torch.is_grad_enabled() or is_transformed():
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    attended: torch.Tensor = _Attended.apply(query, key, value, scale)
    return attended


class _InPlaceOfTheFused(TorchFunctionMode):
    """Calls of torch's attention, in this thread and while it is entered, get the gradient of :func:`attend`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attend_if_plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend_if_plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **more: Any,
) -> torch.Tensor:
    """Torch's attention by :func:`attend`, or by itself where it is to mask, drop or share heads."""
    if attn_mask is None and not dropout_p and not is_causal and not any(more.values()):
        return attend(query, key, value, scale)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)


def exact_attention() -> AbstractContextManager[Any]:
    """While it is entered, torch's attention has the gradient of :func:`attend`, for modules of others.

    Nothing of the modules changes, and neither does what they compute. Where no gradient is asked for, or a graph is
    being made, it does nothing.
    """
    return nullcontext() if not torch.is_grad_enabled() or is_transformed() else _InPlaceOfTheFused()
