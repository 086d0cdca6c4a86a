"""Full fine-tuning: everything that the output depends on trains, with gradients through both encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement, refuse_int8

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("full")
@dataclass(frozen=True)
class FullConfig(AdapterConfig):
    """A trainable copy of image encoder, text encoder and decoder; what nothing reads is neither copied nor stored.

    The base stays in memory beside the copy, so that it can be compared with and other adapters can share it.
    """

    method: ClassVar[str] = "full"

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One copy per part of the model that has weights and is read; a text-free model has none for text."""
        refuse_int8(model, self.method)
        names = ("image", "text", "decoder")
        return [Placement(site, copies=True) for site in model.sites() if site.name in names and site.read]
