"""CRIS trained with the published code, read into our model.

Key names differ in how attention weights are stacked and in three bare tensors (see
:mod:`vlsm_adapter.models.clip_blocks`); everything else is called alike. A whole published checkpoint may carry all keys
behind one prefix, ``net.``, ``model.`` or ``module.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsm_adapter.errors import ModelError
from vlsm_adapter.interop.reading import read_published, read_sizes, without_prefix

if TYPE_CHECKING:
    import torch

    from vlsm_adapter.models.cris import CRIS, CRISConfig

_BARE = (
    "backbone.positional_embedding",
    "backbone.text_projection",
    "backbone.visual.attnpool.positional_embedding",
)


def cris_from_published(
    config: str | Path | Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor] | str | Path,
    *,
    padding: str = "published",
) -> CRIS:
    """The published CRIS with published weights, in float32.

    Args:
        config: the sizes in the published form (groups ``clip`` and ``cris``), or the path of a ``config.json``, or of
            a folder that holds one. Tokenizer files beside it are used.
        state_dict: tensors by published key, or the path of a checkpoint file, which is read without unpickling objects.
        padding: ``"published"``, or ``"masked"``: the decoder does not see padding.

    Returns:
        The model in evaluation mode, nothing requiring gradients.

    Raises:
        ModelError: a configuration that is no CRIS's, or keys or shapes that do not fit it.
        AdapterError: the file cannot be read.
    """
    import torch

    from vlsm_adapter.models import checkpoints, saving
    from vlsm_adapter.models.clip_blocks import from_openai_names
    from vlsm_adapter.models.cris import CRIS, CRISConfig
    from vlsm_adapter.models.sizes import check_sizes

    folder: Path | None = None
    if isinstance(config, Mapping):
        values, told = config, "config"
    else:
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        values, folder, told = read_sizes(path, "CRIS"), path.parent, str(path)
    sizes = CRISConfig.from_dict(values, padding)
    source = str(state_dict) if isinstance(state_dict, (str, Path)) else "state_dict"
    given = read_published(state_dict) if isinstance(state_dict, (str, Path)) else dict(state_dict)
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in without_prefix(given).items():
        if not (isinstance(key, str) and isinstance(tensor, torch.Tensor)):
            raise ModelError(f"{source}: {key!r} is no tensor by name; give the 'state_dict' of the checkpoint")
        tensors[key] = tensor.detach()
    check_sizes(sizes.in_weights(), tensors, told, source)
    # In the published names, so that a message names what the user has.
    saving.check_tensors(tensors, published_shapes(sizes), source)
    with torch.device("meta"):
        model = CRIS(
            sizes,
            tokenizer=checkpoints.load_tokenizer(folder, source) if folder is not None else None,
            base_id=source if isinstance(state_dict, (str, Path)) else "published CRIS",
        )
    own = {key: tensor.clone() for key, tensor in from_openai_names(tensors, _BARE).items()}
    saving.fill(model, own, source)
    return model


def published_shapes(config: CRISConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a published checkpoint of these sizes, by published key."""
    import torch

    from vlsm_adapter.models.cris import CRIS

    with torch.device("meta"):
        state = published_state_dict(CRIS(config))
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def published_state_dict(model: CRIS) -> dict[str, torch.Tensor]:
    """The weights of ``model`` under the published key names, for the published code to load.

    Raises:
        ModelError: the model carries adapters.
    """
    from vlsm_adapter.models.clip_blocks import to_openai_names

    if model.adapter_configs or any(".base_layer." in name for name in model.state_dict()):
        raise ModelError("the model carries adapters: detach them first")
    return to_openai_names({name: tensor.detach() for name, tensor in model.state_dict().items()}, _BARE)
