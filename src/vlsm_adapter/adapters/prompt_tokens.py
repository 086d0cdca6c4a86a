"""What the prompt-tuning methods share: learned tokens at a block, their start, and the room there is for them.

:mod:`vlsm_adapter.models.prompt_tokens` says where a model takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlsm_adapter.adapters.config import sites_named
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter, Site

MOST_TOKENS = 1024
_STD = 0.02  # of CoOp and MaPLe, for tokens that do not start from words
_SHORTEST = 3  # tokens of a prompt of one word: start, word, end


class LearnedTokens(Part):
    """M tokens that go into a block in place of those that came out of the block before, if any.

    Tokens that stand beside the others draw attention, so a model does not start as its base.

    Args:
        base: the module of the site.
        count: M.
        width: D.
        words: embeddings (n, D) that the first tokens start from; the others are normal with standard deviation 0.02.
        xavier: all start uniform after Glorot & Bengio (2010) instead.
    """

    def __init__(
        self, base: nn.Module, *, count: int, width: int, words: torch.Tensor | None = None, xavier: bool = False
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width))
        if xavier:
            nn.init.xavier_uniform_(self.tokens)
        else:
            nn.init.normal_(self.tokens, std=_STD)
        if words is not None:
            with torch.no_grad():
                self.tokens[: len(words)].copy_(words[:count])

    @property
    def tokens_given(self) -> int:
        """M."""
        return self.tokens.shape[0]

    def forward(self, base: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(N, m, D), the tokens so far, to (N, M, D)."""
        return self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)


def first_blocks(model: PromptSegmenter, name: str, depth: int | None) -> list[Site]:
    """The sites called ``name`` of the first ``depth`` blocks (None: of all) that the decoder depends on.

    Raises:
        AdapterError: the model lacks the site, or has fewer blocks.
    """
    sites = sites_named(model, name)
    if depth is not None and depth > len(sites):
        raise AdapterError(
            f"depth={depth}: the decoder of '{model.base_id}' depends on {len(sites)} {name.partition('.')[0]} blocks; "
            f"at most {len(sites)}"
        )
    return sites[:depth]


def check_context(model: PromptSegmenter, tokens: int) -> None:
    """Raise AdapterError unless ``tokens`` learned ones leave room for a prompt in the context of the text encoder."""
    from vlsm_adapter.adapters import tuner

    with tuner.disabled(model):  # another adapter may be in use, and give tokens of its own
        context = model.context_length
    if tokens + _SHORTEST > context:
        raise AdapterError(
            f"tokens={tokens}: the text encoder of '{model.base_id}' reads {context} tokens, which leaves "
            f"{max(0, context - tokens)} for a prompt with its start and end; at most {context - _SHORTEST}"
        )


def check_text(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is text."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r}: must be text, e.g. 'a photo of a', or empty for a random start")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{name}={value!r}: holds halves of characters (surrogates); give whole ones") from None


def check_depth(value: Any, most: int = 1024) -> None:
    """Raise ConfigError unless ``value`` is a number of blocks or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
        raise ConfigError(f"depth={value!r}: must be a number of blocks, from 1 to those of the model, or null")
