"""Which adapters a model carries, by name: put on, switched, counted, saved and taken off.

Several adapters stand on one model, one in use, beside those that PEFT's own functions have put there. PEFT is not
imported here: :mod:`.peft_host` introduces the two to each other once both are loaded.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import nn

from vlsm_adapter.adapters.config import Placement, module_at
from vlsm_adapter.adapters.copies import twin
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.adapters.peft_watch import watch
from vlsm_adapter.adapters.site_layer import NamedAdapters, SiteLayer
from vlsm_adapter.adapters.weights import check_weights
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.models.base import PromptSegmenter

PREFIX = "adapter_"  # of the attributes of a SiteLayer that hold weights
KIND = "VLSM_SITES"  # what stands where PEFT's configurations name their type
_DISABLED = "_adapters_disabled"  # attribute of a model inside `disabled`


@dataclass
class SiteConfig:
    """What ``model.peft_config`` holds of an attached method: its placements by module name.

    The other attributes are what PEFT's functions ask of a configuration.
    """

    placements: dict[str, Placement] = field(default_factory=dict)
    inference_mode: bool = False
    is_prompt_learning: ClassVar[bool] = False

    @property
    def peft_type(self) -> str:
        """Read by PEFT alone, which looks it up in its mappings next: we must stand there by then."""
        _layer_types()
        return KIND


def inject(model: PromptSegmenter, name: str, placements: list[Placement]) -> None:
    """Wrap the sites of ``placements`` under the adapter name ``name`` and make it the active one.

    Raises:
        AdapterError: a site carries an adapter of another PEFT method; call it inside :func:`undo_on_error`.
    """
    _layer_types()  # a layer of PEFT's is to be known as one
    watch()
    device = next(model.parameters()).device
    for placement in placements:
        path = placement.site.module
        target = model.get_submodule(path)
        if _is_foreign(target):
            raise AdapterError(
                f"'{path}' already carries a {type(target).__name__} adapter; detach it or use a fresh model"
            )
        layer = target if isinstance(target, SiteLayer) else SiteLayer(target).train(target.training)
        layer.add(name, placement, device)
        if layer is not target:
            layer._disable_adapters = getattr(model, _DISABLED, False)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    configs[name] = SiteConfig({placement.site.module: placement for placement in placements})
    model.peft_config = configs  # type: ignore[assignment]  # a plain attribute; where PEFT looks for it
    for key, parameter in model.named_parameters():
        if f".{PREFIX}" not in key:
            parameter.requires_grad_(False)
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


def layers(model: nn.Module) -> Iterator[NamedAdapters]:
    """All wrapped layers, ours and those of PEFT's own methods, which have the same attributes and methods."""
    kinds = _layer_types()
    return (cast("NamedAdapters", module) for module in model.modules() if isinstance(module, kinds))


def _layer_types() -> tuple[type, ...]:
    """Ours; and PEFT's, where something has imported PEFT."""
    if getattr(sys.modules.get("peft"), "PeftConfig", None) is None:
        return (SiteLayer,)
    from vlsm_adapter.adapters.peft_host import BaseTunerLayer

    return (SiteLayer, BaseTunerLayer)


def _is_foreign(module: nn.Module) -> bool:
    return isinstance(module, _layer_types()) and not isinstance(module, SiteLayer)


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
    """The base model, bit for bit, as long as the context lasts; what is attached in it comes into use at its end."""
    before = {layer: layer.disable_adapters for layer in layers(model)}
    outer = getattr(model, _DISABLED, False)
    setattr(model, _DISABLED, True)
    for layer in before:
        layer._disable_adapters = True  # enable_adapters() would also touch requires_grad
    try:
        yield
    finally:
        setattr(model, _DISABLED, outer)
        for layer in layers(model):
            layer._disable_adapters = before.get(layer, outer)


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """The parts of the adapter in use are in training mode (dropout, statistics of the batch) as long as this lasts.

    The base and copies of its modules never are: they keep the mode they have.
    """
    parts = [part for layer in layers(model) if isinstance(layer, SiteLayer) for part in layer.parts_in_use()]
    before = [(module, module.training) for part in parts for module in part.modules()]
    for part in parts:
        part.train()
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


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
    kinds = _layer_types()
    for module_name, module in list(model.named_modules()):
        if not isinstance(module, kinds):
            continue
        layer = cast("NamedAdapters", module)
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
        from vlsm_adapter.adapters.peft_host import get_peft_model_state_dict

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
