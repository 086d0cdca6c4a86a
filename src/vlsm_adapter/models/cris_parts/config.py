"""The sizes of a CRIS: full size by default, read from and written to ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlsm_adapter.errors import ModelError, nearest
from vlsm_adapter.models.sizes import Blocks, Width, side

PADDINGS = ("masked", "published")
_CLIP = (
    "embed_dim",
    "image_resolution",
    "vision_layers",
    "vision_width",
    "vision_patch_size",
    "context_length",
    "txt_length",
    "vocab_size",
    "transformer_width",
    "transformer_heads",
    "transformer_layers",
)
_CRIS = (
    "word_len",
    "fpn_in",
    "fpn_out",
    "vis_dim",
    "word_dim",
    "num_layers",
    "num_head",
    "dim_ffn",
    "dropout",
    "intermediate",
    "img_size",
    "freeze_encoder",
)
_MOST = 1 << 20  # of any size, so that a damaged file is named before it asks for memory


@dataclass(frozen=True)
class CRISConfig:
    """Sizes under the names of the published configuration; the defaults are the paper's (146,849,122 parameters).

    Attributes:
        embed_dim: channels of the deepest image map and of the text state.
        image_resolution: side in pixels that the position table of the attention pool was made for.
        vision_layers: bottlenecks in the four stages.
        vision_width: channels after the stem.
        vision_heads: of the attention pool; None is 32 * vision_width / 64.
        context_length: rows of the text position table.
        vocab_size, sot, eot: rows of the token table, start and end token (None: the two last ids).
        transformer_width, transformer_heads, transformer_layers: of the text tower.
        word_len: tokens of a prompt, at most ``context_length``.
        fpn_out: widths of the neck. The second is the decoder's and the text tower's too.
        num_layers, num_head, dim_ffn, dropout: of the decoder.
        img_size: side of input and output in pixels.
        freeze_encoder: the published training trains neck, decoder and projector only.
        padding: ``"masked"``: the decoder does not see padding; ``"published"``: prompts are padded to ``word_len``
            with the end token, and the decoder sees all but tokens of id 0.

    Raises:
        ModelError: a value is out of range, or two contradict each other.
    """

    embed_dim: int = 1024
    image_resolution: int = 224
    vision_layers: tuple[int, ...] = (3, 4, 6, 3)
    vision_width: int = 64
    vision_heads: int | None = None
    context_length: int = 77
    vocab_size: int = 49408
    sot: int | None = None
    eot: int | None = None
    transformer_width: int = 512
    transformer_heads: int = 8
    transformer_layers: int = 12
    word_len: int = 77
    fpn_out: tuple[int, ...] = (256, 512, 1024)
    num_layers: int = 3
    num_head: int = 8
    dim_ffn: int = 2048
    dropout: float = 0.2
    img_size: int = 416
    freeze_encoder: bool = False
    padding: str = "masked"

    def __post_init__(self) -> None:
        for name, count in (("vision_layers", 4), ("fpn_out", 3)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != count or not all(map(_is_size, values)):
                raise ModelError(f"config.json: {name}={values!r}: must be {count} whole numbers from 1 to {_MOST}")
        derived = {"vision_heads": self.vision_width // 2 if _is_size(self.vision_width) else None}
        if _is_size(self.vocab_size):
            derived |= {"sot": self.vocab_size - 2, "eot": self.vocab_size - 1}
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in _SIZES:
            if not _is_size(getattr(self, name)):
                raise ModelError(
                    f"config.json: {name}={getattr(self, name)!r}: must be a whole number from 1 to {_MOST}"
                )
        numeric = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        if not numeric or not (math.isfinite(self.dropout) and 0 <= self.dropout < 1):
            raise ModelError(f"config.json: dropout={self.dropout!r}: must be a number from 0 to below 1")
        if not isinstance(self.freeze_encoder, bool):
            raise ModelError(f"config.json: freeze_encoder={self.freeze_encoder!r}: must be true or false")
        if self.padding not in PADDINGS:
            raise ModelError(f"padding={self.padding!r}: {nearest(str(self.padding), PADDINGS)}")
        self._check_fit()

    def _check_fit(self) -> None:
        assert self.vision_heads is not None
        assert self.sot is not None
        assert self.eot is not None
        decoder = self.fpn_out[1]
        for wrong, what in (
            (self.vision_width % 2, f"vision_width {self.vision_width} must be even"),
            (
                32 * self.vision_width % self.vision_heads,
                f"vision_heads {self.vision_heads} must divide 32 * vision_width = {32 * self.vision_width}",
            ),
            (
                self.transformer_width % self.transformer_heads,
                f"transformer_heads {self.transformer_heads} must divide transformer_width {self.transformer_width}",
            ),
            (
                decoder != self.transformer_width,
                f"fpn_out[1] {decoder} must be transformer_width {self.transformer_width}: the decoder reads words",
            ),
            (
                decoder % 4 or decoder % self.num_head,
                f"fpn_out[1] {decoder} must be a multiple of 4 and of num_head {self.num_head}",
            ),
            (self.image_resolution % 32, f"image_resolution {self.image_resolution} must be a multiple of 32"),
            (self.img_size % 32 or self.img_size > 4096, f"img_size {self.img_size} must be 32, 64, ... up to 4096"),
            (
                self.word_len > self.context_length or self.word_len < 2,
                f"word_len {self.word_len} must be from 2 to context_length {self.context_length}",
            ),
            (
                not self.sot < self.eot < self.vocab_size,
                f"sot {self.sot} and eot {self.eot} must rise below vocab_size {self.vocab_size}: the end token is "
                "found as the largest id",
            ),
        ):
            if wrong:
                raise ModelError(f"config.json: {what}")

    @property
    def map_widths(self) -> tuple[int, int, int]:
        """Channels of the three image maps that the neck reads, strides 8, 16 and 32."""
        return 8 * self.vision_width, 16 * self.vision_width, self.embed_dim

    def in_weights(self) -> list[Width | Blocks]:
        """The sizes that the weights show; published ones, some of which have other names, show fewer."""
        stages = [
            Blocks(f"clip.vision_layers[{number}]", count, f"backbone.visual.layer{number + 1}.")
            for number, count in enumerate(self.vision_layers)
        ]
        words = "backbone.token_embedding.weight"
        places = "backbone.visual.attnpool.positional_embedding"
        return [
            *stages,
            Blocks("clip.transformer_layers", self.transformer_layers, "backbone.transformer.resblocks."),
            Blocks("cris.num_layers", self.num_layers, "decoder.layers."),
            Width("clip.vocab_size", self.vocab_size, words),
            Width("clip.transformer_width", self.transformer_width, words, 1),
            Width("clip.context_length", self.context_length, "backbone.positional_embedding.weight"),
            Width("clip.vision_width", self.vision_width, "backbone.visual.layer1.0.conv1.weight"),
            Width("clip.image_resolution", self.image_resolution, f"{places}.weight", 0, side(32, extra=1)),
            Width("clip.embed_dim", self.embed_dim, "backbone.visual.attnpool.c_proj.weight"),
            *(
                Width(f"cris.fpn_out[{number}]", width, f"neck.f{3 - number}_v_proj.0.weight")
                for number, width in enumerate(self.fpn_out)
            ),
            Width("cris.dim_ffn", self.dim_ffn, "decoder.layers.0.ffn.0.weight"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """``config.json``: the published form, with ``model_type`` and ``padding``."""
        derived = {
            "vision_patch_size": None,
            "txt_length": self.word_len,
            "fpn_in": self.map_widths,
            "vis_dim": self.fpn_out[1],
            "word_dim": self.embed_dim,
            "intermediate": False,
        }

        def group(names: tuple[str, ...]) -> dict[str, Any]:
            values = {name: derived[name] if name in derived else getattr(self, name) for name in names}
            return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

        return {
            "model_type": "cris",
            "clip": group(_CLIP),
            "cris": group(_CRIS),
            "sot": self.sot,
            "eot": self.eot,
            "vision_heads": self.vision_heads,
            "padding": self.padding,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], padding: str | None = None) -> CRISConfig:
        """Read the published form: groups ``clip`` and ``cris``; beside them ``sot``, ``eot``, ``vision_heads`` and
        ``padding`` are read where given, and anything else (how the weights were made) is left alone.

        Args:
            values: a ``config.json``.
            padding: takes the place of the file's.

        Raises:
            ModelError: a group or key is missing or unknown, or a value cannot be.
        """
        read: dict[str, Any] = {}
        for group, names in (("clip", _CLIP), ("cris", _CRIS)):
            given = values.get(group)
            if not isinstance(given, Mapping):
                raise ModelError(
                    f"config.json: needs the groups 'clip' and 'cris' with the sizes of a CRIS; no '{group}'"
                )
            for name in given:
                if name not in names:
                    told = " ".join(str(name).split())[:100]
                    raise ModelError(f"config.json: {group}.{told} is unknown: {nearest(told, names)}")
            optional = {"vision_patch_size", "txt_length", "intermediate", "freeze_encoder", "dropout"}
            missing = [name for name in names if name not in given and name not in optional]
            if missing:
                raise ModelError(f"config.json: {group}.{missing[0]} is missing ({len(missing)} in all)")
            read |= given
        read = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
        fixed = {name: read.pop(name, None) for name in ("vision_patch_size", "txt_length", "intermediate")}
        implied = {name: read.pop(name) for name in ("fpn_in", "vis_dim", "word_dim")}
        for name in ("sot", "eot", "vision_heads", "padding"):
            if values.get(name) is not None:
                read[name] = values[name]
        if padding is not None:
            read["padding"] = padding
        config = cls(**read)
        if fixed["vision_patch_size"] is not None:
            raise ModelError(
                f"config.json: vision_patch_size={fixed['vision_patch_size']!r}: must be null, CRIS's image encoder is "
                "a residual network"
            )
        if fixed["intermediate"] not in (None, False):
            raise ModelError("config.json: intermediate must be false: the model cannot use a list of decoder states")
        if fixed["txt_length"] not in (None, config.word_len):
            raise ModelError(f"config.json: txt_length {fixed['txt_length']!r} must be word_len {config.word_len}")
        for name, must in (
            ("fpn_in", config.map_widths),
            ("vis_dim", config.fpn_out[1]),
            ("word_dim", config.embed_dim),
        ):
            if implied[name] != must:
                raise ModelError(f"config.json: {name}={implied[name]!r}: the other sizes make it {must}")
        return config


_SIZES = (
    "embed_dim",
    "image_resolution",
    "vision_width",
    "vision_heads",
    "context_length",
    "vocab_size",
    "sot",
    "eot",
    "transformer_width",
    "transformer_heads",
    "transformer_layers",
    "word_len",
    "num_layers",
    "num_head",
    "dim_ffn",
    "img_size",
)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST
