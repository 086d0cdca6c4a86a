"""The side network of a SAN: a narrow ViT beside CLIP that proposes masks and biases CLIP's attention.

It reads the whole image at full resolution and CLIP's features on the way, and gives per query one mask and one
attention bias for the recognition head (Xu et al., CVPR 2023).

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`; Q is the number of queries, n = h * w the side patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.models.san_parts.clip import resize_positions, weight_of
from vlsm_adapter.models.san_parts.config import SANConfig


class LearnedTokens(nn.Module):
    """``weight`` (1, tokens, D), given to every image of a batch."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))

    def forward(self, like: torch.Tensor) -> torch.Tensor:
        """(B, tokens, D), B as in ``like`` (B, ...)."""
        return self.weight.expand(like.shape[0], -1, -1)


class LearnedPositions(LearnedTokens):
    """Positions of a square grid of patches, interpolated bicubically to another grid.

    Args:
        side: of the square.
        width: D.
        by_count: another grid of as many patches gets them as they are, row after row, as in the published graph.
    """

    def __init__(self, side: int, width: int, *, by_count: bool = False) -> None:
        super().__init__(side * side, width)
        self.side = side
        self.by_count = by_count

    def forward(self, like: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """(B, h * w, D) for ``grid`` (h, w)."""
        if (
            grid is None
            or grid == (self.side, self.side)
            or (self.by_count and grid[0] * grid[1] == self.side * self.side)
        ):
            return super().forward(like)
        table = resize_positions(self.weight, (self.side, self.side), grid)
        return table.expand(like.shape[0], -1, -1)


class SideAttention(nn.Module):
    """Self-attention (B, L, D) with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        joined: torch.Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return joined


class SideMLP(nn.Module):
    """Four times as wide in between, exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SideBlock(nn.Module):
    """A pre-norm ViT block (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SideAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SideMLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Patches of images (B, 3, H, W) as a map (B, D, h, w)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = self.proj(pixels.to(weight_of(self.proj).dtype))
        return patches


class SideViT(nn.Module):
    """The weights of the ViT; the side network runs them, as it adds CLIP's features between the blocks."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        side = config.side_image_size // config.side_patch
        self.pos_embed = LearnedPositions(side, config.side_width, by_count=config.graph != "corrected")
        self.patch_embed = PatchEmbedding(config.side_patch, config.side_width)
        self.blocks = nn.ModuleList(SideBlock(config.side_width, config.side_heads) for _ in range(config.side_depth))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of maps (B, C, h, w), at each place alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normed.permute(0, 3, 1, 2)


class FusionLayer(nn.Module):
    """A CLIP feature as maps (B, C, h, w), normed and brought to the side network's width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.input_proj = nn.Sequential(ChannelNorm(channels), nn.Conv2d(channels, width, 1))

    def forward(self, feature: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, h' * w', D) on another grid (h', w'), bilinearly, after the convolution."""
        maps = F.interpolate(self.input_proj(feature), size=grid, mode="bilinear", align_corners=False)
        return maps.flatten(2).transpose(1, 2)


class MaskMLP(nn.Module):
    """Three linear maps with ReLU between them, on queries (B, Q, D) or, as 1 x 1 convolutions, on maps (B, D, h, w)."""

    def __init__(self, width: int, hidden: int, out: int, *, maps: bool) -> None:
        super().__init__()
        sizes = ((width, hidden), (hidden, hidden), (hidden, out))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) if maps else nn.Linear(a, b) for a, b in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, last = self.layers
        out: torch.Tensor = last(F.relu(second(F.relu(first(x)))))
        return out


