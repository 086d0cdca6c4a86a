"""Decoder-only fine-tuning: both encoders stay frozen, the decoder trains whole.

What the published "end-to-end" CLIPSeg baseline did in fact, since transformers runs both encoders without gradients;
the first thing an adapter has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, sites_named

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("decoder_only")
@dataclass(frozen=True)
class DecoderOnlyConfig(AdapterConfig):
    """A trainable copy of the decoder. The base is untouched: the adapter folder holds the decoder, nothing else."""

    method: ClassVar[str] = "decoder_only"

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One copy per part of the decoder that has weights."""
        return [Placement(site, copies=True) for site in sites_named(model, "decoder")]
