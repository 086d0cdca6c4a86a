"""The sizes of a SAN, in the form of the published configuration, checked.

One form serves published weights and our own folders::

    {"model_type": "san", "graph": "corrected",
     "open_clip": {"embed_dim": 512,
                   "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16},
                   "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}},
     "clip_visual_extractor_cfg": {"last_layer_idx": 9}, "clip_rec_head_cfg": {"first_layer_idx": 9},
     "side_vit": {"img_size": 640, "patch_size": 16, "embed_dim": 240, "depth": 8, "num_heads": 6},
     "num_queries": 100, "fusion_map": {"0": 0, "1": 3, "2": 6, "3": 9}, "deep_supervision_idxs": [7, 8],
     "mask_decoder": {"mlp_channels": 256, "embed_channels": 256, "total_heads": 12, "total_layers": 1}}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlsm_adapter.errors import ModelError, nearest
from vlsm_adapter.models.sizes import Blocks, Width, side

GRAPHS = ("published", "head_gradient", "corrected")
_MOST = 1_000_000
_ABSENT = object()

# Field of SANConfig and its place in the mapping.
_NUMBERS = {
    "embed_dim": "open_clip.embed_dim",
    "clip_image_size": "open_clip.vision_cfg.image_size",
    "clip_patch": "open_clip.vision_cfg.patch_size",
    "vision_layers": "open_clip.vision_cfg.layers",
    "vision_width": "open_clip.vision_cfg.width",
    "vision_head_width": "open_clip.vision_cfg.head_width",
    "context_length": "open_clip.text_cfg.context_length",
    "vocab_size": "open_clip.text_cfg.vocab_size",
    "text_width": "open_clip.text_cfg.width",
    "text_heads": "open_clip.text_cfg.heads",
    "text_layers": "open_clip.text_cfg.layers",
    "split": "clip_visual_extractor_cfg.last_layer_idx",
    "side_image_size": "side_vit.img_size",
    "side_patch": "side_vit.patch_size",
    "side_width": "side_vit.embed_dim",
    "side_depth": "side_vit.depth",
    "side_heads": "side_vit.num_heads",
    "queries": "num_queries",
    "mask_hidden": "mask_decoder.mlp_channels",
    "mask_embed": "mask_decoder.embed_channels",
    "bias_heads": "mask_decoder.total_heads",
    "bias_layers": "mask_decoder.total_layers",
}
# Places that say a second time what another says.
_REPEATED = {
    "clip_rec_head_cfg.first_layer_idx": "split",
    "clip_rec_head_cfg.sos_token_num": "queries",
    "mask_decoder.in_channels": "side_width",
    "vision_heads": "vision_heads",
}
# Settings of which the published systems use one value only, as everything here does.
_FIXED = {
    "open_clip.quick_gelu": True,
    "asymetric_input": True,
    "clip_resolution": 0.5,
    "clip_rec_head_cfg.sos_token_format": "cls_token",
    "clip_rec_head_cfg.cross_attn": False,
    "clip_rec_head_cfg.downsample_method": "max",
    "mask_decoder.mlp_num_layers": 3,
    "mask_decoder.rescale_attn_bias": True,
}


@dataclass(frozen=True)
class SANConfig:
    """Sizes of CLIP, of the side network and of its mask decoder.

    Attributes:
        embed_dim: E, of the joint embedding of CLIP.
        clip_image_size, clip_patch: the CLIP position table is made for (clip_image_size / clip_patch)^2 patches.
        vision_layers, vision_width, vision_head_width: the CLIP image encoder.
        context_length, vocab_size, text_width, text_heads, text_layers: the CLIP text encoder.
        split: K; CLIP blocks below it give features 0..K, the others make the recognition head.
        side_image_size, side_patch, side_width, side_depth, side_heads: the side network's ViT.
        queries: Q, mask proposals per image.
        mask_hidden, mask_embed: width within the mask decoder's MLPs, and at their end.
        bias_heads: heads of the attention bias: 1 (shared by all) or those of CLIP.
        bias_layers: 1 (one bias for all blocks of the head) or the number of those blocks.
        fusion_map: pairs (side block, CLIP feature), ascending: the feature is added after that many side blocks.
        supervised: side blocks, counted from 1, whose output the published training decodes; the last is the result.
        graph: ``"published"``, ``"head_gradient"`` or ``"corrected"``, see :class:`~vlsm_adapter.models.san.SAN`.

    Raises:
        ModelError: sizes that contradict each other.
    """

    embed_dim: int
    clip_image_size: int
    clip_patch: int
    vision_layers: int
    vision_width: int
    vision_head_width: int
    context_length: int
    vocab_size: int
    text_width: int
    text_heads: int
    text_layers: int
    split: int
    side_image_size: int
    side_patch: int
    side_width: int
    side_depth: int
    side_heads: int
    queries: int
    mask_hidden: int
    mask_embed: int
    bias_heads: int
    bias_layers: int
    fusion_map: tuple[tuple[int, int], ...]
    supervised: tuple[int, ...]
    graph: str = "corrected"

    def __post_init__(self) -> None:
        if self.graph not in GRAPHS:
            raise ModelError(f"SAN graph '{self.graph}' is unknown: {nearest(self.graph, GRAPHS)}")
        for width, heads, what in (
            (self.vision_width, self.vision_head_width, "open_clip.vision_cfg: width {} and head_width {}"),
            (self.text_width, self.text_heads, "open_clip.text_cfg: width {} and heads {}"),
            (self.side_width, self.side_heads, "side_vit: embed_dim {} and num_heads {}"),
            (self.clip_image_size, self.clip_patch, "open_clip.vision_cfg: image_size {} and patch_size {}"),
            (self.side_image_size, self.side_patch, "side_vit: img_size {} and patch_size {}"),
        ):
            if width % heads:
                raise ModelError(f"SAN {what.format(width, heads)}: the second must divide the first")
        if self.split >= self.vision_layers:
            raise ModelError(
                f"SAN last_layer_idx {self.split}: must be below the {self.vision_layers} CLIP blocks, "
                "the rest is the recognition head"
            )
        if self.bias_heads not in (1, self.vision_heads):
            raise ModelError(f"SAN mask_decoder.total_heads {self.bias_heads}: allowed: 1, {self.vision_heads}")
        if self.bias_layers not in (1, self.head_blocks):
            raise ModelError(f"SAN mask_decoder.total_layers {self.bias_layers}: allowed: 1, {self.head_blocks}")
        if list(self.supervised) != sorted(set(self.supervised)) or not (
            self.supervised and self.supervised[0] >= 1 and self.supervised[-1] <= self.side_depth
        ):
            raise ModelError(
                f"SAN deep_supervision_idxs {list(self.supervised)}: ascending side blocks, from 1 to {self.side_depth}"
            )
        for block, feature in self.fusion_map:
            if block < 0 or not 0 <= feature <= self.split:
                raise ModelError(
                    f"SAN fusion_map {block}: {feature}: allowed are side blocks from 0 and CLIP features 0 to {self.split}"
                )
        if not self.fusion_in_use:
            raise ModelError(f"SAN fusion_map has no side block up to {self.blocks_in_use}: nothing of CLIP is read")

    @property
    def vision_heads(self) -> int:
        """Heads of the CLIP image encoder."""
        return self.vision_width // self.vision_head_width

    @property
    def head_blocks(self) -> int:
        """CLIP blocks in the recognition head."""
        return self.vision_layers - self.split

    @property
    def blocks_in_use(self) -> int:
        """Side blocks up to the one whose output is decoded."""
        return self.supervised[-1]

    @property
    def fusion_in_use(self) -> dict[int, int]:
        """Side block to CLIP feature, without entries beyond the last block that runs (the published map has one)."""
        return {block: feature for block, feature in self.fusion_map if block <= self.blocks_in_use}

    @property
    def step(self) -> int:
        """Sides of an image must be multiples of it, in pixels: whole patches for both networks (CLIP sees half size)."""
        return math.lcm(self.side_patch, 2 * self.clip_patch)

    def with_graph(self, graph: str) -> SANConfig:
        """The same sizes with another graph.

        The published map is inverted (side 3 and 6 read CLIP 1 and 2, the last entry is dead). ``"corrected"`` reads
        as the paper does: side 0, 1, 2, ... take features evenly spread over 0..K, which is 0, 3, 6, 9 for K = 9.

        Raises:
            ModelError: unknown graph, or the way back, for which the published map is lost.
        """
        fusion = self.fusion_map
        if self.graph == "corrected" and graph in GRAPHS[:2]:
            raise ModelError(f"SAN of the corrected graph cannot become '{graph}': give the published configuration")
        if graph == "corrected" and self.graph != "corrected":
            last = len(fusion) - 1
            fusion = tuple((n, round(n * self.split / last) if last else 0) for n in range(len(fusion)))
        return dataclasses.replace(self, graph=graph, fusion_map=fusion)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json", graph: str | None = None) -> SANConfig:
        """Read the published form; keys that say nothing about the network are passed over.

        Args:
            values: as in the head of this module.
            source: for messages.
            graph: overrides ``values["graph"]``; where neither is given, the configuration is a published one.

        Raises:
            ModelError: a size is missing, no whole number, or contradicts another; a setting that is not supported.
        """
        try:
            numbers = {field: _number(values, place) for field, place in _NUMBERS.items()}
            for place, only in _FIXED.items():
                value = _at(values, place)
                if value is not _ABSENT and value != only:
                    raise ModelError(f"SAN {place} = {value!r} is not supported; allowed: {only!r}")
            config = cls(
                **numbers,
                fusion_map=_fusion_map(_at(values, "fusion_map")),
                supervised=_supervised(_at(values, "deep_supervision_idxs")),
                graph=str(values.get("graph", "published")),
            )
            for place, field in _REPEATED.items():
                value = _at(values, place)
                if value is not _ABSENT and value != getattr(config, field):
                    raise ModelError(f"SAN {place} = {value!r} contradicts {getattr(config, field)}, said elsewhere")
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None
        return config if graph is None else config.with_graph(graph)

    def in_weights(self) -> list[Width | Blocks]:
        """The sizes that the weights show; published ones, some of which have other names, show fewer."""
        clip, network = "clip_model", "side_adapter_network"
        mask = f"{network}.mask_decoder.query_mlp.layers"
        shown: tuple[tuple[Any, ...], ...] = (
            ("vision_layers", Blocks, f"{clip}.visual.transformer.resblocks."),
            ("text_layers", Blocks, f"{clip}.transformer.resblocks."),
            ("side_depth", Blocks, f"{network}.vit_model.blocks."),
            ("vocab_size", Width, f"{clip}.token_embedding.weight"),
            ("text_width", Width, f"{clip}.token_embedding.weight", 1),
            ("context_length", Width, f"{clip}.positional_embedding.weight"),
            ("vision_width", Width, f"{clip}.visual.conv1.weight"),
            ("clip_patch", Width, f"{clip}.visual.conv1.weight", 2),
            ("clip_image_size", Width, f"{clip}.visual.positional_embedding.weight", 0, side(self.clip_patch, extra=1)),
            ("embed_dim", Width, f"{clip}.visual.proj.weight", 1),
            ("side_width", Width, f"{network}.vit_model.patch_embed.proj.weight"),
            ("side_patch", Width, f"{network}.vit_model.patch_embed.proj.weight", 2),
            ("side_image_size", Width, f"{network}.vit_model.pos_embed.weight", 1, side(self.side_patch)),
            ("queries", Width, f"{network}.query_embed.weight", 1),
            ("mask_hidden", Width, f"{mask}.0.weight"),
            ("mask_embed", Width, f"{mask}.2.weight"),
        )
        return [kind(_NUMBERS[field], getattr(self, field), *where) for field, kind, *where in shown]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, which :meth:`from_dict` reads."""
        values: dict[str, Any] = {"model_type": "san", "graph": self.graph}
        for field, place in (*_NUMBERS.items(), *((field, place) for place, field in _REPEATED.items())):
            _put(values, place, getattr(self, field))
        for place, only in _FIXED.items():
            _put(values, place, only)
        values["fusion_map"] = {str(block): feature for block, feature in self.fusion_map}
        values["deep_supervision_idxs"] = list(self.supervised)
        return values


def _at(values: Mapping[str, Any], place: str) -> Any:
    found: Any = values
    for key in place.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return _ABSENT
        found = found[key]
    return found


def _put(values: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = place.split(".")
    for key in parents:
        values = values.setdefault(key, {})
    values[last] = value


def _number(values: Mapping[str, Any], place: str) -> int:
    value = _at(values, place)
    if value is _ABSENT:
        raise ModelError(f"lacks {place}; a SAN needs it")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ModelError(f"{place} = {value!r}: must be a whole number from 1 to {_MOST}")
    return value


def _fusion_map(value: Any) -> tuple[tuple[int, int], ...]:
    try:
        pairs = sorted((int(block), int(feature)) for block, feature in value.items())
    except (AttributeError, TypeError, ValueError):
        pairs = []
    if not pairs or len({block for block, _ in pairs}) < len(pairs):
        raise ModelError('fusion_map: must map side blocks to CLIP features, such as {"0": 0, "1": 3, "2": 6, "3": 9}')
    return tuple(pairs)


def _supervised(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise ModelError("deep_supervision_idxs: must be a list of side blocks, such as [7, 8]")
    return tuple(value)
