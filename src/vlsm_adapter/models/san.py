"""SAN (Xu et al., CVPR 2023), a side adapter network on a frozen CLIP, behind the same seams as every base model.

A narrow ViT beside CLIP proposes Q masks and, for each, an attention bias under which CLIP's last blocks recognise what
the mask shows. Masks and the queries' embeddings depend on the image alone: they are encoded once, and a prompt costs a
weighted sum of the masks. Three graphs:

``"published"``
    what VLSM-Adapter (MICCAI 2024) trains for binary medical prompts. Side blocks 0, 3, 6 read CLIP features 0, 1, 2
    (the map is inverted; its fourth layer is dead); a query's weight is the mean over channels of its embedding times
    the text embedding, neither scaled nor against a background; logits are the weighted sum of the mask logits. The
    recognition head is out of the side network's reach: no gradient flows into the attention bias, which never learns.
``"head_gradient"``
    the same numbers, and the gradient flows through the recognition head into the attention bias.
``"corrected"``
    the graph of the SAN paper. Side blocks 0..3 read CLIP features 0, 3, 6, 9; similarity is the cosine with the
    normalised text times CLIP's temperature; a learned background embedding stands against the prompt, and P_q is the
    softmax over both; gradients flow everywhere, and CLIP's image positions and the background embedding train with the
    side network. The side network's positions follow the grid also where another has as many patches, as 512 x 800 has
    beside 640 x 640; the other graphs take them row after row there.

One prompt at a time, in the corrected graph. The paper compares classes by their scores sum_q P_q,c sigmoid(M_q), which
have no bound and no threshold, and nothing to be compared with for a single prompt. Here a pixel belongs to the prompt if
at least one query of the prompt claims it (a noisy or),

    p = 1 - prod_q (1 - P_q sigmoid(M_q)).

Where a single query claims a pixel that is the paper's score, where several do it stays below 1: a probability, with
0.5 as the natural threshold, 0 for an image without what the prompt names. Masks are combined on the grid of the side
network, and the logits of p are brought to the size of the image. The paper's losses (matching, points, an earlier
block's output too) belong to many classes per image; this project trains the final logits with its own loss.

What trains "as published": method ``decoder_only``, see :meth:`SAN.sites`. Trainable at the papers' size: published
7,115,968, head_gradient 8,032,962, corrected 8,370,866 (the paper's side network and positions, 8,370,354, and the
background embedding).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import checkpoints, saving
from vlsm_adapter.models.base import PromptSegmenter, Site, TextSkip, weight_modules
from vlsm_adapter.models.clip_blocks import BLOCK_SITES
from vlsm_adapter.models.features import ImageFeatures, TextFeatures
from vlsm_adapter.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from vlsm_adapter.models.prompt_tokens import tokens_given
from vlsm_adapter.models.san_parts.clip import CLIP
from vlsm_adapter.models.san_parts.config import SANConfig
from vlsm_adapter.models.san_parts.side import SideNetwork
from vlsm_adapter.models.sizes import check_sizes

if TYPE_CHECKING:
    from vlsm_adapter.models.base import TextTokenizer

__all__ = ["SAN", "SANConfig"]

_VISUAL = "clip_model.visual"
_SIDE = "side_adapter_network"
_LEAST = 1e-30  # probability below which the logit, -69, goes no lower


class Background(nn.Module):
    """The learned embedding, ``weight`` (1, E), of what no prompt names, put beside those of prompts (P, E): (P, 2, E)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, embed_dim).normal_(std=embed_dim**-0.5))

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        return torch.stack([prompts, self.weight.expand_as(prompts)], dim=1)


