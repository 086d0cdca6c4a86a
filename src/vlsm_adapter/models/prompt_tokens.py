"""Where learned tokens enter a transformer: the sites ``image.tokens`` and ``text.tokens`` of prompt tuning.

A model offers one site per block. Its module, an ``nn.Identity`` until a method attaches, is given the learned tokens
as they stand before the block, (N, M, D), none at first (M = 0), and gives those that go into it: a method starts
them, replaces them, or lets them pass. The model keeps them apart from its own tokens, so nothing behind the encoder
sees them, and without a method every value is the one it was.

A model takes these sites so (:mod:`.clipseg` is the example):

- ``self.image_tokens = nn.ModuleList(nn.Identity() for _ in blocks)``, the same for ``self.text_tokens``, and one
  ``Site("image.tokens", i, f"image_tokens.{i}", width, read)`` each;
- image: ``tokens = x[:, :0]`` before the blocks, then ``tokens = self.image_tokens[i](tokens)`` and
  ``x, tokens = run_block(block, x, tokens)`` for each;
- text: ``context = self.text_tokens[0](words[:, :0])`` on the word embeddings; if it holds any, :class:`Insertion`
  puts them behind the start token before positions are added, lengthens the mask and shifts the end; before every
  later block ``x = insertion.update(x, self.text_tokens[i])``;
- ``context_length`` subtracts ``tokens_given(self.text_tokens[0])``, and ``word_vectors`` gives embeddings of words.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def run_block(
    block: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One block of an image encoder on its own tokens and the learned ones behind them.

    Attention has no order and learned tokens have no position, so it does not matter where they stand.

    Args:
        block: (B, T + M, D) to the same shape.
        x: (B, T, D), the image's own tokens.
        tokens: (B, M, D), learned tokens; M may be 0.

    Returns:
        Both, apart again.
    """
    if not tokens.shape[1]:
        return block(x), tokens
    both = block(torch.cat([x, tokens.to(x.dtype)], dim=1))
    return both[:, : x.shape[1]], both[:, x.shape[1] :]


def tokens_given(site: nn.Module) -> int:
    """Learned tokens that the adapter in use gives at ``site``; asks no tensor, so workers of a loader may call it."""
    return int(getattr(site, "tokens_given", 0))


class Insertion:
    """M learned tokens behind the start token of each of P prompts of L tokens.

    Args:
        context: (P, M, D), the learned tokens.
        length: L.
        attention_mask: int64 (P, L), 1 where a token is real; the first of them is the start token, also where
            padding stands on the left. Without a mask the start token is the first.

    Attributes:
        count: M.
    """

    def __init__(self, context: torch.Tensor, length: int, attention_mask: torch.Tensor | None) -> None:
        prompts, self.count = context.shape[:2]
        self._context = context
        self._rows = torch.arange(prompts, device=context.device)[:, None]
        if attention_mask is None:
            start = torch.zeros_like(self._rows)
        else:
            start = attention_mask.int().argmax(dim=1, keepdim=True)
        self._places = start + 1 + torch.arange(self.count, device=context.device)  # (P, M), after insertion
        place = torch.arange(length + self.count, device=context.device)
        number = place - start - 1  # of the learned token at that place
        own = torch.where(number < 0, place, place - self.count)
        learned = (number >= 0) & (number < self.count)
        self._order = torch.where(learned, length + number, own)  # (P, L + M), of the prompt's tokens, then these

    def words(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Word embeddings (P, L, D), without positions, to (P, L + M, D)."""
        return torch.cat([embeddings, self._context.to(embeddings.dtype)], dim=1)[self._rows, self._order]

    def mask(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask (P, L) of real tokens to (P, L + M): learned tokens are real."""
        if attention_mask is None:
            return None
        more = attention_mask.new_ones(attention_mask.shape[0], self.count)
        return torch.cat([attention_mask, more], dim=1)[self._rows, self._order]

    def update(self, x: torch.Tensor, site: nn.Module) -> torch.Tensor:
        """States (P, L + M, D) before a block, with the learned ones among them as ``site`` gives them."""
        before = x[self._rows, self._places]
        after = site(before)
        return x if after is before else x.index_put((self._rows, self._places), after.to(x.dtype))
