"""What the encoders give and the decoder reads, whole or cut, to be kept, joined and taken apart.

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the decoder reads of B images.

    Attributes:
        activations: tensors (B, ...): of CLIPSeg one (B, T, D) per read block, of others maps or queries.
        grid: rows and columns of the patch grid.
        cut: None, or the cut of the trunk up to which they are computed, see :meth:`~vlsm_adapter.models.base.PromptSegmenter.image_stem`; the
            tensors are then what is needed from there on.
    """

    activations: tuple[torch.Tensor, ...]
    grid: tuple[int, int]
    cut: int | None = None

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Features of all the images of ``parts``, which are of one size."""
        return replace(
            parts[0], activations=tuple(map(torch.cat, zip(*(part.activations for part in parts), strict=True)))
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there is to keep; :meth:`with_tensors` takes it back."""
        return self.activations

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> ImageFeatures:
        """Features like these, of other images."""
        return replace(self, activations=tuple(tensors))


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What the decoder reads of P prompts.

    Attributes:
        condition: the conditional embedding (P, D).
        words: states (P, L, D) of the tokens, for a decoder that attends to words; else None.
        words_mask: bool (P, L), True where ``words`` may be attended to; None where there are no words.
        states: end-of-text states (P, D) inside the encoder, on their way from ``text_trunk`` to ``text_head``.
    """

    condition: torch.Tensor
    words: torch.Tensor | None = None
    words_mask: torch.Tensor | None = None
    states: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return self.condition.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> TextFeatures:
        """Features of some of the prompts."""
        return TextFeatures(
            self.condition[rows],
            None if self.words is None else self.words[rows],
            None if self.words_mask is None else self.words_mask[rows],
            tuple(state[rows] for state in self.states),
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there is to keep; :meth:`with_tensors` takes it back."""
        words = () if self.words is None or self.words_mask is None else (self.words, self.words_mask)
        return (self.condition, *words, *self.states)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> TextFeatures:
        """Features like these, of other prompts."""
        if self.words is None:
            return TextFeatures(tensors[0], states=tuple(tensors[1:]))
        return TextFeatures(tensors[0], tensors[1], tensors[2], tuple(tensors[3:]))

    @classmethod
    def join(cls, parts: Sequence[TextFeatures]) -> TextFeatures:
        """Features of all the prompts of ``parts``; words are padded to the longest, and the padding masked."""
        condition = torch.cat([part.condition for part in parts])
        states = tuple(map(torch.cat, zip(*(part.states for part in parts), strict=True)))
        if parts[0].words is None:
            return cls(condition, states=states)
        longest = max(part.words.shape[1] for part in parts if part.words is not None)
        words, masks = [], []
        for part in parts:
            assert part.words is not None
            assert part.words_mask is not None
            missing = longest - part.words.shape[1]
            words.append(nn.functional.pad(part.words, (0, 0, 0, missing)))
            masks.append(nn.functional.pad(part.words_mask, (0, missing)))
        return cls(condition, torch.cat(words), torch.cat(masks), states)


class Trunks:
    """What ``image_trunk`` and ``text_trunk`` gave, to be taken in place of pixels and token ids.

    A plain class: Fabric casts the tensors that it finds in collections and data classes to the input type of the
    precision, and features are to arrive as they were computed.

    Attributes:
        image: of B images, or None.
        text: of P prompts, or None.
    """

    def __init__(self, image: ImageFeatures | None = None, text: TextFeatures | None = None) -> None:
        self.image = image
        self.text = text
