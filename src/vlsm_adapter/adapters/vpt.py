"""Visual prompt tuning (VPT; Jia et al., ECCV 2022): learned tokens beside those of the image.

VPT-shallow gives tokens to the first block, and their states pass on from block to block. VPT-deep gives each block
tokens of its own, in place of the states of those before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, check_positive
from vlsm_adapter.adapters.prompt_tokens import MOST_TOKENS, LearnedTokens, check_depth, first_blocks

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("vpt")
@dataclass(frozen=True)
class VPTConfig(AdapterConfig):
    """Visual prompt tuning: learned tokens beside the patches, image encoder only.

    It does not start as the base model: the patches attend to the tokens from the first step on. Tokens start uniform
    after Glorot & Bengio with the bound of an (M, D) matrix; the paper's dropout is left out.

    Attributes:
        tokens: learned tokens M per block; the paper searches 1, 5, 10, 50, 100 and 200.
        depth: blocks, from the first, with tokens of their own: 1 is VPT-shallow; null, VPT-deep, is every block that
            the decoder depends on.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "vpt"

    tokens: int = 10
    depth: int | None = None

    def __post_init__(self) -> None:
        check_positive("tokens", self.tokens, MOST_TOKENS)
        check_depth(self.depth)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One per block with tokens of its own.

        Raises:
            AdapterError: the model lacks the site, or has fewer blocks.
        """
        return [
            Placement(site, part=partial(LearnedTokens, count=self.tokens, width=site.width, xavier=True))
            for site in first_blocks(model, "image.tokens", self.depth)
        ]
