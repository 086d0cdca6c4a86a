"""The layer that stands around a module of the base model and computes what adapters put there.

It keeps its adapters by name as PEFT's layers do, under the same attribute and method names, so that PEFT's functions work
on it; but it does not import PEFT, whose import takes longer than most predictions. :mod:`.peft_host` makes them known to
each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from vlsm_adapter.adapters.blocks import bottleneck_change, make_bottleneck
from vlsm_adapter.adapters.config import Placement
from vlsm_adapter.adapters.copies import TensorCopy
from vlsm_adapter.adapters.parts import Part
from vlsm_adapter.models.base import TextSkip


class NamedAdapters(nn.Module):
    """A layer around ``base_layer`` with any number of adapters by name, some in use, one state for PEFT and for us.

    The names of attributes and methods are those of PEFT's ``BaseTunerLayer``, which PEFT's functions read and call.
    """

    adapter_layer_names: tuple[str, ...] = ()  # attributes that hold modules by adapter name
    other_param_names: tuple[str, ...] = ()  # attributes that hold anything else by adapter name

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []

    @property
    def active_adapter(self) -> str | list[str]:
        """Names of the adapters in use."""
        return self._active_adapter

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters in use."""
        return [self._active_adapter] if isinstance(self._active_adapter, str) else self._active_adapter

    @property
    def disable_adapters(self) -> bool:
        """Whether the layer computes as its base, whatever is in use."""
        return self._disable_adapters

    @property
    def merged(self) -> bool:
        """Whether an adapter is folded into the base's weights: never, they stand behind or in place of a module."""
        return bool(self.merged_adapters)

    @property
    def weight(self) -> torch.Tensor:
        """The base module's, for code that reads a layer's weight, type or device."""
        return cast("torch.Tensor", self.base_layer.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        """The base module's."""
        return cast("torch.Tensor | None", self.base_layer.bias)

    def get_base_layer(self) -> nn.Module:
        """The module of the base model."""
        return self.base_layer

    def enable_adapters(self, enabled: bool) -> None:
        """Compute with the adapters in use, which train; or as the base, and nothing trains."""
        self._disable_adapters = not enabled
        self.set_adapter(self.active_adapters, inference_mode=not enabled)

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use these adapters and no others.

        Args:
            adapter_names: one or several; the layer need not hold all of them.
            inference_mode: whether they are frozen; those not in use always are.
        """
        chosen = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for held in self._modules_by_name():
            for name, module in held.items():
                module.requires_grad_(name in chosen and not inference_mode)
        self._active_adapter = chosen

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters without a change of what is in use."""
        chosen = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        for held in self._modules_by_name():
            for name in chosen & set(held):
                held[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; where it alone was in use, the first of those left comes into use."""
        for attribute in (*self.adapter_layer_names, *self.other_param_names):
            held = getattr(self, attribute)
            if adapter_name in held:
                del held[adapter_name]
        if adapter_name in self.active_adapters:
            left = [name for name in self.active_adapters if name != adapter_name]
            self.set_adapter(left or self._all_available_adapter_names()[:1])

    def _all_available_adapter_names(self) -> list[str]:
        held = (getattr(self, attribute) for attribute in (*self.adapter_layer_names, *self.other_param_names))
        return sorted({name for names in held for name in names})

    def _get_available_adapters(self) -> set[str]:
        return set(self._all_available_adapter_names())

    def _modules_by_name(self) -> list[nn.ModuleDict]:
        return [getattr(self, attribute) for attribute in self.adapter_layer_names]


class SiteLayer(NamedAdapters):
    """A module of the base model with what any number of adapters put there: a bottleneck behind it, a copy, a part.

    One ModuleDict per projection, keyed by adapter name, is the layout that PEFT's save and load understand.
    """

    adapter_layer_names = ("adapter_down", "adapter_up", "adapter_copy", "adapter_part")
    other_param_names = ("placement",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.adapter_down = nn.ModuleDict()
        self.adapter_up = nn.ModuleDict()
        self.adapter_copy = nn.ModuleDict()
        self.adapter_part = nn.ModuleDict()
        self.placement: dict[str, Placement] = {}

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
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.placement]

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
