"""Attention with a gradient that large products do not spoil."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.models import exact_attention, load_model
from vlsm_adapter.models.exact_attention import attend

Tensors = tuple[torch.Tensor, ...]


def drawn(
    scale: float, *, count: int = 3, tokens: int = 37, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensors:
    """Query, key, value and a gradient, (B, heads, T, d); products grow with the square of ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value, gradient = (torch.randn(count, 4, tokens, 16, generator=generator) for _ in range(4))
    return tuple(tensor.to(dtype) for tensor in (query * scale, key * scale, value, gradient))


def gradients(given: Tensors, attention: Any) -> Tensors:
    """Of query, key and value."""
    *inputs, gradient = given
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    attention(*inputs).backward(gradient)
    return tuple(tensor.grad for tensor in inputs)  # type: ignore[misc]


def by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The definition, differentiated by autograd."""
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1) @ value


def error(found: Tensors, expected: Tensors) -> float:
    """Of all three together, relative to their norm: where one place gets all the weight, query and key have none."""
    wrong = [(a.double() - b).flatten() for a, b in zip(found, expected, strict=True)]
    return float(torch.cat(wrong).norm() / torch.cat([b.flatten() for b in expected]).norm())


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0, 30_000.0])
def test_the_gradient_is_that_of_double_precision(scale: float) -> None:
    given = drawn(scale)
    expected = gradients(tuple(tensor.double() for tensor in given), by_products)
    assert error(gradients(given, attend), expected) < 1e-4


def test_the_answer_is_the_fused_one_bit_for_bit() -> None:
    query, key, value, _ = drawn(5.0)
    fused = F.scaled_dot_product_attention(query, key, value)
    assert torch.equal(attend(query, key, value), fused)
    assert torch.equal(attend(query.requires_grad_(), key, value), fused)


def test_parts_of_a_batch_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    given = drawn(2.0, count=5)
    whole = gradients(given, attend)
    monkeypatch.setattr(exact_attention, "_AT_ONCE", 2 * 4 * 4 * 37 * 37)  # two at a time, and one left
    for part, all_at_once in zip(gradients(given, attend), whole, strict=True):
        torch.testing.assert_close(part, all_at_once)


def test_sixteen_bits_come_in_and_go_out() -> None:
    given = drawn(3.0, dtype=torch.bfloat16)
    found = gradients(given, attend)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found)
    assert error(found, gradients(tuple(tensor.double() for tensor in given), by_products)) < 0.01


def test_torch_func_gets_public_operations() -> None:
    query, key, value, gradient = drawn(1.0)
    found = torch.func.grad(lambda q: (attend(q, key, value) * gradient).sum())(query)
    torch.testing.assert_close(found, gradients((query, key, value, gradient), attend)[0])


def saturated_step(dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Gradients of shallow adapters on the embedded model, whose decoder's products are large."""
    model = load_model("tiny")
    attach(model, adapter_config("shallow", variant="published", parts="vlc", bottleneck_dim=16))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    pixels = torch.randn(4, 3, *model.preprocessing.size, generator=generator)
    model = model.to(device=device, dtype=dtype)
    tokens = model.tokenize(["polyp"] * 4)
    logits = model(pixels.to(device, dtype), tokens.input_ids.to(device), tokens.attention_mask.to(device))
    F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def check_step(found: dict[str, torch.Tensor]) -> None:
    expected = saturated_step(torch.float64)
    assert found.keys() == expected.keys()
    total = sum(float(value.norm()) ** 2 for value in expected.values()) ** 0.5
    wrong = sum(float((found[name] - value).norm()) ** 2 for name, value in expected.items()) ** 0.5
    assert wrong < 0.01 * total


def test_a_training_step_of_the_embedded_model() -> None:
    check_step(saturated_step(torch.float32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
def test_a_training_step_on_a_gpu() -> None:
    check_step(saturated_step(torch.float32, "cuda"))


def test_no_prompts() -> None:
    inputs = [torch.zeros(0, 2, 5, 4, requires_grad=True) for _ in range(3)]
    gradients = torch.autograd.grad(attend(*inputs).sum(), inputs)
    assert [gradient.shape for gradient in gradients] == [(0, 2, 5, 4)] * 3
