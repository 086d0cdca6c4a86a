"""Telescopic adapters on CLIPSeg (WACV 2026) trained with the published code, read into our models.

The published key names; in a whole published checkpoint they stand behind ``net.`` beside the frozen base
(``net.clipseg.*``)::

    v_attn_adapters.{i} v_out_adapters.{i}   image block i          .down_project.weight .up_project.weight
    l_attn_adapters.{j} l_out_adapters.{j}   the last text blocks   .norm.weight .norm.bias .scale
    cond_adapter                             the condition
    boundary_enhancer.{0,1,3}.*              the boundary term
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlsm_adapter.adapters import TelescopicConfig, tuner
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.errors import AdapterError
from vlsm_adapter.interop.clipseg import BASE_KEY, check_base
from vlsm_adapter.interop.reading import read_published
from vlsm_adapter.models import load_model

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

_ADAPTER = re.compile(
    r"(?:(?P<group>[vl]_(?:attn|out)_adapters)\.(?P<index>0|[1-9]\d{0,2})|cond_adapter)"
    r"\.(?P<rest>(?:down_project|up_project)\.weight|norm\.(?:weight|bias)|scale)"
)
_BOUNDARY = re.compile(r"boundary_enhancer\.(?P<rest>\d\.\w+)")
_SITE = {
    "v_attn_adapters": "image.attn_out",
    "v_out_adapters": "image.mlp_out",
    "l_attn_adapters": "text.attn_out",
    "l_out_adapters": "text.mlp_out",
    "cond_adapter": "condition",
}
_PAPERS_SIZE = 64


def telescopic_from_published(
    base: str | Path,
    state_dict: Mapping[str, torch.Tensor] | str | Path,
    *,
    name: str = "default",
) -> PromptSegmenter:
    """CLIPSeg with published Telescopic weights; parts, size and boundary term are read off the keys and shapes.

    Several requested sizes may give the same widths; then the paper's 64 is taken, or else the smallest.

    Args:
        base: the CLIPSeg it was trained on: folder, hub id or ``"tiny"``.
        state_dict: tensors by published key; or the path of a ``.safetensors`` file or of a whole published checkpoint,
            which is read without unpickling any object (``weights_only``).
        name: of the adapter on the model.

    Returns:
        The model in evaluation mode, adapter in use, nothing requiring gradients.

    Raises:
        AdapterError: no such keys, keys or widths that fit no published size, or other base weights than ``base``'s.
    """
    import torch

    source = str(state_dict) if isinstance(state_dict, (str, Path)) else "state_dict"
    tensors = read_published(state_dict) if isinstance(state_dict, (str, Path)) else dict(state_dict)
    adapters: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    boundary: dict[str, torch.Tensor] = {}
    carried: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
            raise AdapterError(f"{source}: {key!r} is no tensor by name; give the 'state_dict' of the checkpoint")
        if match := _ADAPTER.fullmatch(key.removeprefix("net.")):
            place = match["group"] or "cond_adapter", int(match["index"] or 0)
            # One learned number, kept as such or as a list of one.
            value = tensor.reshape(()) if match["rest"] == "scale" and tensor.numel() == 1 else tensor
            adapters.setdefault(place, {})[match["rest"]] = value
        elif match := _BOUNDARY.fullmatch(key.removeprefix("net.")):
            boundary[match["rest"]] = tensor
        elif base_key := BASE_KEY.fullmatch(key):
            carried[base_key[1]] = tensor
        else:
            unknown.append(key)
    if not adapters:
        raise AdapterError(f"{source}: holds no Telescopic keys such as v_attn_adapters.0.down_project.weight")
    if unknown:
        raise AdapterError(f"{source}: keys of no Telescopic adapter: {unknown[:2]} ({len(unknown)} in all)")
    model = load_model(base)
    check_base(model, carried, source)
    config = _read_config(model, adapters, with_boundary=bool(boundary), source=source)
    attach(model, config, name)
    weights: dict[str, torch.Tensor] = {}
    for place, values in adapters.items():
        module = _modules(config, model)[place]
        weights |= {f"{module}.adapter_part.{rest}": tensor for rest, tensor in values.items()}
    weights |= {f"logits.adapter_part.layers.{rest}": tensor for rest, tensor in boundary.items()}
    tuner.load_state_dict(model, name, weights, source)
    return model.freeze()


def _modules(config: TelescopicConfig, model: PromptSegmenter) -> dict[tuple[str, int], str]:
    """Group and number of each published adapter, and the module of its site; numbers count the adapted blocks."""
    found: dict[tuple[str, int], str] = {}
    for group, site_name in _SITE.items():
        sites = sorted(
            (place.site for place in config.places(model) if place.site.name == site_name), key=lambda s: s.index
        )
        found |= {(group, number): site.module for number, site in enumerate(sites)}
    return found


def _read_config(
    model: PromptSegmenter,
    adapters: Mapping[tuple[str, int], Mapping[str, torch.Tensor]],
    *,
    with_boundary: bool,
    source: str,
) -> TelescopicConfig:
    groups = {group for group, _ in adapters}
    parts = "".join(
        letter
        for letter, group in (("v", "v_attn_adapters"), ("l", "l_attn_adapters"), ("c", "cond_adapter"))
        if group in groups
    )
    if parts not in ("v", "vl", "vlc"):
        raise AdapterError(f"{source}: adapters {sorted(groups)} are of no published variant")
    config = TelescopicConfig(parts=parts, variant="published", boundary=None if with_boundary else False)
    modules = _modules(config, model)
    if modules.keys() != adapters.keys():
        odd = sorted(modules.keys() ^ adapters.keys())[0]
        raise AdapterError(
            f"{source}: {odd[0]}.{odd[1]} stands in only one of the checkpoint and '{model.base_id}'; give its own base"
        )
    widths: dict[str, int] = {}
    for place, values in adapters.items():
        down = values.get("down_project.weight")
        if down is None or down.ndim != 2:
            raise AdapterError(
                f"{source}: {place[0]}.{place[1]} lacks down_project.weight; the checkpoint is incomplete"
            )
        widths[modules[place]] = int(down.shape[0])
    places = config.places(model)
    # Beyond this size every bottleneck is a quarter of its width.
    most = max(int(place.site.width / 4 / place.share) + 1 for place in places)
    for size in (_PAPERS_SIZE, *range(1, most + 1)):
        if all(place.width(size) == widths[place.site.module] for place in places):
            return replace(config, bottleneck_dim=size)
    raise AdapterError(
        f"{source}: the widths of its bottlenecks, {sorted(set(widths.values()))}, are of no size on this base"
    )
