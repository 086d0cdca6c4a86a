"""BitFit and LayerNorm tuning: what trains are tensors that the model has already, and few of them.

BitFit (Ben Zaken et al., ACL 2022) trains the biases b of y = W x + b and of y = g * norm(x) + b. LayerNorm tuning
(Zhao et al., ICLR 2024) trains g and b of the layer norms. Both train copies: the base keeps its own, the adapter folder
holds the copies alone, and the model starts as its base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import (
    ADAPTERS,
    AdapterConfig,
    Placement,
    check_choice,
    module_at,
    need_sites,
    refuse_int8,
    sites_named,
)
from vlsm_adapter.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from vlsm_adapter.models.base import PromptSegmenter

_PARTS = ("v", "vl", "l")


@dataclass(frozen=True)
class TensorTuningConfig(AdapterConfig):
    """What the two methods share.

    Attributes:
        parts: ``"v"`` the image encoder, ``"l"`` the text encoder, ``"vl"`` both.
        decoder: the decoder's too.

    Raises:
        ConfigError: a value is not allowed.
    """

    parts: str = "vl"
    decoder: bool = False

    def __post_init__(self) -> None:
        check_choice("parts", self.parts, _PARTS)
        if not isinstance(self.decoder, bool):
            raise ConfigError(f"decoder={self.decoder!r}: must be true or false")

    def chosen(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the parameters of ``module`` that train."""
        raise NotImplementedError

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """One copy per module that has such tensors, and is read.

        Raises:
            AdapterError: the model has no weights of such a stage (a text-free one has no text).
        """
        stages = [stage for letter, stage in (("v", "image"), ("l", "text")) if letter in self.parts]
        stages += ["decoder"] if self.decoder else []
        need_sites(model, stages, self.parts)
        sites = [site for stage in stages for site in sites_named(model, stage)]
        found = [(site, self.chosen(module_at(model, site))) for site in sites]
        return [Placement(site, copies=True, tensors=names) for site, names in found if names]


@ADAPTERS.register("bitfit")
@dataclass(frozen=True)
class BitFitConfig(TensorTuningConfig):
    """BitFit: all biases train, nothing else.

    Ben Zaken, Goldberg & Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models", ACL 2022 (arXiv 2106.10199). The biases of linear layers, convolutions and norms; not those of the
    heads that the paper adds, for there are none.

    Attributes:
        parts: ``"v"`` the image encoder, ``"l"`` the text encoder, ``"vl"`` both.
        decoder: the decoder's biases too.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "bitfit"

    def chosen(self, module: nn.Module) -> tuple[str, ...]:
        """The bias, where the module has one."""
        return tuple(name for name, _ in module.named_parameters(recurse=False) if name == "bias")

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """As above; also refused where linear maps are in 8 bits, whose biases are no parameters."""
        refuse_int8(model, self.method)
        return super().placements(model)


@ADAPTERS.register("layernorm")
@dataclass(frozen=True)
class LayerNormConfig(TensorTuningConfig):
    """LayerNorm tuning: weights and biases of the layer norms train, nothing else.

    Zhao et al., "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", ICLR 2024
    (arXiv 2312.11420).

    Attributes:
        parts: ``"v"`` the image encoder, ``"l"`` the text encoder, ``"vl"`` both.
        decoder: the decoder's norms too.

    Raises:
        ConfigError: a value is not allowed.
    """

    method: ClassVar[str] = "layernorm"

    def chosen(self, module: nn.Module) -> tuple[str, ...]:
        """Weight and bias of a layer norm."""
        from torch import nn

        if not isinstance(module, nn.LayerNorm):
            return ()
        return tuple(name for name, _ in module.named_parameters(recurse=False))
