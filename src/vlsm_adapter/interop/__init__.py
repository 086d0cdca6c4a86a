"""Weights trained with the published implementations, read into our models: one file per family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import ConfigError, nearest
from vlsm_adapter.interop.clipseg import clipseg_from_published
from vlsm_adapter.interop.cris import cris_from_published
from vlsm_adapter.interop.reading import read_published
from vlsm_adapter.interop.san import san_from_published
from vlsm_adapter.interop.telescopic import telescopic_from_published

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

__all__ = ["from_published", "read_published"]

FAMILIES = ("clipseg", "telescopic", "cris", "san")


def from_published(
    base: str | Path | Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor] | str | Path,
    *,
    model: str = "clipseg",
    name: str = "default",
    padding: str = "published",
    graph: str = "published",
) -> PromptSegmenter:
    """The published model with published weights.

    Args:
        base: the CLIPSeg that adapters were trained on: folder, hub id or ``"tiny"``. For ``"cris"`` and ``"san"`` the
            sizes: the contents or the path of the ``config.json``.
        state_dict: tensors by published key; or the path of a ``.safetensors`` file or of a whole published
            Lightning checkpoint, which is read without unpickling any object (``weights_only``).
        model: the family: ``"clipseg"`` (dense and shallow adapters), ``"telescopic"`` (those on CLIPSeg), ``"cris"``
            or ``"san"``.
        name: of the adapter on the model (on CLIPSeg).
        padding: ``"published"``, or ``"masked"``: the decoder does not see padding (``"cris"``).
        graph: ``"published"``, ``"head_gradient"`` or ``"corrected"`` (``"san"``).

    Returns:
        The model in evaluation mode, adapter in use, nothing requiring gradients.

    Raises:
        ConfigError: an unknown family.
        ModelError: sizes, keys or shapes that are no CRIS's or SAN's.
        AdapterError: keys or shapes that fit no published variant, or other base weights than ``base``'s.
    """
    if model in ("clipseg", "telescopic"):
        if isinstance(base, Mapping):
            raise ConfigError(f"model='{model}' takes the base's folder, hub id or name first, not a configuration")
        read = clipseg_from_published if model == "clipseg" else telescopic_from_published
        return read(base, state_dict, name=name)
    if model == "cris":
        return cris_from_published(base, state_dict, padding=padding)
    if model == "san":
        return san_from_published(base, state_dict, graph=graph)
    raise ConfigError(f"model='{model}' is unknown: {nearest(model, FAMILIES)}")
