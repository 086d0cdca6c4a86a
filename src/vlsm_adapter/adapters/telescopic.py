"""Telescopic adapters (WACV 2026, arXiv 2512.13855): bottlenecks that widen with the depth of their block.

A(x) = x + c * U drop(silu(norm(D x))) with D and U without biases and one learned scalar c; behind self-attention and
MLP of the image blocks and of the last text blocks, and on the conditional embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from vlsm_adapter.adapters.config import (
    ADAPTERS,
    PARTS,
    VARIANTS,
    AdapterConfig,
    Placement,
    check_choice,
    check_positive,
    check_share,
    need_sites,
    sites_named,
)
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.errors import ConfigError

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter, Site

_LEAST = 8  # features of the narrowest bottleneck
_TEXT_BLOCKS = 3  # adapted, from the last
_SCALE = 0.1  # c at the start


class TelescopicAdapter(Part):
    """y + c * up(dropout(silu(norm(down(y))))) of the output y (..., D) of a module.

    With default initialisation it moves the start a little off the base; with ``zero_start`` it does not.

    Args:
        base: the module.
        width: D.
        bottleneck_dim: features in between.
        dropout: share of them that is dropped in training.
        zero_start: ``up`` starts at zero.
    """

    def __init__(self, base: nn.Module, *, width: int, bottleneck_dim: int, dropout: float, zero_start: bool) -> None:
        super().__init__()
        self.down_project = nn.Linear(width, bottleneck_dim, bias=False)
        self.norm = nn.LayerNorm(bottleneck_dim)
        self.dropout = nn.Dropout(dropout)
        self.up_project = nn.Linear(bottleneck_dim, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(_SCALE))
        if zero_start:
            nn.init.zeros_(self.up_project.weight)

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What ``base`` gives, (..., D), adapted."""
        output = base(x, *args, **kwargs)
        narrow = nn.functional.silu(self.norm(self.down_project(output.to(self.scale.dtype))))
        return output + (self.scale * self.up_project(self.dropout(narrow))).to(output.dtype)


class BoundaryTerm(Part):
    """z * (1 + sigmoid(u(z))) of the logits z (P, H, W), with u two small convolutions: 48 parameters.

    The factor lies between 1 and 2, so no logit changes its sign and no mask changes at the threshold 0.5: the term acts
    on loss, gradients and calibration. It does not start as the base.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 1, 1, bias=False)
        )

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(P, H, W) to the same."""
        logits = base(x, *args, **kwargs)
        raised = self.layers(logits.unsqueeze(1).to(torch.float32)).squeeze(1).sigmoid()
        return logits * (1 + raised).to(logits.dtype)


class Place(NamedTuple):
    """Where an adapter stands, and how wide it is.

    Attributes:
        site: where.
        share: of the requested size.
        least: the narrowest that is asked for.
    """

    site: Site
    share: float
    least: int = _LEAST

    def width(self, size: int) -> int:
        """Features of the bottleneck for the requested ``size``."""
        return max(_LEAST, min(max(self.least, int(size * self.share)), self.site.width // 4))


@ADAPTERS.register("telescopic")
@dataclass(frozen=True)
class TelescopicConfig(AdapterConfig):
    """Telescopic adapters: bottlenecks whose width grows from block to block.

    "Improvise, Adapt, Overcome -- Telescopic Adapters for Efficient Fine-tuning of Vision Language Models in Medical
    Imaging", WACV 2026 (arXiv 2512.13855). With a = ``bottleneck_dim`` and n image blocks adapted, the bottleneck in
    image block i (from 0) is a (i + 1) / 2n wide, a / 4 in the last three text blocks, a / 8 (at least 16) on the
    condition; never more than a quarter of the width it stands on, and never less than 8.

    Attributes:
        bottleneck_dim: a; the paper uses 64.
        parts: ``"v"``, ``"vl"``, ``"vlc"`` (as published), ``"l"`` or ``"lc"``.
        variant: ``"published"`` is the published code exactly: default initialisation, image blocks 0 ..
            max(extract_layers) - 1, boundary term. ``"residual"`` starts as the base model (up-projections zero), covers
            every image block that is read, and has no boundary term.
        boundary: the term on the logits of ``"published"``; null leaves it to the variant, false leaves it out.
        dropout: in training, inside the bottlenecks; as published 0.1.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "telescopic"

    bottleneck_dim: int = 64
    parts: str = "vlc"
    variant: str = "residual"
    boundary: bool | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_positive("bottleneck_dim", self.bottleneck_dim)
        check_choice("parts", self.parts, PARTS)
        check_choice("variant", self.variant, VARIANTS)
        check_share("dropout", self.dropout)
        if not isinstance(self.boundary, bool | None):
            raise ConfigError(f"boundary={self.boundary!r}: must be true, false or null")
        if self.boundary and self.variant != "published":
            raise ConfigError("boundary=True: the term would change the start; it is of variant='published'")

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One adapter per site of the schedule, and the boundary term.

        Raises:
            AdapterError: the model lacks a site.
        """
        chosen = [
            Placement(
                site,
                part=partial(
                    TelescopicAdapter,
                    width=site.width,
                    bottleneck_dim=width,
                    dropout=self.dropout,
                    zero_start=self.variant == "residual",
                ),
            )
            for site, width in self.schedule(model)
        ]
        if self.variant == "published" and self.boundary is not False:
            chosen += [Placement(site, part=BoundaryTerm) for site in sites_named(model, "logits")]
        return chosen

    def schedule(self, model: PromptSegmenter) -> list[tuple[Site, int]]:
        """Each adapter's site and the width of its bottleneck.

        Raises:
            AdapterError: the model lacks a site.
        """
        return [(place.site, place.width(self.bottleneck_dim)) for place in self.places(model)]

    def places(self, model: PromptSegmenter) -> list[Place]:
        """Each adapter's site and its share of ``bottleneck_dim``."""
        found: list[Place] = []
        blocks: list[int] = []
        stages = [stage for letter, stage in (("v", "image"), ("l", "text")) if letter in self.parts]
        names = [f"{stage}.{layer}" for stage in stages for layer in ("attn_out", "mlp_out")]
        need_sites(model, [*names, *(["condition"] if "c" in self.parts else [])], self.parts)
        if "v" in self.parts:
            image = [site for name in ("image.attn_out", "image.mlp_out") for site in sites_named(model, name)]
            blocks = sorted({site.index for site in image})
            if self.variant == "published":
                blocks = blocks[:-1]  # the last block that is read carries none
            depth = {block: (number + 1) / len(blocks) for number, block in enumerate(blocks)}
            found += [Place(site, depth[site.index] * 0.5) for site in image if site.index in depth]
        if "l" in self.parts:
            text = [site for name in ("text.attn_out", "text.mlp_out") for site in sites_named(model, name)]
            count = min(_TEXT_BLOCKS, len(blocks)) if "v" in self.parts else _TEXT_BLOCKS
            last = sorted({site.index for site in text}, reverse=True)[:count]
            found += [Place(site, 1 / 4) for site in text if site.index in last]
        if "c" in self.parts:
            found += [Place(site, 1 / 8, 16) for site in sites_named(model, "condition")]
        return found
