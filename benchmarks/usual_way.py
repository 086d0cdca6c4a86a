"""The usual way to fine-tune and use CLIPSeg with adapters, as published: what the benchmarks compare with.

Stock transformers modules, all of their vision blocks, one image encoding per prompt, every prompt padded to 77 tokens,
float32, the adapters of the published variants added by hooks, every batch from the encoder's first layer, whole-model
checkpoints. Same torch, same threads and the same attention kernels (SDPA, the library's default) as ours: nothing here is
slower than the usual code has to be. Images are decoded and resized by whoever calls, alike for both ways.

    python benchmarks/usual_way.py MODEL CHECKPOINT IMAGE PROMPT OUT.png

segments one image, as a script of the usual kind does: base model, then the whole-model checkpoint, then the mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

CONTEXT = 77
METHODS = ("none", "dense", "shallow", "decoder_only")


def full_size(seed: int = 0, special: dict[str, int] | None = None) -> CLIPSegForImageSegmentation:
    """CLIPSeg of its published size (150,747,746 parameters) with random weights, frozen.

    Args:
        seed: of the weights.
        special: ``eos_token_id`` and the like, where the tokenizer is not CLIP's own.
    """
    torch.manual_seed(seed)
    config = CLIPSegConfig(
        text_config=special or {},
        vision_config={"patch_size": 16, "image_size": 224},
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config).eval()
    return model.requires_grad_(False)


class Bottleneck(nn.Module):
    """x + ReLU(up(ReLU(down(x)))), default initialisation: the published adapter."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.up(F.relu(self.down(x))))


class UsualWay(nn.Module):
    """Stock CLIPSeg, all of whose encoder blocks run, with published VLC adapters, its decoder to train, or nothing.

    Args:
        stock: frozen.
        method: ``dense``, ``shallow``, ``decoder_only``, or ``none``.
        width: of the bottlenecks; the paper's where None (dense 64, shallow 512).
    """

    def __init__(self, stock: CLIPSegForImageSegmentation, method: str = "dense", width: int | None = None) -> None:
        super().__init__()
        self.stock = stock
        self.method = method
        self.extract = tuple(stock.config.extract_layers)
        # Under the name of the place that each stands at.
        self.added = nn.ModuleDict()
        if method == "decoder_only":
            stock.decoder.requires_grad_(True)
        if method == "dense":
            for tower in ("vision_model", "text_model"):
                for number, block in enumerate(getattr(stock.clip, tower).encoder.layers[: max(self.extract)]):
                    size = block.layer_norm1.normalized_shape[0]
                    attention, mlp = Bottleneck(size, width or 64), Bottleneck(size, width or 64)
                    path = f"clipseg clip {tower} encoder layers {number}"
                    self.added[f"{path} self_attn out_proj"], self.added[f"{path} mlp fc2"] = attention, mlp
                    block.self_attn.register_forward_hook(_behind_first(attention))
                    block.mlp.register_forward_hook(_behind(mlp))
        if method == "shallow":
            vision, text = stock.config.vision_config.hidden_size, stock.config.text_config.hidden_size
            for number in range(len(self.extract)):
                self.added[f"image_skip {number}"] = Bottleneck(vision, width or 512)
                self.added[f"text_skip {number}"] = Bottleneck(text, width or 512)
        if method in ("dense", "shallow"):
            self.added["condition"] = Bottleneck(stock.config.projection_dim, 256)

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (P, H, W) of P prompts on P images."""
        clip, added = self.stock.clip, self.added
        vision = clip.vision_model(pixel_values, interpolate_pos_encoding=True, output_hidden_states=True)
        activations = [vision.hidden_states[layer + 1] for layer in self.extract]
        shallow = self.method == "shallow"
        text = clip.text_model(input_ids, attention_mask=mask, output_hidden_states=shallow)
        condition = clip.text_projection(text.pooler_output)
        if "condition" in added:
            condition = added["condition"](condition)
        if shallow:
            activations = [added[f"image_skip {i}"](activation) for i, activation in enumerate(activations)]
            end = (input_ids == clip.text_model.eos_token_id).int().argmax(dim=-1)
            rows = torch.arange(len(end), device=end.device)
            for number, layer in enumerate(self.extract):
                condition = condition + added[f"text_skip {number}"](text.hidden_states[layer + 1][rows, end])
        return self.stock.decoder(activations, condition).logits

    @torch.no_grad()
    def take(self, weights: dict[str, torch.Tensor]) -> None:
        """Start from the weights of our adapter of the same method, so that both ways compute the same."""
        if self.method == "decoder_only":
            own = dict(self.stock.decoder.named_parameters(prefix="clipseg.decoder"))
            named = {key.replace("adapter_copy.", ""): tensor for key, tensor in weights.items()}
        else:
            own = {
                f"{place.replace(' ', '.')}.adapter_{name}": parameter
                for place, part in self.added.items()
                for name, parameter in part.named_parameters()
            }
            named = weights
        if own.keys() != named.keys():
            raise SystemExit(f"the two ways train other tensors: {sorted(own.keys() ^ named.keys())[:4]} ...")
        for key, parameter in own.items():
            parameter.copy_(named[key])


def padded(ids: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (P, L) and their mask, padded to the whole context, as the usual processors are told to."""
    missing = CONTEXT - ids.shape[1]
    mask = F.pad(torch.ones_like(ids), (0, missing))
    return F.pad(ids, (0, missing), value=end), mask


