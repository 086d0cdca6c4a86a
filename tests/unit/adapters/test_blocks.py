"""The mathematics of the bottlenecks, against the formula written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vlsm_adapter.adapters.blocks import ACTIVATIONS, bottleneck_change, make_bottleneck


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_change_is_the_formula(x: torch.Tensor, activation: str) -> None:
    down, up = make_bottleneck(6, 4, zero_start=False)
    inner = getattr(F, activation)(x @ down.weight.T + down.bias)
    expected = 0.5 * (inner @ up.weight.T + up.bias)
    torch.testing.assert_close(bottleneck_change(x, down, up, activation=activation, scale=0.5), expected)


def test_published_change_is_never_negative(x: torch.Tensor) -> None:
    down, up = make_bottleneck(6, 4, zero_start=False)
    change = bottleneck_change(x, down, up, activate_output=True)
    torch.testing.assert_close(change, F.relu(up(F.relu(down(x)))))
    assert change.min() == 0
    assert change.max() > 0


def test_zero_start_changes_nothing_and_can_leave_it(x: torch.Tensor) -> None:
    down, up = make_bottleneck(6, 4, zero_start=True)
    change = bottleneck_change(x, down, up, activation="gelu")
    assert torch.equal(x + change, x)
    (change * torch.randn_like(change)).sum().backward()
    assert up.weight.grad is not None
    assert up.weight.grad.abs().max() > 0  # the up-projection moves first, then the down-projection has a gradient


def test_counts() -> None:
    down, up = make_bottleneck(768, 64, zero_start=True)
    assert sum(tensor.numel() for tensor in (*down.parameters(), *up.parameters())) == 2 * 768 * 64 + 768 + 64
