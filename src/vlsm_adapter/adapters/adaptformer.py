"""AdaptFormer (Chen et al., NeurIPS 2022): a narrow branch beside the MLP of each transformer block.

With x what goes into the MLP (after the norm): MLP(x) + s * (relu(x Wd + bd) Wu + bu), before the residual addition.
Wu, bd and bu start at zero, so the model starts as its base.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from vlsm_adapter.adapters.blocks import bottleneck_change, make_bottleneck
from vlsm_adapter.adapters.config import (
    ADAPTERS,
    AdapterConfig,
    Placement,
    blocks_field,
    check_blocks,
    check_choice,
    check_factor,
    check_positive,
    last_of,
    need_sites,
    sites_named,
)
from vlsm_adapter.adapters.parts import Part

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

_PARTS = ("v", "vl", "l")


class KeptInput(Part):
    """Around the first layer of an MLP: keeps what goes in until the branch takes it, at the last layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self._kept: dict[int, torch.Tensor] = {}  # by thread: several may predict with one model

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., D) to what ``base`` gives."""
        self._kept[threading.get_ident()] = x
        return base(x, *args, **kwargs)

    def take(self) -> torch.Tensor:
        """What went in, (..., D); it is not kept any longer."""
        return self._kept.pop(threading.get_ident())


class ParallelBranch(Part):
    """Around the last layer of an MLP: adds the branch that starts before the first.

    Args:
        base: the last layer.
        beside: module name of the first layer.
        width: D.
        bottleneck_dim: width of the branch.
        scale: s.
    """

    def __init__(self, base: nn.Module, *, beside: str, width: int, bottleneck_dim: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = make_bottleneck(width, bottleneck_dim, zero_start=True)
        nn.init.zeros_(self.down.bias)
        self.scale = scale
        self._beside = beside
        self._source: tuple[KeptInput, ...] = ()

    def link(self, parts: Mapping[str, Part]) -> None:
        """Find the part that keeps the input."""
        source = parts[self._beside]
        assert isinstance(source, KeptInput)
        self._source = (source,)

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The MLP's inner values (..., 4 D) to (..., D)."""
        output = base(x, *args, **kwargs)
        taken = self._source[0].take().to(self.down.weight.dtype)
        return output + bottleneck_change(taken, self.down, self.up, scale=self.scale).to(output.dtype)


@ADAPTERS.register("adaptformer")
@dataclass(frozen=True)
class AdaptFormerConfig(AdapterConfig):
    """AdaptFormer: a bottleneck parallel to the MLP of each block.

    Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022
    (arXiv 2205.13535): MLP(x) + s * up(relu(down(x))).

    Attributes:
        bottleneck_dim: width of the branch; the paper uses 64.
        scale: s; the paper uses 0.1.
        parts: ``"v"`` the image encoder, as in the paper; ``"l"`` the text encoder; ``"vl"`` both.
        last_blocks: of the blocks it would adapt only so many, the last ones of each encoder; by default all (what comes before
            them is computed once, not in every epoch).

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "adaptformer"

    bottleneck_dim: int = 64
    scale: float = 0.1
    parts: str = "vl"
    last_blocks: int | None = blocks_field()

    def __post_init__(self) -> None:
        check_positive("bottleneck_dim", self.bottleneck_dim)
        check_factor("scale", self.scale)
        check_choice("parts", self.parts, _PARTS)
        check_blocks("last_blocks", self.last_blocks)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """Two per block: one keeps the MLP's input, one adds the branch to its output.

        Raises:
            AdapterError: the model lacks a site.
        """
        chosen: list[Placement] = []
        towers = [tower for letter, tower in (("v", "image"), ("l", "text")) if letter in self.parts]
        need_sites(model, [f"{tower}.{end}" for tower in towers for end in ("mlp_in", "mlp_out")], self.parts)
        for tower in towers:
            ends = {site.index: site for site in sites_named(model, f"{tower}.mlp_out")}
            for start in last_of(sites_named(model, f"{tower}.mlp_in"), self.last_blocks):
                branch = partial(
                    ParallelBranch,
                    beside=start.module,
                    width=start.width,
                    bottleneck_dim=self.bottleneck_dim,
                    scale=self.scale,
                )
                chosen += [Placement(start, part=KeptInput), Placement(ends[start.index], part=branch)]
        return chosen
