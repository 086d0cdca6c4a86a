"""CRIS's cross-modal neck: three image maps and the text state become one map at stride 16."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.models.cris_parts.layers import BatchNorm1d, BatchNorm2d, conv_norm_relu, double


class CoordinateConv(nn.Module):
    """conv-norm-ReLU that also reads where it is: two channels from -1 to 1, along the width and along the height."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_norm_relu(channels + 2, out_channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, _, height, width = x.shape
        along_width = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(count, 1, height, width)
        along_height = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None]
        out: torch.Tensor = self.conv1(torch.cat((x, along_width, along_height.expand(count, 1, height, width)), 1))
        return out


class Neck(nn.Module):
    """Fuses text state and maps, the deepest first.

    Args:
        map_widths: channels of the maps at strides 8, 16 and 32; the last is the width of the text state too.
        widths: F0, F1, F2; the output has F1 channels.
    """

    def __init__(self, map_widths: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        wide3, wide4, wide5 = map_widths
        w0, w1, w2 = widths
        self.txt_proj = nn.Sequential(nn.Linear(wide5, w2, bias=False), BatchNorm1d(w2), nn.ReLU())
        self.f1_v_proj = conv_norm_relu(wide5, w2, 1)
        self.norm_layer = nn.Sequential(BatchNorm2d(w2), nn.ReLU())
        self.f2_v_proj = conv_norm_relu(wide4, w1, 3)
        self.f2_cat = conv_norm_relu(w1 + w2, w1, 1)
        self.f3_v_proj = conv_norm_relu(wide3, w0, 3)
        self.f3_cat = conv_norm_relu(w0 + w1, w1, 1)
        self.f4_proj5 = conv_norm_relu(w2, w1, 3)
        self.f4_proj4 = conv_norm_relu(w1, w1, 3)
        self.f4_proj3 = conv_norm_relu(w1, w1, 3)
        self.aggr = conv_norm_relu(3 * w1, w1, 1)
        self.coordconv = nn.Sequential(CoordinateConv(w1, w1), conv_norm_relu(w1, w1, 3))

    def forward(
        self, maps: tuple[torch.Tensor, ...], state: torch.Tensor, image_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(P, F1, h, w) at stride 16.

        Args:
            maps: (B, C, ., .) at strides 8, 16 and 32.
            state: (P, E) of the prompts.
            image_index: (P,), the image of each prompt; by default prompt i is asked of image i.
        """
        # What does not depend on the prompt is computed once per image, then handed to each of its prompts.
        a3 = F.avg_pool2d(self.f3_v_proj(maps[0]), 2)
        a4, a5 = self.f2_v_proj(maps[1]), self.f1_v_proj(maps[2])
        if image_index is not None:
            a3, a4, a5 = a3[image_index], a4[image_index], a5[image_index]
        f5 = self.norm_layer(a5 * self.txt_proj(state)[:, :, None, None])
        f4 = self.f2_cat(torch.cat((a4, double(f5)), 1))
        f3 = self.f3_cat(torch.cat((a3, f4), 1))
        q3, q4, q5 = self.f4_proj3(f3), self.f4_proj4(f4), double(self.f4_proj5(f5))
        out: torch.Tensor = self.coordconv(self.aggr(torch.cat((q3, q4, q5), 1)))
        return out
