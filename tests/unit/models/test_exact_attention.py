"""Attention with a gradient that large products do not spoil."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.adapters.attach import attach, detach, without_adapter
from vlsm_adapter.models import base_folder, exact_attention, load_model
from vlsm_adapter.models.clipseg import CLIPSeg
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


def saturated_step(dtype: torch.dtype, device: str = "cpu", model: Any = None) -> dict[str, torch.Tensor]:
    """Gradients of shallow adapters on the embedded model, whose decoder's products are large."""
    model = model or load_model("tiny")
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


@functools.cache
def expected_step() -> dict[str, torch.Tensor]:
    return saturated_step(torch.float64)


def check_step(found: dict[str, torch.Tensor]) -> None:
    expected = expected_step()
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


# -- transformers' own modules ---------------------------------------------------------------------------------------------


def stock_model(implementation: str = "sdpa") -> Any:
    """The embedded model's weights in transformers' modules."""
    from transformers import CLIPSegForImageSegmentation

    folder = base_folder("tiny")
    return CLIPSegForImageSegmentation.from_pretrained(folder, attn_implementation=implementation).eval()


def wrap(stock: Any) -> CLIPSeg:
    ours = load_model("tiny")
    return CLIPSeg(stock, preprocessing=ours.preprocessing, tokenizer=ours.tokenizer)


def asked(model: Any) -> torch.Tensor:
    """Logits (2, H, W) of a stock model's own ``forward``, or of ours."""
    ours = load_model("tiny")
    tokens = ours.tokenize(["polyp", "instrument"])
    pixels = torch.randn(2, 3, *ours.preprocessing.size, generator=torch.Generator().manual_seed(0))
    given = {"pixel_values": pixels, "input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    with torch.no_grad():
        found = model(**given)
    return found[:, 0] if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_training_step_of_the_stock_modules(implementation: str) -> None:
    check_step(saturated_step(torch.float32, model=wrap(stock_model(implementation))))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_a_training_step_of_stock_modules_that_checkpoint() -> None:
    stock = stock_model()
    stock.gradient_checkpointing_enable({"use_reentrant": False})
    model = wrap(stock)
    stock.train()
    check_step(saturated_step(torch.float32, model=model))


def test_stock_modules_stay_as_they_are() -> None:
    """Wrapped twice, trained and pickled: not ours to change."""
    stock, untouched = stock_model(), stock_model()
    before = asked(stock)
    kept = [(name, id(module), type(module), {**vars(module)}.keys()) for name, module in stock.named_modules()]
    model = wrap(stock)
    again = wrap(stock)
    assert torch.equal(asked(model), asked(again))
    check_step(saturated_step(torch.float32, model=model))
    with without_adapter(model):
        assert torch.equal(asked(model), asked(again))
    detach(model, "default")
    assert kept == [(name, id(module), type(module), {**vars(module)}.keys()) for name, module in stock.named_modules()]
    assert stock.state_dict().keys() == untouched.state_dict().keys()
    assert stock.config.to_dict() == untouched.config.to_dict()
    assert torch.equal(asked(stock), before)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_wrapped_stock_modules_trains_as_they_do(twin: Callable[[Any], Any]) -> None:
    model = twin(wrap(stock_model()))
    assert torch.equal(asked(twin(model.clipseg)), asked(model.clipseg))
    check_step(saturated_step(torch.float32, model=model))


def test_hooks_on_the_stock_block_are_called() -> None:
    model, seen = wrap(stock_model()), []
    layer = model.clipseg.decoder.layers[model.clipseg.config.conditional_layer]
    layer.register_forward_hook(lambda *given: seen.append("block"))
    layer.self_attn.register_forward_hook(lambda *given: seen.append("attention"))
    saturated_step(torch.float32, model=model)
    assert seen == ["attention", "block"]


def test_while_entered_torchs_attention_gives_the_same_bits_and_a_right_gradient() -> None:
    given = drawn(3000.0)

    def fused(*inputs: torch.Tensor) -> torch.Tensor:
        with exact_attention.exact_attention():
            found = F.scaled_dot_product_attention(*inputs, scale=0.3)
        assert torch.equal(found, F.scaled_dot_product_attention(*inputs, scale=0.3))
        return found

    def expected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return (query @ key.transpose(-2, -1) * 0.3).softmax(-1) @ value

    assert error(gradients(given, fused), gradients(tuple(t.double() for t in given), expected)) < 1e-4


def test_masks_causes_and_other_threads_are_left_to_torch() -> None:
    query, key, value, _ = drawn(1.0)
    query.requires_grad_()
    names: list[str] = []

    def told(*more: Any, **options: Any) -> str:
        return type(F.scaled_dot_product_attention(query, key, value, *more, **options).grad_fn).__name__

    plain = told()
    with exact_attention.exact_attention():
        assert told() == told(None, 0.0, False) == "_AttendedBackward"
        assert told(torch.zeros(37, 37)) != "_AttendedBackward"
        assert told(is_causal=True) == plain
        assert told(dropout_p=0.5) != "_AttendedBackward"
        thread = threading.Thread(target=lambda: names.append(told()))
        thread.start()
        thread.join()
        with torch.no_grad():
            assert not F.scaled_dot_product_attention(query, key, value).requires_grad
    assert names == [plain]
