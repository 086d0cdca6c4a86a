"""Weights trained with the published implementations, read into our models: one file per family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import ConfigError, nearest
from vlsm_adapter.interop.clipseg import clipseg_from_published
from vlsm_adapter.interop.reading import read_published

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

__all__ = ["from_published", "read_published"]

FAMILIES = ("clipseg",)


def from_published(
    base: str | Path | Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor] | str | Path,
    *,
    model: str = "clipseg",
    name: str = "default",
) -> PromptSegmenter:
    """The published model with published weights.

    Args:
        base: the CLIPSeg that adapters were trained on: folder, hub id or ``"tiny"``.
        state_dict: tensors by published key; or the path of a ``.safetensors`` file or of a whole published
            Lightning checkpoint, which is read without unpickling any object (``weights_only``).
        model: the family, ``"clipseg"``.
        name: of the adapter on the model.

    Returns:
        The model in evaluation mode, adapter in use, nothing requiring gradients.

    Raises:
        ConfigError: an unknown family.
        AdapterError: keys or shapes that fit no published variant, or other base weights than ``base``'s.
    """
    if model == "clipseg":
        if isinstance(base, Mapping):
            raise ConfigError("model='clipseg' takes the base's folder, hub id or name first, not a configuration")
        return clipseg_from_published(base, state_dict, name=name)
    raise ConfigError(f"model='{model}' is unknown: {nearest(model, FAMILIES)}")
