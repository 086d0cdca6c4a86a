"""The only file on PEFT's hooks: bottlenecks, trainable copies and parts on the modules that a model names as sites.

PEFT gives the bookkeeping: wrapped layers, several adapters by name, switching, disabling, adapter-only state
dicts, and its own methods (LoRA and kin) on the same model. PEFT's list of method names is closed, so ours is
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
from typing import Any

import peft.mapping
import torch
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from vlsm_adapter.adapters.blocks import bottleneck_change, make_bottleneck
from vlsm_adapter.adapters.config import Placement
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models.base import PromptSegmenter, TextSkip

_PREFIX = "adapter_"
_WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
            self.adapter_copy[name] = copy.deepcopy(self.base_layer).to(device, torch.float32)
            return
        if placement.part is not None:
            self.adapter_part[name] = placement.part(self.base_layer).to(device, torch.float32)
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
        return self.adapter_copy[chosen[-1]] if chosen else self.base_layer

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
        for name in chosen:
            if name not in self.adapter_down:
                continue
            if isinstance(self.base_layer, TextSkip):
                (state,) = args
                change = self._change(name, state)
                # The published code adds the adapter's whole output, its own skip included; that would move the
                # start away from the base, so the other variants add the change alone.
                output = output + (state + change if self.placement[name].activate_output else change)
            else:
                output = output + self._change(name, output)
        return output

    def _copied(self, name: str, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        used = self.adapter_copy[name]
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
    parts = {
        placement.site.module: model.get_submodule(placement.site.module).adapter_part[name]
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
    """Weights of one adapter; keys carry the site's module name, not the adapter's name."""
    return get_peft_model_state_dict(model, adapter_name=name)


def load_state_dict(model: nn.Module, name: str, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load the weights of one adapter; every key and shape must fit.

    Raises:
        AdapterError: what :func:`check_weights` finds; nothing was changed.
    """
    check_weights(weights, {key: tuple(tensor.shape) for key, tensor in state_dict(model, name).items()}, source)
    result = set_peft_model_state_dict(model, dict(weights), adapter_name=name)
    if result.unexpected_keys:
        raise AdapterError(f"{source}: PEFT did not place {result.unexpected_keys[:2]}; report this")


def expected_shapes(placements: list[Placement], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key and shape of each weight that an adapter with these placements on ``model`` has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for placement in placements:
        if placement.copies:
            base = model.get_submodule(placement.site.module)
            base = base.base_layer if isinstance(base, SiteLayer) else base
            for key, tensor in base.state_dict().items():
                shapes[f"{placement.site.module}.adapter_copy.{key}"] = tuple(tensor.shape)
            continue
        if placement.part is not None:
            base = model.get_submodule(placement.site.module)
            with torch.device("meta"):  # sizes only
                part = placement.part(base.base_layer if isinstance(base, SiteLayer) else base)
            for key, tensor in part.state_dict().items():
                shapes[f"{placement.site.module}.adapter_part.{key}"] = tuple(tensor.shape)
            continue
        module, width, narrow = placement.site.module, placement.site.width, placement.bottleneck_dim
        shapes[f"{module}.adapter_down.weight"] = (narrow, width)
        shapes[f"{module}.adapter_down.bias"] = (narrow,)
        shapes[f"{module}.adapter_up.weight"] = (width, narrow)
        shapes[f"{module}.adapter_up.bias"] = (width,)
    return shapes


def check_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Whether ``weights`` are exactly the ones ``expected`` (shapes by key).

    Raises:
        AdapterError: a key is missing or not known, or a tensor has another shape, holds no real numbers, or is not
            finite.
    """
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise AdapterError(
            f"{source}: weights do not fit the adapter; missing {missing[:2]} ({len(missing)}), "
            f"unknown {unknown[:2]} ({len(unknown)}): was it saved for this model and configuration?"
        )
    for key, tensor in weights.items():
        if tuple(tensor.shape) != expected[key]:
            raise AdapterError(f"{source}: '{key}' has shape {tuple(tensor.shape)}, the adapter needs {expected[key]}")
        if tensor.dtype not in _WEIGHT_TYPES:
            raise AdapterError(f"{source}: '{key}' is of type {tensor.dtype}; allowed: float32, float16, bfloat16")
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{source}: '{key}' holds values that are not finite; the file is damaged")
