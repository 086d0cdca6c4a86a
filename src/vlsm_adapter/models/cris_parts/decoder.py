"""CRIS's vision-language decoder (pixels attend to pixels and words), and the projector that turns text into a filter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.models.clip_blocks import Attention
from vlsm_adapter.models.cris_parts.layers import conv_norm_relu, grid_code, position_code, to_map, to_tokens


class DecoderLayer(nn.Module):
    """Self-attention of pixels, attention to words, MLP: each behind a norm, the attentions normalised again.

    Args:
        width: D of pixels and words.
        heads: of both attentions.
        hidden: width of the MLP.
        dropout: in training mode.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attn = Attention(width, heads, dropout)
        self.self_attn_norm = nn.LayerNorm(width)
        self.multihead_attn = Attention(width, heads, dropout)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(hidden), nn.Linear(hidden, width)
        )
        self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(3))

    def forward(
        self,
        pixels: torch.Tensor,
        pixel_code: torch.Tensor,
        words: torch.Tensor,
        word_code: torch.Tensor,
        words_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Pixels (P, n, D) with codes (n, D); words (P, L, D) with codes (L, D), and bool (P, 1, 1, L), True = visible."""
        u = self.norm1(pixels)
        coded = u + pixel_code
        pixels = pixels + self.dropout1(self.self_attn_norm(self.self_attn(coded, coded, u)))
        u = self.norm2(pixels)
        told = self.multihead_attn(u + pixel_code, words + word_code, words, mask=words_mask)
        pixels = pixels + self.dropout2(self.cross_attn_norm(told))
        return pixels + self.dropout3(self.ffn(self.norm3(pixels)))


class Decoder(nn.Module):
    """Layers over the pixels of a map, which read the words of the prompt.

    Args:
        width, heads, hidden, dropout: as in :class:`DecoderLayer`.
        layers: how many.
    """

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, words: torch.Tensor, words_mask: torch.Tensor) -> torch.Tensor:
        """Map (P, D, h, w), words (P, L, D) and bool mask (P, L), True = visible, to a map (P, D, h, w)."""
        grid, width = (x.shape[-2], x.shape[-1]), x.shape[1]
        pixel_code = grid_code(grid, width, x.device).to(x.dtype)
        places = torch.arange(words.shape[1], device=x.device)
        word_code = position_code(places, width).to(x.dtype)
        pixels = to_tokens(x)
        for layer in self.layers:
            pixels = layer(pixels, pixel_code, words, word_code, words_mask[:, None, None, :])
        return to_map(self.norm(pixels), grid)


class Projector(nn.Module):
    """The map at stride 4, filtered by a 3 x 3 kernel and a bias that the text state gives.

    Args:
        embed_dim: E of the text state.
        width: D of the map at stride 16.
    """

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.vis = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            conv_norm_relu(width, width, 3),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            conv_norm_relu(width, half, 3),
            nn.Conv2d(half, half, 1),
        )
        self.txt = nn.Linear(embed_dim, 9 * half + 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Map (P, D, h, w) and text state (P, E) to logits (P, 1, 4h, 4w)."""
        image = self.vis(x)
        prompts, half, height, width = image.shape
        values = self.txt(state)
        kernel, bias = values[:, :-1].reshape(prompts, half, 3, 3), values[:, -1]
        # One group of channels per prompt: each is filtered by its own kernel.
        together = image.reshape(1, prompts * half, height, width)
        return F.conv2d(together, kernel, bias, padding=1, groups=prompts).transpose(0, 1)
