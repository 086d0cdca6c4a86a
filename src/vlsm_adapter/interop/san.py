"""SAN trained with the published code, read into our model.

Key names differ in how CLIP's attention weights are stacked and in the bare tensors (see
:mod:`vlsm_adapter.models.clip_blocks`); everything else is called alike. A published state dict holds CLIP's image
encoder twice: as ``clip_model.visual.*``, and as its two halves ``clip_visual_extractor.*`` and ``clip_rec_head.*``,
which are the same tensors. They are compared and counted once. All keys may stand behind one prefix, ``net.``,
``model.`` or ``module.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import ModelError
from vlsm_adapter.interop.reading import read_published, read_sizes, without_prefix

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.san import SAN, SANConfig

_VISUAL = "clip_model.visual."
_FRONT = re.compile(r"clip_visual_extractor\.(class_embedding$|positional_embedding$|conv1\.|ln_pre\.)(.*)")
_BLOCK = re.compile(r"(clip_visual_extractor|clip_rec_head)\.resblocks\.(\d{1,3})\.(.+)")
_HEAD = re.compile(r"clip_rec_head\.(ln_post\.|proj$)(.*)")
_FUSION = re.compile(r"(side_adapter_network\.fusion_layers\.layer_)(\d{1,3})(\..+)")
_BARE = (
    "clip_model.positional_embedding",
    "clip_model.text_projection",
    "clip_model.logit_scale",
    "clip_model.visual.class_embedding",
    "clip_model.visual.positional_embedding",
    "clip_model.visual.proj",
    "side_adapter_network.query_embed",
    "side_adapter_network.query_pos_embed",
    "side_adapter_network.vit_model.pos_embed",
)
_OF_THE_CORRECTED_GRAPH = "background.weight"  # weights of the published graph have none


def san_from_published(
    config: str | Path | Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor] | str | Path,
    *,
    graph: str = "published",
) -> SAN:
    """The published SAN with published weights, in float32.

    Args:
        config: the sizes in the published form (see :mod:`vlsm_adapter.models.san_parts.config`), or the path of a
            ``config.json``, or of a folder that holds one. Tokenizer files beside it are used.
        state_dict: tensors by published key, or the path of a checkpoint file, which is read without unpickling objects.
        graph: ``"published"``; ``"head_gradient"``, with the same numbers and a gradient into the attention bias; or
            ``"corrected"``: the SAN paper's graph, started from these weights. Its fusion layers, in their order, read
            other features than they were trained on, and its background embedding is drawn at random: train it.

    Returns:
        The model in evaluation mode, nothing requiring gradients.

    Raises:
        ModelError: a configuration that is no SAN's, keys or shapes that do not fit it, or halves of the image encoder
            that differ from the whole.
        AdapterError: the file cannot be read.
    """
    import torch

    from vlsm_adapter.models import checkpoints, saving
    from vlsm_adapter.models.clip_blocks import from_openai_names
    from vlsm_adapter.models.san import SAN, Background, SANConfig
    from vlsm_adapter.models.sizes import check_sizes

    folder: Path | None = None
    if isinstance(config, Mapping):
        values, told = config, "config"
    else:
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        values, folder, told = read_sizes(path, "SAN"), path.parent, str(path)
    given = SANConfig.from_dict(values, told)
    sizes = given.with_graph(graph)
    source = str(state_dict) if isinstance(state_dict, (str, Path)) else "state_dict"
    read = read_published(state_dict) if isinstance(state_dict, (str, Path)) else dict(state_dict)
    tensors = _without_aliases(without_prefix(read), given.split, source)
    check_sizes(given.in_weights(), tensors, told, source)
    # In the published names, so that a message names what the user has.
    saving.check_tensors(tensors, published_shapes(given), source)
    tensors = _with_fusion_layers(tensors, given, sizes)
    if graph == "corrected" and _OF_THE_CORRECTED_GRAPH not in tensors:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tensors[_OF_THE_CORRECTED_GRAPH] = Background(sizes.embed_dim).weight.detach()
    with torch.device("meta"):
        model = SAN(
            sizes,
            tokenizer=checkpoints.load_tokenizer(folder, source) if folder is not None else None,
            base_id=source if isinstance(state_dict, (str, Path)) else "published SAN",
        )
    saving.fill(model, {key: tensor.clone() for key, tensor in from_openai_names(tensors, _BARE).items()}, source)
    return model


def published_shapes(config: SANConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a published checkpoint of these sizes, by published key, each counted once."""
    import torch

    from vlsm_adapter.models.san import SAN

    with torch.device("meta"):
        state = published_state_dict(SAN(config))
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def published_state_dict(model: SAN, *, aliases: bool = False) -> dict[str, torch.Tensor]:
    """The weights of ``model`` under the published key names, for the published code to load.

    Args:
        aliases: with the two halves of the image encoder, as the published code stores them.

    Raises:
        ModelError: the model carries adapters.
    """
    from vlsm_adapter.models.clip_blocks import to_openai_names

    if model.adapter_configs or any(".base_layer." in name for name in model.state_dict()):
        raise ModelError("the model carries adapters: detach them first")
    state = to_openai_names({name: tensor.detach() for name, tensor in model.state_dict().items()}, _BARE)
    if aliases:
        state |= {alias: state[key] for key, alias in aliases_of(state, model.config.split).items()}
    return state