class SAN(PromptSegmenter):
    """CLIP ViT, CLIP text encoder, and the side adapter network.

    Args:
        config: sizes and graph. Weights start at random.
        preprocessing: by default the side network's size (640 x 640) with CLIP's statistics.
        tokenizer: a CLIP tokenizer, or None where only token ids are passed.
        base_id: where the weights came from, for messages and adapter cards.

    Raises:
        ModelError: the preprocessing makes images of a size that :meth:`encode_image` refuses.
    """

    family: ClassVar[str] = "san"
    caution: ClassVar[str] = (
        "graph 'corrected' answers a single prompt by a noisy or over its queries, this project's choice: the paper compares "
        "classes; a threshold other than 0.5 needs validation"
    )

    def __init__(
        self,
        config: SANConfig,
        *,
        preprocessing: Preprocessing | None = None,
        tokenizer: TextTokenizer | None = None,
        base_id: str = "unnamed",
    ) -> None:
        super().__init__(base_id, preprocessing or default_preprocessing(config), tokenizer)
        self.config = config
        self._check_size(*self.preprocessing.size)
        self.clip_model = CLIP(config)
        self.side_adapter_network = SideNetwork(config)
        if config.graph == "corrected":
            self.background = Background(config.embed_dim)
        # Modules that do nothing until a method attaches to them.
        self.features_read = sorted({*config.fusion_in_use.values(), config.split})
        self.image_skip = nn.ModuleList(nn.Identity() for _ in self.features_read)
        self.text_skip = TextSkip()
        self.condition = nn.Identity()
        self.logits = nn.Identity()
        self.image_tokens = nn.ModuleList(nn.Identity() for _ in range(config.vision_layers))
        self.text_tokens = nn.ModuleList(nn.Identity() for _ in range(config.text_layers))
        self.freeze()

    # -- the three stages ------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Mask logits (B, Q, h, w) on the side network's grid, and the queries' embeddings (B, Q, E) of length 1.

        Raises:
            ModelError: a side is no multiple of the patches: 16 of the side network, and 16 of CLIP at half the size.
        """
        return self.image_head(self.image_trunk(pixel_values))

    @property
    def size_step(self) -> int:
        return self.config.step

    def image_trunk(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """The CLIP features that are read, each (B, 1 + n, D), on CLIP's grid, and the pixels, for the side network.

        Feature K carries the learned tokens of prompt tuning behind its own.
        """
        self._check_size(*pixel_values.shape[-2:])
        # CLIP sees the image at half its size.
        every, tokens, grid = self.clip_model.visual.features(F.avg_pool2d(pixel_values, 2), self.image_tokens)
        every[-1] = torch.cat([every[-1], tokens], dim=1)
        return ImageFeatures((*(every[number] for number in self.features_read), pixel_values), grid)

    def image_head(self, trunk: ImageFeatures) -> ImageFeatures:
        """The sites ``image.skip``, the side network and the recognition head."""
        *features, pixels = trunk.activations
        own = 1 + trunk.grid[0] * trunk.grid[1]
        tokens = features[-1][:, own:]
        read = {
            number: skip(feature[:, :own])
            for number, skip, feature in zip(self.features_read, self.image_skip, features, strict=True)
        }
        queries, maps = self.side_adapter_network.encode(pixels, read, trunk.grid)
        masks, bias = self.side_adapter_network.mask_decoder(queries, maps)
        if self.config.graph == "published":
            bias = bias.detach()
        embeddings = self.clip_model.visual.recognise(
            read[self.config.split], bias, trunk.grid, tokens, self.image_tokens
        )
        return ImageFeatures((masks, embeddings), (masks.shape[-2], masks.shape[-1]))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The text embedding (P, E), not normalised. Padding follows the end token and changes nothing."""
        return self.text_head(self.text_trunk(input_ids, attention_mask))

    def text_trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The embedding before the sites ``condition`` and ``text.skip``, and the end-of-text state that the latter reads."""
        words, end = self.clip_model.encode(input_ids, self.text_tokens)
        state = words[torch.arange(words.shape[0], device=words.device), end]
        return TextFeatures(self.clip_model.text_projection(state), states=(state,))

    def text_head(self, trunk: TextFeatures) -> TextFeatures:
        """The sites ``condition`` and ``text.skip``."""
        return TextFeatures(self.text_skip(self.condition(trunk.condition), *trunk.states))

    def decode(self, image: ImageFeatures, text: TextFeatures, image_index: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (P, H, W) at the size of the images: their masks, weighted by what each query has of the prompt."""
        masks, embeddings = image.activations
        if image_index is not None:
            masks, embeddings = masks[image_index], embeddings[image_index]
        combine = self._noisy_or if self.config.graph == "corrected" else self._weighted_sum
        # Bilinear resizing is linear: the sum of resized masks is the resized sum.
        logits = combine(masks, embeddings, text.condition)
        size = (image.grid[0] * self.config.side_patch, image.grid[1] * self.config.side_patch)
        logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False).squeeze(1)
        answer: torch.Tensor = self.logits(logits)
        return answer

    @staticmethod
    def _weighted_sum(masks: torch.Tensor, embeddings: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The published combination: masks (P, Q, h, w), embeddings (P, Q, E), condition (P, E) to logits (P, h, w)."""
        weights = torch.einsum("pqe,pe->pq", embeddings, condition) / condition.shape[-1]
        return torch.einsum("pq,pqhw->phw", weights, masks)

    def _noisy_or(self, masks: torch.Tensor, embeddings: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The combination of the corrected graph, shapes as in :meth:`_weighted_sum`; stable for any certainty."""
        classes = F.normalize(self.background(condition), dim=-1)
        similarity = self.clip_model.logit_scale(torch.einsum("pqe,pce->pqc", embeddings, classes))
        prompt, background = similarity.float().log_softmax(dim=-1)[..., None, None].unbind(2)  # log P_q, log (1 - P_q)
        masks = masks.float()
        claimed = prompt + F.logsigmoid(masks)
        left = torch.logaddexp(background, prompt + F.logsigmoid(-masks))
        # softplus of a logit is -log(1 - p): these add up over queries, and the logit of the sum is its inverse.
        total = F.softplus(claimed - left).sum(dim=1).clamp(min=_LEAST)
        return (total + torch.log(-torch.expm1(-total))).to(embeddings.dtype)

    def _check_size(self, height: int, width: int) -> None:
        step = self.config.step
        if height % step or width % step:
            raise ModelError(f"image of {height} x {width} pixels: both sides must be multiples of {step}")

    # -- sites -----------------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Sites of both encoders, the skips, the condition, and the modules that hold the weights.

        ``decoder`` is what a SAN trains on a frozen CLIP: the side network with its queries, the fusion layers that are
        read, the mask decoder, and in the corrected graph CLIP's image positions and the background embedding. Not
        offered is what nothing reads or no gradient reaches: a fusion layer or block beyond the last output, and in the
        published graph the attention bias.
        """
        config = self.config
        found: list[Site] = []
        for tower, prefix, width, depth in (
            ("image", f"{_VISUAL}.transformer", config.vision_width, config.vision_layers),
            ("text", "clip_model.transformer", config.text_width, config.text_layers),
        ):
            for block in range(depth):
                found.append(Site(f"{tower}.tokens", block, f"{tower}_tokens.{block}", width))
                found += [
                    Site(f"{tower}.{name}", block, f"{prefix}.resblocks.{block}.{part}", width)
                    for name, part in BLOCK_SITES
                ]
        for number in range(len(self.features_read)):
            found.append(Site("image.skip", number, f"image_skip.{number}", config.vision_width))
        found.append(Site("condition", 0, "condition", config.embed_dim))
        found.append(Site("text.skip", 0, "text_skip", config.text_width))
        found.append(Site("logits", 0, "logits", 1))
        for stage, parts in self._weights().items():
            modules = [module for part in parts for module in weight_modules(self, part)]
            found += [Site(stage, number, module, 0) for number, module in enumerate(modules)]
        return found

    def _weights(self) -> dict[str, list[str]]:
        """Stage to the modules that hold its weights, as far as the output depends on them and learns from it."""
        config = self.config
        corrected = config.graph == "corrected"
        positions = f"{_VISUAL}.positional_embedding"
        image = [
            f"{_VISUAL}.{part}" for part in ("class_embedding", "conv1", "ln_pre", "transformer", "ln_post", "proj")
        ]
        text = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
        vit = [f"{_SIDE}.vit_model.{part}" for part in ("pos_embed", "patch_embed")]
        vit += [f"{_SIDE}.vit_model.blocks.{block}" for block in range(config.blocks_in_use)]
        bias = [] if config.graph == "published" else ["attn_mlp", "bias_scaling"]
        return {
            "image": image if corrected else [*image, positions],
            "text": [f"clip_model.{part}" for part in (*text, *(["logit_scale"] if corrected else []))],
            "decoder": [
                *([positions, "background"] if corrected else []),
                *(f"{_SIDE}.{part}" for part in ("query_embed", "query_pos_embed")),
                *vit,
                *(f"{_SIDE}.fusion_layers.layer_{block}" for block in config.fusion_in_use),
                *(f"{_SIDE}.mask_decoder.{part}" for part in ("query_mlp", "pix_mlp", *bias)),
            ],
        }

    # -- text and identity -----------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        return self.config.context_length - tokens_given(self.text_tokens[0])

    def word_table(self) -> nn.Module:
        return self.clip_model.token_embedding

    def hash_in_memory(self) -> str:
        return saving.hash_tensors(self.base_state())

    @classmethod
    def from_pretrained(cls, source: str | Path, base_id: str, dtype: torch.dtype) -> SAN:
        """Load a folder that :func:`vlsm_adapter.models.saving.save_model` wrote, or a hub id with the same files.

        Raises:
            ModelError: something is missing, damaged, of another kind, or only there as a pickle.
        """
        config = SANConfig.from_dict(checkpoints.read_config(source, base_id), f"model '{base_id}'")
        tokenizer = checkpoints.load_tokenizer(source, base_id)
        if tokenizer is not None and len(tokenizer) > config.vocab_size:
            raise ModelError(
                f"model '{base_id}': the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; "
                "copy the tokenizer it was trained with"
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


def default_preprocessing(config: SANConfig) -> Preprocessing:
    """The size of the side network's position table (640 x 640 at the papers' size), CLIP's statistics."""
    return Preprocessing(size=(config.side_image_size, config.side_image_size), mean=CLIP_MEAN, std=CLIP_STD)
