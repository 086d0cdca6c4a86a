"""The CLIP of a SAN: the text tower, and the image encoder cut into a feature extractor and a recognition head.

Blocks 0..K-1 give the features that the side network reads; the others recognise: a copy of the class token per query
looks at the patches under that query's attention bias, and comes out as the query's embedding (Xu et al., CVPR 2023).

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`; Q is the number of queries, E the joint embedding's width,
n = h * w the CLIP patches.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.models.clip_blocks import Projection, TextTower, Transformer
from vlsm_adapter.models.prompt_tokens import run_block
from vlsm_adapter.models.san_parts.config import SANConfig

MASKED = -100.0  # of the published attention mask: finite, and nothing after a softmax


def weight_of(module: nn.Module) -> torch.Tensor:
    """The ``weight`` of ``module``, or of the base model's where an adapter stands in its place."""
    base: Any = getattr(module, "base_layer", module)
    weight: torch.Tensor = base.weight
    return weight


class ClassToken(nn.Module):
    """The learned class token, ``weight`` (D,), put in front of patches (B, n, D): (B, 1 + n, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.weight.expand(patches.shape[0], 1, -1), patches], dim=1)


class GridPositions(nn.Module):
    """Learned positions, ``weight`` (1 + side^2, D), added to class token and patches (B, 1 + h * w, D).

    Another grid than the stored one gets positions interpolated bicubically (half-pixel centres, not antialiased).
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(1 + side * side, width).normal_(std=width**-0.5))

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if grid == (self.side, self.side):
            return x + self.weight
        patches = resize_positions(self.weight[None, 1:], (self.side, self.side), grid)
        return x + torch.cat([self.weight[None, :1], patches], dim=1)


class LogitScale(nn.Module):
    """CLIP's learned temperature: similarities times exp(``weight``), a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, similarity: torch.Tensor) -> torch.Tensor:
        return similarity * self.weight.exp()


class ImageEncoder(nn.Module):
    """CLIP's ViT in two parts. Adapters find its blocks under ``transformer.resblocks``."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.clip_patch
        self.split = config.split
        self.patch = patch
        self.class_embedding = ClassToken(width)
        self.positional_embedding = GridPositions(config.clip_image_size // patch, width)
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.vision_heads, config.vision_layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = Projection(width, config.embed_dim)

    def features(
        self, pixels: torch.Tensor, token_sites: nn.ModuleList | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor, tuple[int, int]]:
        """What the blocks below K make of images (B, 3, H, W).

        Args:
            token_sites: one per block, see :mod:`vlsm_adapter.models.prompt_tokens`.

        Returns:
            Features 0..K, each (B, 1 + n, D) with the class token first; the learned tokens (B, M, D) after block K - 1;
            the features' grid (h, w).
        """
        patches = self.conv1(pixels.to(weight_of(self.conv1).dtype))
        grid = (patches.shape[-2], patches.shape[-1])
        x = self.class_embedding(patches.flatten(2).transpose(1, 2))
        x = self.ln_pre(self.positional_embedding(x, grid))
        tokens = x[:, :0]
        found = [x]
        for number, block in enumerate(self.transformer.resblocks[: self.split]):
            if token_sites is not None:
                tokens = token_sites[number](tokens)
            x, tokens = run_block(block, x, tokens)
            found.append(x)
        return found, tokens, grid

    def recognise(
        self,
        feature: torch.Tensor,
        bias: torch.Tensor,
        grid: tuple[int, int],
        tokens: torch.Tensor | None = None,
        token_sites: nn.ModuleList | None = None,
    ) -> torch.Tensor:
        """Embeddings (B, Q, E) of the queries, of length 1.

        Args:
            feature: feature K (B, 1 + n, D).
            bias: attention bias (B, R, heads or 1, Q, rows, columns) on the side network's grid; R is 1 or the number
                of blocks of the head.
            grid: (h, w) of the feature; the bias comes to it by adaptive max pooling.
            tokens: learned ones (B, M, D); queries see them without bias.
            token_sites: one per block, those below K too.
        """
        pooled = pool_bias(bias, grid).to(feature.dtype).unbind(1)
        tokens = feature[:, :0] if tokens is None else tokens
        queries = bias.shape[3]
        x = torch.cat([feature[:, :1].expand(-1, queries, -1), feature], dim=1)
        masks: dict[tuple[int, int], torch.Tensor] = {}
        for number in range(self.split, len(self.transformer.resblocks)):
            if token_sites is not None:
                tokens = token_sites[number](tokens)
            layer, learned = (number - self.split) % len(pooled), tokens.shape[1]
            if (layer, learned) not in masks:
                masks[layer, learned] = head_mask(F.pad(pooled[layer], (0, learned)))
            block = partial(self.transformer.resblocks[number], mask=masks[layer, learned])
            x, tokens = run_block(block, x, tokens)
        return F.normalize(self.proj(self.ln_post(x[:, :queries])), dim=-1)


class CLIP(TextTower):
    """Both encoders and the temperature, under the published names."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            width=config.text_width,
            heads=config.text_heads,
            layers=config.text_layers,
            embed_dim=config.embed_dim,
        )
        self.visual = ImageEncoder(config)
        self.logit_scale = LogitScale()


def resize_positions(table: torch.Tensor, stored: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """A table of positions (1, rows * columns, D) of grid ``stored``, on another grid."""
    maps = table.transpose(1, 2).unflatten(2, stored)
    return F.interpolate(maps, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def pool_bias(bias: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bias (B, R, heads, Q, rows, columns) to (B, R, heads, Q, n): the largest of the places each CLIP patch covers."""
    leading = bias.shape[:-3]
    return F.adaptive_max_pool2d(bias.flatten(0, 2), grid).flatten(2).unflatten(0, leading)


def head_mask(bias: torch.Tensor) -> torch.Tensor:
    """The additive mask (B, heads, Q + 1 + n, Q + 1 + n) of a block of the recognition head; row looks at column.

    CLIP's own tokens run as if alone; a query's token sees itself and, with its bias (B, heads, Q, n), the patches.
    """
    batch, heads, queries, patches = bias.shape
    own = 1 + patches
    others = ~torch.eye(queries, queries + 1, dtype=torch.bool, device=bias.device)
    queries_see = torch.zeros(queries, queries + 1, dtype=bias.dtype, device=bias.device).masked_fill(others, MASKED)
    others_see = torch.zeros(own, queries + own, dtype=bias.dtype, device=bias.device)
    others_see[:, :queries] = MASKED
    top = torch.cat([queries_see.expand(batch, heads, -1, -1), bias], dim=-1)
    return torch.cat([top, others_see.expand(batch, heads, -1, -1)], dim=-2)
