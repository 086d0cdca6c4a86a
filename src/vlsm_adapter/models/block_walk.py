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

from vlsm_adapter.models.clipseg_parts.network import EncoderLayer
from vlsm_adapter.models.encoder_block import before_output, encoder_block
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
        """All cuts but 0, before which next to nothing is computed; only before blocks where those are not our own."""
        step = 1 if all(type(block) is EncoderLayer for block in self._blocks) else 2
        return tuple(range(step, 2 * len(self._blocks), step))

    def whole(self, hidden: torch.Tensor) -> Tensors:
        """From the start (B, T, D) to the outputs that are read, each (B, T, D)."""
        return self._onward(hidden, {}, 0)

    def to_cut(self, hidden: torch.Tensor, cut: int) -> Tensors | None:
        """From the start (B, T, D) to a cut.

        Returns:
            The outputs read by then, the state before the block, and inside a block what goes into its output projection;
            None where this walk cannot be cut there: learned tokens go along, or the block computes in a way of its own.
        """
        number, inside = divmod(cut, 2)
        outputs: dict[int, torch.Tensor] = {}
        hidden, tokens = self._through(hidden, hidden[:, :0], range(number), outputs)
        tensors = (*(outputs[block] for block in self._read if block in outputs), hidden)
        if inside:
            tokens = self._sites[number](tokens)
            attended = before_output(self._blocks[number], hidden)
            if attended is None:
                return None
            tensors = (*tensors, attended)
        return None if tokens.shape[1] else tensors

    def from_cut(self, tensors: Sequence[torch.Tensor], cut: int) -> Tensors:
        """From what :meth:`to_cut` gave to the outputs that are read."""
        number, inside = divmod(cut, 2)
        attended = tensors[-1] if inside else None
        *before, hidden = tensors[: len(tensors) - inside]
        outputs = dict(zip((block for block in self._read if block < number), before, strict=True))
        if attended is not None:
            block = self._blocks[number]
            hidden = self._run(lambda x, given: encoder_block(block, x, None, attended=given), hidden, attended)
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
