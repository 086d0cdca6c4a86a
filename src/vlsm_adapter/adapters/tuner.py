"""The file on PEFT's hooks: bottlenecks, trainable copies and parts on the modules that a model names as sites.

PEFT gives the bookkeeping: wrapped layers, several adapters by name, switching, disabling, and, in :mod:`.peft_layers`,
the mathematics of its own methods (LoRA and kin) as parts. PEFT's list of method names is closed, so ours is
an enum of its own, entered in PEFT's mappings by hand; ``tests/contract/test_peft_hooks.py`` guards the hooks used.
"""

from __future__ import annotations

import copy
import enum
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import peft.mapping
import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from vlsm_adapter.adapters.blocks import bottleneck_change, make_bottleneck
from vlsm_adapter.adapters.config import Placement, module_at
from vlsm_adapter.adapters.copies import TensorCopy, twin
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.adapters.weights import check_weights
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models.base import PromptSegmenter, TextSkip

_PREFIX = "adapter_"


class SiteType(str, enum.Enum):  # noqa: UP042  # PEFT compares with str-Enum members
    """Our entry beside PEFT's own ``PeftType``."""

    VLSM_SITES = "VLSM_SITES"


@dataclass
class SiteConfig(PeftConfig):
    """PEFT's view of an attached method: its placements by module name.

    ``target_modules`` stays None: PEFT matches names by suffix and rewrites long lists, we match exactly.
    """

    target_modules: Any = None
    placements: dict[str, Placement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SiteType.VLSM_SITES


class SiteLayer(nn.Module, BaseTunerLayer):
    """A module of the base model with what any number of adapters put there: a bottleneck behind it, a copy, a part.

    One ModuleDict per projection, keyed by adapter name, is the layout that PEFT's save and load understand.
    """

    adapter_layer_names = ("adapter_down", "adapter_up", "adapter_copy", "adapter_part")
    other_param_names = ("placement",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter_down = nn.ModuleDict()
        self.adapter_up = nn.ModuleDict()
        self.adapter_copy = nn.ModuleDict()
        self.adapter_part = nn.ModuleDict()
        self.placement: dict[str, Placement] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, name: str, placement: Placement, device: torch.device) -> None:
        """Add a fresh bottleneck, copy or part under ``name``, in float32 whatever the base: small steps need it.

        ``device`` is the model's: half of the sites carry no weight to read it from.
        """
        self.placement[name] = placement
        if placement.copies:
            base = self.base_layer
            copied = TensorCopy(base, placement.tensors) if placement.tensors else copy.deepcopy(base)
            self.adapter_copy[name] = copied.to(device, torch.float32)
            return
        if placement.part is not None:
            part = placement.part(self.base_layer).to(device, torch.float32)
            self.adapter_part[name] = part.train(self.training)
            return
        down, up = make_bottleneck(placement.site.width, placement.bottleneck_dim, zero_start=placement.zero_start)
        self.adapter_down[name], self.adapter_up[name] = down.to(device), up.to(device)

    def _change(self, name: str, x: torch.Tensor) -> torch.Tensor:
        placement = self.placement[name]
        down, up = self.adapter_down[name], self.adapter_up[name]
        change = bottleneck_change(
            x.to(next(down.parameters()).dtype),
            down,
            up,
            activation=placement.activation,
            activate_output=placement.activate_output,
            scale=placement.scale,
        )
        return change.to(x.dtype)

    def _active(self) -> list[str]:
        chosen: list[str] = self.active_adapters  # type: ignore[assignment]
        return [] if self.disable_adapters else [name for name in chosen if name in self.placement]

    @property
    def in_use(self) -> nn.Module:
        """The plain module that computes what this layer does now; the layer itself where more than that happens."""
        chosen = self._active()
        if any(not self.placement[name].copies for name in chosen):
            return self
        if not chosen:
            return self.base_layer
        used = self.adapter_copy[chosen[-1]]
        if isinstance(used, TensorCopy):
            return used.within(self.base_layer)
        # On a base in half precision the float32 copy alone would not take what the modules around it give.
        same = next(used.parameters()).dtype == next(self.base_layer.parameters()).dtype
        return used if same else self

    def parted(self) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor] | None]:
        """The plain module that computes, and what bottlenecks do to its output; the layer itself where more happens."""
        chosen = self._active()
        if isinstance(self.base_layer, TextSkip) or any(name not in self.adapter_down for name in chosen):
            return self.in_use, None
        return self.base_layer, (partial(self._behind, chosen) if chosen else None)

    @property
    def tokens_given(self) -> int:
        """Learned tokens that the part in use gives at a ``tokens`` site."""
        return max((part.tokens_given for part in self.parts_in_use()), default=0)

    def parts_in_use(self) -> list[Part]:
        """The part of each active adapter that has one here."""
        return [cast("Part", self.adapter_part[name]) for name in self._active() if name in self.adapter_part]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of the base layer or of the copy in its place, changed by the active bottlenecks in turn.

        On a ``text.skip`` site ``x`` is the condition (P, D) and the second argument the end-of-text state (P, D).
        """
        chosen = self._active()
        computed: Callable[..., torch.Tensor] = self.base_layer
        for name in chosen:
            if self.placement[name].copies:
                computed = partial(self._copied, name)
            elif self.placement[name].part is not None:
                computed = partial(self.adapter_part[name], computed)
        output = computed(x, *args, **kwargs)
        if not isinstance(self.base_layer, TextSkip):
            return self._behind([name for name in chosen if name in self.adapter_down], output)
        for name in chosen:
            if name in self.adapter_down:
                (state,) = args
                change = self._change(name, state)
                # The published code adds the adapter's whole output, its own skip included; that would move the
                # start away from the base, so the other variants add the change alone.
                output = output + (state + change if self.placement[name].activate_output else change)
        return output

    def _behind(self, chosen: list[str], output: torch.Tensor) -> torch.Tensor:
        for name in chosen:
            output = output + self._change(name, output)
        return output

    def _copied(self, name: str, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        used = self.adapter_copy[name]
        if isinstance(used, TensorCopy):
            return used.within(self.base_layer)(x, *args, **kwargs)
        if x.is_floating_point():
            x = x.to(next(used.parameters()).dtype)
        return used(x, *args, **kwargs).to(next(self.base_layer.parameters()).dtype)


class SiteTuner(BaseTuner):
    """Wraps the modules named by the placements in :class:`SiteLayer`."""

    prefix = _PREFIX
    tuner_layer_cls = SiteLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT's class attribute, read only

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config  # sites are resolved already; PEFT would ask for target_modules

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT looks for the name before the last part of a key only; a copied module may have modules inside.
        return re.sub(rf"\.(adapter_[a-z]+)\.{re.escape(adapter_name)}\.", r".\1.", key)

    @staticmethod
    def _check_target_module_exists(peft_config: SiteConfig, key: str) -> bool:
        return key in peft_config.placements

    def _create_and_replace(
        self,
        peft_config: SiteConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BaseTunerLayer) and not isinstance(target, SiteLayer):
            raise AdapterError(
                f"'{current_key}' already carries a {type(target).__name__} adapter; detach it or use a fresh model"
            )
        layer = target if isinstance(target, SiteLayer) else SiteLayer(target).train(target.training)
        layer.add(adapter_name, peft_config.placements[current_key], next(self.model.parameters()).device)
        layer.set_adapter(self.active_adapters)  # type: ignore[operator]
        if layer is not target:
            setattr(parent, target_name, layer)


def _register() -> None:
    kind = SiteType.VLSM_SITES
    mappings: tuple[tuple[dict, Any], ...] = (
        (peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, SiteConfig),
        (peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING, SiteTuner),
        (peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING, _PREFIX),
    )
    for mapping, value in mappings:
        mapping[kind] = value


_register()


def inject(model: PromptSegmenter, name: str, placements: list[Placement]) -> None:
    """Wrap the sites of ``placements`` under the adapter name ``name`` and make it the active one.

    Raises:
        AdapterError: a site carries an adapter of another PEFT method; call it inside :func:`undo_on_error`.
    """
    config = SiteConfig(placements={placement.site.module: placement for placement in placements})
    with warnings.catch_warnings():
        # PEFT warns when a second adapter is added; here that is the purpose.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        SiteTuner(model, config, adapter_name=name)
    parts: dict[str, Part] = {
        placement.site.module: cast("Any", model.get_submodule(placement.site.module)).adapter_part[name]
        for placement in placements
        if placement.part is not None
    }
    for part in parts.values():
        part.link(parts)
    activate(model, name)


def names(model: nn.Module) -> list[str]:
    """Names of the attached adapters, in order of attachment."""
    return list(getattr(model, "peft_config", {}))


def layers(model: nn.Module) -> Iterator[BaseTunerLayer]:
    """All wrapped layers, of any PEFT method."""
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def activate(model: nn.Module, name: str, *, trainable: bool = True) -> None:
    """Make ``name`` the one adapter in use; the others are frozen."""
    for layer in layers(model):
        layer.set_adapter(name, inference_mode=not trainable)


def active_name(model: nn.Module) -> str | None:
    """The adapter in use, or None where none is attached."""
    for layer in layers(model):
        return layer.active_adapters[0] if layer.active_adapters else None
    return None


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base model, bit for bit, as long as the context lasts."""
    before = [(layer, layer.disable_adapters) for layer in layers(model)]
    for layer, _ in before:
        layer._disable_adapters = True  # enable_adapters() would also touch requires_grad
    try:
        yield
    finally:
        for layer, was in before:
            layer._disable_adapters = was


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """The parts of the adapter in use are in training mode (dropout, statistics of the batch) as long as this lasts.

    The base and copies of its modules never are: they keep the mode they have.
    """
    parts = [part for layer in layers(model) if isinstance(layer, SiteLayer) for part in layer.parts_in_use()]
    for part in parts:
        part.train()
    try:
        yield
    finally:
        for part in parts:
            part.eval()


