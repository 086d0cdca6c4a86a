"""CLIPSeg adapters trained with the published VLSM-Adapter code, read into our models.

The published key names (fc1 down, fc2 up)::

    v_attn_adapters.{i} v_out_adapters.{i} l_attn_adapters.{i} l_out_adapters.{i}   dense, block i
    vision_extract_adapters.{j} text_extract_adapters.{j}                           shallow, j-th activation
    cond_adapter                                                                    both, parts "vlc"

In a whole published checkpoint they stand behind ``net.`` beside the frozen base (``net.clipseg.*``, ``net.clip.*``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlsm_adapter.adapters import AdapterConfig, adapter_config, tuner
from vlsm_adapter.adapters.attach import attach
from vlsm_adapter.errors import AdapterError, ConfigError
from vlsm_adapter.interop.reading import read_published
from vlsm_adapter.models import load_model

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.base import PromptSegmenter

_KEY = re.compile(
    r"(?:(?P<group>[vl]_(?:attn|out)_adapters|(?:vision|text)_extract_adapters)\.(?P<index>0|[1-9]\d{0,2})|cond_adapter)"
    r"\.(?P<half>fc1|fc2)\.(?P<kind>weight|bias)"
)
_SITE = {
    "v_attn_adapters": "image.attn_out",
    "v_out_adapters": "image.mlp_out",
    "l_attn_adapters": "text.attn_out",
    "l_out_adapters": "text.mlp_out",
    "vision_extract_adapters": "image.skip",
    "text_extract_adapters": "text.skip",
    "cond_adapter": "condition",
}
BASE_KEY = re.compile(r"(?:net\.)?(clipseg\..+)")


def clipseg_from_published(
    base: str | Path,
    state_dict: Mapping[str, torch.Tensor] | str | Path,
    *,
    name: str = "default",
) -> PromptSegmenter:
    """The published model with published weights: method, parts and widths are read off the keys.

    Args:
        base: the CLIPSeg it was trained on: folder, hub id or ``"tiny"``.
        state_dict: tensors by published key; or the path of a ``.safetensors`` file or of a whole published
            Lightning checkpoint, which is read without unpickling any object (``weights_only``).
        name: of the adapter on the model.

    Returns:
        The model in evaluation mode, adapter in use, nothing requiring gradients.

    Raises:
        AdapterError: no published adapter keys, keys that fit no variant, or other base weights than ``base``'s.
    """
    import torch

    source = str(state_dict) if isinstance(state_dict, (str, Path)) else "state_dict"
    tensors = read_published(state_dict) if isinstance(state_dict, (str, Path)) else dict(state_dict)
    found: dict[tuple[str, int, str, str], torch.Tensor] = {}
    unknown: list[str] = []
    carried: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
            raise AdapterError(f"{source}: {key!r} is no tensor by name; give the 'state_dict' of the checkpoint")
        match = _KEY.fullmatch(key.removeprefix("net."))
        if match:
            index = int(match["index"] or 0)
            found[match["group"] or "cond_adapter", index, match["half"], match["kind"]] = tensor
        elif base_key := BASE_KEY.fullmatch(key):
            carried[base_key[1]] = tensor
        elif not key.startswith(("net.clip.", "clip.")):  # aliases of the frozen base
            unknown.append(key)
    if not found:
        raise AdapterError(f"{source}: holds no published adapter keys such as v_attn_adapters.0.fc1.weight")
    if unknown:
        raise AdapterError(f"{source}: keys of no published variant: {unknown[:2]} ({len(unknown)} in all)")
    config = _read_config(found, source)
    model = load_model(base)
    check_base(model, carried, source)
    attach(model, config, name)
    modules = {(site.name, site.index): site.module for site in model.sites()}
    weights: dict[str, torch.Tensor] = {}
    for (group, index, half, kind), tensor in found.items():
        module = modules.get((_SITE[group], index))
        if module is None:
            raise AdapterError(f"{source}: {group}.{index} has no place in '{model.base_id}'; give its own base")
        weights[f"{module}.adapter_{'down' if half == 'fc1' else 'up'}.{kind}"] = tensor
    tuner.load_state_dict(model, name, weights, source)
    return model.freeze()


def _read_config(found: Mapping[tuple[str, int, str, str], torch.Tensor], source: str) -> AdapterConfig:
    groups = {group for group, *_ in found}
    dense = groups & {"v_attn_adapters", "v_out_adapters", "l_attn_adapters", "l_out_adapters"}
    shallow = groups & {"vision_extract_adapters", "text_extract_adapters"}
    if bool(dense) == bool(shallow):
        raise AdapterError(f"{source}: keys of both dense and shallow adapters, or of neither: {sorted(groups)}")
    parts = "v" + ("l" if groups & {"l_attn_adapters", "l_out_adapters", "text_extract_adapters"} else "")
    if "cond_adapter" in groups:
        parts += "c"
    if parts == "vc":
        raise AdapterError(f"{source}: a condition adapter without text adapters is no published variant")
    first = "v_attn_adapters" if dense else "vision_extract_adapters"
    sizes: dict[str, int] = {}
    for field, group in (("bottleneck_dim", first), ("condition_dim", "cond_adapter")):
        tensor = found.get((group, 0, "fc1", "weight"))
        if tensor is not None and tensor.ndim == 2:
            sizes[field] = int(tensor.shape[0])
        elif group in groups or group == first:
            raise AdapterError(f"{source}: lacks {group}.0.fc1.weight; the checkpoint is incomplete")
    kind = "dense" if dense else "shallow"
    try:
        return adapter_config(kind, parts=parts, variant="published", **sizes)
    except ConfigError as error:
        raise AdapterError(f"{source}: {error}") from error


def check_base(model: PromptSegmenter, carried: Mapping[str, torch.Tensor], source: str) -> None:
    """The checkpoint's own copy of the frozen base must be the base given, or the adapter means nothing."""
    import torch

    own = dict(model.named_parameters())
    for key, tensor in carried.items():
        if key.endswith("position_ids"):  # a buffer that older transformers versions saved
            continue
        if (
            key not in own
            or own[key].shape != tensor.shape
            or not torch.allclose(own[key], tensor.to(own[key].dtype), atol=1e-6)
        ):
            raise AdapterError(
                f"{source}: its base differs from '{model.base_id}' at {key}; give the base it was trained on"
            )
