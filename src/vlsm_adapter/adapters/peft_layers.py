"""PEFT's layers as parts: the mathematics of LoRA, rsLoRA, DoRA and (IA)3 is PEFT's, where they stand is ours.

PEFT's own tuners choose modules by the end of their names and wrap them for one method. As parts, its layers stand on
exactly the sites chosen, share a module with any other method, and are saved, checked and taken off like all parts.
With :mod:`.tuner`, the only file on PEFT; ``tests/contract/test_peft_hooks.py`` guards what is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import IA3Config, LoraConfig
from peft.tuners.ia3.layer import Linear as IA3Linear
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from vlsm_adapter.adapters.copies import twin
from vlsm_adapter.adapters.parts import Part

_INNER = "weight"  # the name under which the layer knows its only adapter


class PeftPart(Part):
    """A PEFT layer around a linear module.

    The layer itself is no module of the part, for the base module inside it is the model's; what trains in it is.

    Args:
        base: the linear module.
        make: builds the layer around a linear module.
        holders: names of the layer's dictionaries of modules or parameters by adapter name.
    """

    def __init__(self, base: nn.Module, make: Callable[[nn.Module], nn.Module], holders: tuple[str, ...]) -> None:
        super().__init__()
        # In float32, as the weights of all adapters: DoRA's first magnitudes are the norms of the base's weight.
        full = {
            name: value.detach().to(torch.float32)
            for name, value in base.named_parameters(recurse=False)
            if value.is_floating_point()
        }
        layer = make(twin(base, full))
        layer.base_layer = base
        self._layer = (layer,)
        for name in holders:
            holder = getattr(layer, name)
            if isinstance(holder, nn.ParameterDict):
                self.add_module(name, holder)
            elif _INNER in holder:
                self.add_module(name, holder[_INNER])

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the layer gives in place of its base module.

        ``base`` is not called: PEFT's layers call the module they stand around, and DoRA reads its weight. That is
        the same thing as long as this part is the only one in use at its site, as it is with one adapter in use.
        """
        layer = self._layer[0]
        layer.training = self.training  # no module of the model, so nothing else keeps it in step
        output: torch.Tensor = layer(x, *args, **kwargs)
        return output


class _Magnitude(DoraLinearLayer):
    """PEFT's, but a row of zeros, which has no direction, keeps its length of zero instead of becoming NaN."""

    def get_weight_norm(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        norm: torch.Tensor = super().get_weight_norm(*args, **kwargs)
        return torch.where(norm == 0, torch.ones_like(norm), norm)


class LowRankPart(PeftPart):
    """W x + (alpha / rank) B A x, or one of its relatives; B starts at zero, so the model starts as its base.

    Args:
        base: the linear module.
        rank: rows of A, columns of B.
        alpha: factor on the change, see ``rank_stabilised``.
        dropout: share of the values before A that is dropped in training.
        rank_stabilised: the factor is alpha / sqrt(rank) (rsLoRA).
        decomposed: direction and length of the weight's rows are separate, and the length trains too (DoRA).
    """

    def __init__(
        self, base: nn.Module, *, rank: int, alpha: float, dropout: float, rank_stabilised: bool, decomposed: bool
    ) -> None:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            use_rslora=rank_stabilised,
            use_dora=decomposed,
        )

        def make(linear: nn.Module) -> nn.Module:
            layer = LoraLinear(linear, _INNER, config=config, r=rank, lora_alpha=alpha)
            if decomposed:
                magnitude = _Magnitude(fan_in_fan_out=False)
                magnitude.weight = layer.lora_magnitude_vector[_INNER].weight
                layer.lora_magnitude_vector[_INNER] = magnitude
            return layer

        super().__init__(base, make, ("lora_dropout", "lora_A", "lora_B", "lora_magnitude_vector"))


class RescalePart(PeftPart):
    """l * (W x + b), or W (l * x) + b with ``incoming``; l starts at one, so the model starts as its base.

    Args:
        base: the linear module.
        incoming: scale what goes in, not what comes out.
    """

    def __init__(self, base: nn.Module, *, incoming: bool) -> None:
        def make(linear: nn.Module) -> nn.Module:
            layer = IA3Linear(linear, _INNER, config=IA3Config(), is_feedforward=incoming)
            # PEFT's is a matrix with one row or column, which would be decayed as weights are; scales are not.
            layer.ia3_l[_INNER] = nn.Parameter(layer.ia3_l[_INNER].detach().flatten())
            return layer

        super().__init__(base, make, ("ia3_l",))
