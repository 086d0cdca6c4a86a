"""CRIS's image encoder: CLIP's residual network (Radford et al., ICML 2021) with the attention pool that keeps its map."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.models.cris_parts.layers import BatchNorm2d, to_map, to_tokens


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with a shortcut; strides are average pools, not strided convolutions.

    Args:
        channels: of the input.
        planes: of the inner convolutions; the output has four times as many.
        stride: 1 or 2.
        projects: a convolution and a norm on the shortcut (the first bottleneck of each stage).
    """

    def __init__(self, channels: int, planes: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * planes)
        self.downsample: nn.Sequential | None = None
        if projects:
            self.downsample = nn.Sequential(nn.Conv2d(channels, 4 * planes, 1, bias=False), BatchNorm2d(4 * planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) to (B, 4 * planes, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self._pool(out)))
        shortcut = x if self.downsample is None else self.downsample(self._pool(x))
        return F.relu(out + shortcut)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class PositionMap(nn.Module):
    """Learned positions of a map: ``weight`` (side * side + 1, C), whose first row, the class token's, is not used."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(side * side + 1, channels).normal_(std=channels**-0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to a map (B, C, h, w), interpolated to its size (bicubic)."""
        positions = to_map(self.weight[None, 1:], (self.side, self.side))
        return x + F.interpolate(positions, size=x.shape[-2:], mode="bicubic", align_corners=False)


class AttentionPool(nn.Module):
    """Self-attention among the pixels of a map, beside a convolution of it: (B, C, h, w) to (B, E, h, w).

    Args:
        channels: C.
        embed_dim: E.
        side: of the grid that the position table was made for.
        heads: of the attention.
    """

    def __init__(self, channels: int, embed_dim: int, side: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = PositionMap(side, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        self.connect = nn.Sequential(nn.Conv2d(channels, embed_dim, 1, bias=False), BatchNorm2d(embed_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside = self.connect(x)
        tokens = to_tokens(self.positional_embedding(x))
        q, k, v = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.relu(to_map(self.c_proj(attended), (x.shape[-2], x.shape[-1])) + beside)


class ImageEncoder(nn.Module):
    """A stem of three convolutions, four stages, and the attention pool.

    Args:
        width: w, channels after the stem.
        layers: bottlenecks in the four stages.
        heads: of the attention pool.
        embed_dim: E, channels of the pooled map.
        side: of the grid that the pool's position table was made for.
    """

    def __init__(self, *, width: int, layers: tuple[int, ...], heads: int, embed_dim: int, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm2d(width)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, layers[3], stride=2)
        self.attnpool = AttentionPool(32 * width, embed_dim, side, heads)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W), sides multiples of 32, to maps of 8w, 16w and E channels at strides 8, 16 and 32."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        c3 = self.layer2(self.layer1(F.avg_pool2d(x, 2)))
        c4 = self.layer3(c3)
        return c3, c4, self.attnpool(self.layer4(c4))


def _stage(channels: int, planes: int, count: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, planes, stride, projects=True)
    return nn.Sequential(first, *(Bottleneck(4 * planes, planes, 1, projects=False) for _ in range(count - 1)))
