"""CLIPSeg's modules (Lüddecke & Ecker, CVPR 2022; CLIP: Radford et al., ICML 2021), under Hugging Face's names.

Files in Hugging Face format fill these modules key by key, and adapter folders name them. They compute what transformers'
compute, but for rounding, without importing it: that takes longer than most predictions. How the stages go together is
:mod:`vlsm_adapter.models.clipseg`'s.

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`; D is a width, L and T numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter import files
from vlsm_adapter.models.clipseg_parts.config import CLIPSegConfig, TextConfig, VisionConfig
from vlsm_adapter.models.exact_attention import attend
from vlsm_adapter.models.fused_mlp import relu_mlp


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
}


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding that no number is drawn for: drawing normal ones on the meta device imports torch's compiler."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Attention(nn.Module):
    """Multi-head self-attention with biases.

    Args:
        width: D; a head takes consecutive channels.
        heads: divides ``width``.
        dropout: share of attention weights dropped in training mode.
        exact: whether products can be so large that the fused kernels' gradient is wrong.
    """

    exact = False  # of modules that were pickled before

    def __init__(self, width: int, heads: int, dropout: float, *, exact: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.exact = heads, dropout, exact
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        """(B, T, D) to (B, T, D), and None where transformers' layer may give attention weights.

        Args:
            attention_mask: added to the scaled products, broadcast to (B, heads, T, T).
        """
        return self.out_proj(self.attended(x, attention_mask)), None

    def attended(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """As :meth:`forward`, before the output projection."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        if self.exact and attention_mask is None and not dropout:
            attended = attend(query, key, value)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """Two linear maps with a function between them.

    Args:
        width: D.
        inner: features between the maps.
        activation: name of the function.
    """

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.activation_fn = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., D)."""
        if self.activation == "relu":
            return relu_mlp(self.fc1, self.fc2, x)
        output: torch.Tensor = self.fc2(self.activation_fn(self.fc1(x)))
        return output


class EncoderLayer(nn.Module):
    """x + attention(LN x), then x + MLP(LN x); computed by :func:`vlsm_adapter.models.encoder_block.encoder_block`."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = Attention(width, config.num_attention_heads, config.attention_dropout)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)


class Encoder(nn.Module):
    """The blocks of an encoder, as ``layers``."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))


class TextEmbeddings(nn.Module):
    """Vectors of tokens and places."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = _table(config.vocab_size, config.hidden_size)
        self.position_embedding = _table(config.max_position_embeddings, config.hidden_size)

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Vectors of tokens (P, L, D), with those of their places added."""
        places = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        added: torch.Tensor = inputs_embeds + self.position_embedding(places)
        return added


class TextModel(nn.Module):
    """CLIP's text encoder; ``eos_token_id`` says which token's state is read."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionEmbeddings(nn.Module):
    """Patches, with a class token before them and vectors of their places added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = _table(self.side**2 + 1, width)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = True) -> torch.Tensor:
        """Images (B, 3, H, W) to tokens (B, 1 + h w, D).

        Args:
            interpolate_pos_encoding: places of another grid than the one trained on are interpolated; there is no
                other way to embed them.
        """
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        grid = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(tokens.shape[0], 1, -1)
        return torch.cat([first, tokens], dim=1) + self._places(grid[0], grid[1])

    def _places(self, height: int, width: int) -> torch.Tensor:
        """(1, 1 + height width, D): those of the patches interpolated bicubically where the grid is another."""
        table = self.position_embedding.weight[None]
        if height == width == self.side:
            return table
        grid = table[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        other = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], other.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class VisionModel(nn.Module):
    """CLIP's image encoder. ``pre_layrnorm`` is how the files spell it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(width, eps=eps)


class CLIP(nn.Module):
    """Both encoders with their projections; segmentation reads neither the image's nor the temperature."""

    def __init__(self, config: CLIPSegConfig) -> None:
        super().__init__()
        self.text_model = TextModel(config.text_config)
        self.vision_model = VisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))


class DecoderLayer(nn.Module):
    """A block with its norms behind the sums: LN(x + attention(x)), then LN(x + MLP(x)).

    Args:
        unbounded: whether it reads what FiLM has multiplied, which nothing keeps small.
    """

    def __init__(self, config: CLIPSegConfig, *, unbounded: bool) -> None:
        super().__init__()
        width, eps = config.reduce_dim, config.vision_config.layer_norm_eps
        heads, dropout = config.decoder_num_attention_heads, config.decoder_attention_dropout
        self.self_attn = Attention(width, heads, dropout, exact=unbounded)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.decoder_intermediate_size, "relu")
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(P, T, D) to (P, T, D)."""
        x = self.layer_norm1(x + self.self_attn(x, attention_mask)[0])
        normed: torch.Tensor = self.layer_norm2(x + self.mlp(x))
        return normed


class Decoder(nn.Module):
    """The parts of the decoder: reductions, blocks, FiLM, and the convolutions to the size of the image."""

    def __init__(self, config: CLIPSegConfig) -> None:
        super().__init__()
        width, patch = config.reduce_dim, config.vision_config.patch_size
        self.conditional_layer = config.conditional_layer
        self.film_mul = nn.Linear(config.projection_dim, width)
        self.film_add = nn.Linear(config.projection_dim, width)
        self.transposed_convolution: nn.Module
        if config.use_complex_transposed_convolution:
            stride = patch // 4
            self.transposed_convolution = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(width, width // 2, stride, stride=stride),
                nn.ReLU(),
                nn.ConvTranspose2d(width // 2, 1, stride, stride=stride),
            )
        else:
            self.transposed_convolution = nn.ConvTranspose2d(width, 1, patch, stride=patch)
        depth = len(config.extract_layers)
        self.reduces = nn.ModuleList(nn.Linear(config.vision_config.hidden_size, width) for _ in range(depth))
        self.layers = nn.ModuleList(
            DecoderLayer(config, unbounded=number == config.conditional_layer) for number in range(depth)
        )


class CLIPSegNetwork(nn.Module):
    """All modules of a CLIPSeg, as a file in Hugging Face format names them; its weights are to come from one.

    Args:
        config: sizes.
    """

    def __init__(self, config: CLIPSegConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIP(config)
        self.decoder = Decoder(config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, which transformers' ``CLIPSegForImageSegmentation`` loads.

        Raises:
            UserError: the folder cannot be written.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        files.write_tensors(Path(folder) / "model.safetensors", state, metadata={"format": "pt"})
        dtype = str(self.clip.logit_scale.dtype).removeprefix("torch.")
        files.write_json(Path(folder) / "config.json", {**self.config.to_dict(), "dtype": dtype})
