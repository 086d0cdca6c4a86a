"""Attention whose gradient is right for large products, too.

Fused kernels keep of the softmax only the logarithm of each row's sum, and find the weights in the backward pass as
``exp(product - logarithm)``. In CLIPSeg's decoder FiLM multiplies states by a prompt's embedding, and products reach millions and
more: the logarithm's last bit is then a half or more, products are rounded otherwise than before, and weights are wrong by
factors. On a CPU the gradient of a training step of ``tiny`` was wrong by a tenth of its norm to more than all of it, on a GPU
by twenty orders of magnitude, while the loss was right (docs/how-it-works.md, benchmarks/attention_gradient.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vlsm_adapter.models.transforms import is_transformed

# Bytes of weights that are made at a time on a CPU: they stay in its cache.
_AT_ONCE = 4 << 20


class _Attended(torch.autograd.Function):
    """Fused forward; backward by weights made anew, which sum to one."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        return F.scaled_dot_product_attention(query, key, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = ctx.saved_tensors
        (gradient,) = gradients
        count, heads, rows, _ = query.shape
        step = count
        if query.device.type == "cpu":
            step = max(1, _AT_ONCE // (4 * heads * rows * key.shape[-2]))
        with torch.autocast(query.device.type, enabled=False):
            parts = [
                _gradients(*(tensor[start : start + step] for tensor in (query, key, value, gradient)))
                for start in range(0, max(1, count), max(1, step))
            ]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def _gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Of query, key and value, all (B, heads, T, d); computed in float32 at least."""
    dtypes = query.dtype, key.dtype, value.dtype
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key, value, gradient = (tensor.to(wide) for tensor in (query, key, value, gradient))
    scale = 1 / math.sqrt(query.shape[-1])
    weights = ((query * scale) @ key.transpose(-2, -1)).softmax(-1)
    for_value = weights.transpose(-2, -1) @ gradient
    # (inner - sum(inner weights)) weights, in one pass.
    inner = torch.ops.aten._softmax_backward_data(gradient @ value.transpose(-2, -1), weights, -1, wide)
    for_query = (inner @ key) * scale
    for_key = inner.transpose(-2, -1) @ (query * scale)
    return tuple(tensor.to(dtype) for tensor, dtype in zip((for_query, for_key, for_value), dtypes, strict=True))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query key^T / sqrt(d)) value, bit for bit what torch's fused attention gives; see the module's docstring.

    Args:
        query, key, value: (B, heads, T, d).

    Returns:
        (B, heads, T, d).
    """
    if not torch.is_grad_enabled() or is_transformed():
        return F.scaled_dot_product_attention(query, key, value)
    attended: torch.Tensor = _Attended.apply(query, key, value)
    return attended
