"""The mathematics of the adapters, free of PEFT: what a bottleneck adds to what passes through it.

Everything returns a *change*, so that ``x + change`` is the adapted value and no change is no adapter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


def bottleneck_change(
    x: torch.Tensor,
    down: nn.Module,
    up: nn.Module,
    *,
    activation: str = "relu",
    activate_output: bool = False,
    scale: float = 1.0,
) -> torch.Tensor:
    """The change of a bottleneck adapter: ``scale * act_out(up(act(down(x))))``.

    Args:
        x: (..., D).
        down, up: linear maps D to the bottleneck and back.
        activation: between the two maps.
        activate_output: apply ReLU after the up-projection, as the published VLSM-Adapter does: the change is
            then never negative.
        scale: a fixed factor.

    Returns:
        (..., D), to be added to ``x``.
    """
    change = up(ACTIVATIONS[activation](down(x)))
    if activate_output:
        change = F.relu(change)
    return change if scale == 1.0 else change * scale


def make_bottleneck(width: int, bottleneck_dim: int, *, zero_start: bool) -> tuple[nn.Linear, nn.Linear]:
    """Down and up projections (D to bottleneck, bottleneck to D), with biases.

    Args:
        width: D.
        bottleneck_dim: features in between.
        zero_start: the up-projection starts at zero, so that the adapted model starts as the base (Houlsby et al.,
            2019, start near the identity; here exactly there). Otherwise both keep torch's default.
    """
    down, up = nn.Linear(width, bottleneck_dim), nn.Linear(bottleneck_dim, width)
    if zero_start:
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
    return down, up
