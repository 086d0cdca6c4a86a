"""The blocks of an image encoder, from their start to a cut and from there on: what lies before the first adapter is frozen.

Cuts are counted in the order of the computation: ``2 n`` lies before block n, ``2 n + 1`` inside it, before the output
projection of its attention, behind which the first adapter of a block stands.

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vlsm_adapter.models.encoder_block import before_output, can_be_cut, encoder_block
from vlsm_adapter.models.prompt_tokens import run_block

Tensors = tuple[torch.Tensor, ...]


class BlockWalk:
    """A walk through the blocks of an image encoder, with the sites ``image.tokens`` before each.

    Args:
        blocks: those that run.
        sites: the modules of ``image.tokens``, one per block.
        read: numbers of the blocks whose output is read, in the order it is wanted.
        run: calls a block on its inputs; may keep less for the backward pass.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], sites: Iterable[nn.Module], read: Iterable[int], run: Callable[..., Any]
    ) -> None:
        self._blocks, self._sites, self._read, self._run = tuple(blocks), tuple(sites), tuple(read), run

    @property
    def cuts(self) -> tuple[int, ...]:
        """All cuts but 0, before which next to nothing is computed, and those inside blocks that cannot be cut."""
        every = range(1, 2 * len(self._blocks))
        return tuple(cut for cut in every if cut % 2 == 0 or can_be_cut(self._blocks[cut // 2]))

    def whole(self, hidden: torch.Tensor) -> Tensors:
        """From the start (B, T, D) to the outputs that are read, each (B, T, D)."""
        return self._onward(hidden, {}, 0)

    def to_cut(self, hidden: torch.Tensor, cut: int) -> Tensors | None:
        """From the start (B, T, D) to a cut.

        Returns:
            The outputs read by then, the state before the block unless it is the last of them, and inside a block what goes
            into its output projection; None where learned tokens go along.
        """
        number, inside = divmod(cut, 2)
        outputs: dict[int, torch.Tensor] = {}
        hidden, tokens = self._through(hidden, hidden[:, :0], range(number), outputs)
        state = () if number - 1 in outputs else (hidden,)
        if inside:
            tokens = self._sites[number](tokens)
            state = (*state, before_output(self._blocks[number], hidden))
        return None if tokens.shape[1] else (*(outputs[block] for block in self._read if block in outputs), *state)

    def from_cut(self, tensors: Sequence[torch.Tensor], cut: int) -> Tensors:
        """From what :meth:`to_cut` gave to the outputs that are read."""
        number, inside = divmod(cut, 2)
        known = [block for block in self._read if block < number]
        outputs = dict(zip(known, tensors[: len(known)], strict=True))
        hidden = outputs[number - 1] if number - 1 in outputs else tensors[len(known)]
        if inside:
            block = self._blocks[number]
            hidden = self._run(lambda x, given: encoder_block(block, x, None, attended=given), hidden, tensors[-1])
            outputs[number] = hidden
            number += 1
        return self._onward(hidden, outputs, number)

    def _onward(self, hidden: torch.Tensor, outputs: dict[int, torch.Tensor], number: int) -> Tensors:
        self._through(hidden, hidden[:, :0], range(number, len(self._blocks)), outputs)
        return tuple(outputs[block] for block in self._read)

    def _through(
        self, hidden: torch.Tensor, tokens: torch.Tensor, numbers: range, outputs: dict[int, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Through some blocks, with the learned tokens of prompt tuning, kept apart: the decoder never sees them."""
        for number in numbers:
            tokens = self._sites[number](tokens)
            block = partial(encoder_block, self._blocks[number], mask=None)
            hidden, tokens = self._run(run_block, block, hidden, tokens)
            if number in self._read:
                outputs[number] = hidden
        return hidden, tokens