@contextmanager
def undo_on_error(model: nn.Module, name: str) -> Iterator[None]:
    """If the body fails, adapter ``name`` is off again, and what was in use or trained before is so again."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    used = [(layer, list(layer.active_adapters)) for layer in layers(model)]
    try:
        yield
    except BaseException:
        _take_off(model, name)
        for layer, before in used:
            layer._active_adapter = before  # set_adapter() would also touch requires_grad
        for parameter, required in trained:
            parameter.requires_grad_(required)
        raise


def taken_names(model: nn.Module) -> set[str]:
    """What no adapter can be called.

    PEFT finds an adapter's weights by its name between the dots of a key, so it must not be the name of a module;
    and a ModuleDict refuses its own attributes.
    """
    parts = {part for key in model.state_dict() for part in key.split(".")} - set(names(model))
    return parts | {"base_layer", *SiteLayer.adapter_layer_names} | set(dir(nn.ModuleDict()))


def remove(model: nn.Module, name: str) -> None:
    """Take the adapter off; layers left without any are unwrapped. If it was in use, the last one left comes into use."""
    was_used = active_name(model) == name
    trained = any(parameter.requires_grad for parameter in model.parameters())
    _take_off(model, name)
    left = names(model)
    if left and was_used:
        activate(model, left[-1], trainable=trained)


def _take_off(model: nn.Module, name: str) -> None:
    for module_name, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer.delete_adapter(name)
        if not layer._all_available_adapter_names():
            parent_name, _, child = module_name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, layer.get_base_layer())
    getattr(model, "peft_config", {}).pop(name, None)


def state_dict(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Weights and buffers of one adapter; keys carry the site's module name, not the adapter's name."""
    if not _is_ours(model, name):
        return get_peft_model_state_dict(model, adapter_name=name)
    return {
        f"{prefix}{key}": tensor for prefix, held in _held(model, name) for key, tensor in held.state_dict().items()
    }


