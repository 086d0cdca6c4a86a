"""Shallow adapters (VLSM-Adapter, MICCAI 2024): a bottleneck on each activation on its way to the decoder.

Nothing inside the encoders changes. ``parts``: ``"v"`` the image activations; ``"vl"`` also the end-of-text states of
the same text blocks, whose adapted value is added to the conditional embedding; ``"vlc"`` also a bottleneck on that.
``"l"`` and ``"lc"`` leave the image out. Where the decoder reads the words themselves (CRIS), they are the text activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import ADAPTERS, BottleneckConfig, Placement, need_sites, sites_named
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models.base import TextSkip

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("shallow")
@dataclass(frozen=True)
class ShallowAdapterConfig(BottleneckConfig):
    """Bottlenecks between the encoders and the decoder.

    Attributes:
        bottleneck_dim: width of the bottlenecks; the paper uses 512.
        parts: ``"v"``, ``"vl"``, ``"vlc"``, ``"l"`` or ``"lc"``.
        variant: ``"published"`` is the paper's code exactly: x + ReLU(up(ReLU(down(x)))), default initialisation;
            for text that whole sum is added to the condition. ``"residual"`` starts as the base model: the
            up-projection is zero, no ReLU at the output, and only the change is added to the condition.
        condition_dim: bottleneck on the conditional embedding (``"vlc"``); the paper uses 256.
        activation: of ``"residual"``: ``"gelu"``, ``"relu"`` or ``"silu"``.
        scale: factor on the change, of ``"residual"``.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "shallow"

    bottleneck_dim: int = 512

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One placement per activation read.

        Raises:
            AdapterError: the text states have another width than the condition they are added to.
        """
        names = {"v": "image.skip", "l": "text.skip"}
        need_sites(model, [*(names[part] for part in self.parts if part in names), "condition"], self.parts)
        chosen = [
            (site, self.bottleneck_dim) for site in (sites_named(model, "image.skip") if "v" in self.parts else [])
        ]
        condition = sites_named(model, "condition")
        if "l" in self.parts:
            text = sites_named(model, "text.skip")
            module = model.get_submodule(text[0].module)
            added = isinstance(getattr(module, "base_layer", module), TextSkip)
            if added and text[0].width != condition[0].width:
                raise AdapterError(
                    f"shallow adapter with parts '{self.parts}': text width {text[0].width} of model "
                    f"'{model.base_id}' differs from the condition's {condition[0].width}; use parts='v'"
                )
            chosen += [(site, self.bottleneck_dim) for site in text]
        if "c" in self.parts:
            chosen += [(site, self.condition_dim) for site in condition]
        return [self.place(site, width) for site, width in chosen]
