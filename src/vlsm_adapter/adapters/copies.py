"""Copies of single tensors of a module: they train in place of the originals, which the base keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn


def twin(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module that computes as ``module`` would with ``tensors``, by name, in place of its own.

    It shares everything else with ``module``, which is not touched: several threads may use both at once.
    """
    other = copy.copy(module)
    parameters: dict[str, torch.Tensor | None] = {**module._parameters, **tensors}
    other._parameters = parameters  # type: ignore[assignment]
    return other


class TensorCopy(nn.Module):
    """Trainable float32 copies of some parameters of a module; they start as the module's own.

    Args:
        module: whose.
        names: which of its direct parameters, e.g. ``("bias",)``.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            own = module.get_parameter(name)
            self.register_parameter(name, nn.Parameter(own.detach().to(torch.float32, copy=True)))

    def within(self, module: nn.Module) -> nn.Module:
        """``module`` as it computes with these tensors, in the type of its own."""
        own = module._parameters
        return twin(module, {name: value.to(own[name].dtype) for name, value in self.named_parameters()})  # type: ignore[union-attr]
