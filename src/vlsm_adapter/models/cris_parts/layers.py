"""What the parts of CRIS share: batch norm that takes a single value, conv-norm-ReLU, and the codes of positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class BatchNorm1d(nn.BatchNorm1d):
    """Batch norm of (B, C) that also takes one row in training mode.

    One value has no variance: torch refuses it. Here the running statistics normalise it, and stay as they are.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normalised_by_running(self, x) if _is_single(self, x) else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) that also takes one pixel in training mode; see :class:`BatchNorm1d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normalised_by_running(self, x) if _is_single(self, x) else super().forward(x)


def _is_single(norm: nn.Module, x: torch.Tensor) -> bool:
    return norm.training and x.numel() == x.shape[1]


def _normalised_by_running(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def conv_norm_relu(channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution without bias that keeps the size, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False),
        BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def double(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W), bilinear, pixel centres aligned by area."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """A map (B, C, H, W) as tokens (B, H * W, C), row by row.

    In memory too: of a transposed view, torch computes a linear layer in another order of sums where its weights train
    than where they do not, and a loaded adapter would not give the bits of the trained one.
    """
    return x.flatten(2).transpose(1, 2).contiguous()


def to_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, H * W, C) as a map (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def position_code(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of positions counted from 0 (Vaswani et al., 2017), interleaved.

    Args:
        positions: float (n,).
        width: even number of channels.

    Returns:
        float32 (n, width): channel 2k is sin(p / 10000^(2k / width)), channel 2k + 1 its cosine.
    """
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * torch.pow(10000.0, -steps / width)
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


def grid_code(grid: tuple[int, int], width: int, device: torch.device) -> torch.Tensor:
    """Codes float32 (h * w, width) of the pixels of a grid, row by row: first half the column, second half the row."""
    height, length = grid
    columns = position_code(torch.arange(length, device=device), width // 2).expand(height, -1, -1)
    rows = position_code(torch.arange(height, device=device), width // 2)[:, None].expand(-1, length, -1)
    return torch.cat((columns, rows), dim=2).flatten(0, 1)
