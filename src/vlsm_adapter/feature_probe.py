"""What stays the same while a model trains, and may so be kept by :mod:`.feature_cache`: found by running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from vlsm_adapter.adapters import tuner
from vlsm_adapter.models.base import PromptSegmenter
from vlsm_adapter.models.features import ImageFeatures, TextFeatures

F = TypeVar("F", ImageFeatures, TextFeatures)


@dataclass(frozen=True)
class Frozen(Generic[F]):
    """What :func:`probe` found.

    Attributes:
        features: of the input it was tried on, or None: the trunk may give something else next time.
        adapted: an adapter that does not train works in the trunk; the base's hash does not name its weights.
    """

    features: F | None
    adapted: bool = False


class _Changes(Exception):
    """Raised at the first module that trains or is in training mode, and where a stem cannot be cut."""


def probe(model: nn.Module, run: Callable[[], F]) -> Frozen[F]:
    """Whether what ``run`` computes with ``model`` stays the same while the model trains.

    It does where no module that runs has a parameter that requires a gradient, none is in training mode (dropout,
    statistics of the batch), and the result requires no gradient, which tells of weights used without their module.
    """
    ran: set[int] = set()

    def look(module: nn.Module, _arguments: Any) -> None:
        if module.training or any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            raise _Changes
        ran.add(id(module))

    hooks = [module.register_forward_pre_hook(look) for module in model.modules()]
    try:
        with torch.enable_grad():
            features = run()
    except _Changes:
        return Frozen(None)
    finally:
        for hook in hooks:
            hook.remove()
    tensors = features.tensors()
    if any(tensor.requires_grad for tensor in tensors) or any(len(tensor) != 1 for tensor in tensors):
        return Frozen(None)
    adapted = any(id(layer) in ran and not layer.disable_adapters for layer in tuner.layers(model))
    return Frozen(features, adapted)


def frozen_image(model: PromptSegmenter, pixels: torch.Tensor) -> Frozen[ImageFeatures]:
    """As :func:`probe` of the image trunk, or where something in it changes, of the longest stem in which nothing does.

    On a GPU the first sublayer alone is none: it is not worth the memory there.

    Args:
        model: with its adapter, as it trains.
        pixels: of an image, (1, 3, H, W).
    """
    whole = probe(model, lambda: model.image_trunk(pixels))
    if whole.features is not None:
        return whole
    longest: Frozen[ImageFeatures] = Frozen(None)
    cuts = model.image_cuts if pixels.device.type == "cpu" else model.image_cuts[1:]
    first, last = 0, len(cuts) - 1
    while first <= last:  # what is frozen up to one cut is frozen up to every earlier one
        middle = (first + last) // 2
        found = _probe_stem(model, pixels, cuts[middle])
        if found.features is None:
            last = middle - 1
        else:
            longest, first = found, middle + 1
    return longest


def image_blocks_train(model: PromptSegmenter) -> bool:
    """Whether something in the blocks of the image encoder trains; what stands on its outputs does not count."""
    sites = [site for site in model.sites() if site.name.startswith("image.") and site.name != "image.skip"]
    modules = (model.get_submodule(site.module) for site in sites)
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _probe_stem(model: PromptSegmenter, pixels: torch.Tensor, cut: int) -> Frozen[ImageFeatures]:
    def run() -> ImageFeatures:
        stem = model.image_stem(pixels, cut)
        if stem is None:
            raise _Changes
        return stem

    return probe(model, run)
