"""Sizes of a CLIPSeg, as ``config.json`` in Hugging Face format gives them; what it leaves out is CLIPSeg rd64's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vlsm_adapter.errors import ModelError, nearest

ACTIVATIONS = ("quick_gelu", "gelu", "relu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh")


@dataclass
class TextConfig:
    """Sizes of CLIP's text encoder."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407


@dataclass
class VisionConfig:
    """Sizes of CLIP's image encoder."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0


@dataclass
class CLIPSegConfig:
    """Sizes of the whole model.

    Attributes:
        text_config, vision_config: of the encoders.
        projection_dim: of the conditional embedding.
        extract_layers: vision blocks whose activations the decoder reads.
        reduce_dim: width of the decoder.
        decoder_num_attention_heads, decoder_intermediate_size, decoder_attention_dropout: of the decoder's blocks.
        conditional_layer: the decoder block before which FiLM modulates.
        use_complex_transposed_convolution: three convolutions at the end, in place of one.
        given: all of ``config.json``, to be written back as it came.
    """

    text_config: TextConfig = field(default_factory=TextConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projection_dim: int = 512
    extract_layers: tuple[int, ...] = (3, 6, 9)
    reduce_dim: int = 64
    decoder_num_attention_heads: int = 4
    decoder_attention_dropout: float = 0.0
    decoder_intermediate_size: int = 2048
    conditional_layer: int = 0
    use_complex_transposed_convolution: bool = False
    given: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPSegConfig:
        """The configuration that ``config.json`` gives; what says nothing about sizes is passed over.

        Raises:
            ModelError: a value that no model can be built with.
        """
        own = {one.name: values[one.name] for one in fields(cls) if one.name in values and one.name != "given"}
        for name, kind in (("text_config", TextConfig), ("vision_config", VisionConfig)):
            # Files of before transformers 4.30 say what differs from the defaults once more, and that counts.
            inner = {**(values.get(name) or {}), **(values.get(f"{name}_dict") or {})}
            known = {one.name for one in fields(kind)}
            own[name] = kind(**{key: value for key, value in inner.items() if key in known})
        own["extract_layers"] = tuple(own.get("extract_layers", cls.extract_layers))
        config = cls(**own, given=dict(values))
        config._check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """What goes into ``config.json``: what came from there, and all sizes."""
        values: dict[str, Any] = {**self.given, "model_type": "clipseg"}
        for one in fields(self):
            own = getattr(self, one.name)
            if one.name.endswith("_config"):
                values[one.name] = {**(self.given.get(one.name) or {}), **asdict(own)}
                values.pop(f"{one.name}_dict", None)
            elif one.name != "given":
                values[one.name] = list(own) if isinstance(own, tuple) else own
        return values

    def _check(self) -> None:
        text, vision = self.text_config, self.vision_config
        for name, config, optional in (
            ("text_config.", text, ("pad_token_id", "bos_token_id")),
            ("vision_config.", vision, ()),
            ("", self, ()),
        ):
            for one in fields(config):
                value = getattr(config, one.name)
                if one.type in ("int", "int | None") and not (value is None and one.name in optional):
                    least = 0 if one.name.endswith("_id") or one.name == "conditional_layer" else 1
                    if isinstance(value, bool) or not isinstance(value, int) or value < least:
                        raise ModelError(f"config.json: {name}{one.name} {value!r}: a whole number of {least} or more")
                elif one.type == "bool" and not isinstance(value, bool):
                    raise ModelError(f"config.json: {name}{one.name} {value!r}: true or false")
                elif one.type == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
                    raise ModelError(f"config.json: {name}{one.name} {value!r}: a number")
        for name, act in (("text_config", text.hidden_act), ("vision_config", vision.hidden_act)):
            if act not in ACTIVATIONS:
                raise ModelError(f"config.json: {name}.hidden_act {act!r}: {nearest(str(act), ACTIVATIONS)}")
        for name, width, heads in (
            ("text_config", text.hidden_size, text.num_attention_heads),
            ("vision_config", vision.hidden_size, vision.num_attention_heads),
            ("decoder", self.reduce_dim, self.decoder_num_attention_heads),
        ):
            if width % heads:
                raise ModelError(f"config.json: {name}: {heads} attention heads do not divide the width {width}")
        depth = vision.num_hidden_layers
        layers = self.extract_layers
        if not layers or not all(type(layer) is int and 0 <= layer < depth for layer in layers):
            raise ModelError(
                f"config.json: extract_layers {list(layers)}: at least one block, each from 0 to {depth - 1}"
            )
        if self.conditional_layer >= len(layers):
            raise ModelError(
                f"config.json: conditional_layer {self.conditional_layer}: a block of the decoder, from 0 to {len(layers) - 1}"
            )