def count_parameters(model: nn.Module, name: str) -> tuple[int, int]:
    """How many parameters an adapter has, and how many of them stand in place of the base's own."""
    if not _is_ours(model, name):
        return sum(tensor.numel() for tensor in state_dict(model, name).values()), 0
    counts = [(prefix, sum(tensor.numel() for tensor in held.parameters())) for prefix, held in _held(model, name)]
    copied = sum(count for prefix, count in counts if prefix.endswith(".adapter_copy."))
    return sum(count for _, count in counts), copied


def _is_ours(model: nn.Module, name: str) -> bool:
    configs: Any = model.peft_config
    return isinstance(configs[name], SiteConfig)


def _held(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """All that the sites hold of one adapter, with the start of its keys."""
    for path, layer in model.named_modules():
        if isinstance(layer, SiteLayer):
            for kind in SiteLayer.adapter_layer_names:
                held = getattr(layer, kind)
                if name in held:
                    yield f"{path}.{kind}.", held[name]


def load_state_dict(model: nn.Module, name: str, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load the weights of one adapter; every key and shape must fit.

    Raises:
        AdapterError: what :func:`check_weights` finds; nothing was changed.
    """
    check_weights(weights, {key: tuple(tensor.shape) for key, tensor in state_dict(model, name).items()}, source)
    for prefix, held in _held(model, name):
        own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        held.load_state_dict(own)


def expected_shapes(placements: list[Placement], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key and shape of each weight that an adapter with these placements on ``model`` has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for placement in placements:
        base = module_at(model, placement.site)
        if placement.copies:
            for key, tensor in base.state_dict().items():
                if not placement.tensors or key in placement.tensors:
                    shapes[f"{placement.site.module}.adapter_copy.{key}"] = tuple(tensor.shape)
            continue
        if placement.part is not None:
            own = {key: tensor.to("meta") for key, tensor in base.named_parameters(recurse=False)}
            with torch.device("meta"):  # sizes only
                part = placement.part(twin(base, own))
            for key, tensor in part.state_dict().items():
                shapes[f"{placement.site.module}.adapter_part.{key}"] = tuple(tensor.shape)
            continue
        module, width, narrow = placement.site.module, placement.site.width, placement.bottleneck_dim
        shapes[f"{module}.adapter_down.weight"] = (narrow, width)
        shapes[f"{module}.adapter_down.bias"] = (narrow,)
        shapes[f"{module}.adapter_up.weight"] = (width, narrow)
        shapes[f"{module}.adapter_up.bias"] = (width,)
    return shapes
