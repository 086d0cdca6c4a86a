"""LoRA and its relatives on the linear layers of the transformer blocks, by PEFT's layers.

LoRA (Hu et al., ICLR 2022): W x + (alpha / r) B A x with A (r, D), B (D', r), B = 0 at the start. rsLoRA divides alpha by
sqrt(r). DoRA gives each row of W + (alpha / r) B A a length that trains apart from its direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import (
    ADAPTERS,
    PARTS,
    AdapterConfig,
    Placement,
    blocks_field,
    check_blocks,
    check_choice,
    check_factor,
    check_positive,
    check_share,
    last_of,
    linear_sites,
    need_sites,
)

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter

TARGETS = {
    "qv": ("query", "value"),
    "qkv": ("query", "key", "value"),
    "qkvo": ("query", "key", "value", "attn_out"),
    "all": ("query", "key", "value", "attn_out", "mlp_in", "mlp_out"),
}
MOST_ALPHA = 65536.0


@dataclass(frozen=True)
class LowRankConfig(AdapterConfig):
    """What LoRA and its relatives share.

    Attributes:
        rank: r.
        alpha: factor on the change, over r or its root.
        targets: which linear layers of each block: ``"qv"``, ``"qkv"``, ``"qkvo"`` or ``"all"`` (attention and MLP).
        parts: ``"v"`` the image encoder, ``"l"`` the text encoder, ``"vl"`` both, ``"c"`` with them the projection that
            gives the conditional embedding.
        dropout: in training, on what goes into A.
        last_blocks: of the blocks it would adapt only so many, the last ones of each encoder; by default all (what comes before
            them is computed once, not in every epoch).

    Raises:
        ConfigError: a value is not allowed.
    """

    rank_stabilised: ClassVar[bool] = False
    decomposed: ClassVar[bool] = False

    rank: int = 8
    alpha: float = 16.0
    targets: str = "qv"
    parts: str = "vl"
    dropout: float = 0.0
    last_blocks: int | None = blocks_field()

    def __post_init__(self) -> None:
        check_positive("rank", self.rank)
        check_factor("alpha", self.alpha, MOST_ALPHA)
        check_choice("targets", self.targets, tuple(TARGETS))
        check_choice("parts", self.parts, PARTS)
        check_share("dropout", self.dropout)
        check_blocks("last_blocks", self.last_blocks)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One per linear layer.

        Raises:
            AdapterError: the model lacks a site, or there is no linear layer on it.
        """
        from vlsm_adapter.adapters.peft_layers import LowRankPart

        names = [
            f"{tower}.{target}"
            for letter, tower in (("v", "image"), ("l", "text"))
            for target in TARGETS[self.targets]
            if letter in self.parts
        ]
        need_sites(model, [*names, *(["text.projection"] if "c" in self.parts else [])], self.parts)
        sites = [site for name in names for site in last_of(linear_sites(model, name), self.last_blocks)]
        if "c" in self.parts:
            sites += linear_sites(model, "text.projection")
        part = partial(
            LowRankPart,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            rank_stabilised=self.rank_stabilised,
            decomposed=self.decomposed,
        )
        return [Placement(site, part=part) for site in sites]


@ADAPTERS.register("lora")
@dataclass(frozen=True)
class LoraConfig(LowRankConfig):
    """LoRA: a change of low rank to linear layers, W x + (alpha / r) B A x.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685).

    Attributes:
        rank: r.
        alpha: the change is scaled by alpha / r.
        targets: which linear layers of each block: ``"qv"``, ``"qkv"``, ``"qkvo"`` or ``"all"`` (attention and MLP).
        parts: ``"v"`` the image encoder, ``"l"`` the text encoder, ``"vl"`` both, ``"c"`` with them the projection that
            gives the conditional embedding.
        dropout: in training, on what goes into A.
        last_blocks: of the blocks it would adapt only so many, the last ones of each encoder; by default all (what comes before
            them is computed once, not in every epoch).

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "lora"


@ADAPTERS.register("rslora")
@dataclass(frozen=True)
class RsLoraConfig(LowRankConfig):
    """Rank-stabilised LoRA: as LoRA, scaled by alpha / sqrt(r), so that high ranks learn too.

    Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023 (arXiv 2312.03732). The settings
    are those of :class:`LoraConfig`.
    """

    method: ClassVar[str] = "rslora"
    rank_stabilised: ClassVar[bool] = True


@ADAPTERS.register("dora")
@dataclass(frozen=True)
class DoraConfig(LowRankConfig):
    """DoRA: LoRA on the direction of a layer's weights, and a length of each row that trains beside it.

    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024 (arXiv 2402.09353): m * V / ||V|| with
    V = W + (alpha / r) B A, the norm taken as a constant in the gradient (section 4.3 of the paper). The settings are those of
    :class:`LoraConfig`.
    """

    method: ClassVar[str] = "dora"
    decomposed: ClassVar[bool] = True
