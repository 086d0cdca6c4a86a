"""Fused frozen blocks against the modules they stand for: values, gradients, and when they step aside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vlsm_adapter import DenseAdapterConfig, attach
from vlsm_adapter.adapters import adapter_config
from vlsm_adapter.models.clip_blocks import MLP, QuickGELU
from vlsm_adapter.models.clipseg import CLIPSeg
from vlsm_adapter.models.encoder_block import encoder_block
from vlsm_adapter.models.fused_mlp import quick_gelu_mlp, relu_mlp

Build = Callable[..., CLIPSeg]


def maps(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(1)
    first, second = nn.Linear(8, 32, bias=bias), nn.Linear(32, 8, bias=bias)
    for layer in (first, second):
        layer.requires_grad_(False)
        layer.weight.mul_(3)  # far into both tails of the activation
    return first, second


def written_out(first: nn.Module, second: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return second(QuickGELU()(first(x)))


def nodes(tensor: torch.Tensor) -> set[str]:
    """Names of the operations behind a tensor."""
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in found}


@pytest.mark.parametrize("shape", [(5, 8), (2, 7, 8), (1, 1, 8)])
def test_values_and_gradients_are_those_of_the_modules(shape: tuple[int, ...]) -> None:
    first, second = maps()
    x = torch.randn(*shape).mul_(4).requires_grad_()
    ours, expected = quick_gelu_mlp(first, second, x, QuickGELU()), written_out(first, second, x)
    assert "_FrozenMLPBackward" in nodes(ours)
    assert torch.equal(ours, expected)
    upstream = torch.randn(shape)
    (got,) = torch.autograd.grad(ours, x, upstream)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)


def test_the_gradient_is_right_by_finite_differences() -> None:
    first, second = maps()
    x = torch.randn(3, 8).requires_grad_()
    step, upstream = torch.randn(3, 8), torch.randn(3, 8)
    (gradient,) = torch.autograd.grad(quick_gelu_mlp(first, second, x, QuickGELU()), x, upstream)
    with torch.no_grad():
        rise = [(quick_gelu_mlp(first, second, x + h * step, QuickGELU()) * upstream).sum() for h in (1e-2, -1e-2)]
    assert (gradient * step).sum().item() == pytest.approx(((rise[0] - rise[1]) / 2e-2).item(), rel=2e-2, abs=1e-2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_input_stays_as_it_is(context: Callable) -> None:
    first, second = maps()
    x = torch.randn(4, 8)
    before = x.clone()
    with context():
        got = quick_gelu_mlp(first, second, x, QuickGELU())
        assert torch.equal(got, written_out(first, second, x))
    assert torch.equal(x, before)


def test_what_trains_gets_its_gradient() -> None:
    first, second = maps()
    first.weight.requires_grad_()
    x = torch.randn(4, 8)
    quick_gelu_mlp(first, second, x, QuickGELU()).sum().backward()
    assert first.weight.grad is not None


@pytest.mark.parametrize("case", ["hook", "no bias", "autocast", "float64"])
def test_anything_else_runs_module_by_module(case: str) -> None:
    first, second = maps(bias=case != "no bias")
    seen: list[int] = []
    x = torch.randn(4, 8).requires_grad_()
    if case == "hook":
        first.register_forward_hook(lambda *_: seen.append(1))
    if case == "float64":
        first, second, x = first.double(), second.double(), x.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        got = quick_gelu_mlp(first, second, x, QuickGELU())
        expected = written_out(first, second, x)
    assert "_FrozenMLPBackward" not in nodes(got)
    assert torch.equal(got, expected)
    assert bool(seen) == (case == "hook")


def test_the_blocks_of_cris_and_san_use_it() -> None:
    torch.manual_seed(0)
    mlp = MLP(8).requires_grad_(False)
    x = torch.randn(2, 3, 8).requires_grad_()
    assert "_FrozenMLPBackward" in nodes(mlp(x))
    torch.testing.assert_close(mlp(x), written_out(mlp.c_fc, mlp.c_proj, x))


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_a_block_is_the_stock_block(new_model: Build, hidden_act: str) -> None:
    model = new_model(vision_config={"hidden_act": hidden_act})
    block = model.clipseg.clip.vision_model.encoder.layers[0]
    x = torch.randn(2, 5, 24).requires_grad_()
    ours, expected = encoder_block(block, x, None), block(x, attention_mask=None)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert ("_FrozenMLPBackward" in nodes(ours)) == (hidden_act == "quick_gelu")


@pytest.mark.parametrize("method", ["dense", "lora", "full", "adaptformer"])
def test_adapters_train_the_same_with_fused_blocks(
    new_model: Build, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of a method with fused blocks and without: the same loss and gradients to rounding."""
    results = []
    for fused in (True, False):
        model = new_model()
        torch.manual_seed(3)
        attach(model, adapter_config(method))
        if not fused:
            monkeypatch.setattr("vlsm_adapter.models.fused_mlp._is_frozen_linear", lambda *_: False)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        ids = torch.tensor([[48, 5, 7, 49], [48, 9, 3, 49]])
        loss = model(images, ids).sigmoid().mean()
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        results.append((loss.item(), gradients))
    (loss, gradients), (expected, others) = results
    assert loss == pytest.approx(expected, abs=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, others[name], atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_computing_inside_again_gives_the_same_gradients(new_model: Build) -> None:
    results = []
    for again in (False, True):
        model = new_model()
        torch.manual_seed(3)
        attach(model, DenseAdapterConfig(bottleneck_dim=4))
        model.checkpointing = again
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        model(images, torch.tensor([[48, 5, 7, 49], [48, 9, 3, 49]])).sigmoid().mean().backward()
        results.append([value.grad for value in model.parameters() if value.grad is not None])
    assert len(results[0]) == len(results[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def relu_written_out(first: nn.Module, second: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return second(torch.relu(first(x)))


@pytest.mark.parametrize("trains", ["x", "first", "second", "all", "biases"])
@pytest.mark.parametrize("shape", [(5, 8), (2, 7, 8), (3, 97, 8)])
def test_relu_between_maps_has_the_values_and_gradients_of_the_modules(trains: str, shape: tuple[int, ...]) -> None:
    first, second = maps()
    x = torch.randn(*shape)
    asked = {
        "x": [x],
        "first": [first.weight, first.bias],
        "second": [second.weight, second.bias],
        "all": [x, *first.parameters(), *second.parameters()],
        "biases": [first.bias, second.bias],
    }[trains]
    for tensor in asked:
        tensor.requires_grad_()
    ours, expected = relu_mlp(first, second, x), relu_written_out(first, second, x)
    assert "_ReluMLPBackward" in nodes(ours)
    assert torch.equal(ours, expected)
    upstream = torch.randn(shape)
    got = torch.autograd.grad(ours, asked, upstream)
    wanted = torch.autograd.grad(expected, asked, upstream)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_relu_gradients_by_finite_differences() -> None:
    first, second = (layer.double().requires_grad_() for layer in maps())
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    from vlsm_adapter.models.fused_mlp import _ReluMLP

    torch.autograd.gradcheck(_ReluMLP.apply, (x, first.weight, first.bias, second.weight, second.bias))


@pytest.mark.parametrize("case", ["no gradient", "hook", "no bias", "autocast", "float64", "traced", "no oneDNN"])
def test_relu_between_maps_steps_aside(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = maps(bias=case != "no bias")
    seen: list[int] = []
    x = torch.randn(4, 8).requires_grad_(case != "no gradient")
    if case == "hook":
        first.register_forward_hook(lambda *_: seen.append(1))
    if case == "float64":
        first, second, x = first.double(), second.double(), x.detach().double().requires_grad_()
    if case == "traced":
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    if case == "no oneDNN":
        monkeypatch.setattr("vlsm_adapter.models.fused_mlp._ONEDNN", None)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        got, expected = relu_mlp(first, second, x), relu_written_out(first, second, x)
    assert torch.equal(got, expected)
    assert ("_ReluMLPBackward" in nodes(got)) == (case == "no oneDNN")
    assert bool(seen) == (case == "hook")
    with torch.inference_mode():
        assert torch.equal(relu_mlp(first, second, x.detach()), relu_written_out(first, second, x.detach())) or seen


def test_numbers_that_are_not_stay_so() -> None:
    first, second = maps()
    first.bias.fill_(torch.nan)
    for x in (torch.randn(5, 8), torch.randn(5, 8).requires_grad_()):
        assert relu_mlp(first, second, x).isnan().all()


def test_what_transforms_or_counts_operations_sees_public_ones() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    first, second = maps()
    x = torch.randn(4, 8)

    def total(x: torch.Tensor) -> torch.Tensor:
        return relu_mlp(first, second, x).square().sum()

    wanted = torch.autograd.grad(relu_written_out(first, second, x.requires_grad_()).square().sum(), x)[0]
    torch.testing.assert_close(torch.func.grad(total)(x.detach()), wanted)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(x.detach()), wanted)
    _, tangent = torch.func.jvp(total, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, wanted.sum())
    with FlopCounterMode(display=False) as counter:
        total(x.detach())
    assert counter.get_total_flops() == 2 * 2 * 4 * 8 * 32


def test_relu_between_maps_can_be_differentiated_twice() -> None:
    first, second = (layer.requires_grad_() for layer in maps())
    x = torch.randn(4, 8, requires_grad=True)
    found = []
    for way in (relu_mlp, relu_written_out):
        (gradient,) = torch.autograd.grad(way(first, second, x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), first.weight)[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-4)


def test_hooks_of_gradients_and_of_all_modules_are_called() -> None:
    first, second = maps()
    seen: list[str] = []
    x = torch.randn(4, 8, requires_grad=True)
    first.register_full_backward_hook(lambda *_: seen.append("backward"))
    relu_mlp(first, second, x).sum().backward()
    assert seen == ["backward"]
    first, second = maps()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append("any"))
    try:
        relu_mlp(first, second, x)
    finally:
        handle.remove()
    assert seen.count("any") == 2
