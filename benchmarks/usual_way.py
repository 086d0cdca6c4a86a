"""The usual way to fine-tune CLIPSeg with dense adapters, as published: what the benchmarks compare with.

Stock transformers modules, all of their vision blocks, one image encoding per prompt, every prompt padded to 77 tokens,
float32, the adapters of the published variant added by hooks, whole-model checkpoints. Same torch, same threads and the
same attention kernels (SDPA, the library's default) as ours: nothing here is slower than the usual code has to be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

CONTEXT = 77


def full_size(seed: int = 0) -> CLIPSegForImageSegmentation:
    """CLIPSeg of its published size (150,747,746 parameters) with random weights, frozen."""
    torch.manual_seed(seed)
    config = CLIPSegConfig(
        vision_config={"patch_size": 16, "image_size": 224},
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config).eval()
    return model.requires_grad_(False)


class Bottleneck(nn.Module):
    """x + ReLU(up(ReLU(down(x)))), default initialisation: the published dense adapter."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.up(F.relu(self.down(x))))


class UsualWay(nn.Module):
    """Stock CLIPSeg, all of whose encoder blocks run, with published dense VLC adapters (or none)."""

    def __init__(self, stock: CLIPSegForImageSegmentation, width: int = 64, adapters: bool = True) -> None:
        super().__init__()
        self.stock = stock
        self.extract = tuple(stock.config.extract_layers)
        self.added = nn.ModuleList()
        self.condition = nn.Identity()
        if not adapters:
            return
        for encoder in (stock.clip.vision_model.encoder, stock.clip.text_model.encoder):
            for block in encoder.layers[: max(self.extract)]:
                size = block.layer_norm1.normalized_shape[0]
                attention, mlp = Bottleneck(size, width), Bottleneck(size, width)
                self.added += [attention, mlp]
                block.self_attn.register_forward_hook(_behind_first(attention))
                block.mlp.register_forward_hook(_behind(mlp))
        self.condition = Bottleneck(stock.config.projection_dim, 256)

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (P, H, W) of P prompts on P images."""
        clip = self.stock.clip
        vision = clip.vision_model(pixel_values, interpolate_pos_encoding=True, output_hidden_states=True)
        activations = [vision.hidden_states[layer + 1] for layer in self.extract]
        text = clip.get_text_features(input_ids, attention_mask=mask).pooler_output
        return self.stock.decoder(activations, self.condition(text)).logits


def padded(ids: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (P, L) and their mask, padded to the whole context, as the usual processors are told to."""
    missing = CONTEXT - ids.shape[1]
    mask = F.pad(torch.ones_like(ids), (0, missing))
    return F.pad(ids, (0, missing), value=end), mask


def _behind(module: nn.Module) -> Any:
    return lambda _block, _inputs, output: module(output)


def _behind_first(module: nn.Module) -> Any:
    return lambda _block, _inputs, output: (module(output[0]), *output[1:])
