"""What a method is: a small typed configuration that says what it places where on a model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vlsm_adapter.adapters.blocks import ACTIVATIONS
from vlsm_adapter.errors import AdapterError, ConfigError, nearest
from vlsm_adapter.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from vlsm_adapter.adapters.parts import Part
    from vlsm_adapter.models.base import PromptSegmenter, Site

PARTS = ("v", "vl", "vlc", "l", "lc")
VARIANTS = ("published", "residual")
_PART_OF = {"image": "v", "text": "l", "condition": "c", "text.projection": "c"}


@dataclass(frozen=True, slots=True)
class Placement:
    """One bottleneck on one site, a trainable copy of the module there, or a part of the method's own.

    Attributes:
        site: where.
        bottleneck_dim: features between the two projections; 0 for a copy.
        activation: name of the function between them.
        activate_output: ReLU after the up-projection (the published form).
        zero_start: the up-projection starts at zero.
        scale: factor on the change.
        copies: the module of the site is trained, as a copy in its place; the base keeps its own.
        tensors: of a copy, names of the parameters that are copied and train; by default all.
        part: makes what stands around the module of the site, given that module; see :mod:`.parts`.
    """

    site: Site
    bottleneck_dim: int = 0
    activation: str = "relu"
    activate_output: bool = False
    zero_start: bool = True
    scale: float = 1.0
    copies: bool = False
    tensors: tuple[str, ...] = ()
    part: Callable[[nn.Module], Part] | None = None


@dataclass(frozen=True)
class AdapterConfig(ABC):
    """Base of the methods' configurations; :attr:`method` is the name in the registry and in adapter folders.

    ``trains`` is False for a method that is only evaluated.
    """

    method: ClassVar[str]
    trains: ClassVar[bool] = True

    @abstractmethod
    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """Where this method puts what on ``model``.

        Raises:
            AdapterError: the model lacks a site the method needs, or widths do not fit.
        """

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: the method's name and its fields, but of those that came later only what was chosen."""
        later = [field.name for field in dataclasses.fields(self) if field.metadata.get("later")]
        values = dataclasses.asdict(self)
        return {"method": self.method, **{k: v for k, v in values.items() if k not in later or v is not None}}


def blocks_field() -> Any:
    """The setting ``last_blocks``: None for all. Older versions read the files of those who leave it so."""
    return dataclasses.field(default=None, metadata={"later": True})


@dataclass(frozen=True)
class BottleneckConfig(AdapterConfig):
    """What the bottleneck methods of the paper share.

    Attributes:
        bottleneck_dim: width of the bottlenecks.
        parts: ``"v"``, ``"vl"``, ``"vlc"``, ``"l"`` or ``"lc"``.
        variant: ``"published"`` is x + ReLU(up(ReLU(down(x)))) with default initialisation; ``"residual"`` starts as
            the base model (up-projection zero) and has no ReLU at its output.
        condition_dim: bottleneck on the conditional embedding (``"vlc"``); the paper uses 256.
        activation: of ``"residual"``: ``"gelu"``, ``"relu"`` or ``"silu"``.
        scale: factor on the change, of ``"residual"``.

    Raises:
        ConfigError: a value is not allowed.
    """

    bottleneck_dim: int = 64
    parts: str = "vlc"
    variant: str = "residual"
    condition_dim: int = 256
    activation: str = "gelu"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice("parts", self.parts, PARTS)
        check_choice("variant", self.variant, VARIANTS)
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_positive("bottleneck_dim", self.bottleneck_dim)
        check_positive("condition_dim", self.condition_dim)
        check_factor("scale", self.scale)

    def place(self, site: Site, bottleneck_dim: int) -> Placement:
        """A bottleneck of this variant on ``site``."""
        published = self.variant == "published"
        return Placement(
            site,
            bottleneck_dim,
            activation="relu" if published else self.activation,
            activate_output=published,
            zero_start=not published,
            scale=1.0 if published else self.scale,
        )


ADAPTERS: Registry[type[AdapterConfig]] = Registry("adapter")


