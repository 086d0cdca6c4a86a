"""CRIS (Wang et al., CVPR 2022): CLIP-driven referring segmentation, behind the same seams as every base model.

CLIP's residual image encoder and text encoder, a neck that fuses three image maps with the text state, a transformer
decoder whose pixels read the words, and a projector that turns the text state into the filter that gives the mask.
The graph is the one that VLSM-Adapter (MICCAI 2024) trains for binary medical prompts; its numbers are reproduced in
``tests/parity/test_published_cris.py``.

Two paddings. ``"masked"``, the default, hides padding from the decoder. ``"published"`` is what the published code does:
prompts are padded to the full length with the end token, and the decoder sees everything but tokens of id 0, all padding
included.

Batch norm. Evaluation mode uses the running statistics and keeps them; it is the mode in which this project trains
adapters and copies (``full``, ``decoder_only``), so neither a frozen base nor a copy drifts, and a batch of one is a
batch like any other. After :meth:`CRIS.unfreeze` and ``train()`` the model behaves as in the published end-to-end
training: batch statistics, running ones that move, dropout in the decoder. Only a channel with a single value in the
batch (one prompt in the text branch of the neck) still takes the running statistics, where torch would refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import checkpoints, saving
from vlsm_adapter.models.base import PromptSegmenter, Site, Tokens, weight_modules
from vlsm_adapter.models.clip_blocks import BLOCK_SITES, TextTower, end_of_text
from vlsm_adapter.models.cris_parts.config import CRISConfig
from vlsm_adapter.models.cris_parts.decoder import Decoder, Projector
from vlsm_adapter.models.cris_parts.image import ImageEncoder
from vlsm_adapter.models.cris_parts.layers import to_map, to_tokens
from vlsm_adapter.models.cris_parts.neck import Neck
from vlsm_adapter.models.features import ImageFeatures, TextFeatures
from vlsm_adapter.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from vlsm_adapter.models.prompt_tokens import tokens_given
from vlsm_adapter.models.sizes import check_sizes

if TYPE_CHECKING:
    from vlsm_adapter.models.base import TextTokenizer

__all__ = ["CRIS", "CRISConfig"]

_STRIDE = 32  # of the deepest map


class Backbone(TextTower):
    """CLIP: the text tower, the image encoder as ``visual``, and a temperature that CRIS carries and never reads."""

    def __init__(self, config: CRISConfig) -> None:
        super().__init__(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            width=config.transformer_width,
            heads=config.transformer_heads,
            layers=config.transformer_layers,
            embed_dim=config.embed_dim,
        )
        assert config.vision_heads is not None
        self.visual = ImageEncoder(
            width=config.vision_width,
            layers=config.vision_layers,
            heads=config.vision_heads,
            embed_dim=config.embed_dim,
            side=config.image_resolution // _STRIDE,
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # log(1 / 0.07)


class CRIS(PromptSegmenter):
    """CLIP ResNet image encoder, CLIP text encoder, neck, cross-modal decoder and dynamic filter.

    Args:
        config: sizes and padding; ``CRISConfig()`` is the paper's. Weights start at random.
        preprocessing: by default ``img_size`` squared with CLIP's statistics.
        tokenizer: a CLIP tokenizer, or None where only token ids are passed.
        base_id: where the weights came from, for messages and adapter cards.
    """

    family: ClassVar[str] = "cris"

    def __init__(
        self,
        config: CRISConfig,
        *,
        preprocessing: Preprocessing | None = None,
        tokenizer: TextTokenizer | None = None,
        base_id: str = "unnamed",
    ) -> None:
        super().__init__(base_id, preprocessing or default_preprocessing(config), tokenizer)
        self.config = config
        width = config.fpn_out[1]
        self.backbone = Backbone(config)
        self.neck = Neck(config.map_widths, config.fpn_out)
        self.decoder = Decoder(
            width=width,
            heads=config.num_head,
            hidden=config.dim_ffn,
            dropout=config.dropout,
            layers=config.num_layers,
        )
        self.proj = Projector(config.embed_dim, width)
        # Modules that do nothing until a method attaches to them.
        self.image_skip = nn.ModuleList(nn.Identity() for _ in config.map_widths)
        self.text_skip = nn.Identity()
        self.condition = nn.Identity()
        self.logits = nn.Identity()
        self.text_tokens = nn.ModuleList(nn.Identity() for _ in range(config.transformer_layers))
        self.freeze()

    # -- the three stages ------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Maps (B, C, h, w) at strides 8, 16 and 32, of 8w, 16w and E channels; the grid is the deepest one's.

        Raises:
            ModelError: a side is no multiple of 32.
        """
        return self.image_head(self.image_trunk(pixel_values))

    @property
    def size_step(self) -> int:
        return _STRIDE

    def image_trunk(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """The maps, before methods change them."""
        height, width = pixel_values.shape[-2:]
        if height % _STRIDE or width % _STRIDE or not height or not width:
            raise ModelError(f"image of {height} x {width} pixels: both sides must be multiples of {_STRIDE}")
        maps = self.backbone.visual(pixel_values.to(self.dtype))
        return ImageFeatures(maps, (height // _STRIDE, width // _STRIDE))

    def image_head(self, trunk: ImageFeatures) -> ImageFeatures:
        """The maps as they go to the decoder."""
        activations = tuple(
            to_map(skip(to_tokens(each)), (each.shape[-2], each.shape[-1]))
            for skip, each in zip(self.image_skip, trunk.activations, strict=True)
        )
        return ImageFeatures(activations, trunk.grid)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """Words (P, L, D), those the decoder may see, and the text state (P, E) as the condition.

        With ``padding="published"`` shorter ids are lengthened to ``word_len`` with the end token, and the attention
        mask says nothing: whatever is not id 0 is seen. With ``"masked"`` a missing mask hides what follows the end token.

        Raises:
            ModelError: more than ``word_len`` tokens, or ids outside the token table.
        """
        return self.text_head(self.text_trunk(input_ids, attention_mask))

    def text_trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """Words and state, before methods change them."""
        length = input_ids.shape[1]
        if not 1 <= length <= self.config.word_len:
            raise ModelError(f"prompts of {length} tokens: the model reads 1 to {self.config.word_len}; shorten them")
        if self.config.padding == "published":
            input_ids = F.pad(input_ids, (0, max(0, self.context_length - length)), value=self.config.eot)
            visible = input_ids != 0
        elif attention_mask is not None:
            visible = attention_mask.bool()
        else:
            visible = torch.arange(length, device=input_ids.device) <= end_of_text(input_ids)[:, None]
        words, state = self.backbone(input_ids, self.text_tokens)
        if learned := tokens_given(self.text_tokens[0]):  # behind the start token; the decoder reads them as words
            own = words.shape[1] - learned
            visible = torch.cat([visible[:, :1], visible.new_ones(visible.shape[0], learned), visible[:, 1:own]], 1)
        return TextFeatures(state, words, visible)

    def text_head(self, trunk: TextFeatures) -> TextFeatures:
        """Words and state as they go to the decoder."""
        return TextFeatures(self.condition(trunk.condition), self.text_skip(trunk.words), trunk.words_mask)

    def decode(self, image: ImageFeatures, text: TextFeatures, image_index: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (P, S, S) with S = ``img_size``, whatever the size of the images."""
        assert text.words is not None
        assert text.words_mask is not None
        fused = self.neck(image.activations, text.condition, image_index)
        decoded = self.decoder(fused, text.words, text.words_mask)
        logits = self.proj(decoded, text.condition)
        side = self.config.img_size
        out: torch.Tensor = self.logits(
            F.interpolate(logits, size=(side, side), mode="bicubic", align_corners=True).squeeze(1)
        )
        return out

    # -- sites -----------------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Sites of the text blocks, the skips, the condition, and the modules that hold the weights.

        The image encoder has no transformer blocks, so none of their sites. ``image.skip`` are the three maps, their
        pixels as tokens; ``text.skip`` are the words (P, L, D) on their way to the decoder.
        """
        config = self.config
        found: list[Site] = []
        for block in range(config.transformer_layers):
            path, width = f"backbone.transformer.resblocks.{block}", config.transformer_width
            found.append(Site("text.tokens", block, f"text_tokens.{block}", width))
            found += [Site(f"text.{name}", block, f"{path}.{part}", width) for name, part in BLOCK_SITES]
        for number, width in enumerate(config.map_widths):
            found.append(Site("image.skip", number, f"image_skip.{number}", width))
        found.append(Site("text.skip", 0, "text_skip", config.transformer_width))
        found.append(Site("condition", 0, "condition", config.embed_dim))
        found.append(Site("logits", 0, "logits", 1))
        text = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        for stage, parts in (
            ("image", ["backbone.visual"]),
            ("text", [f"backbone.{part}" for part in text]),
            ("decoder", ["neck", "decoder", "proj"]),
        ):
            modules = [module for part in parts for module in weight_modules(self, part)]
            found += [Site(stage, number, module, 0) for number, module in enumerate(modules)]
        return found

    # -- text, training and identity -------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        return self.config.word_len - tokens_given(self.text_tokens[0])

    def word_table(self) -> nn.Module:
        return self.backbone.token_embedding

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Prompts to token ids: padded to the longest, or, as published, to ``word_len`` with the end token.

        Raises:
            ModelError: there is no prompt, or the model was built without a tokenizer.
        """
        tokens = super().tokenize(prompts)
        if self.config.padding != "published":
            return tokens
        missing = self.context_length - tokens.input_ids.shape[1]
        mask = F.pad(tokens.attention_mask, (0, missing))
        ids = F.pad(tokens.input_ids, (0, missing)).masked_fill(mask == 0, int(self.config.eot or 0))
        return Tokens(ids, mask)

    def unfreeze(self) -> CRIS:
        """What the published training trains requires a gradient; returns the model. The mode is not changed.

        That is everything but CLIP's temperature, which nothing reads; with ``freeze_encoder`` the backbone stays frozen.
        """
        self.requires_grad_(True)
        self.backbone.logit_scale.requires_grad_(False)
        if self.config.freeze_encoder:
            self.backbone.requires_grad_(False)
        self._forget_files()
        return self

    def hash_in_memory(self) -> str:
        return saving.hash_tensors(self.base_state())

    @classmethod
    def from_pretrained(cls, source: str | Path, base_id: str, dtype: torch.dtype) -> CRIS:
        """Load a folder that :func:`vlsm_adapter.models.saving.save_model` wrote, or a hub id with the same files.

        Raises:
            ModelError: something is missing, damaged, of another kind, or only there as a pickle.
        """
        config = CRISConfig.from_dict(checkpoints.read_config(source, base_id))
        tokenizer = checkpoints.load_tokenizer(source, base_id)
        if tokenizer is not None and (len(tokenizer) > config.vocab_size or tokenizer.eos_token_id != config.eot):
            raise ModelError(
                f"model '{base_id}': the tokenizer has {len(tokenizer)} tokens and end token {tokenizer.eos_token_id}, "
                f"the model {config.vocab_size} and {config.eot}; copy the tokenizer it was trained with"
            )
        state = checkpoints.weights_state(source)
        tensors = saving.read_tensors(source, base_id)
        check_sizes(config.in_weights(), tensors, *saving.files_of(source))
        with torch.device("meta"):
            model = cls(
                config,
                preprocessing=checkpoints.load_preprocessing(source, base_id, default_preprocessing(config)),
                tokenizer=tokenizer,
                base_id=base_id,
            )
        saving.fill(model, tensors, f"model '{base_id}'")
        model.to(dtype)._read_from(source, state)
        return model


def default_preprocessing(config: CRISConfig) -> Preprocessing:
    """``img_size`` squared, CLIP's statistics."""
    return Preprocessing(size=(config.img_size, config.img_size), mean=CLIP_MEAN, std=CLIP_STD)
