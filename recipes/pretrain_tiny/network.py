"""The network of the embedded model: CLIPSeg's architecture scaled down, and an initialisation it can learn from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from corpus import IMAGENET_MEAN, IMAGENET_STD
from tokenizer import CONTEXT
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from vlsm_adapter.errors import ModelError
from vlsm_adapter.files import atomic_path, write_json
from vlsm_adapter.models.clipseg import CLIPSeg

SIZE, PATCH = 192, 16
VISION_WIDTH, TEXT_WIDTH = 192, 128


def build(vocabulary: int, size: int = SIZE) -> CLIPSegForImageSegmentation:
    """A stock CLIPSeg of ten blocks per encoder (the last one read is the last one there is), freshly initialised.

    Args:
        vocabulary: tokens.
        size: side of its pictures in pixels.
    """
    config = CLIPSegConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 10,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "hidden_act": "gelu",
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_hidden_layers": 10,
            "num_attention_heads": 6,
            "image_size": size,
            "patch_size": PATCH,
            "hidden_act": "gelu",
        },
        projection_dim=TEXT_WIDTH,
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=256,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    initialise(model)
    return model


@torch.no_grad()
def initialise(model: CLIPSegForImageSegmentation) -> None:
    """Weights from which training starts well.

    transformers initialises a decoder whose logits have a deviation near 100; from there training falls into all-empty
    masks. Here: encoder layers of deviation 0.02; convolutions scaled by fan-in; FiLM starts as x * (1 + small); the
    last bias says that most pixels are background. The patch embedding starts as the lowest frequencies of the patch
    (cosine basis, brightness and two colour differences), the positions as sines and cosines: both go on learning.
    """
    for module in model.clip.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    text, vision, decoder = model.clip.text_model, model.clip.vision_model, model.decoder
    nn.init.normal_(model.clip.text_projection.weight, std=TEXT_WIDTH**-0.5)
    nn.init.normal_(model.clip.visual_projection.weight, std=VISION_WIDTH**-0.5)
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(text.embeddings.position_embedding.weight, std=0.01)
    vision.embeddings.patch_embedding.weight.copy_(_cosine_filters(VISION_WIDTH, PATCH))
    vision.embeddings.position_embedding.weight.copy_(
        0.5 * _sine_positions(vision.config.image_size // PATCH, VISION_WIDTH)
    )
    nn.init.normal_(vision.embeddings.class_embedding, std=0.02)
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=(2 / (module.in_features + module.out_features)) ** 0.5)
            nn.init.zeros_(module.bias)
    nn.init.normal_(decoder.film_mul.weight, std=0.5 * TEXT_WIDTH**-0.5)
    nn.init.ones_(decoder.film_mul.bias)
    first, _, second, _, last = decoder.transposed_convolution
    nn.init.normal_(first.weight, std=(2 / (9 * first.in_channels)) ** 0.5)
    nn.init.normal_(second.weight, std=(2 / second.in_channels) ** 0.5)
    nn.init.normal_(last.weight, std=(1 / last.in_channels) ** 0.5)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(second.bias)
    nn.init.constant_(last.bias, -2.0)


def _cosine_filters(count: int, patch: int) -> torch.Tensor:
    """(count, 3, patch, patch): half for brightness, a quarter for each colour difference, low frequencies first."""
    ramp = (torch.arange(patch) + 0.5) * math.pi / patch
    basis = torch.stack([torch.cos(ramp * k) * math.sqrt((1 if k == 0 else 2) / patch) for k in range(patch)])
    pairs = sorted(((i, j) for i in range(patch) for j in range(patch)), key=lambda pair: (sum(pair), pair))
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    filters = []
    for colour, share in zip(colours, (count // 2, count // 4, count // 4), strict=True):
        for i, j in pairs[:share]:
            # Natural pictures have amplitudes near 1/frequency: this makes the outputs alike in size.
            plane = torch.outer(basis[i], basis[j]) * (1 + i + j) / patch
            filters.append(colour[:, None, None] * plane)
    return torch.stack(filters)


def _sine_positions(side: int, width: int) -> torch.Tensor:
    """(1 + side * side, width): sines and cosines of row and column, zeros for the class token."""
    quarter = width // 4
    rates = torch.exp(torch.linspace(0, math.log(side * 1.5), quarter)) * math.pi / (2 * side)
    line = torch.arange(side, dtype=torch.float32)[:, None] * rates
    wave = torch.cat([line.sin(), line.cos()], dim=1)  # (side, width / 2)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None].expand(side, side, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(side * side, width)
    return torch.cat([torch.zeros(1, width), table])


def load_weights(model: CLIPSegForImageSegmentation, folder: Path) -> None:
    """Take the weights of a model folder; positions of a model of other picture size are interpolated.

    Raises:
        ModelError: it has none, or they are of another architecture.
    """
    from safetensors.torch import load_file

    try:
        state = load_file(folder / "model.safetensors")
        name = "clip.vision_model.embeddings.position_embedding.weight"
        state[name] = _resized_positions(state[name], len(model.get_parameter(name)))
        model.load_state_dict(state)
    except Exception as error:  # a missing or damaged file, missing names, other shapes
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{folder}: cannot start from it ({first}); give a folder written by this recipe") from error


def _resized_positions(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A position table (1 + n * n, D) for another grid: ``rows`` of them, the class token's first."""
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table) - 1), math.isqrt(rows - 1)
    grid = table[1:].float().T.reshape(1, -1, old, old)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:1].float(), grid[0].flatten(1).T])


def trainable(model: CLIPSegForImageSegmentation) -> CLIPSeg:
    """The project's staged model around the stock one, with gradients on."""
    staged = CLIPSeg(model, base_id="tiny")
    staged.requires_grad_(True)
    staged.train()
    return staged


def export(model: CLIPSegForImageSegmentation, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model folder in Hugging Face format: half precision on disk, loaded as float32 by default."""
    from safetensors.torch import save_file
    from tokenizer import save_tokenizer

    save_tokenizer(tokenizer, folder)
    config, size = model.config.to_dict(), model.config.vision_config.image_size
    config.update({"architectures": ["CLIPSegForImageSegmentation"], "dtype": "float32"})
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "processor_class": "CLIPSegProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
        },
    )
    state = {name: value.detach().to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