def aliases_of(keys: Mapping[str, Any], split: int) -> dict[str, str]:
    """Key of each tensor of CLIP's image encoder to the key under which its half repeats it; ``split`` is K."""
    found: dict[str, str] = {}
    for key in keys:
        if not key.startswith(_VISUAL):
            continue
        name = key.removeprefix(_VISUAL)
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if block:
            number = int(block[1])
            half = "clip_visual_extractor" if number < split else "clip_rec_head"
            found[key] = f"{half}.resblocks.{number if number < split else number - split}.{block[2]}"
        else:
            half = "clip_rec_head" if name.startswith(("ln_post.", "proj")) else "clip_visual_extractor"
            found[key] = f"{half}.{name}"
    return found


def _without_aliases(tensors: Mapping[str, Any], split: int, source: str) -> dict[str, torch.Tensor]:
    """The tensors, each once.

    Raises:
        ModelError: an alias has no tensor it stands for, or another content.
    """
    import torch

    for key, tensor in tensors.items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
            raise ModelError(f"{source}: {key!r} is no tensor by name; give the 'state_dict' of the checkpoint")
    once: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        stands_for = _stands_for(key, split)
        if stands_for is None:
            once[key] = tensor.detach()
        elif stands_for not in tensors:
            raise ModelError(f"{source}: has '{key}' without '{stands_for}'; give the whole state dict")
        elif not torch.equal(tensor, tensors[stands_for]):
            raise ModelError(
                f"{source}: '{key}' differs from '{stands_for}', of which it is the same tensor; the file is damaged, "
                f"or config.json has another last_layer_idx than {split}"
            )
    return once


def _stands_for(key: str, split: int) -> str | None:
    """The key of the tensor that an alias repeats; None where ``key`` is no alias."""
    if match := _BLOCK.fullmatch(key):
        number = int(match[2]) + (split if match[1] == "clip_rec_head" else 0)
        return f"{_VISUAL}transformer.resblocks.{number}.{match[3]}"
    if match := _FRONT.fullmatch(key) or _HEAD.fullmatch(key):
        return f"{_VISUAL}{match[1]}{match[2]}"
    return None


def _with_fusion_layers(
    tensors: dict[str, torch.Tensor], before: SANConfig, after: SANConfig
) -> dict[str, torch.Tensor]:
    """The tensors with fusion layers called by the side blocks of ``after``, in the order of ``before``."""
    blocks = {str(old): str(new) for (old, _), (new, _) in zip(before.fusion_map, after.fusion_map, strict=True)}
    return {_FUSION.sub(lambda match: match[1] + blocks[match[2]] + match[3], key): t for key, t in tensors.items()}