def adapter_config(method: str, /, **values: Any) -> AdapterConfig:
    """Build the configuration of ``method`` from plain values.

    Raises:
        ConfigError: unknown method or field (the nearest name is shown), or a value out of range.
    """
    config_class = ADAPTERS.get(str(method))
    allowed = {field.name for field in dataclasses.fields(config_class)}
    for name in values:
        if name not in allowed:
            raise ConfigError(f"adapter '{method}' has no setting '{name}': {nearest(name, allowed)}")
    return config_class(**values)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: {nearest(str(value), allowed)}")


def check_positive(name: str, value: Any, most: int = 65536) -> None:
    """Raise ConfigError unless ``value`` is a whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"{name}={value!r}: must be a whole number from 1 to {most}")


def check_factor(name: str, value: Any, most: float = 100.0) -> None:
    """Raise ConfigError unless ``value`` is a number above 0 and at most ``most``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ConfigError(f"{name}={value!r}: must be a number above 0 and at most {most:g}")


def check_share(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{name}={value!r}: must be a number from 0 to below 1")


def sites_named(model: PromptSegmenter, name: str) -> list[Site]:
    """The sites of ``model`` called ``name`` that the decoder reads, in order.

    Raises:
        AdapterError: there are none; the message lists what there is.
    """
    need_sites(model, [name])
    return [site for site in model.sites() if site.name == name and site.read]


def need_sites(model: PromptSegmenter, names: Sequence[str], parts: str = "") -> None:
    """Refuse a model without the sites that a method stands on.

    Args:
        model: the base model.
        names: of the sites, in order.
        parts: the method's, where it has any: the message then says which of them the model has.

    Raises:
        AdapterError: the decoder reads no site of some of the names; all of them are named, and what there is.
    """
    sites = model.sites()
    there = {site.name for site in sites if site.read}
    missing = [name for name in dict.fromkeys(names) if name not in there]
    if not missing:
        return
    lacking = {_PART_OF.get(name) or _PART_OF.get(name.partition(".")[0]) for name in missing}
    left = "".join(part for part in parts if part not in lacking)
    fix = f"give it parts='{left}'" if left and left != parts else "choose another method or model"
    listed = ", ".join(f"'{name}'" for name in missing)
    offered = ", ".join(sorted({site.name for site in sites}))
    raise AdapterError(f"model '{model.base_id}' has no site {listed}: it offers {offered}; {fix}")


def last_of(sites: list[Site], blocks: int | None) -> list[Site]:
    """Of ``sites`` of one encoder those in its last ``blocks`` blocks; all where that is None or more than there are."""
    numbers = sorted({site.index for site in sites})
    return [site for site in sites if blocks is None or site.index in numbers[-blocks:]]


def check_blocks(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is None, for all blocks, or a number of them."""
    if value is not None:
        check_positive(name, value)


def module_at(model: nn.Module, site: Site) -> nn.Module:
    """The model's own module at ``site``, whatever adapters stand around it."""
    module = model.get_submodule(site.module)
    own: nn.Module = getattr(module, "base_layer", module)
    return own


def refuse_int8(model: PromptSegmenter, method: str) -> None:
    """For methods that copy weights of the encoders.

    Raises:
        AdapterError: linear maps of the model are in 8 bits, and have no weights that could train.
    """
    from vlsm_adapter.models.low_precision import Int8Linear

    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise AdapterError(
            f"'{method}' trains copies of weights, and linear maps of '{model.base_id}' are in 8 bits: attach it first, then lower "
            "the precision"
        )


def linear_sites(model: PromptSegmenter, name: str) -> list[Site]:
    """As :func:`sites_named`, for methods that change the weights of linear layers.

    Raises:
        AdapterError: there are none, or what stands there is no linear layer.
    """
    from torch import nn

    found = sites_named(model, name)
    for site in found:
        module = module_at(model, site)
        if not isinstance(module, nn.Linear):
            raise AdapterError(
                f"site '{name}' of model '{model.base_id}' is a {type(module).__name__}; this method needs linear layers"
            )
    return found
