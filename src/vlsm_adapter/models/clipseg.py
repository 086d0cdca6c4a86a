"""CLIPSeg (Lüddecke & Ecker, CVPR 2022) on transformers' modules and checkpoints, with its own staged forward.

The stock ``CLIPSegForImageSegmentation.forward`` runs both encoders without gradients and all their blocks; this one
keeps gradients through all three stages and runs no vision block past the last one the decoder reads. Its logits are
those of the stock model.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.base import ImageFeatures, PromptSegmenter, Site, TextFeatures, TextSkip, weight_modules
from vlsm_adapter.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPSegForImageSegmentation, PreTrainedTokenizerBase


class CLIPSeg(PromptSegmenter):
    """CLIP ViT image encoder, CLIP text encoder, and a light transformer decoder conditioned by FiLM.

    Args:
        clipseg: the stock model (weights and configuration).
        preprocessing: by default CLIPSeg's own, 352 x 352 with ImageNet statistics.
        tokenizer: a CLIP-like tokenizer, or None where only token ids are passed.
        base_id: where the weights came from, for messages and adapter cards.
    """

    family: ClassVar[str] = "clipseg"

    def __init__(
        self,
        clipseg: CLIPSegForImageSegmentation,
        *,
        preprocessing: Preprocessing | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        base_id: str = "unnamed",
    ) -> None:
        super().__init__(base_id, preprocessing or Preprocessing(), tokenizer)
        config = clipseg.config
        self.clipseg = clipseg
        self.extract_layers: tuple[int, ...] = tuple(config.extract_layers)
        depth = config.vision_config.num_hidden_layers
        if not self.extract_layers or not 0 <= min(self.extract_layers) <= max(self.extract_layers) < depth:
            raise ModelError(
                f"config.json: extract_layers {list(self.extract_layers)}: at least one block, each from 0 to {depth - 1}"
            )
        patch = config.vision_config.patch_size
        if config.use_complex_transposed_convolution and (patch // 4) ** 2 != patch:
            raise ModelError(
                f"config.json: use_complex_transposed_convolution with patch_size {patch}: the logits would be smaller "
                "than the image; allowed: patch_size 16"
            )
        # Modules that do nothing until a method attaches to them.
        self.image_skip = nn.ModuleList(nn.Identity() for _ in self.extract_layers)
        self.text_skip = nn.ModuleList(TextSkip() for _ in self.extract_layers)
        self.condition = nn.Identity()
        self._weights_folder: Path | None = None
        self.freeze()

    # -- the three stages ------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Activations of the blocks the decoder reads, each (B, T, D); sides must be multiples of the patch.

        Positions are interpolated where the size differs from the one trained on.

        Raises:
            ModelError: a side is no multiple of the patch; the logits would have another size than the image.
        """
        vision = self.clipseg.clip.vision_model
        patch = self.clipseg.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ModelError(f"image of {height} x {width} pixels: both sides must be multiples of {patch}")
        hidden = vision.embeddings(pixel_values, interpolate_pos_encoding=True)
        hidden = vision.pre_layrnorm(hidden)
        read: dict[int, torch.Tensor] = {}
        for number, block in enumerate(vision.encoder.layers[: max(self.extract_layers) + 1]):
            hidden = block(hidden, attention_mask=None)
            if number in self.extract_layers:
                read[number] = hidden
        activations = tuple(
            skip(read[number]) for skip, number in zip(self.image_skip, self.extract_layers, strict=True)
        )
        return ImageFeatures(activations, (height // patch, width // patch))

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The conditional embedding (P, D): the projected end-of-text state of each prompt."""
        text = self.clipseg.clip.text_model
        hidden = text.embeddings(input_ids=input_ids)
        mask = _causal_mask(input_ids, attention_mask, hidden.dtype)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        end = self._end_of_text(input_ids)
        states: dict[int, torch.Tensor] = {}
        for number, block in enumerate(text.encoder.layers):
            hidden = block(hidden, attention_mask=mask)
            if number in self.extract_layers:
                states[number] = hidden[rows, end]
        pooled = text.final_layer_norm(hidden[rows, end])
        condition = self.condition(self.clipseg.clip.text_projection(pooled))
        for skip, number in zip(self.text_skip, self.extract_layers, strict=True):
            if number in states:  # a text encoder may be shallower than the image encoder
                condition = skip(condition, states[number])
        return TextFeatures(condition)

    def decode(self, image: ImageFeatures, text: TextFeatures, image_index: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (P, H, W): activations from the last read block to the first, modulated once by the condition."""
        decoder = self.clipseg.decoder
        condition = text.condition
        output: torch.Tensor | None = None
        for number, (activation, reduce, layer) in enumerate(
            zip(reversed(image.activations), decoder.reduces, decoder.layers, strict=True)
        ):
            reduced = reduce(activation)  # once per image, then handed to each of its prompts
            if image_index is not None:
                reduced = reduced[image_index]
            output = reduced if output is None else reduced + output
            if number == decoder.conditional_layer:
                output = decoder.film_mul(condition)[:, None] * output + decoder.film_add(condition)[:, None]
            output = layer(output, attention_mask=None)
        assert output is not None
        patches = output[:, 1:].transpose(1, 2).unflatten(2, image.grid)  # without the class token
        return _upsample(decoder.transposed_convolution, patches)

    # -- sites -----------------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Sites of both encoders, the skips, the condition, and the modules that hold the weights."""
        config = self.clipseg.config
        vision_width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
        text_depth = config.text_config.num_hidden_layers
        found: list[Site] = []
        for tower, prefix, width, depth, last in (
            ("image", "vision_model", vision_width, config.vision_config.num_hidden_layers, max(self.extract_layers)),
            ("text", "text_model", text_width, text_depth, text_depth - 1),
        ):
            for block in range(depth):
                path = f"clipseg.clip.{prefix}.encoder.layers.{block}"
                read = block <= last
                found.append(Site(f"{tower}.attn_out", block, f"{path}.self_attn.out_proj", width, read))
                found.append(Site(f"{tower}.mlp_out", block, f"{path}.mlp.fc2", width, read))
        for number, block in enumerate(self.extract_layers):
            found.append(Site("image.skip", number, f"image_skip.{number}", vision_width))
            found.append(Site("text.skip", number, f"text_skip.{number}", text_width, block < text_depth))
        found.append(Site("condition", 0, "condition", config.projection_dim))
        vision, text = "clipseg.clip.vision_model", "clipseg.clip.text_model"
        blocks = [f"{vision}.encoder.layers.{block}" for block in range(max(self.extract_layers) + 1)]
        for tower, parts in (
            ("image", [f"{vision}.embeddings", f"{vision}.pre_layrnorm", *blocks]),
            ("text", [text, "clipseg.clip.text_projection"]),
            ("decoder", ["clipseg.decoder"]),
        ):
            modules = [module for part in parts for module in weight_modules(self, part)]
            found += [Site(tower, number, module, 0) for number, module in enumerate(modules)]
        return found

    # -- text and identity -----------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        return int(self.clipseg.config.text_config.max_position_embeddings)

    @property
    def base_hash(self) -> str:
        if self._base_hash is None:
            if self._weights_folder is not None:
                self._base_hash = checkpoints.hash_folder(self._weights_folder)
            else:
                self._base_hash = _hash_parameters(self.clipseg)
        return self._base_hash

    def _end_of_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Position (P,) of the end token of each prompt."""
        end = self.clipseg.clip.text_model.eos_token_id
        if end == 2:
            # Checkpoints converted before transformers 4.31 carry a wrong end id; the end token is the largest there.
            return input_ids.argmax(dim=-1)
        return (input_ids == end).int().argmax(dim=-1)

    @classmethod
    def from_pretrained(cls, source: str | Path, base_id: str, dtype: torch.dtype) -> CLIPSeg:
        """Load a folder or hub id in Hugging Face format (``config.json``, ``*.safetensors``, tokenizer files).

        Raises:
            ModelError: something is missing, damaged, of another kind, or only there as a pickle.
        """
        from transformers import CLIPSegForImageSegmentation

        clipseg = checkpoints.load_stock_model(CLIPSegForImageSegmentation, source, base_id, dtype)
        folder = checkpoints.weights_folder(source)
        model = cls(
            clipseg,
            preprocessing=checkpoints.load_preprocessing(source, base_id),
            tokenizer=checkpoints.load_tokenizer(source, base_id),
            base_id=base_id,
        )
        model._weights_folder = folder
        return model


def _upsample(stack: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """The decoder's (transposed) convolutions from (P, C, h, w) to logits (P, H, W).

    A transposed convolution whose stride is its kernel is one matrix product per position; done as such, with the
    pixels put into order once at the end, it takes half the time on a CPU.
    """
    # A layer that an adapter has wrapped says what computes in its place.
    layers = [getattr(layer, "in_use", layer) for layer in (stack if isinstance(stack, nn.Sequential) else [stack])]
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)), len(layers))
    for layer in layers[:first]:
        patches = layer(patches)
    rest = layers[first:]
    if patches.device.type != "cpu" or not all(isinstance(layer, nn.ReLU) or _is_per_position(layer) for layer in rest):
        for layer in rest:
            patches = layer(patches)
        return patches.squeeze(1)
    count, _, height, width = patches.shape
    values = patches.permute(0, 2, 3, 1).reshape(count * height * width, -1)
    sides: list[int] = []  # of the blocks each position has become, outermost first
    for layer in rest:
        if not isinstance(layer, nn.ConvTranspose2d):
            values = layer(values)
            continue
        side, channels = layer.kernel_size[0], layer.out_channels
        weight = layer.weight.permute(2, 3, 1, 0).reshape(side * side * channels, -1)
        bias = None if layer.bias is None else layer.bias.repeat(side * side)
        values = nn.functional.linear(values, weight, bias).view(-1, channels)
        sides.append(side)
    # (P, h, w, row 1, column 1, row 2, column 2, ...) -> rows together, columns together
    blocks = values.view(count, height, width, *(side for side in sides for _ in range(2)))
    rows = [1, *range(3, blocks.ndim, 2)]
    columns = [2, *range(4, blocks.ndim, 2)]
    scale = math.prod(sides)
    return blocks.permute(0, *rows, *columns).reshape(count, height * scale, width * scale)


def _is_per_position(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution that writes one block per position and no pixel twice."""
    return (
        type(layer) is nn.ConvTranspose2d  # a subclass or wrapper may do something else
        and layer.kernel_size == layer.stride
        and layer.kernel_size[0] == layer.kernel_size[1]
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding == (0, 0)
        and layer.output_padding == (0, 0)
    )


def _causal_mask(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (P, 1, L, L): a token sees itself and earlier real tokens.

    transformers 5 takes no separate causal mask in its text blocks, so the one mask must say both.
    """
    length = input_ids.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()[None, None]
    if attention_mask is not None:
        allowed = allowed & attention_mask.bool()[:, None, None, :]
        # A row that may see nothing (left padding) would be NaN; let it see itself, nothing reads it.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=input_ids.device)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=input_ids.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


def _hash_parameters(module: nn.Module) -> str:
    # Before adapters attach; a model without a file is named by what it holds in memory.
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if ".adapter_" in name:
            continue
        checkpoints.hash_tensor(digest, name.replace(".base_layer.", "."), parameter.detach())
    return digest.hexdigest()
