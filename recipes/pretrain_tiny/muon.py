"""Muon: momentum whose matrix is replaced by the nearest orthogonal one, for the weight matrices of the network.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scaling of the step is that of
J. Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982), so that learning rates of AdamW carry over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Coefficients of the quintic iteration (Jordan 2024): singular values end between about 0.7 and 1.2 after five rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Nearest (half-)orthogonal matrices of (N, rows, columns), by Newton-Schulz iterations in single precision."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, for two-dimensional parameters; matrices of one shape are done together."""

    def __init__(
        self, parameters: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(parameter.ndim != 2 for group in self.param_groups for parameter in group["params"]):
            raise ValueError("Muon updates matrices: every parameter must have two dimensions")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                directions = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    average = state["momentum"]
                    average.lerp_(parameter.grad, 1 - momentum)
                    directions.append(torch.lerp(parameter.grad, average, momentum))
                updates = orthogonalise(torch.stack(directions))
                # An update of AdamW has entries of about 0.2; an orthogonal matrix has 1 / sqrt(longer side).
                scale = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - rate * group["weight_decay"])
                    parameter.add_(update, alpha=-rate * scale)


def optimizers_for(model: nn.Module, peak: float, decay: float = 0.02) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices; AdamW, without decay, for embeddings, convolutions, biases, norms and scales.

    A group's ``share`` is its part of the run's learning rate: AdamW bears less than Muon.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embedding" not in name else others).append(parameter)
    muon = Muon([{"params": matrices, "share": 1.0}], lr=peak, weight_decay=decay)
    adam = torch.optim.AdamW(
        [{"params": others, "share": 0.5}], lr=0.5 * peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    return [muon, adam]
