"""MaPLe (Khattak et al., CVPR 2023): learned tokens in both encoders, those of the image made from those of the text.

Each of the first J text blocks has M learned tokens of its own, before the first of them as context words; the tokens
of image block i are F_i(those of text block i), with one learned linear map F_i per block. After block J the states of
the tokens pass on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, check_positive, need_sites
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.adapters.prompt_tokens import (
    MOST_TOKENS,
    LearnedTokens,
    check_context,
    check_depth,
    check_text,
    first_blocks,
)

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter, Site

_DEPTH = 9  # of the paper


class CoupledTokens(Part):
    """Tokens of an image block, a linear function F of the learned tokens of a text block.

    Args:
        base: the module of the site.
        source: module name of the site of the text tokens; they are stored there, F here.
        text_width, width: D of text and image.
    """

    def __init__(self, base: nn.Module, *, source: str, text_width: int, width: int) -> None:
        super().__init__()
        self.coupling = nn.Linear(text_width, width)
        self._name = source
        self._source: tuple[LearnedTokens, ...] = ()

    def link(self, parts: Mapping[str, Part]) -> None:
        """Find the text tokens."""
        source = parts[self._name]
        assert isinstance(source, LearnedTokens)
        self._source = (source,)

    @property
    def tokens_given(self) -> int:
        """M."""
        return self._source[0].tokens_given

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, m, D), the tokens so far, to (B, M, D)."""
        return self.coupling(self._source[0].tokens).to(x.dtype).expand(x.shape[0], -1, -1)


@ADAPTERS.register("maple")
@dataclass(frozen=True)
class MaPLeConfig(AdapterConfig):
    """Multi-modal prompt learning: learned words, and image tokens made from them, to a depth in both encoders.

    It does not start as the base model: prompt and patches have company from the first step on.

    Attributes:
        tokens: learned tokens M per block and encoder; the paper uses 2.
        depth: blocks J, from the first, with tokens of their own; null is the paper's 9, or all blocks that the
            decoder depends on in both encoders where there are fewer.
        words: text whose word embeddings the first text block's tokens start from, as many as there are tokens; the
            others, and all on a model without a tokenizer, start normal with standard deviation 0.02.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "maple"

    tokens: int = 2
    depth: int | None = None
    words: str = "a photo of a"

    def __post_init__(self) -> None:
        check_positive("tokens", self.tokens, MOST_TOKENS)
        check_depth(self.depth)
        check_text("words", self.words)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """Two per block: the text tokens, and the map that makes the image tokens from them.

        Raises:
            AdapterError: the model lacks a site, has fewer blocks, or too short a context for so many tokens.
        """
        need_sites(model, ["text.tokens", "image.tokens"])
        text, image = (first_blocks(model, f"{tower}.tokens", self.depth) for tower in ("text", "image"))
        check_context(model, self.tokens)
        if self.depth is None:
            depth = min(_DEPTH, len(text), len(image))
            text, image = text[:depth], image[:depth]
        words = model.word_vectors(self.words) if self.words else None
        return [
            *(self._learned(site, words if number == 0 else None) for number, site in enumerate(text)),
            *(self._coupled(site, source) for site, source in zip(image, text, strict=True)),
        ]

    def _learned(self, site: Site, words: torch.Tensor | None) -> Placement:
        return Placement(site, part=partial(LearnedTokens, count=self.tokens, width=site.width, words=words))

    def _coupled(self, site: Site, source: Site) -> Placement:
        part = partial(CoupledTokens, source=source.module, text_width=source.width, width=site.width)
        return Placement(site, part=part)
