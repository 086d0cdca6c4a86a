"""Dense adapters (VLSM-Adapter, MICCAI 2024): a bottleneck after self-attention and after the MLP of each block.

Both stand before the block's residual addition. ``parts`` says where: ``"v"`` the image encoder, ``"vl"`` both
encoders, ``"vlc"`` also the conditional embedding; ``"l"`` and ``"lc"`` leave the image encoder out, for a model whose
image encoder is no transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import (
    ADAPTERS,
    BottleneckConfig,
    Placement,
    blocks_field,
    check_blocks,
    last_of,
    need_sites,
    sites_named,
)

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("dense")
@dataclass(frozen=True)
class DenseAdapterConfig(BottleneckConfig):
    """Bottlenecks inside the transformer blocks.

    Attributes:
        bottleneck_dim: width of the bottlenecks in the blocks; the paper uses 64.
        parts: ``"v"``, ``"vl"``, ``"vlc"``, ``"l"`` or ``"lc"``.
        variant: ``"published"`` is the paper's code exactly: x + ReLU(up(ReLU(down(x)))), default initialisation,
            on blocks 0 .. max(extract_layers) - 1 of both encoders; on all text blocks where the model has no image
            blocks to count. ``"residual"`` starts as the base model (up-projection zero), has no ReLU at its output,
            and covers every block the decoder reads.
        condition_dim: bottleneck on the conditional embedding (``"vlc"``); the paper uses 256.
        activation: of ``"residual"``: ``"gelu"``, ``"relu"`` or ``"silu"``.
        scale: factor on the change, of ``"residual"``.
        last_blocks: of the blocks it would adapt only so many, the last ones of each encoder; by default all (what comes before
            them is computed once, not in every epoch).

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "dense"

    last_blocks: int | None = blocks_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks("last_blocks", self.last_blocks)

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One placement per site and block."""
        names = ["image.attn_out", "image.mlp_out"] if "v" in self.parts else []
        if "l" in self.parts:
            names += ["text.attn_out", "text.mlp_out"]
        need_sites(model, [*names, *(["condition"] if "c" in self.parts else [])], self.parts)
        found = [sites_named(model, name) for name in names]
        if self.variant == "published":
            # The published code counts blocks below the last extract layer in both encoders (it misses the block
            # whose output is read last).
            image_blocks = [site.index for site in model.sites() if site.name == "image.attn_out" and site.read]
            if image_blocks:
                found = [[site for site in sites if site.index < max(image_blocks)] for sites in found]
        chosen = [(site, self.bottleneck_dim) for sites in found for site in last_of(sites, self.last_blocks)]
        if "c" in self.parts:
            chosen += [(site, self.condition_dim) for site in sites_named(model, "condition")]
        return [self.place(site, width) for site, width in chosen]