class MaskDecoder(nn.Module):
    """Masks and attention biases from query tokens and patch maps."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        width, hidden, embed = config.side_width, config.mask_hidden, config.mask_embed
        self.bias_layers, self.bias_heads = config.bias_layers, config.bias_heads
        self.query_mlp = MaskMLP(width, hidden, embed, maps=False)
        self.pix_mlp = MaskMLP(width, hidden, embed, maps=True)
        self.attn_mlp = MaskMLP(width, hidden, embed * config.bias_layers * config.bias_heads, maps=True)
        self.bias_scaling = nn.Linear(1, 1)
        nn.init.ones_(self.bias_scaling.weight)
        nn.init.zeros_(self.bias_scaling.bias)

    def forward(self, queries: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the masks (B, Q, h, w), and the attention bias (B, R, heads, Q, h, w).

        Args:
            queries: (B, Q, D).
            maps: (B, D, h, w).
        """
        kernels = self.query_mlp(queries)
        masks = torch.einsum("bqa,bahw->bqhw", kernels, self.pix_mlp(maps))
        places = self.attn_mlp(maps).unflatten(1, (self.bias_layers, self.bias_heads, -1))
        bias = torch.einsum("bqa,brkahw->brkqhw", kernels, places)
        return masks, self.bias_scaling(bias.unsqueeze(-1)).squeeze(-1)


class SideNetwork(nn.Module):
    """Query and patch tokens through the side ViT, CLIP's features added on the way, and the mask decoder."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        width = config.side_width
        self.in_use = config.blocks_in_use
        self.fusion_map = config.fusion_in_use
        self.query_embed = LearnedTokens(config.queries, width)
        self.query_pos_embed = LearnedTokens(config.queries, width)
        self.vit_model = SideViT(config)
        self.fusion_layers = nn.ModuleDict(
            {f"layer_{block}": FusionLayer(config.vision_width, width) for block, _ in config.fusion_map}
        )
        self.mask_decoder = MaskDecoder(config)
        self._initialise()

    def encode(
        self, pixels: torch.Tensor, features: Mapping[int, torch.Tensor], clip_grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Query tokens (B, Q, D) and patch maps (B, D, h, w) after the last block that is decoded.

        Args:
            pixels: (B, 3, H, W), whole patches.
            features: CLIP's, by number, each (B, 1 + patches, D_clip).
            clip_grid: rows and columns of those patches.
        """
        vit = self.vit_model
        patches = vit.patch_embed(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)
        positions = torch.cat([self.query_pos_embed(tokens), vit.pos_embed(tokens, grid)], dim=1)
        x = torch.cat([self.query_embed(tokens), tokens], dim=1) + positions
        count = x.shape[1] - tokens.shape[1]
        x = self._fuse(0, x, count, features, clip_grid, grid)
        for number, block in enumerate(vit.blocks[: self.in_use], start=1):
            if number > 1:
                x = x + positions  # before every block, not only the first
            x = self._fuse(number, block(x), count, features, clip_grid, grid)
        return x[:, :count], x[:, count:].transpose(1, 2).unflatten(2, grid)

    def _fuse(
        self,
        after: int,
        x: torch.Tensor,
        queries: int,
        features: Mapping[int, torch.Tensor],
        clip_grid: tuple[int, int],
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """``x`` with the CLIP feature meant for this place added to its patches, if there is one."""
        if after not in self.fusion_map:
            return x
        maps = features[self.fusion_map[after]][:, 1:].transpose(1, 2).unflatten(2, clip_grid)
        change = self.fusion_layers[f"layer_{after}"](maps, grid)
        return torch.cat([x[:, :queries], x[:, queries:] + change], dim=1)

    def _initialise(self) -> None:
        """A fresh network as the paper starts it; elsewhere torch's defaults."""
        for module in self.vit_model.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for tokens in (self.query_embed, self.query_pos_embed):
            nn.init.normal_(tokens.weight, std=0.02)
        for convolution in (module for module in self.fusion_layers.modules() if isinstance(module, nn.Conv2d)):
            bound = math.sqrt(3 / convolution.in_channels)
            nn.init.uniform_(convolution.weight, -bound, bound)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
