"""Attach methods to a model, switch between them, take them off again."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlsm_adapter.adapters import tuner
from vlsm_adapter.errors import AdapterError, nearest

if TYPE_CHECKING:
    from vlsm_adapter.adapters.config import AdapterConfig
    from vlsm_adapter.models.base import PromptSegmenter

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach` did.

    Attributes:
        name: name of the adapter on the model.
        method: name of the method.
        trainable: parameters that train.
        total: parameters of base and this adapter; a copy stands in place of what it copies and is counted once.
        sites: site name to the number of places adapted there.
    """

    name: str
    method: str
    trainable: int
    total: int
    sites: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Trainable part of all parameters, 0 to 1."""
        return self.trainable / self.total

    def __str__(self) -> str:
        places = ", ".join(f"{count} x {site}" for site, count in self.sites.items())
        return f"{self.method}: {self.trainable:,} of {self.total:,} parameters train ({self.share:.2%}); {places}"


def attach(model: PromptSegmenter, config: AdapterConfig, name: str = "default") -> AttachReport:
    """Freeze ``model``, put the method's parts on its sites, and make them the adapter in use.

    Everything is checked first; on an error the model is as it was.

    Args:
        model: a base model; it may carry other adapters, which are kept, out of use.
        config: e.g. ``DenseAdapterConfig(bottleneck_dim=64, parts="vlc")``.
        name: to switch between several adapters.

    Raises:
        AdapterError: the name is taken or malformed, the model lacks a site or pretrained weights, or nothing would
            train.
    """
    if not _NAME.fullmatch(name):
        raise AdapterError(f"adapter name '{name}': letters, digits, '-' and '_', 1 to 64 characters, no other")
    if name in tuner.names(model):
        raise AdapterError(f"adapter '{name}' is attached already: detach it, or choose another name")
    if name in tuner.taken_names(model):
        raise AdapterError(f"adapter name '{name}' is the name of a part of the model; choose another: 'my-{name}'")
    if not model.pretrained and config.method != "full":
        raise AdapterError(
            f"model '{model.base_id}' starts from random weights, adapter '{config.method}' would leave some of them as "
            "they are: train all with 'full' (--adapter full)"
        )
    placements = config.placements(model)
    if not placements:
        raise AdapterError(f"adapter '{config.method}' places nothing on model '{model.base_id}': nothing would train")
    _ = model.base_hash  # named before anything changes
    with tuner.undo_on_error(model, name):
        model.requires_grad_(False)
        tuner.inject(model, name, placements)
    model.adapter_configs[name] = config
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    others = sum(tuner.count_parameters(model, other)[0] for other in tuner.names(model) if other != name)
    _, copied = tuner.count_parameters(model, name)
    total = sum(parameter.numel() for parameter in model.parameters()) - others - copied
    return AttachReport(
        name=name,
        method=config.method,
        trainable=trainable,
        total=total,
        sites=dict(Counter(placement.site.name for placement in placements)),
    )


def use_adapter(model: PromptSegmenter, name: str, *, trainable: bool = False) -> None:
    """Make ``name`` the adapter in use.

    Args:
        trainable: whether its parameters require gradients; those of the others never do.

    Raises:
        AdapterError: no adapter of that name is attached.
    """
    _require(model, name)
    tuner.activate(model, name, trainable=trainable)


def without_adapter(model: PromptSegmenter) -> AbstractContextManager[None]:
    """A context in which ``model`` is its base, bit for bit."""
    return tuner.disabled(model)


def training_mode(model: PromptSegmenter) -> AbstractContextManager[None]:
    """A context in which the adapter in use trains: its dropout drops, its norms take the statistics of the batch.

    For a step of training. The base stays in evaluation mode, and so does the adapter outside the context.
    """
    return tuner.training(model)


def detach(model: PromptSegmenter, name: str) -> None:
    """Take the adapter off. If it was in use, the one attached last of those left, if any, comes into use.

    Raises:
        AdapterError: no adapter of that name is attached.
    """
    _require(model, name)
    tuner.remove(model, name)
    model.adapter_configs.pop(name, None)  # PEFT's own methods have none


def attached(model: PromptSegmenter) -> list[str]:
    """Names of the attached adapters."""
    return tuner.names(model)


def active(model: PromptSegmenter) -> str:
    """Name of the adapter in use.

    Raises:
        AdapterError: none is attached.
    """
    name = tuner.active_name(model)
    if name is None:
        raise AdapterError(f"model '{model.base_id}' carries no adapter: attach one first")
    return name


def _require(model: PromptSegmenter, name: str) -> None:
    if name not in tuner.names(model):
        raise AdapterError(f"no adapter '{name}' is attached: {nearest(name, tuner.names(model))}")