def train(
    model: UsualWay, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[torch.Tensor, ...]], loss_of: Any
) -> Iterator[tuple[float, int]]:
    """One step per batch (pixels (P, 3, H, W), token ids and their mask (P, 77), masks (P, H, W)): loss and P."""
    for pixels, ids, mask, truth in batches:
        loss = loss_of(model(pixels, ids, mask), truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item(), len(truth)


@torch.inference_mode()
def predict(
    model: UsualWay,
    pixels: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    size: tuple[int, int],
    chunk: int = 32,
) -> torch.Tensor:
    """Masks bool (P, H, W) at ``size`` of P prompts on one image (1, 3, h, w): the image once per prompt."""
    masks = []
    for start in range(0, len(ids), chunk):
        some, attend = ids[start : start + chunk], mask[start : start + chunk]
        logits = model(pixels.expand(len(some), -1, -1, -1), some, attend)
        masks.append(
            F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].sigmoid() > 0.5
        )
    return torch.cat(masks)


def save_checkpoint(model: UsualWay, path: Path) -> None:
    """The whole model, as the usual trainers do; without their optimizer's state."""
    torch.save({"state_dict": model.state_dict()}, path)


def load_checkpoint(folder: str, path: str, method: str = "dense") -> UsualWay:
    """The base model as the usual code builds it, then the checkpoint over it."""
    stock = CLIPSegForImageSegmentation.from_pretrained(folder).eval().requires_grad_(False)
    model = UsualWay(stock, method)
    model.load_state_dict(torch.load(path, weights_only=True, mmap=True)["state_dict"])
    return model


def _behind(module: nn.Module) -> Any:
    return lambda _block, _inputs, output: module(output)


def _behind_first(module: nn.Module) -> Any:
    return lambda _block, _inputs, output: (module(output[0]), *output[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment one image; see above."""
    import json

    import numpy as np
    from PIL import Image
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("model", "checkpoint", "image", "prompt", "out"):
        parser.add_argument(name)
    options = parser.parse_args(arguments)
    model = load_checkpoint(options.model, options.checkpoint)
    about = json.loads((Path(options.model) / "preprocessor_config.json").read_text())
    picture = Image.open(options.image).convert("RGB")
    side = (about["size"]["width"], about["size"]["height"])
    values = np.asarray(picture.resize(side, Image.Resampling.BILINEAR), np.float32) / 255
    values = (values - np.float32(about["image_mean"])) / np.float32(about["image_std"])
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids, mask = padded(tokenizer([options.prompt], return_tensors="pt")["input_ids"], tokenizer.eos_token_id)
    pixels = torch.from_numpy(values).permute(2, 0, 1)[None]
    found = predict(model, pixels, ids, mask, (picture.height, picture.width))[0]
    Image.fromarray(found.numpy().astype(np.uint8) * 255).save(options.out)


if __name__ == "__main__":
    main()
