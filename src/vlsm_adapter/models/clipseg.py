"""CLIPSeg (Lüddecke & Ecker, CVPR 2022) from Hugging Face's files, in three stages.

The stock ``CLIPSegForImageSegmentation.forward`` runs both encoders without gradients and all their blocks; this one
keeps gradients through all three stages and runs no vision block past the last one the decoder reads. Its logits are
those of the stock model.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models import checkpoints
from vlsm_adapter.models.base import PromptSegmenter, Site, TextSkip, weight_modules
from vlsm_adapter.models.block_walk import BlockWalk
from vlsm_adapter.models.clipseg_parts.loading import load_network
from vlsm_adapter.models.clipseg_parts.network import CLIPSegNetwork, DecoderLayer
from vlsm_adapter.models.encoder_block import encoder_block
from vlsm_adapter.models.exact_attention import exact_attention
from vlsm_adapter.models.features import ImageFeatures, TextFeatures
from vlsm_adapter.models.preprocessing import Preprocessing
from vlsm_adapter.models.prompt_tokens import Insertion, tokens_given

if TYPE_CHECKING:
    from transformers import CLIPSegForImageSegmentation

    from vlsm_adapter.models.base import TextTokenizer


_CACHE = 8 << 20  # bytes that stay in a processor's cache from one step of a block to the next
# Sites of a transformer block and their modules, in the order of the computation.
_BLOCK = (
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("attn_out", "self_attn.out_proj"),
    ("mlp_in", "mlp.fc1"),
    ("mlp_out", "mlp.fc2"),
)


class CLIPSeg(PromptSegmenter):
    """CLIP ViT image encoder, CLIP text encoder, and a light transformer decoder conditioned by FiLM.

    Args:
        clipseg: the modules with their weights and configuration: ours, or transformers' stock model, which stays as it
            is: the right gradient behind FiLM (:mod:`.exact_attention`) is that of this model, not of its own ``forward``.
        preprocessing: by default CLIPSeg's own, 352 x 352 with ImageNet statistics.
        tokenizer: a CLIP-like tokenizer, or None where only token ids are passed.
        base_id: where the weights came from, for messages and adapter cards.
    """

    family: ClassVar[str] = "clipseg"
    can_checkpoint: ClassVar[bool] = True

    def __init__(
        self,
        clipseg: CLIPSegNetwork | CLIPSegForImageSegmentation,
        *,
        preprocessing: Preprocessing | None = None,
        tokenizer: TextTokenizer | None = None,
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
        self.logits = nn.Identity()
        self.image_tokens = nn.ModuleList(nn.Identity() for _ in range(depth))
        self.text_tokens = nn.ModuleList(nn.Identity() for _ in range(config.text_config.num_hidden_layers))
        self.freeze()

    # -- the three stages ------------------------------------------------------------------------------------------

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Activations of the blocks the decoder reads, each (B, T, D); sides must be multiples of the patch.

        Positions are interpolated where the size differs from the one trained on.

        Raises:
            ModelError: a side is no multiple of the patch; the logits would have another size than the image.
        """
        return self.image_head(self.image_trunk(pixel_values))

    @property
    def size_step(self) -> int:
        return int(self.clipseg.config.vision_config.patch_size)

    def image_trunk(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """As :meth:`encode_image`, before the sites on the way to the decoder (``image.skip``)."""
        hidden, grid = self._embed(pixel_values)
        return ImageFeatures(self._walk().whole(hidden), grid)

    @property
    def image_cuts(self) -> tuple[int, ...]:
        """See the base class and :mod:`.block_walk`."""
        return self._walk().cuts

    def image_stem(self, pixel_values: torch.Tensor, cut: int) -> ImageFeatures | None:
        """See the base class."""
        hidden, grid = self._embed(pixel_values)
        tensors = self._walk().to_cut(hidden, cut)
        return None if tensors is None else ImageFeatures(tensors, grid, cut)

    def image_head(self, trunk: ImageFeatures) -> ImageFeatures:
        """What is left of the blocks, and the sites ``image.skip``."""
        activations = trunk.activations
        if trunk.cut is not None:
            activations = self._walk().from_cut(activations, trunk.cut)
        return ImageFeatures(
            tuple(skip(each) for skip, each in zip(self.image_skip, activations, strict=True)), trunk.grid
        )

    def _embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Images (B, 3, H, W) to what goes into the first block, (B, T, D), and the patch grid."""
        vision = self.clipseg.clip.vision_model
        patch = self.clipseg.config.vision_config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ModelError(f"image of {height} x {width} pixels: both sides must be multiples of {patch}")
        hidden = vision.pre_layrnorm(vision.embeddings(pixel_values, interpolate_pos_encoding=True))
        return hidden, (height // patch, width // patch)

    def _walk(self) -> BlockWalk:
        """Through the image blocks up to the last that is read."""
        blocks = self.clipseg.clip.vision_model.encoder.layers[: max(self.extract_layers) + 1]
        return BlockWalk(blocks, self.image_tokens, self.extract_layers, self.kept_or_again)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The conditional embedding (P, D): the projected end-of-text state of each prompt.

        Raises:
            ModelError: a prompt leaves no room for the learned tokens of the adapter in use.
        """
        return self.text_head(self.text_trunk(input_ids, attention_mask))

    def text_trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> TextFeatures:
        """The embedding before the sites ``condition`` and ``text.skip``, and the end-of-text states that these read."""
        text = self.clipseg.clip.text_model
        if input_ids.shape[1] > self._positions and not torch.compiler.is_compiling():
            raise ModelError(
                f"prompts of {input_ids.shape[1]} tokens: model '{self.base_id}' reads {self._positions}; shorten them, or "
                "pass them through tokenize, which cuts them"
            )
        end = self._end_of_text(input_ids)
        words = text.embeddings.token_embedding(input_ids)
        context = self.text_tokens[0](words[:, :0])  # learned words of prompt tuning
        insertion: Insertion | None = None
        if context.shape[1]:
            length = self._length_beside(context.shape[1], input_ids.shape[1], end)
            attention_mask = None if attention_mask is None else attention_mask[:, :length]
            insertion = Insertion(context, length, attention_mask)
            words, attention_mask = insertion.words(words[:, :length]), insertion.mask(attention_mask)
            end = end + insertion.count
        hidden = text.embeddings(inputs_embeds=words)
        mask = _causal_mask(hidden, attention_mask)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        states: dict[int, torch.Tensor] = {}
        for number, block in enumerate(text.encoder.layers):
            if insertion is not None and number:
                hidden = insertion.update(hidden, self.text_tokens[number])
            hidden = encoder_block(block, hidden, mask)
            if number in self.extract_layers:
                states[number] = hidden[rows, end]
        pooled = text.final_layer_norm(hidden[rows, end])
        # A text encoder may be shallower than the image encoder.
        read = tuple(states[number] for number in self.extract_layers if number in states)
        return TextFeatures(self.clipseg.clip.text_projection(pooled), states=read)

    def text_head(self, trunk: TextFeatures) -> TextFeatures:
        """The sites ``condition`` and ``text.skip``."""
        condition = self.condition(trunk.condition)
        depth = len(self.clipseg.clip.text_model.encoder.layers)
        skips = [skip for skip, number in zip(self.text_skip, self.extract_layers, strict=True) if number < depth]
        for skip, state in zip(skips, trunk.states, strict=True):
            condition = skip(condition, state)
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
            if number == decoder.conditional_layer and not isinstance(layer, DecoderLayer):
                output = _behind_film(layer, output)
            else:
                output = layer(output, attention_mask=None)
        assert output is not None
        patches = output[:, 1:].transpose(1, 2).unflatten(2, image.grid)  # without the class token
        logits: torch.Tensor = self.logits(_upsample(decoder.transposed_convolution, patches))
        return logits

    def prompts_at_once(self, image: ImageFeatures) -> int:
        """See the base class: a prompt's widest tensor is that of a decoder block's wide map, 4 MB at full size."""
        if self.device.type != "cpu":
            return super().prompts_at_once(image)
        tokens, width = image.activations[0].shape[1], self.clipseg.config.decoder_intermediate_size
        return max(1, min(32, _CACHE // (4 * tokens * width)))

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
                found.append(Site(f"{tower}.tokens", block, f"{tower}_tokens.{block}", width, read))
                found += [Site(f"{tower}.{name}", block, f"{path}.{part}", width, read) for name, part in _BLOCK]
        for number, block in enumerate(self.extract_layers):
            found.append(Site("image.skip", number, f"image_skip.{number}", vision_width))
            found.append(Site("text.skip", number, f"text_skip.{number}", text_width, block < text_depth))
        found.append(Site("text.projection", 0, "clipseg.clip.text_projection", config.projection_dim))
        found.append(Site("condition", 0, "condition", config.projection_dim))
        found.append(Site("logits", 0, "logits", 1))
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
        return self._positions - tokens_given(self.text_tokens[0])

    @property
    def _positions(self) -> int:
        return int(self.clipseg.config.text_config.max_position_embeddings)

    def _length_beside(self, learned: int, length: int, end: torch.Tensor) -> int:
        """How many columns of prompts (P, L) to read beside learned tokens: all, or where they do not fit, to the end."""
        if length + learned <= self._positions:
            return length
        needed = int(end.max()) + 1  # what follows the end of every prompt is padding
        if needed + learned > self._positions:
            raise ModelError(
                f"prompt of {needed} tokens beside {learned} learned ones: model '{self.base_id}' reads "
                f"{self._positions}, so at most {self._positions - learned} are left, start and end included; "
                "shorten the prompt, or pass it through tokenize, which cuts it"
            )
        return needed

    def word_table(self) -> nn.Module:
        return self.clipseg.clip.text_model.embeddings.token_embedding

    def hash_in_memory(self) -> str:
        return _hash_parameters(self.clipseg)

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
        state = checkpoints.weights_state(source)
        clipseg = load_network(source, base_id, dtype)
        model = cls(
            clipseg,
            preprocessing=checkpoints.load_preprocessing(source, base_id),
            tokenizer=checkpoints.load_tokenizer(source, base_id),
            base_id=base_id,
        )
        model._read_from(source, state)
        return model


def _behind_film(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Transformers' decoder block on what FiLM has multiplied, (P, T, D) to (P, T, D), with a right gradient."""
    with exact_attention():
        parts = cast("Any", layer)
        if parts.training and getattr(parts, "gradient_checkpointing", False):
            # Its own checkpointing would compute it anew outside of this context, and find other tensors kept. The block's
            # parts are called one by one then, so hooks on the block itself are not.
            x = parts.layer_norm1(x + parts.self_attn(x, attention_mask=None)[0])
            output: torch.Tensor = parts.layer_norm2(x + parts.mlp(x))
        else:
            output = layer(x, attention_mask=None)
        return output


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


def _causal_mask(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Additive mask (P, 1, L, L) for states (P, L, D): a token sees itself and earlier real tokens.

    transformers 5 takes no separate causal mask in its text blocks, so the one mask must say both.
    """
    length, device, dtype = hidden.shape[1], hidden.device, hidden.dtype
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    if attention_mask is not None:
        allowed = allowed & attention_mask.bool()[:, None, None, :]
        # A row that may see nothing (left padding) would be NaN; let it see itself, nothing reads it.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=device)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


def _hash_parameters(module: nn.Module) -> str:
    # Before adapters attach; a model without a file is named by what it holds in memory.
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if ".adapter_" in name:
            continue
        checkpoints.hash_tensor(digest, name.replace(".base_layer.", "."), parameter.detach())
    return digest.hexdigest()
