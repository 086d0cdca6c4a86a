"""Exponential moving average of the weights: what a run exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """Running average of all parameters. It forgets over ``horizon`` steps, over fewer at the beginning."""

    def __init__(self, model: nn.Module, horizon: int = 400) -> None:
        self.horizon = horizon
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the parameters after step number ``step`` (from 1)."""
        share = max(1 / self.horizon, 9 / (9 + step))
        current = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [current[name].detach() for name in self.values], share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Have the averages in the model's parameters for a while."""
        with torch.no_grad():
            kept = {name: value.detach().clone() for name, value in model.named_parameters()}
            try:
                for name, value in model.named_parameters():
                    value.copy_(self.values[name])
                yield
            finally:
                for name, value in model.named_parameters():
                    value.copy_(kept[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by parameter name."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take the averages of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(state[name])
