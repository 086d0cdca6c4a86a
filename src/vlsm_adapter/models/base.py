"""What every base model offers: three stages, a tokenizer, its own preprocessing, and sites for adapters.

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models.features import ImageFeatures, TextFeatures, Trunks
from vlsm_adapter.models.identity import Identity
from vlsm_adapter.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlsm_adapter.models.tokenizer import FileTokenizer

    TextTokenizer: TypeAlias = PreTrainedTokenizerBase | FileTokenizer

logger = logging.getLogger("vlsm_adapter")

MOST_TOLD = 5  # warnings about prompts that are cut


@dataclass(frozen=True, slots=True)
class Site:
    """A named place where a method may attach.

    Attributes:
        name: ``image.attn_out``, ``image.mlp_out``, ``text.attn_out``, ``text.mlp_out`` (per block, before the
            residual addition), ``image.query``, ``.key``, ``.value`` and ``.mlp_in``, the same of ``text`` (the linear
            layers per block), ``image.skip`` and ``text.skip`` (per activation on its way to the decoder),
            ``text.projection`` (the linear layer that gives the text embedding), ``condition`` (that embedding on its
            way to the decoder), ``logits`` (P, H, W) behind the decoder, ``image.tokens`` and ``text.tokens`` (learned
            tokens before each block, see :mod:`.prompt_tokens`); ``image``, ``text``, ``decoder``: the modules
            that hold the weights of the three stages, to be trained whole.
        index: block number, or the number of the activation or module; 0 where there is only one.
        module: dotted name of the module inside the model.
        width: features D of what passes here (of ``mlp_in``: goes in); 1 for ``logits``; 0 for ``image``, ``text`` and ``decoder``.
        read: whether the decoder's output depends on this site; a method never attaches where it is False.
    """

    name: str
    index: int
    module: str
    width: int
    read: bool = True


class Tokens(NamedTuple):
    """Prompts as token ids, padded to the longest of them.

    Attributes:
        input_ids: int64 (P, L).
        attention_mask: int64 (P, L), 1 where a token is real.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class TextSkip(nn.Module):
    """The ``text.skip`` site: nothing until a method attaches, which may then add to the condition.

    Receives the condition (P, D) and the end-of-text state (P, D_text) of one text block; returns the condition.
    """

    def forward(self, condition: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return condition


class PromptSegmenter(Identity, ABC):
    """A text-promptable segmentation model in three stages.

    ``forward`` is the composition ``decode(encode_image(...), encode_text(...))``. Gradients flow through all
    three. Several prompts may share one image, encoded once.

    Attributes:
        base_id: hub id, folder, or name in the package it was loaded from.
        preprocessing: what :meth:`preprocess` does.
        adapter_configs: adapter name to the configuration it was attached with (kept by ``adapters``).
        pretrained: False where the weights start at random: then all of them train, and there is no zero-shot.
        caution: what a user of the family must know, for adapter cards; mostly nothing.
        inference_precision: what :mod:`.low_precision` made of it; ``"fp32"`` where nothing was.
        checkpointing: whether training computes the inside of image blocks again instead of keeping it: less memory,
            more time.
    """

    family: ClassVar[str]
    pretrained: ClassVar[bool] = True
    caution: ClassVar[str] = ""
    can_checkpoint: ClassVar[bool] = False  # whether image blocks run through kept_or_again

    def __init__(self, base_id: str, preprocessing: Preprocessing, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__()
        self.base_id = base_id
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.adapter_configs: dict[str, Any] = {}  # adapter name to the configuration it was attached with
        self.inference_precision = "fp32"
        self.checkpointing = False
        self._told_cut: set[str] = set()

    # -- the three stages ------------------------------------------------------------------------------------------

    @abstractmethod
    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Encode normalised images (B, 3, H, W)."""

    @abstractmethod
    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """Encode prompts, int64 (P, L)."""

    # Each encoder is a trunk and a head. The trunk gives the same for the same input as long as nothing in it trains, so
    # training may keep its output; the head is what is cheap and may carry adapters. A model that does not split its
    # encoders has all of them in the trunk.

    def image_trunk(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """The part of ``encode_image`` up to where its output may be kept; one or more images (B, 3, H, W)."""
        return self.encode_image(pixel_values)

    # A trunk in which something changes may be cut before that: what comes before the cut is its stem. A class with another
    # trunk than its parent's has other cuts, or none.

    @property
    def image_cuts(self) -> tuple[int, ...]:
        """Names of the places at which the image trunk can be cut with profit, in the order of the computation."""
        return ()

    def image_stem(self, pixel_values: torch.Tensor, cut: int) -> ImageFeatures | None:
        """The part of ``image_trunk`` before one of ``image_cuts``.

        Returns:
            What ``image_head`` continues from; None where the trunk, as it is now, cannot be cut there.
        """
        raise NotImplementedError

    def image_head(self, trunk: ImageFeatures) -> ImageFeatures:
        """The rest of ``encode_image``, from the end of the trunk or from where its stem was cut."""
        return trunk

    def text_trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The part of ``encode_text`` up to where its output may be kept."""
        return self.encode_text(input_ids, attention_mask)

    def text_head(self, trunk: TextFeatures) -> TextFeatures:
        """The rest of ``encode_text``."""
        return trunk

    @abstractmethod
    def decode(self, image: ImageFeatures, text: TextFeatures, image_index: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (P, H, W) of each prompt on the image ``image_index`` (P,) names (by default prompt i on image i)."""

    def prompts_at_once(self, image: ImageFeatures) -> int:
        """How many prompts are best decoded together for prediction: as many as keep to the processor's cache."""
        return 32

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        *,
        text_index: torch.Tensor | None = None,
        trunks: Trunks | None = None,
    ) -> torch.Tensor:
        """Logits (P, 1, H, W) at the network's resolution.

        Args:
            pixel_values: float (B, 3, H, W), normalised by :meth:`preprocess`.
            input_ids, attention_mask: int64 (U, L) of U texts.
            image_index: int64 (P,), the image of each prompt; by default prompt i is asked of image i (P = B),
                or all of them of the only image (B = 1).
            text_index: int64 (P,), the text of each prompt; by default prompt i is text i (P = U).
            trunks: what the trunks gave, in place of ``pixel_values``, ``input_ids`` or both.

        Raises:
            ModelError: P prompts cannot be matched with B images, or there are neither pixels nor what a trunk gave.
        """
        trunks = trunks or Trunks()
        if (pixel_values is None) == (trunks.image is None) or (input_ids is None) == (trunks.text is None):
            raise ModelError("pass pixel_values or the trunk's image features, and input_ids or its text features")
        images = len(trunks.image.activations[0] if trunks.image is not None else pixel_values)  # type: ignore[arg-type]
        texts = len(trunks.text if trunks.text is not None else input_ids)  # type: ignore[arg-type]
        prompts = texts if text_index is None else text_index.shape[0]
        if image_index is None and images != prompts:
            if images != 1:
                raise ModelError(
                    f"{prompts} prompts for {images} images: pass image_index, the image number of each prompt"
                )
            image_index = torch.zeros(prompts, dtype=torch.long, device=self.device)
        elif image_index is not None and image_index.shape != (prompts,):
            raise ModelError(
                f"image_index of shape {tuple(image_index.shape)} for {prompts} prompts: one image number each"
            )
        image = self.encode_image(pixel_values) if pixel_values is not None else self.image_head(trunks.image)  # type: ignore[arg-type]
        text = self.encode_text(input_ids, attention_mask) if input_ids is not None else self.text_head(trunks.text)  # type: ignore[arg-type]
        return self.decode(image, text if text_index is None else text[text_index], image_index).unsqueeze(1)

    # -- sites -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def sites(self) -> list[Site]:
        """All sites, in the order of the computation."""

    # -- text and pixels -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The most tokens a prompt may have, start and end tokens included."""

    def word_table(self) -> nn.Module | None:
        """The embedding of tokens; None where the text is not read by words."""
        return None

    def word_vectors(self, text: str) -> torch.Tensor | None:
        """Embeddings (L, D) of the tokens of ``text`` without start and end, before positions; None where unknown.

        For methods whose learned tokens start from words.
        """
        table = self.word_table()
        if table is None or self.tokenizer is None:
            return None
        weight = cast("torch.Tensor", getattr(table, "base_layer", table).weight).detach()
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return weight[torch.tensor(ids, dtype=torch.long, device=weight.device)].clone()

    def preprocess(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images uint8 (H, W, 3), each of its own size, to one float32 tensor (B, 3, h, w)."""
        return torch.stack([self.preprocessing(image) for image in images])

    @property
    def size_step(self) -> int:
        """Sides of an image must be multiples of it, in pixels."""
        return 1

    def refused_size(self, size: tuple[int, int]) -> str:
        """Why images of this (height, width) cannot be taken, in one line; empty where they can."""
        height, width = size
        if height % self.size_step or width % self.size_step:
            return (
                f"size {height} x {width}: both sides must be multiples of {self.size_step}, as '{self.base_id}' needs"
            )
        return ""

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Prompts to token ids, padded to the longest; a longer prompt than the context is cut, with a warning.

        Raises:
            ModelError: there is no prompt, one text stands in place of a list, or the model was built without a tokenizer.
        """
        if isinstance(prompts, str):  # would be read as one prompt per letter
            raise ModelError(f"prompts {prompts!r}: must be a list, e.g. [{prompts!r}]")
        if not prompts:
            raise ModelError("no prompt given: ask for at least one, e.g. ['polyp']")
        if self.tokenizer is None:
            raise ModelError(f"model '{self.base_id}' has no tokenizer: pass input_ids, or load it with load_model")
        encoded = self.tokenizer(
            list(prompts),
            padding="longest",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        tokens = Tokens(encoded["input_ids"], encoded["attention_mask"])
        if tokens.input_ids.shape[1] == self.context_length:
            self._tell_cut(prompts)
        return tokens

    def _tell_cut(self, prompts: Sequence[str]) -> None:
        assert self.tokenizer is not None
        for prompt in dict.fromkeys(prompts):
            if prompt in self._told_cut:
                continue
            encoded = self.tokenizer(prompt, return_offsets_mapping=self.tokenizer.is_fast, verbose=False)
            if len(encoded["input_ids"]) <= self.context_length:
                continue
            self._told_cut.add(prompt)
            if len(self._told_cut) > MOST_TOLD:
                if len(self._told_cut) == MOST_TOLD + 1:
                    logger.warning("more prompts than these are longer than the context and cut; they are not listed")
                continue
            lost = "its end"
            if self.tokenizer.is_fast:
                # One place of the context belongs to the end token.
                start = encoded["offset_mapping"][self.context_length - 1][0]
                cut = prompt[start:]
                lost = repr(cut if len(cut) <= 80 else f"{cut[:50]} ... {cut[-25:]}")
            logger.warning(
                "prompt '%s...' has %d tokens, the model reads %d: cut off %s; use a shorter prompt",
                prompt[:40],
                len(encoded["input_ids"]),
                self.context_length,
                lost,
            )

    # -- where it is and comes from (which weights it has: .identity) ------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the base weights."""
        return next(self.parameters()).dtype

    @classmethod
    @abstractmethod
    def from_pretrained(cls, source: str | Path, base_id: str, dtype: torch.dtype) -> PromptSegmenter:
        """Load weights, tokenizer and preprocessing from a local folder or hub id."""

    def require_pretrained(self) -> None:
        """Refuse to be asked without training.

        Raises:
            ModelError: the weights are random, and so would the answers be.
        """
        if not self.pretrained:
            raise ModelError(
                f"model '{self.base_id}' starts from random weights and knows nothing yet: train it first, with "
                f"vlsm train --model {self.base_id} --adapter full"
            )

    def kept_or_again(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(*inputs)``; with ``checkpointing`` what it computes inside is not kept for the backward pass but
        computed again there (Chen et al., 2016, arXiv 1604.06174)."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def freeze(self) -> PromptSegmenter:
        """No parameter requires a gradient; evaluation mode. Returns the model."""
        self.requires_grad_(False)
        return self.eval()


def weight_modules(model: nn.Module, name: str) -> list[str]:
    """Dotted names of the smallest modules inside ``name`` that together hold all its parameters, in order."""

    def inside(module: nn.Module, name: str) -> list[str]:
        # What an adapter has put there is not the model's: the module it stands for is.
        module = getattr(module, "base_layer", module)
        # Looked up as they are kept: methods place adapters by many calls, and the generators take ten times as long.
        if any(parameter is not None for parameter in module._parameters.values()):
            return [name]
        return [found for part, child in module.named_children() for found in inside(child, f"{name}.{part}")]

    return inside(model.get_submodule(name), name)


def describe_parameters(model: nn.Module) -> dict[str, Any]:
    """Counts of all and of the trainable parameters: ``{"total", "trainable", "share"}``."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"total": total, "trainable": trainable, "share": trainable / total if total else 0.0}
