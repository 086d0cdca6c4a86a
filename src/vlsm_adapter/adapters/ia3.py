"""(IA)3 (Liu et al., NeurIPS 2022) by PEFT's layers: learned scales on keys, values and the inner values of the MLP.

softmax(q (lk * k)^T) (lv * v) in attention and W2 (lff * act(W1 x)) in the MLP. The scales start at one, so the model
starts as its base.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import (
    ADAPTERS,
    AdapterConfig,
    Placement,
    blocks_field,
    check_blocks,
    check_choice,
    last_of,
    linear_sites,
    need_sites,
)

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

_PARTS = ("v", "vl", "l")


@ADAPTERS.register("ia3")
@dataclass(frozen=True)
class IA3Config(AdapterConfig):
    """(IA)3: scales on keys, values and the inner values of the MLP of each block.

    Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022
    (arXiv 2205.05638).

    Attributes:
        parts: ``"v"`` the image encoder, ``"l"`` the text encoder, ``"vl"`` both.
        last_blocks: of the blocks it would adapt only so many, the last ones of each encoder; by default all (what comes before
            them is computed once, not in every epoch).

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "ia3"

    parts: str = "vl"
    last_blocks: int | None = blocks_field()

    def __post_init__(self) -> None:
        check_choice("parts", self.parts, _PARTS)
        check_blocks("last_blocks", self.last_blocks)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """Three per block.

        Raises:
            AdapterError: the model lacks a site, or there is no linear layer on it.
        """
        from vlsm_adapter.adapters.peft_layers import RescalePart

        towers = [tower for letter, tower in (("v", "image"), ("l", "text")) if letter in self.parts]
        targets = ("key", "value", "mlp_out")
        need_sites(model, [f"{tower}.{target}" for tower in towers for target in targets], self.parts)
        return [
            Placement(site, part=partial(RescalePart, incoming=target == "mlp_out"))
            for tower in towers
            for target in targets
            for site in last_of(linear_sites(model, f"{tower}.{target}"), self.last_blocks)
        ]
