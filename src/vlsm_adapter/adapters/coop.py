"""CoOp (Zhou et al., IJCV 2022): learned context words in front of the words of a prompt.

The prompt is start, V1 .. VM, words, end. The context is one for all prompts (the paper's unified context): a context
per class needs a closed list of classes, and here any text may be asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, check_positive
from vlsm_adapter.adapters.prompt_tokens import MOST_TOKENS, LearnedTokens, check_context, check_text, first_blocks

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("coop")
@dataclass(frozen=True)
class CoOpConfig(AdapterConfig):
    """Context optimisation: learned words before those of every prompt, text encoder only.

    It does not start as the base model: the prompt is another one from the first step on.

    Attributes:
        tokens: learned words M; the paper uses 16 and 4. They take as many places of the context from the prompts.
        words: text whose word embeddings the first of them start from, as in "a photo of a" with 4 tokens; empty, or
            on a model without a tokenizer, all start normal with standard deviation 0.02.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "coop"

    tokens: int = 16
    words: str = ""

    def __post_init__(self) -> None:
        check_positive("tokens", self.tokens, MOST_TOKENS)
        check_text("words", self.words)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One, before the first text block.

        Raises:
            AdapterError: the model lacks the site, or its context is too short for so many tokens.
        """
        (site,) = first_blocks(model, "text.tokens", 1)
        check_context(model, self.tokens)
        words = model.word_vectors(self.words) if self.words else None
        return [Placement(site, part=partial(LearnedTokens, count=self.tokens, width=site.width, words=words))]
